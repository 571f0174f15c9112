//! A hub that has dialed this one, and what stands for it in labels and logs.

use std::net::IpAddr;
use std::sync::Arc;

use super::Mesh;
use super::outbound::Outbound;
use super::proof::Proof;
use super::terms::canonical;
use crate::metrics::PeerMetrics;

/// Stands in labels for hubs that are none of the configured peers, while no certificate is demanded.
const UNCONFIGURED: &str = "unconfigured";

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

impl Mesh {
    pub(super) fn peer_metrics(&self, label: &str) -> Arc<PeerMetrics> {
        let outbound = self.outbound.lock();
        match outbound.iter().find(|peer| *peer.label == *label) {
            Some(peer) => peer.metrics.clone(),
            None => Arc::new(self.metrics.peer(label)),
        }
    }

    /// The label of the peer that `hub` is, which has proven `names`.
    pub(super) fn label_of(&self, hub: &str, names: &[Arc<str>]) -> Arc<str> {
        let dialed = self.links.label(hub);
        let outbound = self.outbound.lock();
        let fits = |peer: &&Arc<Outbound>| {
            let host = canonical(peer.url.host());
            names.iter().any(|name| **name == *host)
        };
        let mut candidates = outbound.iter().filter(fits).map(|peer| peer.label.clone());
        if names.is_empty() {
            return dialed.unwrap_or_else(|| UNCONFIGURED.into());
        }
        let first = candidates.clone().next();
        candidates
            .find(|label| Some(label) == dialed.as_ref())
            .or(first)
            .unwrap_or_else(|| UNCONFIGURED.into())
    }
}
