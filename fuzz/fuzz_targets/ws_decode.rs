//! Any bytes as a WebSocket stream, in one piece and split anywhere: the same messages or the same
//! error, and never more held than the limits allow.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use nowconnect_link::ws::{Decoder, Limits, Message, Role, WsError};

const LIMITS: Limits = Limits { max_frame: 4096, max_message: 8192 };

fn decode(role: Role, pieces: &[&[u8]]) -> (Vec<Message>, Option<WsError>) {
    let mut decoder = Decoder::new(role, LIMITS);
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        assert!(decoder.held() <= LIMITS.max_message);
    }
    (messages, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((split, data)) = data.split_first() else { return };
    let at = usize::from(*split) % (data.len() + 1);
    for role in [Role::Client, Role::Server] {
        let whole = decode(role, &[data]);
        let parts = decode(role, &[&data[..at], &data[at..]]);
        assert_eq!(format!("{whole:?}"), format!("{parts:?}"));
    }
});
