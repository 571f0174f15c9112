//! From the read buffer to messages.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    CloseFrame, Limits, MAX_CONTROL_PAYLOAD, Message, Opcode, Role, Utf8Bytes, WsError, apply_mask,
};

/// Fragments of one message before we suspect a flood. An honest peer that streams a message of
/// the usual limits in 1 KiB pieces stays far below it.
const MAX_FRAGMENTS: u32 = 4096;

/// Shortest header: flags and opcode, mask bit and length.
const MIN_HEADER: usize = 2;

/// Incremental decoder of one direction.
///
/// A frame is judged by its header, before any of its payload is waited for. The first error is
/// final: every later call returns it again.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    state: State,
    /// Bytes that must be in the buffer before the next call can get further.
    need: usize,
    /// The fragmented message that is being joined.
    open: Option<Open>,
    /// Fragments before the last, since they were last asked for.
    pieces: u64,
}

#[derive(Debug)]
enum State {
    Header,
    Payload(FrameHeader),
    /// A close frame came; what follows it is to be ignored (RFC 6455 section 5.5.1).
    Closed,
    Failed(WsError),
}

#[derive(Debug, Clone, Copy)]
struct FrameHeader {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    /// Within the limits, hence `usize`.
    len: usize,
}

#[derive(Debug)]
struct Open {
    opcode: Opcode,
    fragments: u32,
    joined: BytesMut,
    /// How much of a text is known to be whole characters.
    valid: usize,
}

impl Open {
    /// Checks what came since the last call, so that bad text is refused with the fragment that
    /// breaks it. A character may still be cut in half, unless this `is_last`.
    fn check_text(&mut self, is_last: bool) -> Result<(), WsError> {
        if self.opcode != Opcode::Text {
            return Ok(());
        }
        let fresh = self.joined.get(self.valid..).unwrap_or_default();
        match std::str::from_utf8(fresh) {
            Ok(_) => self.valid = self.joined.len(),
            Err(error) if error.error_len().is_none() && !is_last => {
                self.valid += error.valid_up_to();
            }
            Err(_) => return Err(WsError::NotUtf8),
        }
        Ok(())
    }
}

