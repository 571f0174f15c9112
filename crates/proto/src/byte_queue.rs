//! Bytes in order, held as the chunks they came in.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Up to this many chunks are kept as they came; beyond, small neighbours are merged, so that a
/// stream of single bytes cannot cost its bookkeeping many times over.
const CHUNKS_AS_THEY_CAME: usize = 8;
/// Neighbours are merged up to this size, in bytes.
const MERGE_UP_TO: usize = 4096;

/// A queue of bytes. What it holds in memory is at most a small multiple of what it counts.
#[derive(Default, Debug)]
pub struct ByteQueue {
    chunks: VecDeque<Bytes>,
    len: usize,
    /// How many chunks, from the front, are copies of our own.
    owned: usize,
}

impl ByteQueue {
    /// Bytes in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        if self.chunks.len() >= CHUNKS_AS_THEY_CAME
            && let Some(last) = self.chunks.back_mut()
            && last.len() + bytes.len() <= MERGE_UP_TO
        {
            let mut merged = BytesMut::with_capacity(last.len() + bytes.len());
            merged.extend_from_slice(last);
            merged.extend_from_slice(&bytes);
            *last = merged.freeze();
            return;
        }
        self.chunks.push_back(bytes);
    }

    /// The chunks in order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.chunks.iter()
    }

    /// Drops the first `n` bytes (all, if there are fewer).
    pub fn advance(&mut self, mut n: usize) {
        n = n.min(self.len);
        self.len -= n;
        while n > 0 {
            let Some(front) = self.chunks.front_mut() else {
                break;
            };
            if n < front.len() {
                front.advance(n);
                break;
            }
            n -= front.len();
            self.chunks.pop_front();
            self.owned = self.owned.saturating_sub(1);
        }
        if self.chunks.is_empty() && self.chunks.capacity() > 2 * CHUNKS_AS_THEY_CAME {
            self.chunks = VecDeque::new();
        }
    }

    /// At most `most` bytes of one chunk, beginning `skip` bytes behind the front; empty when the
    /// queue ends before that. Shares the chunk's memory.
    #[must_use]
    pub fn slice(&self, skip: usize, most: usize) -> Bytes {
        // What is asked for is nearly always the tail: look from there.
        let mut start = self.len;
        for chunk in self.chunks.iter().rev() {
            start -= chunk.len();
            if start <= skip {
                let from = skip - start;
                return chunk
                    .slice(from.min(chunk.len())..chunk.len().min(from.saturating_add(most)));
            }
        }
        Bytes::new()
    }

    /// Replaces the chunks that came since the last call by copies, so that they no longer keep
    /// the larger buffers alive that they were cut from.
    pub fn own(&mut self) {
        for chunk in self.chunks.iter_mut().skip(self.owned) {
            *chunk = Bytes::copy_from_slice(chunk);
        }
        self.owned = self.chunks.len();
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_are_merged_and_stay_in_order() {
        let mut queue = ByteQueue::default();
        let all: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        for byte in &all {
            queue.push(Bytes::copy_from_slice(std::slice::from_ref(byte)));
        }
        assert!(queue.chunks().len() < 16, "{} chunks", queue.chunks().len());
        let mut read = Vec::new();
        while read.len() < all.len() {
            let piece = queue.slice(read.len(), 777);
            assert!(!piece.is_empty());
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, all);
        queue.advance(12_345);
        assert_eq!(queue.len(), all.len() - 12_345);
        assert_eq!(queue.slice(0, 1)[0], all[12_345]);
        assert!(queue.slice(queue.len(), 10).is_empty());
    }
}
