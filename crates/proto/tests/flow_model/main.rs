//! Two ends of a flow against a reference model, over random interleavings of bytes, credits, FIN,
//! RST, cuts at any byte, attaches, refusals, and duplicated and stale frames.
//!
//! `NOWCONNECT_FLOW_CASES` sets the number of cases of each property (default 100,000).

#![allow(clippy::expect_used, clippy::panic)]

#[path = "../model/end.rs"]
mod end;
mod world;

use proptest::prelude::*;
use world::run;

fn cases() -> u32 {
    std::env::var("NOWCONNECT_FLOW_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Whatever happens to the path, each direction's bytes arrive exactly once and in order.
    #[test]
    fn bytes_survive_every_cut(ops in prop::collection::vec((0u8..27, any::<u16>()), 1..120)) {
        run(&ops, false);
    }

    /// The same where either end may also give up: then the other learns of it.
    #[test]
    fn an_abort_reaches_the_other_end(ops in prop::collection::vec((0u8..27, any::<u16>()), 1..120)) {
        run(&ops, true);
    }
}