impl Decoder {
    /// A decoder for what the peer of `role` sends.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            state: State::Header,
            need: MIN_HEADER,
            open: None,
            pieces: 0,
        }
    }

    /// Takes the next whole message off the front of `buf`; `None` means: read more, at least
    /// [`missing`](Self::missing) bytes, and call again.
    ///
    /// Call until it returns `None` before reading again. Never reserves capacity in `buf`.
    ///
    /// # Errors
    /// The peer broke the protocol or a limit; close with [`WsError::close_code`].
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Message>, WsError> {
        let result = self.advance(buf);
        if let Err(error) = result {
            self.state = State::Failed(error);
            self.open = None;
        }
        result
    }

    /// How many bytes, at least, `buf` lacks for the next message or header; 0 when `decode` has
    /// not been called on these bytes yet. Never more than [`Limits::max_frame`].
    #[must_use]
    pub fn missing(&self, buf: &BytesMut) -> usize {
        self.need.saturating_sub(buf.len())
    }

    /// Bytes of fragments that are held until their message is complete.
    #[must_use]
    pub fn held(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.joined.len())
    }

    /// How many fragments came that ended no message, since this was last asked.
    pub fn take_pieces(&mut self) -> u64 {
        std::mem::take(&mut self.pieces)
    }

    fn advance(&mut self, buf: &mut BytesMut) -> Result<Option<Message>, WsError> {
        loop {
            let frame = match self.state {
                State::Header => match self.read_header(buf)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
                State::Payload(frame) => frame,
                State::Closed => {
                    buf.clear();
                    return Ok(None);
                }
                State::Failed(error) => return Err(error),
            };
            if buf.len() < frame.len {
                self.state = State::Payload(frame);
                self.need = frame.len;
                return Ok(None);
            }
            let mut payload = buf.split_to(frame.len);
            self.state = State::Header;
            self.need = MIN_HEADER;
            if let Some(key) = frame.mask {
                apply_mask(&mut payload, key, 0);
            }
            if let Some(message) = self.finish_frame(frame, payload)? {
                return Ok(Some(message));
            }
        }
    }

    /// Parses and judges a header; consumes it only when it is complete.
    fn read_header(&mut self, buf: &mut BytesMut) -> Result<Option<FrameHeader>, WsError> {
        let (Some(&first), Some(&second)) = (buf.first(), buf.get(1)) else {
            return Ok(None);
        };
        let (fin, opcode) = self.check_first(first)?;
        let short = second & 0x7F;
        let masked = second & 0x80 != 0;
        match (self.role, masked) {
            (Role::Server, false) => return Err(WsError::NotMasked),
            (Role::Client, true) => return Err(WsError::Masked),
            _ => {}
        }
        if opcode.is_control() && usize::from(short) > MAX_CONTROL_PAYLOAD {
            return Err(WsError::LongControl);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let key_at = MIN_HEADER + extended;
        // The length is judged as soon as it is there, the key may still be on its way.
        let Some(length_bytes) = buf.get(MIN_HEADER..key_at) else {
            self.need = key_at;
            return Ok(None);
        };
        let len = self.check_length(opcode, short, length_bytes)?;
        let size = key_at + if masked { 4 } else { 0 };
        let Some(header) = buf.get(..size) else {
            self.need = size;
            return Ok(None);
        };
        let mask = header
            .get(key_at..)
            .and_then(|key| <[u8; 4]>::try_from(key).ok());
        buf.advance(size);
        Ok(Some(FrameHeader {
            fin,
            opcode,
            mask,
            len,
        }))
    }

    fn check_first(&self, first: u8) -> Result<(bool, Opcode), WsError> {
        if first & 0x70 != 0 {
            return Err(WsError::ReservedBits);
        }
        let bits = first & 0x0F;
        let opcode = Opcode::from_bits(bits).ok_or(WsError::ReservedOpcode(bits))?;
        let fin = first & 0x80 != 0;
        match (opcode, &self.open) {
            (Opcode::Continuation, None) => Err(WsError::NothingToContinue),
            (Opcode::Continuation, Some(open)) if open.fragments == MAX_FRAGMENTS => {
                Err(WsError::TooManyFragments(MAX_FRAGMENTS))
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => Err(WsError::MessageUnfinished),
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if !fin => {
                Err(WsError::FragmentedControl)
            }
            _ => Ok((fin, opcode)),
        }
    }

    fn check_length(&self, opcode: Opcode, short: u8, extended: &[u8]) -> Result<usize, WsError> {
        let length = if extended.is_empty() {
            u64::from(short)
        } else {
            extended
                .iter()
                .fold(0, |length, &byte| length << 8 | u64::from(byte))
        };
        let shortest = match short {
            126 => length >= 126,
            127 => length > u64::from(u16::MAX) && length >> 63 == 0,
            _ => true,
        };
        if !shortest {
            return Err(WsError::LongForm(length));
        }
        let too_long = |length, limit| WsError::TooLong { length, limit };
        let len = usize::try_from(length).map_err(|_| too_long(length, self.limits.max_frame))?;
        if opcode.is_control() {
            return Ok(len);
        }
        if len > self.limits.max_frame {
            return Err(too_long(length, self.limits.max_frame));
        }
        if len > self.limits.max_message.saturating_sub(self.held()) {
            return Err(too_long(
                length + self.held() as u64,
                self.limits.max_message,
            ));
        }
        Ok(len)
    }

    /// Turns a whole frame into a message; `None` when it is a fragment before the last.
    fn finish_frame(
        &mut self,
        frame: FrameHeader,
        payload: BytesMut,
    ) -> Result<Option<Message>, WsError> {
        let message = match frame.opcode {
            Opcode::Ping => Message::Ping(payload.freeze()),
            Opcode::Pong => Message::Pong(payload.freeze()),
            Opcode::Close => {
                let close = parse_close(payload.freeze())?;
                self.state = State::Closed;
                self.open = None;
                Message::Close(close)
            }
            Opcode::Text if frame.fin => Message::Text(Utf8Bytes::checked(payload.freeze())?),
            Opcode::Binary if frame.fin => Message::Binary(payload.freeze()),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                return self.join(frame, payload);
            }
        };
        Ok(Some(message))
    }

    fn join(&mut self, frame: FrameHeader, payload: BytesMut) -> Result<Option<Message>, WsError> {
        let mut open = match self.open.take() {
            None => Open {
                opcode: frame.opcode,
                fragments: 1,
                joined: payload,
                valid: 0,
            },
            Some(mut open) => {
                open.joined.unsplit(payload);
                open.fragments += 1;
                open
            }
        };
        open.check_text(frame.fin)?;
        if !frame.fin {
            self.pieces += 1;
            self.open = Some(open);
            return Ok(None);
        }
        let joined = open.joined.freeze();
        Ok(Some(match open.opcode {
            Opcode::Text => Message::Text(Utf8Bytes(joined)),
            _ => Message::Binary(joined),
        }))
    }
}

fn parse_close(mut payload: Bytes) -> Result<Option<CloseFrame>, WsError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let code = payload.try_get_u16().map_err(|_| WsError::BadClose)?;
    // Section 7.4: 1004 to 1006 and 1015 are never sent, the rest below 3000 is unassigned.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(WsError::BadClose);
    }
    Ok(Some(CloseFrame {
        code,
        reason: Utf8Bytes::checked(payload)?,
    }))
}
