//! Where flows read from their sockets: one buffer for all flows of a link.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

use crate::read_size::ReadSize;

/// The buffer. Empty between two reads.
#[derive(Debug)]
pub(crate) struct Scratch {
    buffer: BytesMut,
    size: ReadSize,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            size: ReadSize::new(),
        }
    }
}

impl Scratch {
    /// Reads once, at most `most` bytes; none is the end.
    pub(crate) fn poll_read<S: AsyncRead>(
        &mut self,
        io: Pin<&mut S>,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<Bytes>> {
        let size = self.size.get();
        self.buffer.reserve(size);
        let mut limited = (&mut self.buffer).limit(most.min(size));
        let read = ready!(poll_read_buf(io, cx, &mut limited))?;
        // A read that fills its buffer keeps it; what is smaller is copied out, so that a few bytes
        // that wait for their acknowledgement do not keep a large buffer alive.
        let bytes = if read >= size / 2 {
            self.buffer.split().freeze()
        } else {
            let copy = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            copy
        };
        if self.size.note(read, read == size) {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(bytes))
    }
}
