//! The JSON bodies of the handshake between two hubs.
//!
//! The hub that dialed a mesh link sends HELLO with a [`MeshHello`] and is answered HELLO_ACK with
//! one. Everything is bounded when it is read, as in [`crate::hello`].

use serde::{Deserialize, Serialize};

use crate::frame::MAX_NAME;
use crate::hello::{
    Body, HelloError, Instance, MAX_FEATURES, MIN_SIZE, at_least, name, names, text,
};

/// The ability to answer QUERY, among [`MeshHello::features`].
pub const QUERY: &str = "query";

/// The wish, among [`MeshHello::features`] of a hub that dials, to go on with flows that cross
/// already: a hub whose high availability is off takes no other link.
pub const RESUME: &str = "resume";

/// Longest URL that is told, in bytes.
const MAX_VIA: usize = 512;

/// What a hub says of itself on a new mesh link, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshHello {
    /// Replica id of the hub.
    pub hub: String,
    /// This start of its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
    /// The URL that was dialed: a hub that is listed under two would have two links otherwise, each
    /// of which looks like the successor of the other.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub via: String,
    /// Version of its software, for operators only.
    pub version: String,
    /// Credit that the other hub starts with on every new flow, in bytes.
    pub initial_window: u32,
    /// Largest DATA payload that the hub takes, in bytes.
    pub max_payload: u32,
    /// Optional abilities, by name.
    #[serde(default)]
    pub features: Vec<String>,
}

impl MeshHello {
    /// Whether the hub answers QUERY.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.has(QUERY)
    }

    /// Whether flows wait for this link that have crossed an earlier one.
    #[must_use]
    pub fn resumes(&self) -> bool {
        self.has(RESUME)
    }

    fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }
}

impl Body for MeshHello {
    fn check(&self) -> Result<(), HelloError> {
        name("hub", &self.hub)?;
        text("via", &self.via, MAX_VIA)?;
        text("version", &self.version, MAX_NAME)?;
        at_least("initial_window", self.initial_window, MIN_SIZE)?;
        at_least("max_payload", self.max_payload, MIN_SIZE)?;
        names("features", &self.features, MAX_FEATURES)
    }
}
