//! Whatever answers an upgrade request: an error or a connection, no panic, no more than the header
//! limit in memory.
//!
//! `cargo +nightly fuzz run upgrade_answer`.
#![no_main]

use http::{HeaderMap, Uri};
use libfuzzer_sys::fuzz_target;
use nowconnect_link::upgrade::{Bearer, ClientRequest, UpgradeError, connect};

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let bearer = Bearer::new("hush-hush-hush").unwrap();
    let uri = Uri::from_static("wss://hub.example/tunnel");
    let request = ClientRequest {
        uri: &uri,
        protocols: &["nowconnect.v2"],
        bearer: Some(&bearer),
        user_agent: "fuzz",
        headers: HeaderMap::new(),
    };
    let io = tokio::io::join(data, tokio::io::sink());
    match runtime.block_on(connect(io, &request)) {
        Ok(upgraded) => assert!(upgraded.leftover.len() <= data.len()),
        Err(error @ UpgradeError::Refused { .. }) => {
            let text = error.to_string();
            assert!(!text.contains("hush-hush-hush") && !text.contains('\n'));
        }
        Err(_) => {}
    }
});
