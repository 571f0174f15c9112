//! From messages to the write buffer.

use std::ops::Deref;

use bytes::{Buf, BufMut, BytesMut};

use super::{MAX_CONTROL_PAYLOAD, Opcode};

/// Longest header of a frame: 2 bytes, a 64-bit length, a masking key.
pub const MAX_HEADER: usize = 14;

/// How frames that we send are masked.
///
/// RFC 6455 section 5.3 wants unpredictable keys so that a script in a browser cannot write bytes
/// of its choice past a confused proxy. Our payload does not come from scripts, and under TLS or
/// on loopback no proxy sees it: there a zero key is valid on the wire and saves both ends the XOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// No masking key: what a server must send.
    None,
    /// Masking key zero: a client over TLS or loopback.
    Zero,
    /// A fresh random key per message: a client anywhere else.
    Random,
}

impl Mask {
    /// The key for the next frame.
    #[must_use]
    pub fn key(self) -> Option<[u8; 4]> {
        match self {
            Self::None => None,
            Self::Zero => Some([0; 4]),
            Self::Random => Some(rand::random()),
        }
    }

    /// Whether payload leaves as it is, so that shared bytes can be written without a copy.
    #[must_use]
    pub fn is_transparent(self) -> bool {
        self != Self::Random
    }
}

/// The bytes of one frame header, on the stack.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: u8,
}

impl Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The header of a final frame (the first and last of its message) with `len` bytes of payload.
#[must_use]
pub fn header(opcode: Opcode, len: usize, mask: Option<[u8; 4]>) -> Header {
    let mut bytes = [0; MAX_HEADER];
    let mut rest = &mut bytes[..];
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    rest.put_u8(0x80 | opcode as u8);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..126), _) => rest.put_u8(mask_bit | short),
        (_, Ok(medium)) => {
            rest.put_u8(mask_bit | 126);
            rest.put_u16(medium);
        }
        _ => {
            rest.put_u8(mask_bit | 127);
            rest.put_u64(len as u64);
        }
    }
    rest.put_slice(mask.as_ref().map_or(&[], |key| key));
    let len = (MAX_HEADER - rest.len()) as u8;
    Header { bytes, len }
}

/// XORs `payload` with the key (RFC 6455 section 5.3); `offset` is the position of `payload` in
/// its frame. A zero key costs nothing. Masking twice restores.
pub fn apply_mask(payload: &mut [u8], mut key: [u8; 4], offset: usize) {
    if key == [0; 4] {
        return;
    }
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends a whole message, its payload copied (and masked) into `out`.
pub fn write_message(out: &mut BytesMut, opcode: Opcode, payload: &[u8], mask: Mask) {
    let key = mask.key();
    out.reserve(MAX_HEADER + payload.len());
    out.put_slice(&header(opcode, payload.len(), key));
    let start = out.len();
    out.put_slice(payload);
    if let (Some(key), Some(copy)) = (key, out.get_mut(start..)) {
        apply_mask(copy, key, 0);
    }
}

/// Appends a close frame. The reason is cut, at a character, to the 123 bytes that fit.
pub fn write_close(out: &mut BytesMut, code: u16, reason: &str, mask: Mask) {
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_PAYLOAD - 2)];
    let mut payload = [0; MAX_CONTROL_PAYLOAD];
    let mut rest = &mut payload[..];
    rest.put_u16(code);
    rest.put_slice(reason.as_bytes());
    write_message(out, Opcode::Close, &payload[..2 + reason.len()], mask);
}

/// A message under construction in a write buffer: its header is written last, when its length is
/// known, into room kept free in front of it.
#[derive(Debug)]
#[must_use = "the message has no header before `seal`"]
pub struct Batch {
    start: usize,
}

impl Batch {
    /// Keeps room for a header at the end of `out`; the message is what is appended from here on.
    pub fn open(out: &mut BytesMut) -> Self {
        let start = out.len();
        out.put_bytes(0, MAX_HEADER);
        Self { start }
    }

    /// Payload bytes appended so far.
    #[must_use]
    pub fn len(&self, out: &BytesMut) -> usize {
        out.len().saturating_sub(self.start + MAX_HEADER)
    }

    /// Whether nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self, out: &BytesMut) -> bool {
        self.len(out) == 0
    }

    /// Writes the header, masks what is in `out`, and closes the gap between them.
    ///
    /// `tail` bytes of the same message follow outside of `out` (a vectored write). Unless the
    /// mask [is transparent](Mask::is_transparent) the caller masks them with the returned key, at
    /// the offset that [`len`](Self::len) has now.
    ///
    /// Cheapest when the batch is the first thing in `out`: then nothing moves.
    pub fn seal(
        self,
        out: &mut BytesMut,
        opcode: Opcode,
        tail: usize,
        mask: Mask,
    ) -> Option<[u8; 4]> {
        let key = mask.key();
        let payload_at = self.start + MAX_HEADER;
        let header = header(opcode, self.len(out) + tail, key);
        let header_at = payload_at - header.len();
        if let (Some(key), Some(payload)) = (key, out.get_mut(payload_at..)) {
            apply_mask(payload, key, 0);
        }
        if let Some(room) = out.get_mut(header_at..payload_at) {
            room.copy_from_slice(&header);
        }
        if self.start == 0 {
            out.advance(header_at);
        } else {
            out.copy_within(header_at.., self.start);
            out.truncate(out.len() - (header_at - self.start));
        }
        key
    }

    /// Takes the reserved room back; for a batch that stayed empty.
    pub fn discard(self, out: &mut BytesMut) {
        out.truncate(self.start);
    }
}
