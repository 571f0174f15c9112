//! The codec against the RFC, byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in test helpers

use bytes::{Bytes, BytesMut};
use nowconnect_link::ws::{
    Batch, CloseFrame, Decoder, Limits, MAX_HEADER, Mask, Message, Opcode, Role, WsError,
    apply_mask, header, write_close, write_message,
};
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    max_frame: 70_000,
    max_message: 100_000,
};
const MASKED_HELLO: [u8; 11] = [
    0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
];

fn decoder(role: Role) -> Decoder {
    Decoder::new(role, LIMITS)
}

/// Feeds `wire` in pieces of `step` bytes.
fn decode_by(decoder: &mut Decoder, wire: &[u8], step: usize) -> Result<Vec<Message>, WsError> {
    let mut buf = BytesMut::new();
    let mut messages = Vec::new();
    for piece in wire.chunks(step) {
        buf.extend_from_slice(piece);
        while let Some(message) = decoder.decode(&mut buf)? {
            messages.push(message);
        }
        assert!(
            decoder.missing(&buf) > 0 || buf.is_empty(),
            "a decoder that waits says for what"
        );
    }
    Ok(messages)
}

fn decode(role: Role, wire: &[u8]) -> Result<Vec<Message>, WsError> {
    decode_by(&mut decoder(role), wire, wire.len().max(1))
}

fn text(text: &'static str) -> Message {
    Message::Text(text.into())
}

fn binary(len: usize) -> Message {
    Message::Binary(Bytes::from(vec![7; len]))
}

#[test]
fn rfc_6455_section_5_7_examples_decode_at_every_split() {
    let mut kib64 = vec![0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0];
    kib64.resize(kib64.len() + 65_536, 7);
    let mut b256 = vec![0x82, 0x7E, 1, 0];
    b256.resize(b256.len() + 256, 7);
    let cases: Vec<(Role, Vec<u8>, Message)> = vec![
        (Role::Client, b"\x81\x05Hello".to_vec(), text("Hello")),
        (Role::Server, MASKED_HELLO.to_vec(), text("Hello")),
        (
            Role::Client,
            b"\x01\x03Hel\x80\x02lo".to_vec(),
            text("Hello"),
        ),
        (
            Role::Client,
            b"\x89\x05Hello".to_vec(),
            Message::Ping(Bytes::from_static(b"Hello")),
        ),
        (
            Role::Server,
            [&[0x8A], &MASKED_HELLO[1..]].concat(),
            Message::Pong(Bytes::from_static(b"Hello")),
        ),
        (Role::Client, b256, binary(256)),
        (Role::Client, kib64, binary(65_536)),
    ];
    for (role, wire, expected) in cases {
        for step in (1..wire.len().min(300)).chain([wire.len()]) {
            let messages = decode_by(&mut decoder(role), &wire, step).unwrap();
            assert_eq!(
                messages,
                std::slice::from_ref(&expected),
                "in steps of {step}"
            );
        }
    }
}

#[test]
fn missing_counts_down_to_the_message() {
    let mut decoder = decoder(Role::Server);
    let mut buf = BytesMut::new();
    assert_eq!(decoder.missing(&buf), 2);
    for (at, byte) in MASKED_HELLO.iter().enumerate() {
        buf.extend_from_slice(&[*byte]);
        let message = decoder.decode(&mut buf).unwrap();
        let missing = match at {
            0 => 1,           // second byte
            1..=4 => 5 - at,  // masking key
            5..=9 => 10 - at, // payload
            _ => 2,           // the next header
        };
        assert_eq!(
            (message.is_some(), decoder.missing(&buf)),
            (at == 10, missing),
            "at {at}"
        );
    }
}

#[test]
fn control_frames_between_fragments_come_first() {
    let wire = b"\x02\x01a\x89\x01p\x00\x01b\x8a\x00\x80\x01c";
    assert_eq!(
        decode(Role::Client, wire).unwrap(),
        [
            Message::Ping(Bytes::from_static(b"p")),
            Message::Pong(Bytes::new()),
            Message::Binary(Bytes::from_static(b"abc")),
        ]
    );
}

#[test]
fn protocol_errors_are_found_in_the_header() {
    use WsError::*;
    let client: &[(&[u8], WsError)] = &[
        (&[0xC2, 0], ReservedBits),
        (&[0xA2, 0], ReservedBits),
        (&[0x92, 0], ReservedBits),
        (&[0x83, 0], ReservedOpcode(3)),
        (&[0x8F, 0], ReservedOpcode(15)),
        (&[0x82, 0x80], Masked),
        (&[0x82, 126, 0, 125], LongForm(125)),
        (&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], LongForm(65_535)),
        (&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], LongForm(1 << 63)),
        (&[0x09, 0], FragmentedControl),
        (&[0x89, 126], LongControl),
        (&[0x88, 127], LongControl),
        (&[0x80, 0], NothingToContinue),
        (&[0x00, 0], NothingToContinue),
        (&[0x02, 1, 7, 0x82, 0], MessageUnfinished),
        (
            &[0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x71],
            TooLong {
                length: 70_001,
                limit: 70_000,
            },
        ),
        (
            &[0x82, 127, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
            TooLong {
                length: u64::MAX >> 1,
                limit: 70_000,
            },
        ),
        (&[0x88, 1, 3], BadClose),
    ];
    for (wire, expected) in client {
        for step in 1..=wire.len() {
            assert_eq!(
                decode_by(&mut decoder(Role::Client), wire, step),
                Err(*expected)
            );
        }
    }
    assert_eq!(decode(Role::Server, &[0x82, 0]), Err(NotMasked));
}

