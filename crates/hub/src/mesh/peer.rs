//! A hub that has dialed this one, and what stands for it in labels and logs.

use std::net::IpAddr;
use std::sync::Arc;

use super::proof::Proof;
use crate::metrics::PeerMetrics;

/// A hub that has dialed this one.
#[derive(Debug)]
pub struct Peer {
    /// Its replica id.
    pub hub: Arc<str>,
    /// What stands for it in labels and logs: the host of its URL.
    pub label: Arc<str>,
    /// Who its certificate has proven it to be.
    pub proof: Proof,
    /// Where it dialed from.
    pub remote: IpAddr,
    /// Whether it answers questions.
    pub answers: bool,
    /// What it sends of a new flow unasked, in bytes.
    pub first_window: u32,
    /// What is measured of it.
    pub metrics: Arc<PeerMetrics>,
}

impl Peer {
    /// Whether both have proven who they are, and are not the same.
    pub(super) fn is_other_than(&self, names: &[Arc<str>]) -> bool {
        let proven = &self.proof.names;
        let differ = !proven.iter().any(|name| names.contains(name));
        !proven.is_empty() && !names.is_empty() && differ
    }
}

/// A peer of a standing link would not be let in any more.
pub(super) fn note_untrusted(direction: &str, peer: &str, reason: &str, detail: &str) {
    tracing::warn!(
        event = "mesh_peer_untrusted",
        direction,
        peer,
        reason,
        detail,
        audit = true,
    );
}
