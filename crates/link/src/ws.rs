//! WebSocket framing (RFC 6455) without I/O: bytes in, messages out, and back.
//!
//! The caller owns sockets and buffers. [`Decoder`] works on the buffer that the caller reads
//! into and hands out slices of it; [`encode`](self) functions write headers in front of bytes
//! that are already where they should be. No extensions: RSV bits are always an error.
//!
//! Why not a library: `docs/adr/0002-websocket-codec.md`.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

mod decode;
mod encode;

pub use decode::Decoder;
pub use encode::{Batch, Header, MAX_HEADER, Mask, apply_mask, header, write_close, write_message};

/// Longest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// Which end of the connection this process is; it decides who must mask (RFC 6455 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We sent the upgrade request: we mask, the peer must not.
    Client,
    /// We answered the upgrade request: the peer must mask, we do not.
    Server,
}

/// What a peer may make a [`Decoder`] hold. Both are bytes of payload, headers not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest payload of one frame.
    pub max_frame: usize,
    /// Longest message after its fragments are joined.
    pub max_message: usize,
}

/// Frame opcodes (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Next fragment of the message that a `Text` or `Binary` frame began.
    Continuation = 0x0,
    /// UTF-8 text.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// Last frame of a direction.
    Close = 0x8,
    /// Asks for a `Pong` with the same payload.
    Ping = 0x9,
    /// Answers a `Ping`, or comes unasked.
    Pong = 0xA,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// One whole message from the peer.
///
/// `Bytes` of an unfragmented message are a slice of the read buffer: whoever keeps a small one
/// keeps the whole allocation alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A binary message.
    Binary(Bytes),
    /// A text message; its UTF-8 has been checked.
    Text(Utf8Bytes),
    /// The peer wants a pong with this payload.
    Ping(Bytes),
    /// A pong.
    Pong(Bytes),
    /// The peer's last frame; `None` when it gave no code.
    Close(Option<CloseFrame>),
}

/// The body of a close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame {
    /// Status code (RFC 6455 section 7.4), one that may appear on the wire.
    pub code: u16,
    /// At most 123 bytes, for logs only.
    pub reason: Utf8Bytes,
}

/// `Bytes` that are known to be UTF-8.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Utf8Bytes(Bytes);

impl Utf8Bytes {
    fn checked(bytes: Bytes) -> Result<Self, WsError> {
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(_) => Err(WsError::NotUtf8),
        }
    }

    /// The text. Checks again, which costs one pass: parsers that take bytes should get
    /// [`as_bytes`](Self::as_bytes).
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The text's bytes, free of charge.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives up the proof, keeps the bytes.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Deref for Utf8Bytes {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Utf8Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<&'static str> for Utf8Bytes {
    fn from(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }
}

impl From<String> for Utf8Bytes {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

/// Why the peer's bytes are not WebSocket, or more of it than we take. Always ends the connection,
/// with [`close_code`](Self::close_code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// An RSV bit is set although no extension was agreed (section 5.2).
    #[error("reserved bits are set, but no extension was negotiated")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15 (section 5.2).
    #[error("reserved opcode {0:#x}")]
    ReservedOpcode(u8),
    /// A frame from a client without a masking key (section 5.1).
    #[error("a client must mask its frames, this one is not masked")]
    NotMasked,
    /// A frame from a server with a masking key (section 5.1).
    #[error("a server must not mask its frames, this one is masked")]
    Masked,
    /// A length in more bytes than it needs, or with the top bit set (section 5.2).
    #[error("frame length {0} is not in its shortest form")]
    LongForm(u64),
    /// A ping, pong or close in fragments (section 5.5).
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A ping, pong or close longer than [`MAX_CONTROL_PAYLOAD`] (section 5.5).
    #[error("control frame is longer than {MAX_CONTROL_PAYLOAD} bytes")]
    LongControl,
    /// A continuation frame while no message is open (section 5.4).
    #[error("continuation frame, but there is no message to continue")]
    NothingToContinue,
    /// A new data message before the last one ended (section 5.4).
    #[error("new message before the fragmented one ended")]
    MessageUnfinished,
    /// One byte of body, or a code that must not be sent (sections 5.5.1 and 7.4).
    #[error("close frame without a valid code")]
    BadClose,
    /// Text or close reason that is not UTF-8 (section 8.1).
    #[error("text is not valid UTF-8")]
    NotUtf8,
    /// A frame or message beyond the [`Limits`].
    #[error("{length} bytes are announced, at most {limit} are accepted")]
    TooLong {
        /// What the frame, or the message with it, would take.
        length: u64,
        /// The limit that this breaks.
        limit: usize,
    },
    /// A message in so many fragments that only an attacker would send it.
    #[error("message is split into more than {0} fragments")]
    TooManyFragments(u32),
}

impl WsError {
    /// The status code to close with (RFC 6455 section 7.4.1).
    #[must_use]
    pub fn close_code(&self) -> u16 {
        match self {
            Self::NotUtf8 => 1007,
            Self::TooManyFragments(_) => 1008,
            Self::TooLong { .. } => 1009,
            _ => 1002,
        }
    }
}
