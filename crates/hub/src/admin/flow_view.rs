//! What this hub knows of flows: those of its own clients, and those that pass through.

use std::net::{IpAddr, SocketAddr};

use nowconnect_proto::Cid;
use serde_json::{Value, json};

use super::Scope;
use super::query::Query;
use crate::router::Entry;

/// Flows that are looked at together.
const BATCH: usize = 1000;
/// Flows that are looked at for one page: a filter that fits none costs no more.
const MOST_LOOKED_AT: usize = 20_000;

/// One page of flows, the oldest first.
///
/// The cursor is the name of the last flow that was looked at. Names never change and sort by the time
/// of their making: a flow that is there from the first page to the last is on exactly one of them.
pub(super) fn flows(scope: &Scope, hub: &str, query: &Query) -> Result<Value, String> {
    let cursor = query.get("cursor").map(str::parse::<Cid>).transpose();
    let mut after = cursor.map_err(|_| "cursor must be `next` of the page before".to_owned())?;
    let (limit, mut looked_at, mut page) = (query.limit(), 0, Vec::new());
    let next = 'pages: loop {
        let batch = scope.router.some_after(after, BATCH);
        let is_last = batch.len() < BATCH;
        looked_at += batch.len();
        for entry in batch {
            if page.len() == limit {
                break 'pages after;
            }
            after = Some(entry.flow.cid());
            if wants(query, hub, &entry) && !entry.flow.has_ended() {
                page.push(flow(scope, hub, &entry));
            }
        }
        if is_last {
            break None;
        }
        if looked_at >= MOST_LOOKED_AT {
            break after;
        }
    };
    Ok(json!({
        "next": next.map(|cid| cid.to_string()),
        "total": scope.router.count(),
        "flows": page,
    }))
}

fn wants(query: &Query, hub: &str, entry: &Entry) -> bool {
    let label = entry.flow.label();
    if !query.wants("connector", Some(&label.connector))
        || !query.wants("listener", Some(&label.listener))
    {
        return false;
    }
    let cid = |start: &str| entry.flow.cid().to_string().starts_with(start);
    let agent = |id: &str| {
        let holder = entry.client.holder();
        holder.is_some_and(|holder| *holder.agent_id == *id)
    };
    let over = |name: &str| name == hub || entry.client.place().as_deref() == Some(name);
    query.get("cid").is_none_or(cid)
        && query
            .get("client")
            .is_none_or(|one| is_from(&label.client, one))
        && query.get("agent").is_none_or(agent)
        && query.get("hub").is_none_or(over)
        && query
            .get("state")
            .is_none_or(|wanted| wanted == state(entry))
}

/// Whether `client`, `ip:port`, is the `wanted` one: an address, with or without a port.
fn is_from(client: &str, wanted: &str) -> bool {
    let Ok(wanted) = wanted.parse::<IpAddr>() else {
        return client == wanted;
    };
    let client = client.parse::<SocketAddr>();
    client.is_ok_and(|client| client.ip().to_canonical() == wanted.to_canonical())
}

fn flow(scope: &Scope, hub: &str, entry: &Entry) -> Value {
    let (label, progress) = (entry.flow.label(), entry.flow.progress());
    let place = entry.client.place();
    json!({
        "cid": entry.flow.cid().to_string(),
        "connector": &*label.connector,
        "listener": &*label.listener,
        "client": &*label.client,
        "agent_id": entry.client.holder().map(|holder| holder.agent_id.to_string()),
        "hub": hub,
        "owner": place.as_deref().unwrap_or(hub),
        "state": state(entry),
        "bytes_c2a": progress.bytes_c2a,
        "bytes_a2c": progress.bytes_a2c,
        "duration_ms": progress.duration_ms,
        "idle_ms": scope.router.idle_ms(&entry.flow),
        "held_bytes": entry.flow.held(),
    })
}

/// A flow of a client here, or one that passes through on its way to an agent here.
pub(super) fn one(scope: &Scope, hub: &str, cid: Cid) -> Value {
    json!({
        "flow": scope.router.find(cid).map(|entry| detail(scope, hub, &entry)),
        "passing": scope.mesh.passing(cid).map(|(from, passing)| {
            let [to_client, to_agent] = passing.waiting();
            let onward = passing.onward();
            json!({
                "from": &*from,
                "agent_id": &*onward.peer().name,
                "tunnel_rtt_ms": super::millis::ms(onward.rtt()),
                "waiting_bytes_c2a": to_agent,
                "waiting_bytes_a2c": to_client,
            })
        }),
    })
}

fn detail(scope: &Scope, hub: &str, entry: &Entry) -> Value {
    let mut shown = flow(scope, hub, entry);
    let holder = entry.client.holder();
    let door = entry.client.permit().door();
    shown["instance"] = json!(holder.map(|holder| holder.instance.to_string()));
    shown["epoch"] = entry.client.epoch().into();
    shown["attempts"] = entry.flow.attempt().saturating_add(1).into();
    shown["path_rtt_ms"] = json!(super::millis::ms(
        entry.flow.link().and_then(|link| link.rtt())
    ));
    let idle = door.config().idle_timeout;
    shown["idle_timeout_ms"] = json!(idle.map(|idle| idle.as_millis() as u64));
    let waits = entry.flow.detached_ms();
    let waits = waits.map(|since| scope.router.now_ms().saturating_sub(since));
    shown["waiting_ms"] = json!(waits);
    shown
}

/// Whether the target is connected yet, and whether a tunnel carries the flow now.
pub(super) fn state(entry: &Entry) -> &'static str {
    match (entry.flow.link().is_some(), entry.client.is_open()) {
        (false, _) => "waiting",
        (true, false) => "opening",
        (true, true) => "open",
    }
}

#[cfg(test)]
mod tests {
    use super::is_from;

    #[test]
    fn clients_are_found_by_address_with_or_without_a_port() {
        assert!(is_from("192.0.2.1:5", "192.0.2.1"));
        assert!(is_from("[::ffff:192.0.2.1]:5", "192.0.2.1"));
        assert!(is_from("[::1]:5", "[::1]:5"));
        assert!(!is_from("192.0.2.10:5", "192.0.2.1"));
        assert!(!is_from("192.0.2.1:50", "192.0.2.1:5"));
    }
}
