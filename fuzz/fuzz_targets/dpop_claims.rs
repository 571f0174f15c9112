#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz_targets::dpop_claims(data));
