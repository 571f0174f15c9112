//! The JSON bodies of version 2's handshake frames: who we are, what we export, and the token
//! renewed in band.
//!
//! Everything is bounded when it is read ([`MAX_JSON_BODY`], [`MAX_CONNECTORS`], [`is_name`]).
//! Unknown keys come from newer peers and are ignored; missing ones are errors.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroize as _;

use crate::frame::{MAX_JSON_BODY, MAX_NAME};
use crate::json::{self, JsonError};

/// Most connectors that one agent may export.
pub const MAX_CONNECTORS: usize = 256;
/// Longest bearer token, in bytes: it must fit into one HTTP header as well.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Epochs from here on are not granted by any hub: not all who compare them (doubles, in Lua) could tell
/// them apart, and nothing would be left above them.
pub const MAX_EPOCH: u64 = (1 << 53) - (1 << 32);
/// Smallest credit window and payload that a peer may ask for, in bytes: less would make a frame of
/// every few bytes.
pub const MIN_SIZE: u32 = 1024;

pub(crate) const MAX_FEATURES: usize = 32;
const MAX_TEXT: usize = 256;

/// Why a handshake body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The JSON itself.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A name that is empty, too long or made of other letters.
    #[error("`{key}` holds a name that is not 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -")]
    Name {
        /// The key with the bad name.
        key: &'static str,
    },
    /// A list with more elements than allowed.
    #[error("`{key}` lists {len} elements where at most {max} are allowed")]
    List {
        /// The key with the long list.
        key: &'static str,
        /// Elements received.
        len: usize,
        /// Elements allowed.
        max: usize,
    },
    /// A name listed twice.
    #[error("`{key}` lists a name twice")]
    Repeated {
        /// The key with the repeated name.
        key: &'static str,
    },
    /// A number outside its range.
    #[error("`{key}` is {value} where at least {min} is needed")]
    TooSmall {
        /// The key with the number.
        key: &'static str,
        /// Number received.
        value: u32,
        /// Smallest number allowed.
        min: u32,
    },
    /// A number outside its range.
    #[error("`{key}` is {value} where less than {max} is needed")]
    TooLarge {
        /// The key with the number.
        key: &'static str,
        /// Number received.
        value: u64,
        /// Smallest number that is too large.
        max: u64,
    },
    /// A text that is too long or holds control characters.
    #[error("`{key}` is longer than {max} bytes or holds other than printable characters")]
    Text {
        /// The key with the text.
        key: &'static str,
        /// Bytes allowed.
        max: usize,
    },
}

/// True for the names of agents, connectors, hubs and features: 1 to [`MAX_NAME`] of
/// `[A-Za-z0-9._-]`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// One start of an agent process: 128 random bits, drawn anew at every start, 32 lower-case hex
/// digits on the wire. Two tunnels with the same instance belong to the same running agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(pub u128);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Instance {
    type Err = HelloError;

    fn from_str(text: &str) -> Result<Self, HelloError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(hex) {
            return Err(HelloError::Text {
                key: "instance",
                max: 32,
            });
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| HelloError::Text {
                key: "instance",
                max: 32,
            })
    }
}

impl Serialize for Instance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// HELLO: the first frame of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Must equal the token's `agent_id` claim.
    pub agent_id: String,
    /// Which start of the agent this is.
    pub instance: Instance,
    /// Names of the exported services, each once.
    pub connectors: Vec<String>,
    /// Version of the agent's software, for operators only.
    pub version: String,
    /// The highest epoch that a hub ever told this process; 0 for none.
    pub epoch_seen: u64,
    /// The epoch of the tunnels that this process has now, 0 when it has none: the new tunnel is to
    /// join it. An agent that does not say joins whatever its own process holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_held: Option<u64>,
    /// Credit that the hub starts with on every flow, in bytes.
    pub initial_window: u32,
    /// Largest DATA payload that the agent takes, in bytes.
    pub max_payload: u32,
    /// Optional abilities, by name.
    #[serde(default)]
    pub features: Vec<String>,
}

/// HELLO_ACK: the hub's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// Replica id of the hub.
    pub hub: String,
    /// Fencing number of this agent's ownership.
    pub epoch: u64,
    /// Credit that the agent starts with on every flow, in bytes.
    pub initial_window: u32,
    /// Largest DATA payload that the hub takes, in bytes.
    pub max_payload: u32,
    /// How long the hub lets a link be silent before it pings, in milliseconds.
    pub ping_interval_ms: u32,
    /// How long it then waits for a sign of life, in milliseconds.
    pub ping_timeout_ms: u32,
    /// How long both ends keep the sockets of a flow that lost its path, in milliseconds.
    pub resume_grace_ms: u32,
    /// Optional abilities that both sides have, by name.
    #[serde(default)]
    pub features: Vec<String>,
}

/// UPDATE: the agent's connectors from now on, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Names of the exported services, each once.
    pub connectors: Vec<String>,
}

/// UPDATE_ACK: what the hub made of an UPDATE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateAck {
    /// Connectors that the hub now routes to this agent.
    pub accepted: Vec<String>,
    /// Connectors that it does not.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
}

/// One connector that a hub does not route to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The connector.
    pub name: String,
    /// Why, for operators.
    pub reason: String,
}

