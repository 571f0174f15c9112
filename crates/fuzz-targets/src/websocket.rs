//! The WebSocket codec, and bytes (of TLS) inside its messages.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use nowconnect_link::stream::WsBytes;
use nowconnect_link::upgrade::Upgraded;
use nowconnect_link::ws::{Decoder, Limits, Message, Role};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::http::block_on;

#[path = "../../link/tests/ws_differential/oracle.rs"]
mod oracle;

/// The role, and the size of the pieces in which the wire is read, from the first byte.
fn split(data: &[u8]) -> Option<(Role, usize, &[u8])> {
    let (&first, wire) = data.split_first()?;
    let role = if first & 1 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    Some((role, usize::from(first >> 1) + 1, wire))
}

/// The same messages as tungstenite reads, however the bytes are cut, and never more held than the
/// limits allow.
pub fn messages(data: &[u8]) {
    let Some((role, step, wire)) = split(data) else {
        return;
    };
    oracle::assert_same(role, wire, step);
    assert_eq!(
        oracle::read_ours(role, wire, step),
        oracle::read_ours(role, wire, usize::MAX)
    );
}

/// A byte stream inside messages reads what the messages carry, and carries what is written.
pub fn bytes(data: &[u8]) {
    let Some((role, step, wire)) = split(data) else {
        return;
    };
    let (expected, is_clean) = carried(role, wire);
    let mut pieces = Pieces::new(wire, step);
    let mut stream = WsBytes::new(over(&mut pieces), role);
    let mut read = Vec::new();
    let ended = block_on(stream.read_to_end(&mut read));
    assert_eq!((read, ended.is_ok()), (expected, is_clean));

    let other = match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    };
    let mut pieces = Pieces::new(&[], 1);
    let mut sender = WsBytes::new(over(&mut pieces), role);
    block_on(async {
        for piece in wire.chunks(step) {
            sender.write_all(piece).await.expect("memory takes it");
        }
        sender.shutdown().await.expect("memory takes it");
    });
    let mut sent = Pieces::new(&pieces.written, step);
    let mut receiver = WsBytes::new(over(&mut sent), other);
    let mut arrived = Vec::new();
    block_on(receiver.read_to_end(&mut arrived)).expect("our own messages");
    assert_eq!(arrived, wire);
}

/// What binary messages carry up to the first that is none, and whether that was the end.
fn carried(role: Role, wire: &[u8]) -> (Vec<u8>, bool) {
    let size = 64 * 1024;
    let limits = Limits {
        max_frame: size,
        max_message: size,
    };
    let (mut decoder, mut input) = (Decoder::new(role, limits), BytesMut::from(wire));
    let mut bytes = Vec::new();
    loop {
        match decoder.decode(&mut input) {
            Ok(Some(Message::Binary(piece))) => bytes.extend_from_slice(&piece),
            Ok(Some(Message::Ping(_) | Message::Pong(_))) => {}
            Ok(Some(Message::Close(_)) | None) => return (bytes, true),
            Ok(Some(Message::Text(_))) | Err(_) => return (bytes, false),
        }
    }
}

fn over<S>(io: S) -> Upgraded<S> {
    Upgraded {
        io,
        leftover: BytesMut::new(),
        protocol: None,
    }
}

/// Gives its bytes in pieces, and is not ready before every second one; keeps what is written.
struct Pieces<'a> {
    input: &'a [u8],
    step: usize,
    ready: bool,
    written: Vec<u8>,
}

impl<'a> Pieces<'a> {
    fn new(input: &'a [u8], step: usize) -> Self {
        Self {
            input,
            step,
            ready: true,
            written: Vec::new(),
        }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ready = !self.ready;
        if !self.ready {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let size = self.step.min(self.input.len()).min(out.remaining());
        let (piece, rest) = self.input.split_at(size);
        out.put_slice(piece);
        self.input = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
