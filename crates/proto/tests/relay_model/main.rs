//! Two ends of a flow with a hub in the middle of every path between them: the relay against a
//! reference model, over random interleavings of bytes, credit, FIN, RST, links lost one at a time
//! or both, moves to another path, refusals, backpressure and room that grows and shrinks.
//!
//! `NOWCONNECT_FLOW_CASES` sets the number of cases of each property (default 100,000).

#![allow(clippy::expect_used, clippy::panic)]

#[path = "../model/end.rs"]
mod end;
mod path;
mod world;

use proptest::prelude::*;
use world::{Rules, run};

fn cases() -> u32 {
    std::env::var("NOWCONNECT_FLOW_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000)
}

fn ops() -> impl Strategy<Value = Vec<(u8, u16)>> {
    prop::collection::vec((0..world::OPS, any::<u16>()), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Whatever happens to the links, each direction's bytes arrive exactly once and in order.
    #[test]
    fn bytes_survive_every_lost_link(ops in ops()) {
        run(&ops, Rules { aborts: false, v1: false });
    }

    /// The same where either end may also give up: then the other learns of it.
    #[test]
    fn an_abort_passes_through(ops in ops()) {
        run(&ops, Rules { aborts: true, v1: false });
    }

    /// A version 1 agent confirms nothing and resumes nothing; its relays end all the same.
    #[test]
    fn relays_to_version_1_end(ops in ops()) {
        run(&ops, Rules { aborts: true, v1: true });
    }
}