/// TOKEN: a renewed token. Never shown by `Debug`, and overwritten in memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The JWT.
    pub token: String,
    /// A DPoP proof (RFC 9449) for it, whose `htm` is `TOKEN`; missing when the token is for no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// TOKEN_ACK: what the hub made of a TOKEN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenAck {
    /// Not taken: the old token keeps its own expiry.
    Refused {
        /// Reason code.
        error: String,
        /// What to make another proof with: then the token may be taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nonce: Option<String>,
    },
    /// Taken.
    Renewed {
        /// When the new token expires, in seconds of Unix time.
        expires_at: u64,
    },
}

/// A handshake body: JSON whose values are within their bounds whichever way it travels.
pub trait Body: Serialize + for<'de> Deserialize<'de> {
    /// Judges the values.
    ///
    /// # Errors
    /// The first value that is out of its bounds, named by its key.
    fn check(&self) -> Result<(), HelloError>;

    /// The body's bytes.
    ///
    /// # Errors
    /// A value out of its bounds.
    fn encode(&self) -> Result<Vec<u8>, HelloError> {
        self.check()?;
        json::write(self, MAX_JSON_BODY).map_err(HelloError::Json)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// No JSON, a missing or doubled key, or a value out of its bounds.
    fn decode(body: &[u8]) -> Result<Self, HelloError> {
        let body: Self = json::parse(body, MAX_JSON_BODY)?;
        body.check()?;
        Ok(body)
    }
}

impl Body for Hello {
    fn check(&self) -> Result<(), HelloError> {
        name("agent_id", &self.agent_id)?;
        names("connectors", &self.connectors, MAX_CONNECTORS)?;
        text("version", &self.version, MAX_NAME)?;
        at_least("initial_window", self.initial_window, MIN_SIZE)?;
        at_least("max_payload", self.max_payload, MIN_SIZE)?;
        names("features", &self.features, MAX_FEATURES)
    }
}

impl Body for HelloAck {
    fn check(&self) -> Result<(), HelloError> {
        name("hub", &self.hub)?;
        below("epoch", self.epoch, MAX_EPOCH)?;
        at_least("initial_window", self.initial_window, MIN_SIZE)?;
        at_least("max_payload", self.max_payload, MIN_SIZE)?;
        at_least("ping_interval_ms", self.ping_interval_ms, 1)?;
        at_least("ping_timeout_ms", self.ping_timeout_ms, 1)?;
        names("features", &self.features, MAX_FEATURES)
    }
}

impl Body for Update {
    fn check(&self) -> Result<(), HelloError> {
        names("connectors", &self.connectors, MAX_CONNECTORS)
    }
}

impl Body for UpdateAck {
    fn check(&self) -> Result<(), HelloError> {
        names("accepted", &self.accepted, MAX_CONNECTORS)?;
        let len = self.rejected.len();
        if len > MAX_CONNECTORS {
            return Err(HelloError::List {
                key: "rejected",
                len,
                max: MAX_CONNECTORS,
            });
        }
        self.rejected.iter().try_for_each(|one| {
            name("rejected", &one.name)?;
            text("reason", &one.reason, MAX_TEXT)
        })
    }
}

impl Body for Token {
    fn check(&self) -> Result<(), HelloError> {
        graphic("token", &self.token)?;
        self.proof
            .as_deref()
            .map_or(Ok(()), |proof| graphic("proof", proof))
    }
}

impl Body for TokenAck {
    fn check(&self) -> Result<(), HelloError> {
        match self {
            Self::Renewed { .. } => Ok(()),
            Self::Refused { error, nonce } => {
                text("error", error, MAX_TEXT)?;
                text("nonce", nonce.as_deref().unwrap_or_default(), MAX_TEXT)
            }
        }
    }
}

fn graphic(key: &'static str, value: &str) -> Result<(), HelloError> {
    let fits = (1..=MAX_TOKEN).contains(&value.len());
    if fits && value.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(HelloError::Text {
        key,
        max: MAX_TOKEN,
    })
}

pub(crate) fn name(key: &'static str, value: &str) -> Result<(), HelloError> {
    if is_name(value) {
        Ok(())
    } else {
        Err(HelloError::Name { key })
    }
}

pub(crate) fn names(key: &'static str, list: &[String], max: usize) -> Result<(), HelloError> {
    if list.len() > max {
        return Err(HelloError::List {
            key,
            len: list.len(),
            max,
        });
    }
    let mut seen = HashSet::with_capacity(list.len());
    list.iter().try_for_each(|one| {
        name(key, one)?;
        if seen.insert(one) {
            Ok(())
        } else {
            Err(HelloError::Repeated { key })
        }
    })
}

pub(crate) fn text(key: &'static str, value: &str, max: usize) -> Result<(), HelloError> {
    if value.len() <= max && !value.chars().any(char::is_control) {
        return Ok(());
    }
    Err(HelloError::Text { key, max })
}

pub(crate) fn at_least(key: &'static str, value: u32, min: u32) -> Result<(), HelloError> {
    if value >= min {
        Ok(())
    } else {
        Err(HelloError::TooSmall { key, value, min })
    }
}

fn below(key: &'static str, value: u64, max: u64) -> Result<(), HelloError> {
    if value < max {
        Ok(())
    } else {
        Err(HelloError::TooLarge { key, value, max })
    }
}
