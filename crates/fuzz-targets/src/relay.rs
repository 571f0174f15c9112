//! The reference model of the relay, steered by the fuzzer: three bytes are one operation.

use crate::end;

#[path = "../../proto/tests/relay_model/path.rs"]
mod path;
#[path = "../../proto/tests/relay_model/world.rs"]
mod world;

/// Runs a flow through hubs in the middle of its paths; the first byte sets the rules.
pub fn run(data: &[u8]) {
    let (first, data) = data.split_first().unwrap_or((&0, data));
    let rules = world::Rules {
        aborts: first & 1 == 1,
        v1: first & 2 == 2,
    };
    let ops: Vec<(u8, u16)> = data
        .chunks_exact(3)
        .take(400)
        .map(|op| (op[0] % world::OPS, u16::from_be_bytes([op[1], op[2]])))
        .collect();
    world::run(&ops, rules);
}
