//! Frames on their way to the WebSocket: small ones share a message, large payloads are never copied.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use nowconnect_proto::Frame;
use nowconnect_proto::frame::put_data_header;
use tokio::io::AsyncWrite;

use crate::read_size;
use crate::ws::{Batch, Mask, Opcode, write_close, write_message};

/// Payloads below this are copied next to their frame's header: one buffer is cheaper to write
/// than two, and a record of TLS holds 16 KiB.
const COPY_BELOW: usize = 8 * 1024;
/// A message of small frames is closed at this size.
const MESSAGE_UP_TO: usize = 16 * 1024;
/// No more frames are asked for while this much waits.
const HIGH_WATER: usize = read_size::MOST;
/// Nothing at all is put in front of the connection while this much waits.
const FLOOD: usize = 2 * HIGH_WATER;
/// Segments handed to one vectored write.
const SLICES: usize = 32;

/// What waits to be written to one WebSocket, in order.
#[derive(Debug)]
pub(crate) struct Outgoing {
    mask: Mask,
    staging: BytesMut,
    batch: Option<Batch>,
    /// With the number of frames that end in each.
    sealed: VecDeque<(Bytes, usize)>,
    /// Frames that wait, and those among them that are not sealed.
    frames: usize,
    staged_frames: usize,
    sealed_len: usize,
    /// Bytes sealed so far.
    sealed_ever: u64,
    flushed: bool,
}

impl Outgoing {
    pub(crate) fn new(mask: Mask) -> Self {
        Self {
            mask,
            staging: BytesMut::new(),
            batch: None,
            sealed: VecDeque::new(),
            frames: 0,
            staged_frames: 0,
            sealed_len: 0,
            sealed_ever: 0,
            flushed: true,
        }
    }

    /// Whether enough waits for now.
    pub(crate) fn is_full(&self) -> bool {
        self.sealed_len + self.staging.len() >= HIGH_WATER
    }

    /// Whether so much waits that even answers must wait elsewhere.
    pub(crate) fn is_flooded(&self) -> bool {
        self.sealed_len + self.staging.len() >= FLOOD
    }

    /// Frames that wait.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Bytes that were ever appended.
    pub(crate) fn appended(&self) -> u64 {
        self.sealed_ever + self.staging.len() as u64
    }

    /// Whether everything was written and flushed.
    pub(crate) fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.batch.is_none() && self.flushed
    }

    /// Appends a frame of protocol version 2.
    pub(crate) fn push(&mut self, frame: &Frame) {
        self.frames += 1;
        if let Frame::Data {
            id,
            offset,
            payload,
        } = frame
            && payload.len() >= COPY_BELOW
            && self.mask.is_transparent()
        {
            self.seal();
            let batch = Batch::open(&mut self.staging);
            put_data_header(&mut self.staging, *id, *offset, payload.len());
            batch.seal(&mut self.staging, Opcode::Binary, payload.len(), self.mask);
            self.take_staging();
            self.append(payload.clone(), 1);
            return;
        }
        let batch = self
            .batch
            .take()
            .unwrap_or_else(|| Batch::open(&mut self.staging));
        frame.encode(&mut self.staging);
        self.staged_frames += 1;
        let full = batch.len(&self.staging) >= MESSAGE_UP_TO;
        self.batch = Some(batch);
        if full {
            self.seal();
        }
    }

    /// Appends a text message (protocol version 1) or a control message.
    pub(crate) fn push_message(&mut self, opcode: Opcode, payload: &[u8]) {
        self.seal();
        write_message(&mut self.staging, opcode, payload, self.mask);
        self.take_staging();
    }

    /// Appends the WebSocket's close.
    pub(crate) fn push_close(&mut self, code: u16, reason: &str) {
        self.seal();
        write_close(&mut self.staging, code, reason, self.mask);
        self.take_staging();
    }

    fn seal(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.seal(&mut self.staging, Opcode::Binary, 0, self.mask);
            self.take_staging();
        }
    }

    fn take_staging(&mut self) {
        let bytes = self.staging.split().freeze();
        let frames = std::mem::take(&mut self.staged_frames);
        self.append(bytes, frames);
    }

    fn append(&mut self, bytes: Bytes, frames: usize) {
        self.sealed_len += bytes.len();
        self.sealed_ever += bytes.len() as u64;
        self.sealed.push_back((bytes, frames));
        self.flushed = false;
    }

    /// Writes as much as `io` takes. Ready when everything was written and flushed; the number
    /// tells how many bytes this call moved.
    pub(crate) fn poll_write<S>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        moved: &mut usize,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        self.seal();
        while !self.sealed.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, (bytes, _)) in slices.iter_mut().zip(&self.sealed) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
            let n = if count == 1 {
                ready!(Pin::new(&mut *io).poll_write(cx, &slices[0]))?
            } else {
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *moved += n;
            self.advance(n);
        }
        if !self.flushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut n: usize) {
        self.sealed_len -= n;
        while let Some((front, frames)) = self.sealed.front_mut() {
            if n < front.len() {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.frames -= *frames;
            self.sealed.pop_front();
        }
    }
}
