//! The byte stream below a WebSocket: TCP, with or without TLS, either end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

mod buffered;
mod ws_bytes;

pub use buffered::BufferedIo;
pub use ws_bytes::WsBytes;

/// What TLS may hold that is encrypted and not written, in bytes, for
/// [`set_buffer_limit`](rustls::ConnectionCommon::set_buffer_limit): 16 records make one system call
/// of what would be four.
pub const TLS_WRITES: usize = 256 * 1024;

/// A connection that was dialed or accepted.
///
/// Both kinds take vectored writes: tokio-rustls 0.26 implements `poll_write_vectored` for its
/// `TlsStream` (it hands the slices to rustls, which fills records from them without joining them
/// first), so `is_write_vectored` is true and a header and its payload need not be copied together.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(BufferedIo<TcpStream>),
    /// TLS over TCP.
    Tls(Box<TlsStream<BufferedIo<TcpStream>>>),
}

impl Stream {
    /// The socket, for its addresses and options. Reading or writing it breaks the stream.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(io) => io.get_ref(),
            Self::Tls(tls) => tls.get_ref().0.get_ref(),
        }
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The certificate chain that the peer has proven to own, leaf first.
    #[must_use]
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.peer_certificates(),
        }
    }
}

/// Runs the same call on whichever stream it is.
macro_rules! on_stream {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain(io) => {
                let $io = Pin::new(io);
                $call
            }
            Stream::Tls(io) => {
                let $io = Pin::new(io.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => io.poll_shutdown(cx))
    }
}
