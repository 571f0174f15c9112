//! The codec against tungstenite's: the same bytes must mean the same to both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in test helpers

use std::io::{self, Read, Write};

use bytes::BytesMut;
use nowconnect_link::ws::{self, Decoder, Limits, Mask, Message, Opcode, WsError};
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message as Theirs, WebSocket};

const LIMITS: Limits = Limits {
    max_frame: 1000,
    max_message: 1500,
};

/// A stream that reads from a slice, then would block, and keeps what is written.
struct Memory<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Read for Memory<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buf)
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn theirs(role: Role, input: &[u8]) -> WebSocket<Memory<'_>> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_frame_size(Some(LIMITS.max_frame))
        .max_message_size(Some(LIMITS.max_message));
    WebSocket::from_raw_socket(
        Memory {
            input,
            output: Vec::new(),
        },
        role,
        Some(config),
    )
}

fn converted(message: Theirs) -> Message {
    match message {
        Theirs::Binary(bytes) => Message::Binary(bytes),
        Theirs::Text(text) => Message::Text(text.as_str().to_owned().into()),
        Theirs::Ping(bytes) => Message::Ping(bytes),
        Theirs::Pong(bytes) => Message::Pong(bytes),
        Theirs::Close(close) => Message::Close(close.map(|frame| ws::CloseFrame {
            code: frame.code.into(),
            reason: frame.reason.as_str().to_owned().into(),
        })),
        Theirs::Frame(_) => unreachable!("only written, never read"),
    }
}

/// How reading ended after the last message.
#[derive(Debug, PartialEq)]
enum End<E> {
    Waiting,
    Closed,
    Failed(E),
}

fn read_theirs(role: Role, wire: &[u8]) -> (Vec<Message>, End<Error>) {
    let mut socket = theirs(role, wire);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message @ Theirs::Close(_)) => {
                messages.push(converted(message));
                return (messages, End::Closed);
            }
            Ok(message) => messages.push(converted(message)),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (messages, End::Waiting);
            }
            Err(error) => return (messages, End::Failed(error)),
        }
    }
}

fn read_ours(role: ws::Role, wire: &[u8], step: usize) -> (Vec<Message>, End<WsError>) {
    let mut decoder = Decoder::new(role, LIMITS);
    let mut buf = BytesMut::new();
    let mut messages = Vec::new();
    for piece in wire.chunks(step) {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf) {
                Ok(None) => break,
                Ok(Some(message @ Message::Close(_))) => {
                    messages.push(message);
                    return (messages, End::Closed);
                }
                Ok(Some(message)) => messages.push(message),
                Err(error) => return (messages, End::Failed(error)),
            }
        }
    }
    (messages, End::Waiting)
}

#[derive(Debug, Clone)]
struct RawFrame {
    first: u8,
    mask: Option<[u8; 4]>,
    length_form: u8,
    payload: Vec<u8>,
}

