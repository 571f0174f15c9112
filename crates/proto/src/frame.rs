//! Binary frames of protocol version 2, as `docs/protocol.md` specifies them.
//!
//! A WebSocket binary message holds one or more whole frames. The header is laid out as HTTP/2's
//! (RFC 9113 section 4.1): length 24 bits, type 8, flags 8, flow 32, all big endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::close::Reason;
use crate::ids::{Cid, FlowId, Secret};

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 9;
/// Bytes of DATA's offset, which stands before its payload.
pub const DATA_OFFSET_LEN: usize = 8;
/// Largest payload of one DATA frame that either side may negotiate, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 18;
/// Largest body of the frames whose body is JSON, in bytes.
pub const MAX_JSON_BODY: usize = 1 << 16;
/// Bytes of QUERY's and ANSWER's number, which stands before their JSON.
pub const QUERY_NUMBER_LEN: usize = 4;
/// Longest connector name, in bytes.
pub const MAX_NAME: usize = 64;
/// Longest value of one OPEN option, in bytes.
pub const MAX_OPTION: usize = 256;
/// Most options of one OPEN.
pub const MAX_OPTIONS: usize = 16;

/// Frame types.
pub mod kind {
    #![allow(missing_docs)]
    pub const HELLO: u8 = 0x01;
    pub const HELLO_ACK: u8 = 0x02;
    pub const UPDATE: u8 = 0x03;
    pub const UPDATE_ACK: u8 = 0x04;
    pub const TOKEN: u8 = 0x05;
    pub const TOKEN_ACK: u8 = 0x06;
    pub const PING: u8 = 0x07;
    pub const PONG: u8 = 0x08;
    pub const GOAWAY: u8 = 0x09;
    pub const QUERY: u8 = 0x0a;
    pub const ANSWER: u8 = 0x0b;
    pub const OPEN: u8 = 0x10;
    pub const OPEN_ACK: u8 = 0x11;
    pub const REFUSE: u8 = 0x12;
    pub const DATA: u8 = 0x13;
    pub const FIN: u8 = 0x14;
    pub const CREDIT: u8 = 0x15;
    pub const RST: u8 = 0x16;
    pub const DETACH: u8 = 0x17;
}

const FLAG_RESUME: u8 = 0x01;
const FLAG_FRESH: u8 = 0x02;
const FLAG_MORE: u8 = 0x01;
const OPTION_CLIENT: u8 = 1;
const OPTION_LISTENER: u8 = 2;
const OPTION_AGENT: u8 = 3;
const OPTION_ATTEMPT: u8 = 4;
const OPTION_DESTINATION: u8 = 5;

/// How an OPEN is to be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OpenMode {
    /// A flow that is new to the other end.
    #[default]
    New,
    /// The same flow over another path; refused with [`Reason::UnknownFlow`] where it is not known.
    Resume,
    /// A flow whose first OPEN was never answered: resumed where it is known, else new.
    ResumeOrNew,
}

/// What an OPEN says.
#[derive(Clone, Debug)]
pub struct Open {
    /// The flow's name for life.
    pub cid: Cid,
    /// Proof for a later attach.
    pub secret: Secret,
    /// Epoch of the agent's ownership, as the opener knows it.
    pub epoch: u64,
    /// How to understand it.
    pub mode: OpenMode,
    /// Bytes of the direction towards the opener that it has received.
    pub received: u64,
    /// Offset up to which the opener takes bytes.
    pub limit: u64,
    /// Which service to dial.
    pub connector: String,
    /// The client's address as `ip:port`; empty when unknown.
    pub client: String,
    /// The listener that accepted the client; empty when unknown.
    pub listener: String,
    /// The address that the client connected to, as `ip:port`; empty when unknown.
    pub destination: String,
    /// Between hubs: the agent that the flow is for; empty on a tunnel.
    pub agent: String,
    /// How many OPENs of the flow were sent before this one, on whatever path.
    pub attempt: u32,
}

