//! Few large reads instead of many small ones.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::read_size::ReadSize;

/// Reads through a buffer, writes straight through.
///
/// rustls asks its socket for 4 KiB at a time, which makes 16 system calls of 64 KiB; with this in
/// between it is one. The buffer exists only while it holds bytes or a read is under way, so that
/// idle connections cost nothing.
#[derive(Debug)]
pub struct BufferedIo<S> {
    io: S,
    buf: BytesMut,
    /// How much to ask for at once; without it, reads go straight into the caller's buffer.
    size: Option<ReadSize>,
}

impl<S> BufferedIo<S> {
    /// Reads ahead; `leftover` was read before and comes first.
    pub fn new(io: S, leftover: BytesMut) -> Self {
        Self {
            io,
            buf: leftover,
            size: Some(ReadSize::new()),
        }
    }

    /// Reads nothing ahead; for callers that ask for large pieces themselves.
    pub fn direct(io: S, leftover: BytesMut) -> Self {
        Self {
            io,
            buf: leftover,
            size: None,
        }
    }

    /// What is below. Reading from it would take bytes out of the middle.
    pub fn get_ref(&self) -> &S {
        &self.io
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BufferedIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, buf, size } = self.get_mut();
        if buf.is_empty() {
            let Some(size) = size.as_mut().filter(|size| out.remaining() < size.get()) else {
                *buf = BytesMut::new();
                return Pin::new(io).poll_read(cx, out);
            };
            buf.reserve(size.get());
            let read = pin!(io.read_buf(buf)).poll(cx);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                *buf = BytesMut::new();
            }
            let bytes = ready!(read)?;
            size.note(bytes, bytes >= size.get());
        }
        let size = buf.len().min(out.remaining());
        out.put_slice(buf.get(..size).unwrap_or_default());
        buf.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BufferedIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out zeros, and counts how often it is asked.
    struct Zeros {
        left: usize,
        reads: usize,
    }

    impl AsyncRead for Zeros {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.left == 0 {
                return Poll::Pending;
            }
            let size = out.remaining().min(self.left);
            out.put_slice(&vec![0; size]);
            self.left -= size;
            self.reads += 1;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_reads_become_large_ones() {
        let zeros = Zeros {
            left: 128 * 1024,
            reads: 0,
        };
        let mut io = BufferedIo::new(zeros, BytesMut::from(&b"left"[..]));
        let mut piece = [1; 4096];
        assert_eq!(io.read(&mut piece).await.unwrap(), 4);
        assert_eq!(&piece[..4], b"left");
        for _ in 0..32 {
            assert_eq!(io.read(&mut piece).await.unwrap(), 4096);
        }
        assert_eq!(io.get_ref().reads, 2);
        assert!(
            pin!(io.read(&mut piece))
                .poll(&mut Context::from_waker(std::task::Waker::noop()))
                .is_pending()
        );
        assert_eq!(io.buf.capacity(), 0, "idle connections hold no buffer");
    }

    #[tokio::test]
    async fn large_reads_are_not_copied() {
        let mut io = BufferedIo::direct(
            Zeros {
                left: 100_000,
                reads: 0,
            },
            BytesMut::new(),
        );
        assert_eq!(io.read(&mut vec![0; 100_000]).await.unwrap(), 100_000);
        assert_eq!((io.get_ref().reads, io.buf.capacity()), (1, 0));
    }
}
