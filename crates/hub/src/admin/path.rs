//! From a listener to the agents of its connector: every hop, and where the way ends.

use serde_json::{Map, Value, json};

use super::Scope;
use super::cluster::Part;
use super::merge::list;
use super::query::Query;
use super::view::tunnel;

/// Tunnels and routes of one hub that are looked at.
const MOST_WAYS: usize = 64;

/// What this hub has of `connector`.
pub(super) fn part(scope: &Scope, connector: &str) -> Value {
    let mut listeners = Vec::new();
    for listener in scope.listeners.lock().iter() {
        let door = listener.door();
        if *door.connector == *connector {
            listeners.push(json!({ "name": &*door.name, "address": listener.address() }));
        }
    }
    let mut sessions = scope.tunnels.directory().sessions();
    sessions.retain(|session| session.exports().iter().any(|name| name == connector));
    sessions.sort_by_key(|session| {
        let link = session.link();
        (
            !link.takes_flows(),
            link.active_flows(),
            session.agent_id.clone(),
        )
    });
    let tunnels: Vec<_> = sessions
        .iter()
        .take(MOST_WAYS)
        .map(|session| {
            let mut shown = tunnel(session);
            shown["agent_id"] = json!(&*session.agent_id);
            shown["instance"] = session.instance.to_string().into();
            shown["version"] = json!(session.version);
            shown["probe"] = json!(scope.probes.of_target(&session.agent_id, connector));
            shown
        })
        .collect();
    let mut routes = scope.registry.routes().exporters(connector);
    routes.sort_by(|a, b| (&a.agent_id, &a.hub).cmp(&(&b.agent_id, &b.hub)));
    let some: Vec<_> = routes
        .iter()
        .take(MOST_WAYS)
        .map(|route| super::mesh_view::route(route))
        .collect();
    let (_, health) = scope.health.readiness(false);
    let metrics = scope.metrics.connectors();
    let metrics = metrics.iter().find(|(name, _)| name == connector);
    json!({
        "mode": health["mode"],
        "status": health["status"],
        "listeners": listeners,
        "counts": metrics.map(|(_, metrics)| super::history::counts(metrics)),
        "tunnels": tunnels,
        "tunnels_total": sessions.len(),
        "routes": some,
        "routes_total": routes.len(),
        "links": super::mesh_view::links(scope),
    })
}

/// Ways from each hub that listens for the connector, at most so many from each. Without any listener,
/// the ways from `here`.
pub(super) fn paths(parts: &[Part], here: &str, query: &Query) -> Value {
    let listens = |part: &&Part| {
        part.found()
            .is_some_and(|found| !list(&found["listeners"]).is_empty())
    };
    let wanted = |part: &&Part| query.wants("hub", part.hub.as_deref());
    let mut origins: Vec<_> = parts.iter().filter(listens).filter(wanted).collect();
    if origins.is_empty() {
        let start = query.get("hub").unwrap_or(here);
        origins.extend(parts.iter().find(|part| part.hub.as_deref() == Some(start)));
    }
    let paths = origins
        .iter()
        .flat_map(|origin| from(origin, parts, query.limit()));
    json!({ "paths": paths.collect::<Vec<_>>() })
}

fn from(origin: &Part, parts: &[Part], limit: usize) -> Vec<Value> {
    let (Some(hub), Some(told)) = (origin.hub.as_deref(), origin.found()) else {
        return Vec::new();
    };
    let mut start = vec![listener(hub, told), entry(hub, told)];
    let mut ways: Vec<Vec<Value>> = Vec::new();
    for tunnel in list(&told["tunnels"]) {
        ways.push(end(hub, tunnel, None));
    }
    for route in list(&told["routes"]) {
        ways.push(over_mesh(hub, told, route, parts));
    }
    if ways.is_empty() {
        let detail = "no agent that is known to this hub exports the connector";
        start.push(hop("agent", hub, Err(("no_agent", detail)), json!({})));
        return vec![path(hub, start)];
    }
    let mut paths: Vec<_> = ways
        .into_iter()
        .map(|way| path(hub, start.iter().cloned().chain(way).collect()))
        .collect();
    // The order of choice: local first, then the least loaded.
    paths.sort_by_key(|path| {
        let is_whole = path["state"] == "complete";
        let crosses = list(&path["hops"])
            .iter()
            .any(|hop| hop["kind"] == "mesh_link");
        (!is_whole, crosses, path["flows"].as_u64())
    });
    paths.truncate(limit);
    if let Some(first) = paths.first_mut().filter(|path| path["state"] == "complete") {
        first["preferred"] = true.into();
    }
    paths
}

