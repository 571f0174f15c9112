//! The reference model of the flow engine, steered by the fuzzer: three bytes are one operation.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/proto/tests/flow_model/world.rs"]
mod world;

fuzz_target!(|data: &[u8]| {
    let (aborts, data) = data.split_first().map_or((false, data), |(first, rest)| (first & 1 == 1, rest));
    let ops: Vec<(u8, u16)> = data
        .chunks_exact(3)
        .take(400)
        .map(|op| (op[0] % 27, u16::from_be_bytes([op[1], op[2]])))
        .collect();
    world::run(&ops, aborts);
});
