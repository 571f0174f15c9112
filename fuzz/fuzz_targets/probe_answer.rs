#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nowconnect_fuzz_targets::probe_answer(data));