type Verdict = Result<(), (&'static str, &'static str)>;

fn hop(kind: &str, hub: &str, verdict: Verdict, more: Value) -> Value {
    let fault = verdict.err();
    let mut shown = Map::new();
    shown.insert("kind".into(), kind.into());
    shown.insert("hub".into(), hub.into());
    shown.insert("ok".into(), fault.is_none().into());
    shown.insert("reason".into(), json!(fault.map(|fault| fault.0)));
    shown.insert("detail".into(), json!(fault.map(|fault| fault.1)));
    if let Value::Object(more) = more {
        shown.extend(more);
    }
    Value::Object(shown)
}

/// Nobody can tell: the hub that could does not answer.
fn unknown(kind: &str, hub: &str, reason: &str, detail: &str) -> Value {
    let mut shown = hop(kind, hub, Ok(()), json!({}));
    shown["ok"] = Value::Null;
    shown["reason"] = reason.into();
    shown["detail"] = detail.into();
    shown
}

fn path(from: &str, hops: Vec<Value>) -> Value {
    let broken = hops.iter().find(|hop| hop["ok"] == false);
    let doubt = hops
        .iter()
        .find(|hop| hop["ok"].is_null() && hop["kind"] != "target");
    let end = broken.or(doubt);
    let state = match (broken, doubt) {
        (Some(_), _) => "broken",
        (None, Some(_)) => "unknown",
        (None, None) => "complete",
    };
    let tunnel = hops.iter().find(|hop| hop["kind"] == "tunnel");
    json!({
        "from": from,
        "state": state,
        "preferred": false,
        "ends_at": end.map(|hop| &hop["kind"]),
        "reason": end.map(|hop| &hop["reason"]),
        "flows": tunnel.map(|hop| &hop["flows"]),
        "hops": hops,
    })
}

fn listener(hub: &str, told: &Value) -> Value {
    let listeners = list(&told["listeners"]);
    let detail = "no listener of this hub leads to the connector";
    let verdict = match listeners.is_empty() {
        true => Err(("no_listener", detail)),
        false => Ok(()),
    };
    hop("listener", hub, verdict, json!({ "listeners": listeners }))
}

fn entry(hub: &str, told: &Value) -> Value {
    let verdict = match told["status"].as_str() {
        Some("draining") => Err(("draining", "the hub is about to stop")),
        _ => Ok(()),
    };
    let more = json!({ "mode": told["mode"], "status": told["status"], "counts": told["counts"] });
    hop("origin", hub, verdict, more)
}

fn over_mesh(hub: &str, told: &Value, route: &Value, parts: &[Part]) -> Vec<Value> {
    let owner = route["hub"].as_str().unwrap_or_default();
    let link = list(&told["links"])
        .iter()
        .find(|link| link["hub"] == owner && link["direction"] == "outbound");
    let verdict = match link {
        _ if told["mode"] != "active" => Err((
            "not_active",
            "ha.mode of this hub is not active: its clients do not reach agents of others",
        )),
        Some(link) if link["state"] == "established" => Ok(()),
        Some(_) => Err(("link_down", "the link to the owner is down; see last_error")),
        None => Err(("no_link", "the owner is none of this hub's ha.mesh.peers")),
    };
    let mut more = link.cloned().unwrap_or_else(|| json!({}));
    if let Some(more) = more.as_object_mut() {
        more.remove("hub");
        more.insert("to".into(), owner.into());
    }
    let mut hops = vec![hop("mesh_link", hub, verdict, more)];
    let part = parts.iter().find(|part| part.hub.as_deref() == Some(owner));
    match part.map(|part| &part.told) {
        Some(Ok(theirs)) => {
            let verdict = match theirs["mode"] == "active" {
                true => Ok(()),
                false => Err((
                    "not_active",
                    "ha.mode of the owner is not active: it takes no flows of others",
                )),
            };
            let more = json!({
                "mode": theirs["mode"],
                "status": theirs["status"],
                "epoch": route["epoch"],
            });
            hops.push(hop("owner", owner, verdict, more));
            let same = |tunnel: &&Value| tunnel["agent_id"] == route["agent_id"];
            match list(&theirs["tunnels"]).iter().find(same) {
                Some(tunnel) => hops.extend(end(owner, tunnel, Some(route))),
                None if theirs["tunnels_total"].as_u64() > Some(MOST_WAYS as u64) => {
                    let detail = "the owner has too many tunnels to show them all";
                    hops.push(unknown("tunnel", owner, "not_shown", detail));
                }
                None => {
                    let detail = "the owner has no tunnel of the agent: the route is outdated";
                    let agent = json!({ "agent_id": route["agent_id"] });
                    hops.push(hop("tunnel", owner, Err(("no_tunnel", detail)), agent));
                }
            }
        }
        Some(Err(missing)) => {
            hops.push(unknown("owner", owner, &missing.reason, &missing.detail));
        }
        None => hops.push(unknown(
            "owner",
            owner,
            "not_asked",
            "this hub has no link to ask it over",
        )),
    }
    hops
}