#[test]
fn nothing_is_reserved_for_a_length_that_is_only_announced() {
    let mut buf = BytesMut::from(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70][..]);
    let capacity = buf.capacity();
    let mut decoder = decoder(Role::Client);
    assert_eq!(decoder.decode(&mut buf), Ok(None));
    assert_eq!(decoder.missing(&buf), 70_000);
    assert!(buf.capacity() <= capacity);
}

#[test]
fn fragments_together_stay_within_the_message_limit() {
    let mut wire = vec![0x02, 127, 0, 0, 0, 0, 0, 1, 0, 0];
    wire.resize(wire.len() + 65_536, 7);
    let fits = wire.len();
    wire.extend_from_slice(&[0x80, 126, 0x86, 0xA0]); // 34464, the rest of 100000
    assert_eq!(decode(Role::Client, &wire), Ok(vec![]));
    wire[fits + 3] += 1;
    let error = WsError::TooLong {
        length: 100_001,
        limit: 100_000,
    };
    assert_eq!(decode(Role::Client, &wire), Err(error));
    assert_eq!(error.close_code(), 1009);
}

#[test]
fn a_flood_of_empty_fragments_ends() {
    let mut wire = vec![0x02, 0];
    wire.extend([0x00, 0].repeat(5000));
    let error = decode(Role::Client, &wire).unwrap_err();
    assert_eq!(
        (error, error.close_code()),
        (WsError::TooManyFragments(4096), 1008)
    );
}

#[test]
fn text_is_checked_as_it_comes() {
    assert_eq!(
        decode(Role::Client, b"\x81\x02\xC3\x28"),
        Err(WsError::NotUtf8)
    );
    assert_eq!(decode(Role::Client, b"\x81\x01\xC3"), Err(WsError::NotUtf8));
    // A character cut by a fragment border is fine, unless the message ends in it.
    assert_eq!(
        decode(Role::Client, b"\x01\x02a\xC3\x80\x01\xA9"),
        Ok(vec![text("aé")])
    );
    assert_eq!(
        decode(Role::Client, b"\x01\x02a\xC3\x80\x00"),
        Err(WsError::NotUtf8)
    );
    // Bad bytes are refused before the message ends.
    assert_eq!(decode(Role::Client, b"\x01\x01\xFF"), Err(WsError::NotUtf8));
    assert_eq!(WsError::NotUtf8.close_code(), 1007);
}

#[test]
fn close_frames() {
    assert_eq!(
        decode(Role::Client, &[0x88, 0]),
        Ok(vec![Message::Close(None)])
    );
    let going = CloseFrame {
        code: 1001,
        reason: "bye".into(),
    };
    assert_eq!(
        decode(Role::Client, b"\x88\x05\x03\xE9bye"),
        Ok(vec![Message::Close(Some(going))])
    );
    assert_eq!(
        decode(Role::Client, b"\x88\x03\x03\xE8\xFF"),
        Err(WsError::NotUtf8)
    );
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        let wire = [&[0x88, 2][..], &code.to_be_bytes()].concat();
        assert_eq!(
            decode(Role::Client, &wire),
            Err(WsError::BadClose),
            "{code}"
        );
    }
    for code in [1000_u16, 1003, 1007, 1014, 3000, 4999] {
        let wire = [&[0x88, 2][..], &code.to_be_bytes()].concat();
        assert!(decode(Role::Client, &wire).is_ok(), "{code}");
    }
}

#[test]
fn what_follows_a_close_is_ignored_and_dropped() {
    let mut decoder = decoder(Role::Client);
    let mut buf = BytesMut::from(&[0x88, 0, 0xFF, 0xFF][..]);
    assert_eq!(decoder.decode(&mut buf), Ok(Some(Message::Close(None))));
    assert_eq!(decoder.decode(&mut buf), Ok(None));
    assert!(buf.is_empty());
}

#[test]
fn an_error_is_final() {
    let mut decoder = decoder(Role::Client);
    let mut buf = BytesMut::from(&[0xFF, 0][..]);
    assert_eq!(decoder.decode(&mut buf), Err(WsError::ReservedBits));
    let mut good = BytesMut::from(&b"\x81\x00"[..]);
    assert_eq!(decoder.decode(&mut good), Err(WsError::ReservedBits));
}

