//! Frames out of a message.

use bytes::{Buf, Bytes};

use super::{
    DATA_OFFSET_LEN, FLAG_FRESH, FLAG_MORE, FLAG_RESUME, Frame, FrameError, HEADER_LEN,
    MAX_JSON_BODY, MAX_NAME, MAX_OPTION, MAX_OPTIONS, OPTION_AGENT, OPTION_ATTEMPT, OPTION_CLIENT,
    OPTION_DESTINATION, OPTION_LISTENER, OPTION_TRACE, Open, OpenMode, kind,
};
use crate::close::Reason;
use crate::ids::{Cid, FlowId, Secret};
use crate::trace::TraceContext;

/// Takes the next frame off a message; `None` when the message is used up. Frames of unknown type
/// are skipped. A DATA payload shares the message's memory.
///
/// # Errors
/// [`FrameError`]; the link must be closed.
pub fn decode(message: &mut Bytes, max_payload: usize) -> Result<Option<Frame>, FrameError> {
    decode_next(message, max_payload, &mut 0)
}

/// [`decode`], which adds the number of frames of unknown type to `skipped`.
///
/// # Errors
/// As [`decode`].
pub fn decode_next(
    message: &mut Bytes,
    max_payload: usize,
    skipped: &mut u64,
) -> Result<Option<Frame>, FrameError> {
    while !message.is_empty() {
        if message.len() < HEADER_LEN {
            return Err(FrameError::Truncated);
        }
        let head = &message[..HEADER_LEN];
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if len > longest_body(kind, max_payload) {
            return Err(FrameError::TooLong { kind, len });
        }
        if message.len() < HEADER_LEN + len {
            return Err(FrameError::Truncated);
        }
        message.advance(HEADER_LEN);
        let body = message.split_to(len);
        if let Some(frame) = decode_body(kind, flags, id, body)? {
            return Ok(Some(frame));
        }
        *skipped += 1;
    }
    Ok(None)
}

fn longest_body(kind: u8, max_payload: usize) -> usize {
    match kind {
        kind::DATA => DATA_OFFSET_LEN + max_payload,
        _ => MAX_JSON_BODY,
    }
}

fn decode_body(kind: u8, flags: u8, id: u32, body: Bytes) -> Result<Option<Frame>, FrameError> {
    let malformed = FrameError::Malformed {
        kind,
        len: body.len(),
    };
    let on_link = (kind::HELLO..=kind::ANSWER).contains(&kind);
    let on_flow = (kind::OPEN..=kind::DETACH).contains(&kind);
    if (on_link && id != 0) || (on_flow && id == 0) {
        return Err(FrameError::WrongFlow { kind, id });
    }
    let id = FlowId(id);
    let mut fields = Fields(body);
    let frame = match kind {
        kind::HELLO => Frame::Hello(fields.rest()),
        kind::HELLO_ACK => Frame::HelloAck(fields.rest()),
        kind::UPDATE => Frame::Update(fields.rest()),
        kind::UPDATE_ACK => Frame::UpdateAck(fields.rest()),
        kind::TOKEN => Frame::Token(fields.rest()),
        kind::TOKEN_ACK => Frame::TokenAck(fields.rest()),
        kind::PING => Frame::Ping(fields.u64().ok_or(malformed)?),
        kind::PONG => Frame::Pong(fields.u64().ok_or(malformed)?),
        kind::GOAWAY => Frame::GoAway {
            reason: fields.reason().ok_or(malformed)?,
            deadline_ms: fields.u32().ok_or(malformed)?,
        },
        kind::QUERY => Frame::Query {
            number: fields.u32().ok_or(malformed)?,
            body: fields.rest(),
        },
        kind::ANSWER => Frame::Answer {
            number: fields.u32().ok_or(malformed)?,
            more: flags & FLAG_MORE != 0,
            body: fields.rest(),
        },
        kind::OPEN => Frame::Open {
            id,
            open: Box::new(decode_open(flags, &mut fields).ok_or(malformed)?),
        },
        kind::OPEN_ACK => Frame::OpenAck {
            id,
            received: fields.u64().ok_or(malformed)?,
            limit: fields.u64().ok_or(malformed)?,
        },
        kind::REFUSE => Frame::Refuse {
            id,
            reason: fields.reason().ok_or(malformed)?,
        },
        kind::DATA => Frame::Data {
            id,
            offset: fields.u64().ok_or(malformed)?,
            payload: fields.rest(),
        },
        kind::FIN => Frame::Fin {
            id,
            offset: fields.u64().ok_or(malformed)?,
        },
        kind::CREDIT => Frame::Credit {
            id,
            acked: fields.u64().ok_or(malformed)?,
            limit: fields.u64().ok_or(malformed)?,
        },
        kind::RST => Frame::Rst {
            id,
            reason: fields.reason().ok_or(malformed)?,
        },
        kind::DETACH => Frame::Detach {
            id,
            reason: fields.reason().ok_or(malformed)?,
        },
        _ => return Ok(None),
    };
    // Bytes behind the known fields are a newer peer's; they are ignored like unknown flags.
    Ok(Some(frame))
}

fn decode_open(flags: u8, fields: &mut Fields) -> Option<Open> {
    let (cid, secret) = (Cid(fields.array()?), Secret(fields.array()?));
    let mut open = Open {
        epoch: fields.u64()?,
        mode: match (flags & FLAG_RESUME != 0, flags & FLAG_FRESH != 0) {
            (false, _) => OpenMode::New,
            (true, false) => OpenMode::Resume,
            (true, true) => OpenMode::ResumeOrNew,
        },
        received: fields.u64()?,
        limit: fields.u64()?,
        ..Open::new(cid, secret, "")
    };
    let len = usize::from(fields.u8()?);
    open.connector = fields.text(len, MAX_NAME)?;
    for _ in 0..=MAX_OPTIONS {
        let Some(option) = fields.u8() else {
            return Some(open);
        };
        let len = usize::from(fields.u16()?);
        match option {
            OPTION_CLIENT => open.client = fields.text(len, MAX_OPTION)?,
            OPTION_LISTENER => open.listener = fields.text(len, MAX_OPTION)?,
            OPTION_DESTINATION => open.destination = fields.text(len, MAX_OPTION)?,
            OPTION_AGENT => open.agent = fields.text(len, MAX_OPTION)?,
            OPTION_ATTEMPT => open.attempt = Fields(fields.bytes(len)?).u32()?,
            // What makes no sense leaves the flow untraced, and alone.
            OPTION_TRACE if len <= MAX_OPTION => {
                let text = fields.bytes(len)?;
                open.trace = str::from_utf8(&text).ok().and_then(TraceContext::parse);
            }
            _ => drop(fields.bytes(len)?),
        }
    }
    None
}

/// Reads a body's fields; `None` when it ends too soon.
struct Fields(Bytes);

impl Fields {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = self.0.get(..N)?.try_into().ok()?;
        self.0.advance(N);
        Some(array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn reason(&mut self) -> Option<Reason> {
        self.u16().map(Reason::from_code)
    }

    fn bytes(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn text(&mut self, len: usize, most: usize) -> Option<String> {
        if len > most {
            return None;
        }
        std::str::from_utf8(&self.bytes(len)?)
            .ok()
            .map(str::to_owned)
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }
}