/// The part of a way that every one has: tunnel, agent, target.
fn end(hub: &str, tunnel: &Value, route: Option<&Value>) -> Vec<Value> {
    let stale = route.is_some_and(|route| route["epoch"] != tunnel["epoch"]);
    let verdict = match tunnel["takes_flows"].as_bool() {
        _ if stale => Err((
            "stale_epoch",
            "the origin believes in another epoch; it is about to learn",
        )),
        Some(true) => Ok(()),
        _ => Err((
            "leaving",
            "the tunnel takes no new flows: its agent was told to go elsewhere",
        )),
    };
    let agent = json!({
        "agent_id": tunnel["agent_id"],
        "instance": tunnel["instance"],
        "version": tunnel["version"],
    });
    let (mut shown, target) = (tunnel.clone(), target(hub, &tunnel["probe"]));
    if let Some(shown) = shown.as_object_mut() {
        shown.remove("probe");
    }
    vec![
        hop("tunnel", hub, verdict, shown),
        hop("agent", hub, Ok(()), agent),
        target,
    ]
}

/// What probes have found out about it, if there are any.
fn target(hub: &str, probe: &Value) -> Value {
    let mut target = hop("target", hub, Ok(()), json!({}));
    let state = probe["state"].as_str();
    target["ok"] = match state {
        Some("up") => true.into(),
        Some("down") => false.into(),
        _ => Value::Null,
    };
    target["detail"] = match state {
        None => "only the agent knows the target's address: see its log and its /metrics".into(),
        Some("unknown") => "its probes have not decided yet".into(),
        Some(_) => probe["detail"].clone(),
    };
    if state == Some("down") {
        target["reason"] = "target_down".into();
    }
    if probe.is_object() {
        target["probe"] = probe.clone();
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::route::Route;

    fn origin(mode: &str, state: &str) -> Value {
        json!({
            "mode": mode, "status": "ready", "listeners": [{ "name": "l1" }], "tunnels": [],
            "routes": [{ "hub": "hub-b", "agent_id": "s", "epoch": 7 }],
            "links": [{ "hub": "hub-b", "direction": "outbound", "state": state }],
        })
    }

    fn owner(epoch: u64) -> Value {
        json!({
            "mode": "active", "listeners": [], "routes": [], "tunnels_total": 1,
            "tunnels": [{ "agent_id": "s", "epoch": epoch, "takes_flows": true, "flows": 3 }],
        })
    }

    fn walk(origin: Value, owner: Result<Value, &str>) -> (String, String, String) {
        let mut parts = vec![Part::of("hub-a", origin)];
        parts.push(match owner {
            Ok(told) => Part::of("hub-b", told),
            Err(reason) => Part::missing("hub-b", reason),
        });
        let query = Query::parse("", Route::Path("ldap")).expect("good");
        let shown = paths(&parts, "hub-a", &query);
        let path = &shown["paths"][0];
        let text = |key: &str| path[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("ends_at"), text("reason"))
    }

    #[test]
    fn a_way_ends_at_its_first_broken_hop() {
        let told = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        let up = || origin("active", "established");
        assert_eq!(walk(up(), Ok(owner(7))), told("complete", "", ""));
        assert_eq!(
            walk(up(), Ok(owner(8))),
            told("broken", "tunnel", "stale_epoch")
        );
        assert_eq!(
            walk(up(), Err("timeout")),
            told("unknown", "owner", "timeout")
        );
        let down = origin("active", "backoff");
        assert_eq!(
            walk(down, Ok(owner(7))),
            told("broken", "mesh_link", "link_down")
        );
        let shadow = origin("shadow", "established");
        assert_eq!(
            walk(shadow, Ok(owner(7))),
            told("broken", "mesh_link", "not_active")
        );
        let mut alone = up();
        alone["routes"] = json!([]);
        assert_eq!(
            walk(alone, Ok(owner(7))),
            told("broken", "agent", "no_agent")
        );
        let mut deaf = up();
        deaf["listeners"] = json!([]);
        assert_eq!(
            walk(deaf, Ok(owner(7))),
            told("broken", "listener", "no_listener")
        );
    }
}