#[test]
fn headers_are_as_short_as_can_be() {
    let key = Some([1, 2, 3, 4]);
    type Case<'a> = (usize, Option<[u8; 4]>, &'a [u8]);
    let cases: &[Case<'_>] = &[
        (0, None, &[0x82, 0]),
        (125, None, &[0x82, 125]),
        (126, None, &[0x82, 126, 0, 126]),
        (65_535, None, &[0x82, 126, 0xFF, 0xFF]),
        (65_536, None, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        (5, key, &[0x82, 0x85, 1, 2, 3, 4]),
        (300, key, &[0x82, 0xFE, 1, 44, 1, 2, 3, 4]),
        (
            65_536,
            key,
            &[0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4],
        ),
    ];
    for (len, mask, expected) in cases {
        let header = header(Opcode::Binary, *len, *mask);
        assert_eq!(&header[..], *expected);
        assert!(header.len() <= MAX_HEADER);
    }
}

#[test]
fn a_long_close_reason_is_cut_at_a_character() {
    let mut out = BytesMut::new();
    write_close(&mut out, 1008, &"é".repeat(100), Mask::None);
    let expected = CloseFrame {
        code: 1008,
        reason: "é".repeat(61).into(),
    };
    assert_eq!(
        decode(Role::Client, &out),
        Ok(vec![Message::Close(Some(expected))])
    );
}

#[test]
fn an_empty_batch_can_be_taken_back() {
    let mut out = BytesMut::from(&b"before"[..]);
    let batch = Batch::open(&mut out);
    assert!(batch.is_empty(&out));
    batch.discard(&mut out);
    assert_eq!(&out[..], b"before");
}

fn any_mask() -> impl Strategy<Value = Mask> {
    prop_oneof![Just(Mask::None), Just(Mask::Zero), Just(Mask::Random)]
}

fn receiver(mask: Mask) -> Role {
    if mask == Mask::None {
        Role::Client
    } else {
        Role::Server
    }
}

fn any_message() -> impl Strategy<Value = Message> {
    let len = prop_oneof![4 => 0..200_usize, 1 => 65_000..66_000_usize];
    prop_oneof![
        len.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len))
            .prop_map(|bytes| Message::Binary(bytes.into())),
        ".{0,300}".prop_map(|text| Message::Text(text.into())),
        prop::collection::vec(any::<u8>(), 0..=125).prop_map(|p| Message::Ping(p.into())),
        prop::collection::vec(any::<u8>(), 0..=125).prop_map(|p| Message::Pong(p.into())),
    ]
}

fn write(out: &mut BytesMut, message: &Message, mask: Mask) {
    match message {
        Message::Binary(bytes) => write_message(out, Opcode::Binary, bytes, mask),
        Message::Text(text) => write_message(out, Opcode::Text, text.as_bytes(), mask),
        Message::Ping(bytes) => write_message(out, Opcode::Ping, bytes, mask),
        Message::Pong(bytes) => write_message(out, Opcode::Pong, bytes, mask),
        Message::Close(_) => write_close(out, 1000, "", mask),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        messages in prop::collection::vec(any_message(), 0..8),
        mask in any_mask(),
        step in 1..5000_usize,
    ) {
        let mut out = BytesMut::new();
        for message in &messages {
            write(&mut out, message, mask);
        }
        prop_assert_eq!(decode_by(&mut decoder(receiver(mask)), &out, step), Ok(messages));
    }

    /// Batches behind other messages, with and without payload outside of the buffer.
    #[test]
    fn batches_are_read_as_one_message(
        before in prop::option::of(any_message()),
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..400),
        mask in any_mask(),
    ) {
        let mut out = BytesMut::new();
        if let Some(message) = &before {
            write(&mut out, message, mask);
        }
        let batch = Batch::open(&mut out);
        for part in &parts {
            out.extend_from_slice(part);
        }
        let inside = parts.concat();
        prop_assert_eq!(batch.len(&out), inside.len());
        let key = batch.seal(&mut out, Opcode::Binary, tail.len(), mask);
        prop_assert_eq!(key.is_some(), mask != Mask::None);
        let mut sent_tail = tail.clone();
        if !mask.is_transparent() {
            apply_mask(&mut sent_tail, key.unwrap(), inside.len());
        }
        out.extend_from_slice(&sent_tail);

        let whole = Message::Binary([inside, tail].concat().into());
        let expected: Vec<_> = before.into_iter().chain([whole]).collect();
        prop_assert_eq!(decode(receiver(mask), &out), Ok(expected));
    }

    #[test]
    fn masking_is_what_the_rfc_says(
        payload in prop::collection::vec(any::<u8>(), 0..100),
        key in any::<[u8; 4]>(),
        offset in 0..9_usize,
    ) {
        let mut masked = payload.clone();
        apply_mask(&mut masked, key, offset);
        let plain: Vec<u8> =
            payload.iter().enumerate().map(|(i, byte)| byte ^ key[(i + offset) % 4]).collect();
        prop_assert_eq!(masked, plain);
    }
}
