//! One answer of what several hubs have told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::cluster::Part;
use super::millis::now_ms;
use super::query::{Query, Scope};

/// The items of a list; none if it is none.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What every answer begins with.
pub(super) fn envelope(here: &str, query: &Query, hubs: Vec<Value>) -> Value {
    let scope = match query.scope() {
        Scope::Cluster => "cluster",
        Scope::Hub => "hub",
    };
    json!({ "scope": scope, "asked": here, "at_ms": now_ms(), "hubs": hubs })
}

/// `items` of all hubs, each with the hub that told of it. What is no object is left out: nobody else may
/// write into it.
fn items<'a>(parts: &'a [Part], key: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    parts.iter().flat_map(move |part| {
        let found = part.found().map(|found| list(&found[key]));
        let hub = part.hub.as_deref().unwrap_or_default();
        found
            .unwrap_or_default()
            .iter()
            .filter(|item| item.is_object())
            .map(move |item| (hub, item))
    })
}

/// The sum of what all hubs tell; one that tells nonsense overflows nothing.
pub(super) fn sum<'a>(parts: &'a [Part], pointer: &'a str) -> u64 {
    let found = parts.iter().filter_map(Part::found);
    let numbers = found.filter_map(|found| found.pointer(pointer)?.as_u64());
    numbers.fold(0, u64::saturating_add)
}

/// Totals of all hubs. `agents` is how many different ones this hub knows of.
pub(super) fn status(parts: &[Part], agents: usize) -> Value {
    let most = parts.iter().filter_map(Part::found);
    let most = most.filter_map(|found| found.pointer("/agents/total")?.as_u64());
    json!({
        "agents": {
            "total": most.max().unwrap_or(0).max(agents as u64),
            "tunnels": sum(parts, "/agents/tunnels"),
        },
        "flows": {
            "total": sum(parts, "/flows/total"),
            "open": sum(parts, "/flows/open"),
            "opening": sum(parts, "/flows/opening"),
            "waiting": sum(parts, "/flows/waiting"),
            "forwarded": sum(parts, "/flows/forwarded"),
        },
    })
}

/// One page of agents: each once, with its tunnels to all hubs.
pub(super) fn agents(parts: &[Part], query: &Query) -> Value {
    let mut agents = BTreeMap::<&str, Vec<(&str, &Value)>>::new();
    for (hub, agent) in items(parts, "agents") {
        let id = agent["agent_id"].as_str().unwrap_or_default();
        agents.entry(id).or_default().push((hub, agent));
    }
    let limit = query.limit();
    let cut = parts
        .iter()
        .filter_map(Part::found)
        .any(|found| found["next"].is_string());
    let more = cut || agents.len() > limit;
    let page = agents.into_values().take(limit).map(|ways| {
        let tunnels = ways.iter().flat_map(|(hub, agent)| {
            let tunnels = list(&agent["tunnels"]).iter();
            tunnels.filter(|tunnel| tunnel.is_object()).map(|tunnel| {
                let mut tunnel = tunnel.clone();
                tunnel["hub"] = (*hub).into();
                tunnel
            })
        });
        let tunnels: Vec<_> = tunnels.collect();
        // After a claim at one hub the others are a moment behind.
        let latest = ways.iter().max_by_key(|(_, agent)| agent["epoch"].as_u64());
        let mut shown = latest
            .map(|(_, agent)| (*agent).clone())
            .unwrap_or_default();
        let flows = tunnels.iter().filter_map(|tunnel| tunnel["flows"].as_u64());
        shown["flows"] = flows.fold(0, u64::saturating_add).into();
        shown["tunnels"] = json!(tunnels);
        shown["probes"] = probes(&ways).into();
        shown["hubs"] = json!(ways.iter().map(|(hub, _)| *hub).collect::<Vec<_>>());
        shown
    });
    let mut page: Vec<_> = page.collect();
    let next = page
        .last()
        .filter(|_| more)
        .map(|last| last["agent_id"].clone());
    if let Some(wanted) = query.get("hub") {
        page.retain(|agent| list(&agent["hubs"]).iter().any(|hub| hub == wanted));
    }
    json!({ "next": next, "agents": page })
}

/// What each hub has found out about an agent's targets through its own tunnels.
fn probes(ways: &[(&str, &Value)]) -> Vec<Value> {
    let all = ways.iter().flat_map(|(hub, agent)| {
        let found = list(&agent["probes"]).iter();
        found.filter(|probe| probe.is_object()).map(|probe| {
            let mut probe = probe.clone();
            probe["hub"] = (*hub).into();
            probe
        })
    });
    all.collect()
}

/// One page of flows, the oldest first. What a hub has not looked at yet may come before what another
/// has found: the page ends there.
pub(super) fn flows(parts: &[Part], query: &Query) -> Value {
    let found = parts.iter().filter_map(Part::found);
    let horizon = found.filter_map(|found| found["next"].as_str()).min();
    let name = |flow: &Value| flow["cid"].as_str().unwrap_or_default().to_owned();
    let mut page: Vec<_> = items(parts, "flows").map(|(_, flow)| flow).collect();
    page.retain(|flow| horizon.is_none_or(|horizon| *name(flow) <= *horizon));
    page.sort_by_cached_key(|flow| name(flow));
    let is_cut = page.len() > query.limit();
    page.truncate(query.limit());
    let next = match page.last() {
        Some(last) if is_cut => Some(name(last)),
        _ => horizon.map(str::to_owned),
    };
    json!({ "next": next, "total": sum(parts, "/total"), "flows": page })
}

