//! Reads bytes with our codec and with tungstenite's and says whether both understood the same.
//! Used by the property tests and by the fuzzer.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use nowconnect_link::ws::{self, Decoder, Limits, Message, WsError};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message as Theirs, WebSocket};

/// Small, so that they are met.
pub(crate) const LIMITS: Limits = Limits {
    max_frame: 1000,
    max_message: 1500,
};

/// A stream that reads from a slice, then would block, and keeps what is written.
pub(crate) struct Memory<'a> {
    input: &'a [u8],
    pub(crate) output: Vec<u8>,
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

/// Their end of a connection that reads `input`.
pub(crate) fn theirs(role: Role, input: &[u8]) -> WebSocket<Memory<'_>> {
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
pub(crate) enum End<E> {
    Waiting,
    Closed,
    Failed(E),
}

pub(crate) fn read_theirs(role: Role, wire: &[u8]) -> (Vec<Message>, End<Error>) {
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

pub(crate) fn read_ours(role: ws::Role, wire: &[u8], step: usize) -> (Vec<Message>, End<WsError>) {
    let mut decoder = Decoder::new(role, LIMITS);
    let mut buf = BytesMut::new();
    let mut messages = Vec::new();
    for piece in wire.chunks(step) {
        buf.extend_from_slice(piece);
        loop {
            assert!(decoder.held() <= LIMITS.max_message);
            assert!(decoder.missing(&buf) <= LIMITS.max_frame);
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

/// Panics unless both read the same messages from `wire`, ours in pieces of `step` bytes, and end
/// the same way, but for the differences that are on purpose.
pub(crate) fn assert_same(role: ws::Role, wire: &[u8], step: usize) {
    let their_role = match role {
        ws::Role::Client => Role::Client,
        ws::Role::Server => Role::Server,
    };
    let (ours, our_end) = read_ours(role, wire, step);
    let (mut theirs, their_end) = read_theirs(their_role, wire);
    match (&our_end, &their_end) {
        // We insist on the shortest length (RFC 6455 section 5.2), they do not.
        (End::Failed(WsError::LongForm(_) | WsError::LongControl), _)
        // And end floods of fragments, which they do not.
        | (End::Failed(WsError::TooManyFragments(_)), _) => theirs.truncate(ours.len()),
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
            assert!(same, "we: {ours:?}, they: {theirs:?}");
        }
    }
    assert_eq!(ours, theirs);
}
