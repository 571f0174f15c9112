//! Protocol version 1: JSON texts, one per WebSocket text frame, for ends that know nothing newer.
//!
//! This file reads and writes the messages; [`bridge`] makes them speak with the flow engine of
//! version 2. Unknown keys are ignored. Anything malformed is one [`V1Error`], and nothing is
//! stored before it was bounded.

pub mod bridge;

use std::borrow::Cow;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use crate::frame::{MAX_JSON_BODY, MAX_PAYLOAD};
use crate::hello::{HelloError, MAX_CONNECTORS, is_name};
use crate::ids::Cid;
use crate::json::{self, JsonError};

/// Longest message, in bytes: a DATA of [`MAX_PAYLOAD`] in base64 and room for the rest.
pub const MAX_TEXT: usize = MAX_PAYLOAD.div_ceil(3) * 4 + 1024;

/// Longest `ver` and `err` kept, in bytes.
const MAX_WORD: usize = 64;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "t", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Message {
    /// Agent to hub, first of all.
    Hello {
        /// Must equal the token's `agent_id` claim.
        agent_id: String,
        /// Names of the exported services.
        connectors: Vec<String>,
        /// Version of the agent's software; empty when it did not say.
        ver: String,
    },
    /// Hub to agent.
    HelloAck {
        /// Fencing number, from hubs that have one.
        #[serde(skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
    },
    /// Hub to agent: a new flow.
    Open {
        /// The flow.
        #[serde(serialize_with = "write_cid")]
        cid: Cid,
        /// Which service to dial.
        connector: String,
    },
    /// Bytes of one direction.
    Data {
        /// The flow.
        #[serde(serialize_with = "write_cid")]
        cid: Cid,
        /// Counts the DATA of this flow and direction from 0.
        seq: u64,
        /// The bytes.
        #[serde(rename = "b64", serialize_with = "write_base64")]
        payload: Bytes,
    },
    /// One direction ends.
    Fin {
        /// The flow.
        #[serde(serialize_with = "write_cid")]
        cid: Cid,
        /// Which direction.
        dir: Direction,
    },
    /// The flow ends here and now.
    Rst {
        /// The flow.
        #[serde(serialize_with = "write_cid")]
        cid: Cid,
        /// Why: a name of [`Reason`](crate::Reason), or any other word. Read as empty when it is too
        /// long or not printable.
        err: String,
    },
}

/// Direction of bytes in a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Client to agent.
    C2a,
    /// Agent to client.
    A2c,
}

/// Why a text is no message. It ends the link: what such a peer means cannot be known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum V1Error {
    /// The JSON itself, a missing or doubled key, or a number out of its range.
    #[error("{kind}: {error}")]
    Json {
        /// The message's type, as far as it is known.
        kind: &'static str,
        /// What is wrong.
        error: JsonError,
    },
    /// A value that is not what its key stands for.
    #[error("{kind}: `{key}` is {what}")]
    Value {
        /// The message's type.
        kind: &'static str,
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        what: &'static str,
    },
    /// A HELLO whose values cannot be.
    #[error("HELLO: {0}")]
    Hello(#[from] HelloError),
    /// A message that only the other side of the link may send.
    #[error("a message that only the other side may send")]
    WrongSide,
}

/// The part of a message that tells how to read the rest.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
}

#[derive(Deserialize)]
struct HelloKeys {
    agent_id: String,
    connectors: Vec<String>,
    #[serde(default)]
    ver: String,
}

#[derive(Deserialize)]
struct HelloAckKeys {
    epoch: Option<u64>,
}

#[derive(Deserialize)]
struct OpenKeys<'a> {
    #[serde(borrow)]
    cid: Cow<'a, str>,
    connector: String,
}

#[derive(Deserialize)]
struct DataKeys<'a> {
    #[serde(borrow)]
    cid: Cow<'a, str>,
    seq: u64,
    #[serde(borrow)]
    b64: Cow<'a, str>,
}

#[derive(Deserialize)]
struct FinKeys<'a> {
    #[serde(borrow)]
    cid: Cow<'a, str>,
    dir: Direction,
}

#[derive(Deserialize)]
struct RstKeys<'a> {
    #[serde(borrow)]
    cid: Cow<'a, str>,
    #[serde(default)]
    err: String,
}

