//! Whatever a peer sends: no panic, no growth beyond the limits, and the same messages as
//! tungstenite reads, however the bytes are cut.
//!
//! `cargo +nightly fuzz run ws_decode`. The first byte chooses the role and the
//! size of the pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nowconnect_link::ws::Role;

#[path = "../../crates/link/tests/ws_differential/oracle.rs"]
mod oracle;

fuzz_target!(|data: &[u8]| {
    let Some((&first, wire)) = data.split_first() else {
        return;
    };
    let role = if first & 1 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let step = usize::from(first >> 1) + 1;
    oracle::assert_same(role, wire, step);
    assert_eq!(
        oracle::read_ours(role, wire, step),
        oracle::read_ours(role, wire, usize::MAX)
    );
});
