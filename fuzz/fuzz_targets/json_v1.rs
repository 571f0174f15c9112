//! Any text as a message of version 1, alone and through the bridge of either side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nowconnect_proto::hello::Instance;
use nowconnect_proto::json_v1::Message;
use nowconnect_proto::json_v1::bridge::{Bridge, BridgeConfig, Exchange, Role};

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(message)) = Message::decode(data) {
        let text = message.encode();
        assert_eq!(Message::decode(text.as_bytes()).expect("own text"), Some(message));
    }
    for role in [Role::Hub, Role::Agent] {
        let mut bridge = Bridge::new(BridgeConfig {
            role,
            instance: Instance(1),
            max_payload: 65_536,
            queue_depth: 4,
            queue_bytes: 65_536,
            consent_ms: 10,
            ping_ms: (5000, 10_000),
        });
        let mut exchange = Exchange::default();
        for line in data.split(|byte| *byte == b'\n') {
            if bridge.receive(line, &mut exchange).is_err() {
                break;
            }
        }
        bridge.on_time(u64::MAX, &mut exchange);
    }
});
