//! What this hub knows of itself and of its agents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Scope;
use super::flow_view::state;
use super::millis::ms;
use super::query::Query;
use crate::tunnels::Session;

/// Names of connectors that are shown, at most: agents may export any number.
const MOST_CONNECTORS: usize = 1000;

/// Adds listeners, connectors and totals to `status`.
pub(super) fn describe(scope: &Scope, status: &mut Value) {
    let directory = scope.tunnels.directory();
    let sessions = directory.sessions();
    let listeners: Vec<_> = scope
        .listeners
        .lock()
        .iter()
        .map(|listener| {
            let door = listener.door();
            json!({
                "name": &*door.name,
                "address": listener.address(),
                "connector": &*door.connector,
            })
        })
        .collect();
    let mut states = BTreeMap::from([("opening", 0), ("open", 0), ("waiting", 0)]);
    for entry in scope.router.flows() {
        *states.entry(state(&entry)).or_default() += 1;
    }
    let total: usize = states.values().sum();
    status["listeners"] = json!(listeners);
    status["agents"] = json!({ "total": directory.agents(), "tunnels": sessions.len() });
    status["flows"] = json!(states);
    status["flows"]["total"] = total.into();
    status["flows"]["forwarded"] = scope.forward.flows().into();
}

/// A service, from both sides.
#[derive(Default)]
struct Connector {
    listeners: Vec<Value>,
    agents: Vec<Arc<str>>,
    tunnels: usize,
}

/// Every connector that has a listener or an agent here, by name.
pub(super) fn connectors(scope: &Scope) -> Value {
    let mut connectors = BTreeMap::<String, Connector>::new();
    for listener in scope.listeners.lock().iter() {
        let door = listener.door();
        let connector = connectors.entry(door.connector.to_string()).or_default();
        let shown = json!({ "name": &*door.name, "address": listener.address() });
        connector.listeners.push(shown);
    }
    for session in scope.tunnels.directory().sessions() {
        for name in session.exports().iter() {
            let connector = connectors.entry(name.clone()).or_default();
            connector.tunnels += 1;
            connector.agents.push(session.agent_id.clone());
        }
    }
    let is_cut = connectors.len() > MOST_CONNECTORS;
    let probed = scope.probes.by_connector();
    let measured: BTreeMap<_, _> = scope.metrics.connectors().into_iter().collect();
    let shown = connectors.into_iter().take(MOST_CONNECTORS);
    let shown = shown.map(|(name, mut connector)| {
        connector.agents.sort_unstable();
        connector.agents.dedup();
        let counts = measured
            .get(&name)
            .map(|metrics| super::history::counts(metrics));
        json!({
            "name": name,
            "listeners": connector.listeners,
            "agents": connector.agents.len(),
            "tunnels": connector.tunnels,
            "counts": counts,
            "probes": probed.get(&*name).map(|[unknown, up, down]| {
                json!({ "up": up, "down": down, "unknown": unknown })
            }),
        })
    });
    json!({ "connectors": shown.collect::<Vec<_>>(), "is_cut": is_cut })
}

/// One page of the agents that have tunnels here, by id.
pub(super) fn agents(scope: &Scope, query: &Query) -> Value {
    let after = query.get("cursor").unwrap_or_default();
    let mut agents = BTreeMap::<Arc<str>, Vec<Arc<Session>>>::new();
    for session in scope.tunnels.directory().sessions() {
        let exports = |name: &str| session.exports().iter().any(|one| one == name);
        let wanted = *session.agent_id > *after
            && query
                .get("agent")
                .is_none_or(|id| session.agent_id.contains(id))
            && query.get("connector").is_none_or(exports);
        if wanted {
            let own = agents.entry(session.agent_id.clone()).or_default();
            own.push(session);
        }
    }
    let limit = query.limit();
    let more = agents.len() > limit;
    let page = agents.into_iter().take(limit);
    let page: Vec<_> = page
        .map(|(id, sessions)| {
            let mut shown = agent(sessions);
            shown["probes"] = scope.probes.of_agent(&id).into();
            shown
        })
        .collect();
    let next = page.last().filter(|_| more).map(|last| &last["agent_id"]);
    json!({
        "next": next,
        "total": scope.tunnels.directory().agents(),
        "agents": page,
    })
}

fn agent(mut sessions: Vec<Arc<Session>>) -> Value {
    sessions.sort_by_key(|session| session.since);
    let tunnels: Vec<_> = sessions.iter().map(|session| tunnel(session)).collect();
    let flows: usize = sessions.iter().map(|one| one.link().active_flows()).sum();
    // They belong to one running process; the newest knows best.
    let newest = sessions.last();
    json!({
        "agent_id": newest.map(|session| &*session.agent_id),
        "instance": newest.map(|session| session.instance.to_string()),
        "version": newest.map(|session| &session.version),
        "connectors": newest.map(|session| session.exports().to_vec()),
        "epoch": newest.map(|session| session.epoch()),
        "flows": flows,
        "tunnels": tunnels,
    })
}

/// A tunnel that ends here.
pub(super) fn tunnel(session: &Session) -> Value {
    let link = session.link();
    let expires = session.token_expires();
    let expires = expires.duration_since(SystemTime::UNIX_EPOCH);
    json!({
        "remote": session.remote,
        "protocol": if link.is_v1() { 1 } else { 2 },
        "connected_sec": session.since.elapsed().as_secs(),
        "epoch": session.epoch(),
        "flows": link.active_flows(),
        "takes_flows": link.takes_flows(),
        "rtt_ms": ms(link.rtt()),
        "first_window": link.peer().first_window,
        "token_expires_at": expires.unwrap_or_default().as_secs(),
    })
}
