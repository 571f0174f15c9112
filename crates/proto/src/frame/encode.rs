//! Frames into a message.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    DATA_OFFSET_LEN, FLAG_FRESH, FLAG_MORE, FLAG_RESUME, Frame, MAX_NAME, MAX_OPTION, OPTION_AGENT,
    OPTION_ATTEMPT, OPTION_CLIENT, OPTION_DESTINATION, OPTION_LISTENER, OPTION_TRACE, Open,
    OpenMode, QUERY_NUMBER_LEN, kind,
};
use crate::close::Reason;
use crate::ids::FlowId;

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
    let trace = open.trace.map(|trace| trace.to_string());
    let options = [
        (OPTION_CLIENT, cut(&open.client, MAX_OPTION)),
        (OPTION_LISTENER, cut(&open.listener, MAX_OPTION)),
        (OPTION_AGENT, cut(&open.agent, MAX_OPTION)),
        (OPTION_DESTINATION, cut(&open.destination, MAX_OPTION)),
        (OPTION_TRACE, trace.as_deref().unwrap_or_default()),
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