/// One frame.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Frame {
    /// Agent's introduction; JSON ([`crate::hello`]).
    Hello(Bytes),
    /// Hub's answer; JSON.
    HelloAck(Bytes),
    /// Changed connectors; JSON.
    Update(Bytes),
    /// Which of them were accepted; JSON.
    UpdateAck(Bytes),
    /// A renewed token; JSON.
    Token(Bytes),
    /// Whether it was accepted; JSON.
    TokenAck(Bytes),
    /// Asks for a PONG with the same value.
    Ping(u64),
    /// Answers a PING.
    Pong(u64),
    /// The sender wants no new flows on this link and will close it after the deadline.
    GoAway { reason: Reason, deadline_ms: u32 },
    /// Between hubs: asks what the other hub knows or does; JSON.
    Query { number: u32, body: Bytes },
    /// A piece of the answer to the QUERY of this number, the last one unless there is `more`.
    Answer {
        number: u32,
        more: bool,
        body: Bytes,
    },
    /// Opens or resumes a flow.
    Open { id: FlowId, open: Box<Open> },
    /// The flow stands: `received` bytes have arrived, up to `limit` may be sent.
    OpenAck {
        id: FlowId,
        received: u64,
        limit: u64,
    },
    /// The flow does not stand.
    Refuse { id: FlowId, reason: Reason },
    /// Bytes of one direction, beginning at `offset`.
    Data {
        id: FlowId,
        offset: u64,
        payload: Bytes,
    },
    /// The direction ends at `offset`.
    Fin { id: FlowId, offset: u64 },
    /// Bytes below `acked` were handed on (the FIN counts as one more), and bytes below `limit` may be sent.
    Credit { id: FlowId, acked: u64, limit: u64 },
    /// The flow ends here and now; nothing of it is valid any more.
    Rst { id: FlowId, reason: Reason },
    /// The flow has no path behind this link any more; it may go on over another.
    Detach { id: FlowId, reason: Reason },
}

/// Why bytes are not frames. Each of these closes the link: after one of them the boundaries of
/// what follows cannot be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The message ends inside a frame.
    #[error("message ends inside a frame")]
    Truncated,
    /// A body is longer than its type allows.
    #[error("frame type {kind:#04x} with {len} bytes is over its limit")]
    TooLong {
        /// The frame's type.
        kind: u8,
        /// The announced length in bytes.
        len: usize,
    },
    /// A body is shorter than its type needs, or longer where the size is fixed.
    #[error("frame type {kind:#04x} with a body of {len} bytes is malformed")]
    Malformed {
        /// The frame's type.
        kind: u8,
        /// The announced length in bytes.
        len: usize,
    },
    /// A link frame names a flow, or a flow frame names none.
    #[error("frame type {kind:#04x} on flow {id}")]
    WrongFlow {
        /// The frame's type.
        kind: u8,
        /// The flow it names.
        id: u32,
    },
}

impl FrameError {
    /// Label of `nowconnect_protocol_errors_total{kind}`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::TooLong { .. } => "too_long",
            Self::Malformed { .. } => "malformed",
            Self::WrongFlow { .. } => "wrong_flow",
        }
    }
}

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
    let mut open = Open {
        cid: Cid(fields.array()?),
        secret: Secret(fields.array()?),
        epoch: fields.u64()?,
        mode: match (flags & FLAG_RESUME != 0, flags & FLAG_FRESH != 0) {
            (false, _) => OpenMode::New,
            (true, false) => OpenMode::Resume,
            (true, true) => OpenMode::ResumeOrNew,
        },
        received: fields.u64()?,
        limit: fields.u64()?,
        connector: String::new(),
        client: String::new(),
        listener: String::new(),
        destination: String::new(),
        agent: String::new(),
        attempt: 0,
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

impl Frame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(body) => put_json(out, kind::HELLO, body),
            Self::HelloAck(body) => put_json(out, kind::HELLO_ACK, body),
            Self::Update(body) => put_json(out, kind::UPDATE, body),
            Self::UpdateAck(body) => put_json(out, kind::UPDATE_ACK, body),
            Self::Token(body) => put_json(out, kind::TOKEN, body),
            Self::TokenAck(body) => put_json(out, kind::TOKEN_ACK, body),
            Self::Ping(value) => put_u64(out, kind::PING, FlowId::LINK, *value),
            Self::Pong(value) => put_u64(out, kind::PONG, FlowId::LINK, *value),
            Self::GoAway {
                reason,
                deadline_ms,
            } => {
                put_header(out, 6, kind::GOAWAY, 0, FlowId::LINK);
                out.put_u16(reason.code());
                out.put_u32(*deadline_ms);
            }
            Self::Query { number, body } => put_numbered(out, kind::QUERY, 0, *number, body),
            Self::Answer { number, more, body } => {
                let flags = if *more { FLAG_MORE } else { 0 };
                put_numbered(out, kind::ANSWER, flags, *number, body);
            }
            Self::Open { id, open } => encode_open(out, *id, open),
            Self::OpenAck {
                id,
                received,
                limit,
            } => {
                put_pair(out, kind::OPEN_ACK, *id, *received, *limit);
            }
            Self::Refuse { id, reason } => put_reason(out, kind::REFUSE, *id, *reason),
            Self::Data {
                id,
                offset,
                payload,
            } => {
                put_data_header(out, *id, *offset, payload.len());
                out.extend_from_slice(payload);
            }
            Self::Fin { id, offset } => put_u64(out, kind::FIN, *id, *offset),
            Self::Credit { id, acked, limit } => put_pair(out, kind::CREDIT, *id, *acked, *limit),
            Self::Rst { id, reason } => put_reason(out, kind::RST, *id, *reason),
            Self::Detach { id, reason } => put_reason(out, kind::DETACH, *id, *reason),
        }
    }

    /// The frame's name in `docs/protocol.md`, logs and metric labels.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::HelloAck(_) => "HELLO_ACK",
            Self::Update(_) => "UPDATE",
            Self::UpdateAck(_) => "UPDATE_ACK",
            Self::Token(_) => "TOKEN",
            Self::TokenAck(_) => "TOKEN_ACK",
            Self::Ping(_) => "PING",
            Self::Pong(_) => "PONG",
            Self::GoAway { .. } => "GOAWAY",
            Self::Query { .. } => "QUERY",
            Self::Answer { .. } => "ANSWER",
            Self::Open { .. } => "OPEN",
            Self::OpenAck { .. } => "OPEN_ACK",
            Self::Refuse { .. } => "REFUSE",
            Self::Data { .. } => "DATA",
            Self::Fin { .. } => "FIN",
            Self::Credit { .. } => "CREDIT",
            Self::Rst { .. } => "RST",
            Self::Detach { .. } => "DETACH",
        }
    }
}

