//! The reference model of the flow engine, steered by the fuzzer: three bytes are one operation.

use crate::end;

#[path = "../../proto/tests/flow_model/world.rs"]
mod world;

/// Runs both ends of a flow; the first byte says whether they may give up.
pub fn run(data: &[u8]) {
    let (first, data) = data.split_first().unwrap_or((&0, data));
    let ops: Vec<(u8, u16)> = data
        .chunks_exact(3)
        .take(400)
        .map(|op| (op[0] % 27, u16::from_be_bytes([op[1], op[2]])))
        .collect();
    world::run(&ops, first & 1 == 1);
}