/// The flow as its client's hub sees it, and as the hub does that it passes through.
pub(super) fn flow(parts: &[Part]) -> Value {
    let told = |key: &str| {
        parts.iter().find_map(|part| {
            let mut shown = part.found()?.get(key)?.clone();
            if shown.is_object() {
                shown["hub"] = json!(part.hub);
                return Some(shown);
            }
            None
        })
    };
    json!({ "flow": told("flow"), "passing": told("passing") })
}

/// Every connector with what each hub has of it.
pub(super) fn connectors(parts: &[Part]) -> Value {
    let mut connectors = BTreeMap::<&str, Vec<Value>>::new();
    for (hub, connector) in items(parts, "connectors") {
        let name = connector["name"].as_str().unwrap_or_default();
        let mut shown = connector.clone();
        if let Some(shown) = shown.as_object_mut() {
            shown.remove("name");
            shown.insert("hub".into(), hub.into());
        }
        connectors.entry(name).or_default().push(shown);
    }
    let shown = connectors.into_iter().map(|(name, hubs)| {
        let count = |pointer: &str| {
            let numbers = hubs.iter().filter_map(|hub| hub.pointer(pointer)?.as_u64());
            numbers.fold(0, u64::saturating_add)
        };
        let listeners: usize = hubs.iter().map(|hub| list(&hub["listeners"]).len()).sum();
        json!({
            "name": name,
            "listeners": listeners,
            "tunnels": count("/tunnels"),
            "flows": count("/counts/flows"),
            "probes": {
                "up": count("/probes/up"),
                "down": count("/probes/down"),
                "unknown": count("/probes/unknown"),
            },
            "hubs": hubs,
        })
    });
    json!({ "connectors": shown.collect::<Vec<_>>() })
}

/// The latest events of all hubs, the oldest first.
pub(super) fn events(parts: &[Part], query: &Query) -> Value {
    let mut events: Vec<_> = items(parts, "events").map(|(_, event)| event).collect();
    events.sort_by_key(|event| {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        (
            event["at_ms"].as_u64(),
            text("hub"),
            event["number"].as_u64(),
        )
    });
    let extra = events.len().saturating_sub(query.limit());
    json!({ "events": events[extra..] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::route::Route;

    fn part(hub: &str, told: Value) -> Part {
        Part::of(hub, told)
    }

    fn page(parts: &[Part], query: &str) -> (Vec<String>, Option<String>) {
        let query = Query::parse(query, Route::Flows).expect("good");
        let merged = flows(parts, &query);
        let names = list(&merged["flows"]).iter();
        let names = names.map(|flow| flow["cid"].as_str().expect("a name").to_owned());
        (names.collect(), merged["next"].as_str().map(str::to_owned))
    }

    fn told(names: &[&str], next: Option<&str>) -> Value {
        let flows: Vec<_> = names.iter().map(|name| json!({ "cid": name })).collect();
        json!({ "flows": flows, "next": next, "total": 7 })
    }

    #[test]
    fn a_page_ends_where_a_hub_has_not_looked_yet() {
        let parts = [
            part("hub-a", told(&["a", "c"], Some("c"))),
            part("hub-b", told(&["b", "d", "e"], None)),
        ];
        let next = |name: &str| Some(name.to_owned());
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            page(&parts, "limit=9"),
            (names(&["a", "b", "c"]), next("c"))
        );
        assert_eq!(page(&parts, "limit=2"), (names(&["a", "b"]), next("b")));
        assert_eq!(
            page(&parts[1..], "limit=3"),
            (names(&["b", "d", "e"]), None)
        );
        let empty = [part("hub-a", told(&[], Some("q")))];
        assert_eq!(
            page(&empty, ""),
            (names(&[]), next("q")),
            "a filter that fits little"
        );
    }

    #[test]
    fn an_agent_with_tunnels_to_two_hubs_is_one() {
        let agent =
            |epoch: u64| json!({ "agent_id": "s", "epoch": epoch, "tunnels": [{ "flows": 2 }] });
        let told = |epoch| json!({ "agents": [agent(epoch)], "next": null });
        let query = Query::parse("", Route::Agents).expect("good");
        let merged = agents(&[part("hub-a", told(5)), part("hub-b", told(6))], &query);
        let shown = &merged["agents"][0];
        assert_eq!((&shown["epoch"], &shown["flows"]), (&json!(6), &json!(4)));
        assert_eq!(shown["tunnels"][1]["hub"], "hub-b");
        assert_eq!(list(&merged["agents"]).len(), 1);
    }

    #[test]
    fn events_are_merged_by_time_and_the_latest_are_kept() {
        let event = |hub: &str, at: u64| json!({ "at_ms": at, "hub": hub, "number": 1 });
        let parts = [
            part(
                "hub-a",
                json!({ "events": [event("hub-a", 1), event("hub-a", 3)] }),
            ),
            part("hub-b", json!({ "events": [event("hub-b", 2)] })),
        ];
        let query = Query::parse("limit=2", Route::Events).expect("good");
        let merged = events(&parts, &query);
        let times: Vec<_> = list(&merged["events"])
            .iter()
            .map(|one| &one["at_ms"])
            .collect();
        assert_eq!(times, [&json!(2), &json!(3)]);
    }
}
