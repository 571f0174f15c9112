//! What the admin API shows of the running hub.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Scope;
use super::page::Page;
use crate::router::Entry;
use crate::tunnels::Session;

/// Adds listeners, connectors and totals to `status`.
pub(super) fn describe(scope: &Scope, status: &mut Value) {
    let directory = scope.tunnels.directory();
    let (sessions, flows) = (directory.sessions(), scope.router.flows());
    let mut listeners = Vec::new();
    let mut connectors = BTreeMap::<String, Connector>::new();
    for listener in scope.listeners.lock().iter() {
        let door = listener.door();
        let name = door.connector.to_string();
        connectors.entry(name).or_default().listeners += 1;
        listeners.push(json!({
            "name": &*door.name,
            "address": listener.address(),
            "connector": &*door.connector,
        }));
    }
    for session in &sessions {
        for name in session.exports().iter() {
            let agents = &mut connectors.entry(name.clone()).or_default().agents;
            if !agents.contains(&session.agent_id) {
                agents.push(session.agent_id.clone());
            }
        }
    }
    let mut states = BTreeMap::from([("opening", 0), ("open", 0), ("waiting", 0)]);
    for entry in &flows {
        let name = &entry.flow.label().connector;
        connectors.entry(name.to_string()).or_default().flows += 1;
        *states.entry(state(entry)).or_default() += 1;
    }
    let connectors: Vec<_> = connectors.into_iter().map(Connector::show).collect();
    status["listeners"] = json!(listeners);
    status["connectors"] = json!(connectors);
    status["agents"] = json!({ "total": directory.agents(), "tunnels": sessions.len() });
    status["flows"] = json!(states);
    status["flows"]["total"] = flows.len().into();
}

/// A service, from both sides.
#[derive(Default)]
struct Connector {
    listeners: usize,
    agents: Vec<Arc<str>>,
    flows: usize,
}

impl Connector {
    fn show((name, it): (String, Self)) -> Value {
        json!({
            "name": name,
            "listeners": it.listeners,
            "agents": it.agents.len(),
            "flows": it.flows,
        })
    }
}

/// Every agent with its tunnels, by id.
pub(super) fn agents(scope: &Scope) -> Value {
    let mut agents = BTreeMap::<Arc<str>, Vec<Arc<Session>>>::new();
    for session in scope.tunnels.directory().sessions() {
        let own = agents.entry(session.agent_id.clone()).or_default();
        own.push(session);
    }
    let agents: Vec<_> = agents.into_values().map(agent).collect();
    json!({ "agents": agents })
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

fn tunnel(session: &Session) -> Value {
    let link = session.link();
    let expires = session.token_expires();
    let expires = expires.duration_since(SystemTime::UNIX_EPOCH);
    json!({
        "remote": session.remote,
        "protocol": if link.is_v1() { 1 } else { 2 },
        "connected_sec": session.since.elapsed().as_secs(),
        "flows": link.active_flows(),
        "takes_flows": link.takes_flows(),
        "rtt_ms": link.rtt().map(|rtt| rtt.as_micros() as f64 / 1e3),
        "token_expires_at": expires.unwrap_or_default().as_secs(),
    })
}

/// One page of flows, the oldest first.
pub(super) fn flows(scope: &Scope, page: &Page) -> Value {
    let mut wanted = scope.router.flows();
    wanted.retain(|entry| {
        let holder = entry.client.holder();
        let agent = holder.as_ref().map(|holder| &*holder.agent_id);
        page.wants(&entry.flow.label().connector, agent)
    });
    wanted.sort_by_cached_key(|entry| (entry.flow.since(), entry.flow.cid().to_string()));
    let part = wanted.iter().skip(page.offset).take(page.limit);
    let flows: Vec<_> = part.map(|entry| flow(scope, entry)).collect();
    json!({
        "total": wanted.len(),
        "limit": page.limit,
        "offset": page.offset,
        "flows": flows,
    })
}

fn flow(scope: &Scope, entry: &Entry) -> Value {
    let (label, progress) = (entry.flow.label(), entry.flow.progress());
    json!({
        "cid": entry.flow.cid().to_string(),
        "connector": &*label.connector,
        "listener": &*label.listener,
        "client": &*label.client,
        "agent_id": entry.client.holder().map(|holder| holder.agent_id.to_string()),
        "hub": entry.client.place().as_deref(),
        "state": state(entry),
        "bytes_c2a": progress.bytes_c2a,
        "bytes_a2c": progress.bytes_a2c,
        "duration_ms": progress.duration_ms,
        "idle_ms": scope.router.idle_ms(&entry.flow),
        "held_bytes": entry.flow.held(),
    })
}

/// Whether the target is connected yet, and whether a tunnel carries the flow now.
fn state(entry: &Entry) -> &'static str {
    match (entry.flow.link().is_some(), entry.client.is_open()) {
        (false, _) => "waiting",
        (true, false) => "opening",
        (true, true) => "open",
    }
}
