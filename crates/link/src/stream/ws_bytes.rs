//! A byte stream inside the binary messages of a WebSocket, for TLS that an ingress cannot end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::upgrade::Upgraded;
use crate::ws::{Batch, Decoder, Limits, Mask, Message, Opcode, Role, write_close, write_message};

/// Most bytes that one message carries, ours and the peer's: a few TLS records. The peer has proven
/// nothing yet when the first ones come.
const MESSAGE: usize = 64 * 1024;
/// Room for reads.
const READ_BUFFER: usize = 64 * 1024;

/// The bytes that the peer's binary messages carry, and ours to it. Message boundaries mean nothing.
/// Holds one message of each direction at most.
///
/// The masking key is zero: what it carries is ciphertext, which nobody chooses (RFC 6455 section
/// 5.3 protects intermediaries from bytes that a script has chosen).
#[derive(Debug)]
pub struct WsBytes<S> {
    io: S,
    role: Role,
    decoder: Decoder,
    input: BytesMut,
    /// What is left of the message that is being read.
    message: Bytes,
    /// What was encoded and not written yet.
    output: BytesMut,
    /// The latest ping that waits for its pong.
    ping: Option<Bytes>,
    /// The peer has sent its close, or the connection has ended.
    over: bool,
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsBytes<S> {
    /// Takes over a connection after its upgrade; `role` is ours in the WebSocket.
    pub fn new(upgraded: Upgraded<S>, role: Role) -> Self {
        let limits = Limits {
            max_frame: MESSAGE,
            max_message: MESSAGE,
        };
        Self {
            io: upgraded.io,
            role,
            decoder: Decoder::new(role, limits),
            input: upgraded.leftover,
            message: Bytes::new(),
            output: BytesMut::new(),
            ping: None,
            over: false,
            closing: false,
        }
    }

    fn mask(&self) -> Mask {
        match self.role {
            Role::Client => Mask::Zero,
            Role::Server => Mask::None,
        }
    }

    /// Waits for the next bytes; none at the end.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.message.is_empty() && !self.over {
            let message = self.decoder.decode(&mut self.input);
            match message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Some(Message::Binary(bytes)) => self.message = bytes,
                Some(Message::Ping(payload)) => {
                    self.ping = Some(payload);
                    // Answered now if the connection takes it, else with what we write next.
                    if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                        return Poll::Ready(Err(error));
                    }
                }
                Some(Message::Pong(_)) => {}
                Some(Message::Close(_)) => self.over = true,
                Some(Message::Text(_)) => {
                    let error = "a text message where bytes were due";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
                None => {
                    let missing = self.decoder.missing(&self.input);
                    if self.input.capacity() - self.input.len() < missing.max(READ_BUFFER / 4) {
                        self.input.reserve(missing.max(READ_BUFFER));
                    }
                    let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
                    self.over = ready!(read)? == 0;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that was encoded. A ping is answered behind that, so that whoever asks without
    /// listening fills nothing.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.output.is_empty() {
                match ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.output.advance(n),
                }
            }
            let Some(payload) = self.ping.take() else {
                return Poll::Ready(Ok(()));
            };
            let mask = self.mask();
            write_message(&mut self.output, Opcode::Pong, &payload, mask);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsBytes<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_message(cx))?;
        let size = this.message.len().min(out.remaining());
        out.put_slice(&this.message.split_to(size));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WsBytes<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let mask = this.mask();
        let batch = Batch::open(&mut this.output);
        for piece in bufs {
            let room = MESSAGE - batch.len(&this.output);
            this.output
                .extend_from_slice(&piece[..piece.len().min(room)]);
        }
        let size = batch.len(&this.output);
        if size == 0 {
            batch.discard(&mut this.output);
            return Poll::Ready(Ok(0));
        }
        batch.seal(&mut this.output, Opcode::Binary, 0, mask);
        // The bytes are taken, whether or not the connection takes them right now.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(size)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.closing, true) {
            let mask = this.mask();
            write_close(&mut this.output, 1000, "", mask);
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// Pings without end, and takes nothing.
    struct Flood(usize);

    impl AsyncRead for Flood {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0 == 0 {
                return Poll::Ready(Ok(()));
            }
            self.0 -= 1;
            let mut ping = BytesMut::new();
            write_message(&mut ping, Opcode::Ping, &[7; 125], Mask::None);
            out.put_slice(&ping);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Flood {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn pings_of_a_peer_that_does_not_listen_fill_nothing() {
        let upgraded = Upgraded {
            io: Flood(10_000),
            leftover: BytesMut::new(),
            protocol: None,
        };
        let mut bytes = WsBytes::new(upgraded, Role::Client);
        assert_eq!(bytes.read(&mut [0; 16]).await.expect("the end"), 0);
        assert!(bytes.output.len() < 512, "{}", bytes.output.len());
    }
}
