//! The whole picture under faults, simulated: three hubs, their mesh, agents with a tunnel to every
//! hub, clients, and the registry that the hubs share. No socket, no thread, no clock: everything
//! that happens is drawn from one seed, so what failed once fails again.
//!
//! ```text
//! cargo test -p nowconnect-hub --test simulation                            # 200 seeds
//! NOWCONNECT_SIM_SEEDS=5000 cargo test -p nowconnect-hub --test simulation  # more of them
//! NOWCONNECT_SIM_SEED=17 cargo test -p nowconnect-hub --test simulation -- --nocapture
//!                                                                           # one, with what happens in it
//! ```
//!
//! Faults: connections cut (noticed at once, later, or by nobody but the keepalive), gone dead in one
//! direction, or held for seconds; hubs and agents killed, and stopped and continued (what was sent to
//! them waits); hubs drained; the registry slow, down, flushed, or back from an old copy, its
//! notifications lost; a second process under the id of a living agent; flows shed, targets that
//! refuse, clients and targets that give up.
//!
//! What is checked: every byte arrives once and in order, at the right client and target, or the flow
//! is reset; no reset blames the protocol; what a process is granted anew is above every epoch that it
//! was told; when the faults stop, all flows come to an end, nobody keeps anything of them, and every
//! hub's routes are the truth.
//!
//! What runs is the product where it has no I/O inside: `proto`'s flow, relay, frames, keepalive and
//! backoff, and the hub's rules for claims, owners, rivals and routes ([`rules`]). The rest is modelled
//! here, as small as it can be: links that give flows their turns ([`net`]), which path a hub chooses
//! ([`router`]), what an agent does about OPEN and about its tunnels ([`agent`]), and what Redis keeps
//! ([`store`]).

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod agent;
mod ends;
mod faults;
mod hub;
mod net;
mod random;
mod router;
mod rules;
mod store;
mod traffic;
mod verdict;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use verdict::Tally;
use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn everything_converges_when_faults_stop() {
    if let Some(seed) = number("NOWCONNECT_SIM_SEED") {
        let tally = World::new(seed, true).run();
        println!("{tally:?}");
        return;
    }
    let mut total = Tally::default();
    for seed in 0..number("NOWCONNECT_SIM_SEEDS").unwrap_or(200) {
        match catch_unwind(AssertUnwindSafe(|| World::new(seed, false).run())) {
            Ok(tally) => total.add(&tally),
            Err(panic) => {
                eprintln!(
                    "seed {seed} failed; to see what happens in it:\n\
                     NOWCONNECT_SIM_SEED={seed} cargo test -p nowconnect-hub --test simulation -- --nocapture"
                );
                resume_unwind(panic);
            }
        }
    }
    println!("{total:?}");
    total.check_that_something_happened();
}
