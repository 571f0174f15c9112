//! Binary frames of protocol version 2, as `docs/protocol.md` specifies them.
//!
//! A WebSocket binary message holds one or more whole frames. The header is laid out as HTTP/2's
//! (RFC 9113 section 4.1): length 24 bits, type 8, flags 8, flow 32, all big endian.

mod decode;
mod encode;

use bytes::Bytes;

use crate::close::Reason;
use crate::ids::{Cid, FlowId, Secret};
use crate::trace::TraceContext;

pub use decode::{decode, decode_next};
pub use encode::put_data_header;

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
const OPTION_TRACE: u8 = 6;

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
    /// The span that the receiver's spans of the flow belong to, where the flow is traced.
    pub trace: Option<TraceContext>,
}

impl Open {
    /// A new flow that nothing is known of but its name, its secret and where it leads: of epoch 0,
    /// and taking no bytes yet.
    #[must_use]
    pub fn new(cid: Cid, secret: Secret, connector: impl Into<String>) -> Self {
        Self {
            cid,
            secret,
            epoch: 0,
            mode: OpenMode::New,
            received: 0,
            limit: 0,
            connector: connector.into(),
            client: String::new(),
            listener: String::new(),
            destination: String::new(),
            agent: String::new(),
            attempt: 0,
            trace: None,
        }
    }
}

/// The listener of flows that have no client: a hub probes the target itself.
pub const PROBE_LISTENER: &str = "probe";

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

impl Frame {
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