impl RawFrame {
    fn write(&self, out: &mut Vec<u8>) {
        let len = self.payload.len();
        let mask_bit = if self.mask.is_some() { 0x80 } else { 0 };
        let form = self.length_form.max(match len {
            0..126 => 0,
            126..65_536 => 1,
            _ => 2,
        });
        out.push(self.first);
        match form {
            0 => out.push(mask_bit | len as u8),
            1 => {
                out.push(mask_bit | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            _ => {
                out.push(mask_bit | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let key = self.mask.unwrap_or_default();
        out.extend_from_slice(&key[..if self.mask.is_some() { 4 } else { 0 }]);
        out.extend(
            self.payload
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ key[at % 4]),
        );
    }
}

/// Mostly sound frames, so that runs get past the first; every field is wrong now and then.
fn any_frame(masked: bool) -> impl Strategy<Value = RawFrame> {
    let opcode = prop_oneof![
        4 => Just(0_u8), 4 => Just(1), 4 => Just(2), 1 => Just(8), 2 => Just(9), 2 => Just(10),
        1 => 0..16_u8,
    ];
    let fin = prop_oneof![3 => Just(0x80_u8), 2 => Just(0)];
    let rsv = prop_oneof![60 => Just(0_u8), 1 => 0..8_u8];
    let key = prop_oneof![Just([0_u8; 4]), any::<[u8; 4]>()];
    let masked = prop_oneof![60 => Just(masked), 1 => Just(!masked)];
    let form = prop_oneof![60 => Just(0_u8), 1 => 0..3_u8];
    let payload = prop_oneof![
        4 => "[a-zé€😀]{0,20}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..6),
        1 => (prop_oneof![Just(1000_u16), 999..1017_u16, 2990..5010_u16], "[a-z]{0,9}")
            .prop_map(|(code, reason)| [&code.to_be_bytes()[..], reason.as_bytes()].concat()),
        1 => prop::collection::vec(Just(b'x'), 100..1100),
    ];
    (fin, rsv, opcode, masked, key, form, payload).prop_map(
        |(fin, rsv, opcode, masked, key, length_form, payload)| RawFrame {
            // Control frames are final far more often than not.
            first: (if opcode & 8 != 0 && rsv == 0 {
                0x80
            } else {
                fin
            }) | rsv << 4
                | opcode,
            mask: masked.then_some(key),
            length_form,
            payload,
        },
    )
}

fn any_wire(masked: bool) -> impl Strategy<Value = Vec<u8>> {
    (
        prop::collection::vec(any_frame(masked), 1..12),
        prop::option::weighted(0.2, 0..30_usize),
    )
        .prop_map(|(frames, cut)| {
            let mut wire = Vec::new();
            for frame in frames {
                frame.write(&mut wire);
            }
            wire.truncate(wire.len().saturating_sub(cut.unwrap_or(0)));
            wire
        })
}

fn compare(role: ws::Role, wire: &[u8], step: usize) -> Result<(), TestCaseError> {
    let their_role = match role {
        ws::Role::Client => Role::Client,
        ws::Role::Server => Role::Server,
    };
    let (ours, our_end) = read_ours(role, wire, step);
    let (mut theirs, their_end) = read_theirs(their_role, wire);
    match (&our_end, &their_end) {
        // We insist on the shortest length (RFC 6455 section 5.2), they do not.
        (End::Failed(WsError::LongForm(_) | WsError::LongControl), _) => {
            theirs.truncate(ours.len());
        }
        // They turn a forbidden code into 1002 and call it a close; we call it an error.
        (End::Failed(WsError::BadClose), End::Closed) => {
            theirs.pop();
        }
        // They do not know 1014 (registered after the RFC).
        (End::Closed, End::Closed) => {
            if let Some(Message::Close(Some(frame))) = ours.last()
                && frame.code == 1014
            {
                theirs.pop();
                theirs.push(Message::Close(Some(frame.clone())));
            }
        }
        // We judge a header when it is there, they when the payload is there too.
        (End::Failed(_), End::Waiting | End::Failed(_)) => {}
        (ours, theirs) => {
            let same = matches!((ours, theirs), (End::Waiting, End::Waiting));
            prop_assert!(same, "we: {:?}, they: {:?}", ours, theirs);
        }
    }
    prop_assert_eq!(ours, theirs);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_server_reads_what_tungstenite_reads(wire in any_wire(true), step in 1..2000_usize) {
        compare(ws::Role::Server, &wire, step)?;
    }

    #[test]
    fn a_client_reads_what_tungstenite_reads(wire in any_wire(false), step in 1..2000_usize) {
        compare(ws::Role::Client, &wire, step)?;
    }

    #[test]
    fn tungstenite_reads_what_we_write(
        payloads in prop::collection::vec((any::<bool>(), "[a-zé]{0,300}"), 0..6),
        mask in prop_oneof![Just(Mask::None), Just(Mask::Zero), Just(Mask::Random)],
    ) {
        let mut out = BytesMut::new();
        let mut expected = Vec::new();
        for (is_text, text) in payloads {
            let opcode = if is_text { Opcode::Text } else { Opcode::Binary };
            ws::write_message(&mut out, opcode, text.as_bytes(), mask);
            expected.push(match opcode {
                Opcode::Text => Message::Text(text.into()),
                _ => Message::Binary(text.into()),
            });
        }
        ws::write_close(&mut out, 1001, "done", mask);
        expected.push(Message::Close(Some(ws::CloseFrame { code: 1001, reason: "done".into() })));
        let role = if mask == Mask::None { Role::Client } else { Role::Server };
        let (messages, end) = read_theirs(role, &out);
        prop_assert!(matches!(end, End::Closed), "{:?}", end);
        prop_assert_eq!(messages, expected);
    }

    #[test]
    fn we_read_what_tungstenite_writes(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..900), 0..6),
        is_server in any::<bool>(),
        step in 1..2000_usize,
    ) {
        let (role, our_role) = if is_server {
            (Role::Server, ws::Role::Client)
        } else {
            (Role::Client, ws::Role::Server)
        };
        let mut socket = theirs(role, &[]);
        for payload in &payloads {
            socket.send(Theirs::Binary(payload.clone().into())).unwrap();
        }
        socket.close(None).unwrap();
        let wire = &socket.get_ref().output;
        let (messages, end) = read_ours(our_role, wire, step);
        let expected: Vec<_> = payloads
            .into_iter()
            .map(|payload| Message::Binary(payload.into()))
            .chain([Message::Close(None)])
            .collect();
        prop_assert_eq!(end, End::Closed);
        prop_assert_eq!(messages, expected);
    }
}
