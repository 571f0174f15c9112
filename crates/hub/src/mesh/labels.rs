//! What stands in labels and logs for a hub that has dialed this one.

use std::sync::Arc;

use super::Mesh;
use super::outbound::Outbound;
use super::terms::canonical;
use crate::metrics::PeerMetrics;

/// Stands in labels for hubs that are none of the configured peers, while no certificate is demanded.
const UNCONFIGURED: &str = "unconfigured";

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
