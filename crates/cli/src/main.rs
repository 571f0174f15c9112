//! The `nowconnect` binary.

fn main() {}
