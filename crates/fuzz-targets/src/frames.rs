//! Binary frames of version 2 and the JSON bodies in them.

use bytes::{Bytes, BytesMut};
use nowconnect_proto::frame::{
    self, DATA_OFFSET_LEN, Frame, FrameError, HEADER_LEN, MAX_JSON_BODY, MAX_NAME, MAX_OPTION, kind,
};
use nowconnect_proto::hello::{Body, Hello, HelloAck, Token, TokenAck, Update, UpdateAck};
use nowconnect_proto::mesh_hello::MeshHello;

use crate::tokens::second_reading;

const MAX_PAYLOAD: usize = 65_536;

/// Any bytes as one binary message: frames end where their headers say, nothing in them is longer
/// than its bound, and what was decoded is encoded to what is decoded alike.
pub fn frame(data: &[u8]) {
    let mut message = Bytes::copy_from_slice(data);
    loop {
        let before = message.clone();
        match frame::decode(&mut message, MAX_PAYLOAD) {
            Ok(Some(frame)) => {
                check_bounds(&frame, &before);
                check_round_trip(&frame);
            }
            Ok(None) => return assert!(message.is_empty()),
            Err(error) => return check_refusal(error, &before),
        }
    }
}

/// Whether headers alone say that the decoder was right to stop in `message`: behind frames of
/// unknown types, which it skips, there is one that is cut short, too long, or of a type it knows.
fn check_refusal(error: FrameError, mut message: &[u8]) {
    loop {
        let Some((head, body)) = message.split_at_checked(HEADER_LEN) else {
            return assert_eq!(error, FrameError::Truncated);
        };
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, most) = match head[3] {
            kind::DATA => (kind::DATA, DATA_OFFSET_LEN + MAX_PAYLOAD),
            other => (other, MAX_JSON_BODY),
        };
        if len > most {
            return assert_eq!(error, FrameError::TooLong { kind, len });
        }
        let Some((_, rest)) = body.split_at_checked(len) else {
            return assert_eq!(error, FrameError::Truncated);
        };
        if matches!(kind, kind::HELLO..=kind::ANSWER | kind::OPEN..=kind::DETACH) {
            let here = |k| k == kind;
            return assert!(
                matches!(error, FrameError::Malformed { kind, .. } | FrameError::WrongFlow { kind, .. } if here(kind)),
                "{error}"
            );
        }
        message = rest;
    }
}

fn check_bounds(frame: &Frame, message: &[u8]) {
    match frame {
        Frame::Data { payload, .. } => {
            assert!(payload.len() <= MAX_PAYLOAD && payload.len() < message.len());
            // A payload is a part of the message, never a copy.
            assert!(message.as_ptr_range().contains(&payload.as_ptr()) || payload.is_empty());
        }
        Frame::Open { open, .. } => {
            assert!(open.connector.len() <= MAX_NAME);
            for text in [&open.client, &open.listener, &open.agent, &open.destination] {
                assert!(text.len() <= MAX_OPTION);
            }
        }
        _ => {}
    }
}

fn check_round_trip(frame: &Frame) {
    let (mut once, mut twice) = (BytesMut::new(), BytesMut::new());
    frame.encode(&mut once);
    let mut message = once.clone().freeze();
    let back = frame::decode(&mut message, MAX_PAYLOAD);
    let back = back.expect("our own frame").expect("a frame");
    assert!(message.is_empty());
    back.encode(&mut twice);
    assert_eq!(once, twice);
    // `Debug` shows every field but the secret, which the bytes above hold.
    assert_eq!(format!("{frame:?}"), format!("{back:?}"));
}

/// Any text as a body, of the kind that the first byte names: what is taken is written again to what
/// is read alike, and no error quotes it.
pub fn hello(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else {
        return;
    };
    match kind % 7 {
        0 => body::<Hello>(text),
        1 => body::<HelloAck>(text),
        2 => body::<Update>(text),
        3 => body::<UpdateAck>(text),
        4 => body::<Token>(text),
        5 => body::<TokenAck>(text),
        _ => body::<MeshHello>(text),
    }
}

fn body<B: Body + PartialEq + std::fmt::Debug>(text: &[u8]) {
    match B::decode(text) {
        Ok(body) => {
            let written = body.encode().expect("what was read can be written");
            let read = B::decode(&written).expect("what was written can be read");
            assert_eq!(read, body);
            assert_eq!(read.encode().expect("written again"), written);
            let _ = second_reading(text);
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 200 && !shown.contains('\n'), "{shown}");
        }
    }
}
