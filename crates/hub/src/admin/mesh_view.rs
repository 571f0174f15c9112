//! What the admin API shows of the other hubs: links, agents there, and the registry.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Scope;
use crate::mesh::{LinkStatus, PeerStatus};
use crate::registry::{RegistryHealth, Route};

pub(super) fn describe(scope: &Scope) -> Value {
    let links: Vec<_> = scope.mesh.hubs().iter().flat_map(links).collect();
    let routes: Vec<_> = scope
        .registry
        .routes()
        .all()
        .iter()
        .map(|one| route(one))
        .collect();
    json!({
        "mode": scope.health.mode().as_str(),
        "registry": registry(scope),
        "links": links,
        "routes": routes,
        "forwarded_flows": scope.forward.flows(),
    })
}

fn registry(scope: &Scope) -> Value {
    let (state, reason) = match scope.registry.health() {
        None => ("embedded", None),
        Some(RegistryHealth::Up) => ("up", None),
        Some(RegistryHealth::Down(reason)) => ("down", Some(reason)),
    };
    json!({ "state": state, "reason": reason })
}

fn links(peer: &PeerStatus) -> [Value; 2] {
    let show = |direction: &str, link: &LinkStatus, error: Option<&String>| {
        json!({
            "peer": &*peer.peer,
            "url": peer.url,
            "hub": peer.hub.as_deref(),
            "direction": direction,
            "state": link.state,
            "since_sec": link.since.and_then(|since| {
                SystemTime::now().duration_since(since).ok().map(|age| age.as_secs())
            }),
            "rtt_ms": link.rtt.map(|rtt| rtt.as_micros() as f64 / 1e3),
            "flows": link.flows,
            "last_error": error,
        })
    };
    [
        show("outbound", &peer.outbound, peer.last_error.as_ref()),
        show("inbound", &peer.inbound, None),
    ]
}

fn route(route: &Route) -> Value {
    json!({
        "hub": &*route.hub,
        "agent_id": &*route.agent_id,
        "instance": route.instance.to_string(),
        "epoch": route.epoch,
        "connectors": &*route.connectors,
        "flows": route.flows.load(Ordering::Relaxed),
    })
}
