//! The reference model of the relay, steered by the fuzzer: three bytes are one operation.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/proto/tests/relay_model/end.rs"]
mod end;
#[path = "../../crates/proto/tests/relay_model/path.rs"]
mod path;
#[path = "../../crates/proto/tests/relay_model/world.rs"]
mod world;

fuzz_target!(|data: &[u8]| {
    let (rules, data) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    let rules = world::Rules {
        aborts: rules & 1 == 1,
        v1: rules & 2 == 2,
    };
    let ops: Vec<(u8, u16)> = data
        .chunks_exact(3)
        .take(400)
        .map(|op| (op[0] % world::OPS, u16::from_be_bytes([op[1], op[2]])))
        .collect();
    world::run(&ops, rules);
});
