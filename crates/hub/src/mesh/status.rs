//! What operators see of the mesh.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nowconnect_link::session::Link;

use super::Mesh;

/// A peer, by the links with it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The host of its URL, as in metrics.
    pub peer: Arc<str>,
    /// Its URL; `None` for a hub that is none of the configured peers.
    pub url: Option<String>,
    /// Its replica id, once it has told.
    pub hub: Option<Arc<str>>,
    /// The link that this hub keeps to it.
    pub outbound: LinkStatus,
    /// The link that it keeps to this hub.
    pub inbound: LinkStatus,
    /// Frames that wait to be sent to it.
    pub queue_frames: i64,
    /// Bytes on their way to it that are not known to have arrived.
    pub inflight_bytes: i64,
    /// Links established again after a loss.
    pub reconnects: u64,
    /// Flows for which the outbound link is kept, and made anew, though high availability is off.
    pub kept_for: Option<usize>,
    /// Why the outbound link is not up, or was lost last.
    pub last_error: Option<String>,
}

/// One link.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// `connecting`, `established`, `backoff` or `closed`.
    pub state: &'static str,
    /// Since when.
    pub since: Option<SystemTime>,
    /// The smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Flows on it now.
    pub flows: usize,
}

impl LinkStatus {
    fn new(state: &'static str, since: Option<SystemTime>, link: Option<&Arc<Link>>) -> Self {
        let link = link.filter(|link| !link.is_closed());
        Self {
            state,
            since,
            rtt: link.and_then(|link| link.rtt()),
            flows: link.map_or(0, |link| link.active_flows()),
        }
    }
}

impl Mesh {
    /// Every configured peer, and every other hub that has dialed this one.
    pub fn hubs(&self) -> Vec<PeerStatus> {
        let inbound = self.links.inbound();
        let mut shown = HashSet::new();
        let mut hubs = Vec::new();
        for outbound in &*self.outbound.lock() {
            let kept_for = outbound.kept_for(self);
            let status = outbound.status();
            let inward = inbound.iter().find(|inward| {
                let same_hub = status.hub.as_ref() == Some(&inward.peer.hub);
                same_hub || status.hub.is_none() && inward.peer.label == outbound.label
            });
            shown.extend(inward.map(|inward| inward.peer.hub.clone()));
            let hub = status.hub.clone();
            hubs.push(PeerStatus {
                peer: outbound.label.clone(),
                url: Some(outbound.url.to_string()),
                hub: hub.or_else(|| inward.map(|inward| inward.peer.hub.clone())),
                outbound: LinkStatus::new(
                    status.state.as_str(),
                    Some(status.since),
                    status.link.as_ref(),
                ),
                inbound: match inward {
                    Some(inward) => {
                        LinkStatus::new("established", Some(inward.since), Some(&inward.link))
                    }
                    None => LinkStatus::new("closed", None, None),
                },
                queue_frames: outbound.metrics.queue_frames.get(),
                inflight_bytes: outbound.metrics.inflight_bytes.get(),
                reconnects: outbound.metrics.reconnects.get(),
                kept_for,
                last_error: status.error.clone(),
            });
        }
        for inward in inbound {
            if !shown.contains(&inward.peer.hub) {
                hubs.push(PeerStatus {
                    peer: inward.peer.label.clone(),
                    url: None,
                    hub: Some(inward.peer.hub.clone()),
                    outbound: LinkStatus::new("closed", None, None),
                    inbound: LinkStatus::new("established", Some(inward.since), Some(&inward.link)),
                    queue_frames: inward.peer.metrics.queue_frames.get(),
                    inflight_bytes: inward.peer.metrics.inflight_bytes.get(),
                    reconnects: inward.peer.metrics.reconnects.get(),
                    kept_for: None,
                    last_error: None,
                });
            }
        }
        hubs
    }
}
