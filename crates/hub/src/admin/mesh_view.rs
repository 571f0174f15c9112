//! What this hub knows of the others: links, agents there, and the registry.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Scope;
use super::millis::ms;
use crate::mesh::{LinkStatus, PeerStatus};
use crate::registry::{RegistryHealth, Route};

/// Routes that are shown.
const MOST_ROUTES: usize = 1000;

pub(super) fn describe(scope: &Scope) -> Value {
    let routes = scope.registry.routes().all();
    let shown: Vec<_> = routes
        .iter()
        .take(MOST_ROUTES)
        .map(|one| route(one))
        .collect();
    json!({
        "mode": scope.health.mode().as_str(),
        "registry": registry(scope),
        "links": links(scope),
        "routes": shown,
        "routes_total": routes.len(),
        "forwarded_flows": scope.forward.flows(),
    })
}

/// Every link, two for each hub.
pub(super) fn links(scope: &Scope) -> Vec<Value> {
    scope.mesh.hubs().iter().flat_map(both).collect()
}

fn registry(scope: &Scope) -> Value {
    let (state, reason) = match scope.registry.health() {
        None => ("embedded", None),
        Some(RegistryHealth::Up) => ("up", None),
        Some(RegistryHealth::Down(reason)) => ("down", Some(reason)),
    };
    json!({ "state": state, "reason": reason })
}

fn both(peer: &PeerStatus) -> [Value; 2] {
    let show = |direction: &str, link: &LinkStatus, kept: Option<usize>, error: Option<&String>| {
        json!({
            "peer": &*peer.peer,
            "url": peer.url,
            "hub": peer.hub.as_deref(),
            "direction": direction,
            "state": link.state,
            "since_sec": link.since.and_then(|since| {
                SystemTime::now().duration_since(since).ok().map(|age| age.as_secs())
            }),
            "rtt_ms": ms(link.rtt),
            "flows": link.flows,
            "kept_for_flows": kept,
            "queue_frames": peer.queue_frames,
            "inflight_bytes": peer.inflight_bytes,
            "reconnects": peer.reconnects,
            "last_error": error,
        })
    };
    [
        show(
            "outbound",
            &peer.outbound,
            peer.kept_for,
            peer.last_error.as_ref(),
        ),
        show("inbound", &peer.inbound, None, None),
    ]
}

/// A way to an agent of another hub.
pub(super) fn route(route: &Route) -> Value {
    json!({
        "hub": &*route.hub,
        "agent_id": &*route.agent_id,
        "instance": route.instance.to_string(),
        "epoch": route.epoch,
        "connectors": &*route.connectors,
        "down": &*route.ailing,
        "flows": route.flows.load(Ordering::Relaxed),
    })
}
