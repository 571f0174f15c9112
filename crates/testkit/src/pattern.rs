//! Payload that knows where it belongs.
//!
//! Every 8-byte block of a stream is a bijective mix of stream number and block number. A test
//! checks bytes at any offset without keeping them, and a byte in the wrong place names the stream
//! and the offset that it came from.

use anyhow::{Result, bail};

const BLOCK: u64 = 8;
const STREAM_BITS: u32 = 24;
const INDEX_BITS: u32 = 64 - STREAM_BITS;

/// The endless byte stream with this number (24 bits count).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern(pub u32);

impl Pattern {
    /// Fills `buf` with the bytes from `offset` on.
    pub fn fill(self, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let block = self.block(at / BLOCK);
            let skip = (at % BLOCK) as usize;
            let n = rest.len().min(block.len() - skip);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&block[skip..skip + n]);
            rest = tail;
            at += n as u64;
        }
    }

    /// The bytes from `offset` on.
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.fill(offset, &mut buf);
        buf
    }

    /// Checks that `buf` is what stands at `offset`.
    ///
    /// # Errors
    /// Names the first wrong offset and, when the bytes there belong to some stream, which one.
    pub fn check(self, offset: u64, buf: &[u8]) -> Result<()> {
        let expected = self.bytes(offset, buf.len());
        if expected == buf {
            return Ok(());
        }
        let wrong = expected.iter().zip(buf).take_while(|(a, b)| a == b).count();
        let at = offset + wrong as u64;
        // A shift by less than a block keeps blocks whole at some alignment: try all eight.
        for start in wrong..(wrong + 8).min(buf.len().saturating_sub(7)) {
            let Some(block) = buf.get(start..start + 8).and_then(|b| b.try_into().ok()) else {
                break;
            };
            let found = unmix(u64::from_be_bytes(block));
            let (stream, index) = (found >> INDEX_BITS, found & ((1 << INDEX_BITS) - 1));
            if stream == u64::from(self.0) || index < 1 << 30 {
                bail!(
                    "stream {} is wrong at byte {at}: byte {} of stream {stream} stands at {}",
                    self.0,
                    index * BLOCK,
                    offset + start as u64,
                );
            }
        }
        bail!(
            "stream {} is wrong at byte {at}: the bytes belong to no stream",
            self.0
        )
    }

    fn block(self, index: u64) -> [u8; 8] {
        mix(u64::from(self.0) << INDEX_BITS | index).to_be_bytes()
    }
}

/// The finalizer of SplitMix64: a bijection whose output looks random.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The inverse of [`mix`].
fn unmix(mut x: u64) -> u64 {
    x = (x ^ (x >> 31) ^ (x >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    x ^ (x >> 30) ^ (x >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_of_a_stream_checks_at_its_offset() {
        let whole = Pattern(7).bytes(0, 1000);
        for (from, to) in [(0, 1000), (1, 9), (13, 14), (992, 1000)] {
            Pattern(7).check(from as u64, &whole[from..to]).unwrap();
        }
    }

    #[test]
    fn a_foreign_byte_names_its_stream_and_offset() {
        let mut buf = Pattern(7).bytes(4096, 256);
        buf[64..128].copy_from_slice(&Pattern(9).bytes(800, 64));
        let error = Pattern(7).check(4096, &buf).unwrap_err().to_string();
        assert_eq!(
            error,
            "stream 7 is wrong at byte 4160: byte 800 of stream 9 stands at 4160"
        );
    }

    #[test]
    fn a_lost_byte_is_recognised_as_a_shift() {
        let mut buf = Pattern(3).bytes(0, 256);
        buf.remove(100);
        let error = Pattern(3).check(0, &buf).unwrap_err().to_string();
        assert_eq!(
            error,
            "stream 3 is wrong at byte 100: byte 104 of stream 3 stands at 103"
        );
    }
}