impl Message {
    /// Reads one text; `None` is a type that this version does not know and skips.
    ///
    /// # Errors
    /// Whatever is not a message.
    pub fn decode(text: &[u8]) -> Result<Option<Self>, V1Error> {
        let head: Kind<'_> = keys("message", text, MAX_TEXT)?;
        let message = match head.t.as_ref() {
            "HELLO" => decode_hello(keys("HELLO", text, MAX_JSON_BODY)?)?,
            "HELLO_ACK" => {
                let HelloAckKeys { epoch } = keys("HELLO_ACK", text, MAX_JSON_BODY)?;
                Self::HelloAck { epoch }
            }
            "OPEN" => {
                let OpenKeys { cid, connector } = keys("OPEN", text, MAX_JSON_BODY)?;
                check_name("OPEN", "connector", &connector)?;
                Self::Open {
                    cid: read_cid("OPEN", &cid)?,
                    connector,
                }
            }
            "DATA" => {
                let DataKeys { cid, seq, b64 } = keys("DATA", text, MAX_TEXT)?;
                Self::Data {
                    cid: read_cid("DATA", &cid)?,
                    seq,
                    payload: read_base64(&b64)?,
                }
            }
            "FIN" => {
                let FinKeys { cid, dir } = keys("FIN", text, MAX_JSON_BODY)?;
                Self::Fin {
                    cid: read_cid("FIN", &cid)?,
                    dir,
                }
            }
            "RST" => {
                let RstKeys { cid, err } = keys("RST", text, MAX_JSON_BODY)?;
                Self::Rst {
                    cid: read_cid("RST", &cid)?,
                    // Some agents say here what their system said, which is no name that we know.
                    err: if is_word(&err) { err } else { String::new() },
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(message))
    }

    /// The message as text.
    #[must_use]
    pub fn encode(&self) -> String {
        // serde_json fails on maps whose keys are not strings, and on nothing that is in here.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn keys<'a, T: Deserialize<'a>>(
    kind: &'static str,
    text: &'a [u8],
    max: usize,
) -> Result<T, V1Error> {
    json::parse(text, max).map_err(|error| V1Error::Json { kind, error })
}

fn decode_hello(keys: HelloKeys) -> Result<Message, V1Error> {
    let HelloKeys {
        agent_id,
        connectors,
        ver,
    } = keys;
    check_name("HELLO", "agent_id", &agent_id)?;
    if !is_word(&ver) {
        return Err(V1Error::Value {
            kind: "HELLO",
            key: "ver",
            what: "too long or not printable",
        });
    }
    if connectors.len() > MAX_CONNECTORS {
        return Err(V1Error::Value {
            kind: "HELLO",
            key: "connectors",
            what: "too long a list",
        });
    }
    connectors
        .iter()
        .try_for_each(|name| check_name("HELLO", "connectors", name))?;
    Ok(Message::Hello {
        agent_id,
        connectors,
        ver,
    })
}

fn check_name(kind: &'static str, key: &'static str, name: &str) -> Result<(), V1Error> {
    if is_name(name) {
        return Ok(());
    }
    Err(V1Error::Value {
        kind,
        key,
        what: "no name of 1 to 64 of A-Z a-z 0-9 . _ -",
    })
}

fn is_word(word: &str) -> bool {
    word.len() <= MAX_WORD && !word.chars().any(char::is_control)
}

fn read_cid(kind: &'static str, text: &str) -> Result<Cid, V1Error> {
    text.parse().map_err(|_| V1Error::Value {
        kind,
        key: "cid",
        what: "no UUID",
    })
}

fn read_base64(text: &str) -> Result<Bytes, V1Error> {
    let payload = STANDARD.decode(text).map_err(|_| V1Error::Value {
        kind: "DATA",
        key: "b64",
        what: "no base64",
    })?;
    if payload.len() > MAX_PAYLOAD {
        return Err(V1Error::Value {
            kind: "DATA",
            key: "b64",
            what: "too long",
        });
    }
    Ok(payload.into())
}

fn write_cid<S: Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cid)
}

fn write_base64<S: Serializer>(payload: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(payload, &STANDARD))
}