/// Appends everything of a DATA frame that stands before its payload of `len` bytes, so that a
/// large payload need not be copied behind it.
pub fn put_data_header(out: &mut BytesMut, id: FlowId, offset: u64, len: usize) {
    put_header(out, DATA_OFFSET_LEN + len, kind::DATA, 0, id);
    out.put_u64(offset);
}

fn put_header(out: &mut BytesMut, len: usize, kind: u8, flags: u8, id: FlowId) {
    debug_assert!(len < 1 << 24, "a frame's length has 24 bits");
    out.put_uint(len as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(id.0);
}

fn put_json(out: &mut BytesMut, kind: u8, body: &Bytes) {
    put_header(out, body.len(), kind, 0, FlowId::LINK);
    out.extend_from_slice(body);
}

fn put_numbered(out: &mut BytesMut, kind: u8, flags: u8, number: u32, body: &Bytes) {
    put_header(
        out,
        QUERY_NUMBER_LEN + body.len(),
        kind,
        flags,
        FlowId::LINK,
    );
    out.put_u32(number);
    out.extend_from_slice(body);
}

fn put_u64(out: &mut BytesMut, kind: u8, id: FlowId, value: u64) {
    put_header(out, 8, kind, 0, id);
    out.put_u64(value);
}

fn put_pair(out: &mut BytesMut, kind: u8, id: FlowId, first: u64, second: u64) {
    put_header(out, 16, kind, 0, id);
    out.put_u64(first);
    out.put_u64(second);
}

fn put_reason(out: &mut BytesMut, kind: u8, id: FlowId, reason: Reason) {
    put_header(out, 2, kind, 0, id);
    out.put_u16(reason.code());
}

fn encode_open(out: &mut BytesMut, id: FlowId, open: &Open) {
    let connector = cut(&open.connector, MAX_NAME);
    let options = [
        (OPTION_CLIENT, cut(&open.client, MAX_OPTION)),
        (OPTION_LISTENER, cut(&open.listener, MAX_OPTION)),
        (OPTION_AGENT, cut(&open.agent, MAX_OPTION)),
        (OPTION_DESTINATION, cut(&open.destination, MAX_OPTION)),
    ];
    let options = || options.iter().filter(|(_, value)| !value.is_empty());
    let again = open.attempt > 0;
    let len = 57
        + connector.len()
        + options().map(|(_, value)| 3 + value.len()).sum::<usize>()
        + if again { 7 } else { 0 };
    let flags = match open.mode {
        OpenMode::New => 0,
        OpenMode::Resume => FLAG_RESUME,
        OpenMode::ResumeOrNew => FLAG_RESUME | FLAG_FRESH,
    };
    put_header(out, len, kind::OPEN, flags, id);
    out.put_slice(&open.cid.0);
    out.put_slice(&open.secret.0);
    out.put_u64(open.epoch);
    out.put_u64(open.received);
    out.put_u64(open.limit);
    out.put_u8(connector.len() as u8);
    out.put_slice(connector.as_bytes());
    for (option, value) in options() {
        out.put_u8(*option);
        out.put_u16(value.len() as u16);
        out.put_slice(value.as_bytes());
    }
    if again {
        out.put_u8(OPTION_ATTEMPT);
        out.put_u16(4);
        out.put_u32(open.attempt);
    }
}

/// The longest prefix of whole characters within `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
