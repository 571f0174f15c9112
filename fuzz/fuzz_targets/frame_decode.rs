//! Any bytes as a binary message: no panic, no standstill, and what decodes encodes to what
//! decodes alike.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use nowconnect_proto::frame::{self, Frame};
use nowconnect_proto::hello::{Body, Hello, HelloAck, Token, TokenAck, Update, UpdateAck};

const MAX_PAYLOAD: usize = 65_536;

fuzz_target!(|data: &[u8]| {
    let mut message = Bytes::copy_from_slice(data);
    while let Ok(Some(frame)) = frame::decode(&mut message, MAX_PAYLOAD) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let mut again = out.clone().freeze();
        let back = frame::decode(&mut again, MAX_PAYLOAD).expect("decodes").expect("a frame");
        let mut twice = BytesMut::new();
        back.encode(&mut twice);
        assert_eq!(out, twice);
        match frame {
            Frame::Hello(body) => drop(Hello::decode(&body)),
            Frame::HelloAck(body) => drop(HelloAck::decode(&body)),
            Frame::Update(body) => drop(Update::decode(&body)),
            Frame::UpdateAck(body) => drop(UpdateAck::decode(&body)),
            Frame::Token(body) => drop(Token::decode(&body)),
            Frame::TokenAck(body) => drop(TokenAck::decode(&body)),
            _ => {}
        }
    }
});
