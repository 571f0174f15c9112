//! Messages of version 1.

use nowconnect_proto::Frame;
use nowconnect_proto::frame::MAX_PAYLOAD;
use nowconnect_proto::hello::{Instance, MAX_CONNECTORS, is_name};
use nowconnect_proto::json_v1::Message;
use nowconnect_proto::json_v1::bridge::{Bridge, BridgeConfig, Exchange, Role};

/// Any lines as messages: each alone is written to what is read alike, and all together through the
/// bridge of either side.
pub fn messages(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        match Message::decode(line) {
            Ok(Some(message)) => {
                check_bounds(&message);
                let text = message.encode();
                assert_eq!(Message::decode(text.as_bytes()), Ok(Some(message)));
            }
            Ok(None) => {}
            Err(error) => assert!(error.to_string().len() < 200),
        }
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
        let mut lines = 0;
        for line in data.split(|byte| *byte == b'\n') {
            lines += 1;
            if bridge.receive(line, &mut exchange).is_err() {
                break;
            }
        }
        bridge.on_time(u64::MAX, &mut exchange);
        check_exchange(&exchange, lines);
    }
}

/// A peer's text is answered with one at most, and its flows are counted up from 1.
fn check_exchange(exchange: &Exchange, lines: usize) {
    assert!(exchange.texts.len() <= lines);
    let is_message = |text: &String| matches!(Message::decode(text.as_bytes()), Ok(Some(_)));
    assert!(exchange.texts.iter().all(is_message));
    let opened = exchange.frames.iter().filter_map(|frame| match frame {
        Frame::Open { id, .. } => Some(id.0),
        _ => None,
    });
    assert!((1..).zip(opened).all(|(number, id)| number == id));
}

fn check_bounds(message: &Message) {
    match message {
        Message::Hello {
            agent_id,
            connectors,
            ver,
        } => {
            assert!(is_name(agent_id) && ver.len() <= 64);
            assert!(connectors.len() <= MAX_CONNECTORS && connectors.iter().all(|n| is_name(n)));
        }
        Message::Open { connector, .. } => assert!(is_name(connector)),
        Message::Data { payload, .. } => assert!(payload.len() <= MAX_PAYLOAD),
        Message::Rst { err, .. } => assert!(err.len() <= 64),
        Message::HelloAck { .. } | Message::Fin { .. } => {}
    }
}
