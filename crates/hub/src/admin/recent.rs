//! The latest events that matter to those who run the hub.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::millis::now_ms;

/// Events that are kept.
const KEPT: usize = 512;
/// Bytes of all values of one event.
const MAX_BYTES: usize = 2048;

/// The events that are kept: what comes and goes, and what operators do. Nothing that happens once
/// per connection.
pub const KINDS: [&str; 31] = [
    "hub_started",
    "listener_started",
    "listener_stopped",
    "agent_connected",
    "agent_disconnected",
    "agent_leaving",
    "agent_refused",
    "agent_superseded",
    "agent_updated",
    "connectors_rejected",
    "probe_down",
    "probe_up",
    "jwt_rejected",
    "mesh_link_up",
    "mesh_link_down",
    "mesh_link_failed",
    "mesh_link_kept",
    "mesh_link_released",
    "mesh_refused",
    "mesh_peer_conflict",
    "replica_id_conflict",
    "registry_up",
    "registry_down",
    "ha_mode_changed",
    "config_reloaded",
    "config_rejected",
    "certificate_changed",
    "certificate_kept",
    "drain_started",
    "admin_action",
    "agent_order",
];

/// A ring of events. Whoever keeps the log fills it.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    events: VecDeque<Event>,
}

#[derive(Debug, Clone)]
struct Event {
    number: u64,
    at_ms: u64,
    level: &'static str,
    kind: String,
    fields: Map<String, Value>,
}

impl Recent {
    /// Keeps an event of one of the [`KINDS`]; of its fields as many as there is room for.
    pub fn note(&self, kind: &str, level: &'static str, mut fields: Map<String, Value>) {
        if !KINDS.contains(&kind) {
            return;
        }
        let mut bytes = 0;
        fields.retain(|key, value| {
            bytes += key.len() + value.as_str().map_or(8, str::len);
            bytes <= MAX_BYTES
        });
        let mut ring = self.0.lock();
        ring.last += 1;
        let event = Event {
            number: ring.last,
            at_ms: now_ms(),
            level,
            kind: kind.to_owned(),
            fields,
        };
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
    }

    /// The latest `limit` events after `since`, in milliseconds since 1970, the oldest first.
    pub(super) fn since(&self, since: u64, limit: usize, hub: &str) -> Vec<Value> {
        let ring = self.0.lock();
        let wanted = ring.events.iter().rev().filter(|event| event.at_ms > since);
        let mut events: Vec<_> = wanted.take(limit).cloned().collect();
        drop(ring);
        events.reverse();
        let shown = events.into_iter().map(|event| {
            json!({
                "at_ms": event.at_ms,
                "hub": hub,
                "number": event.number,
                "level": event.level,
                "event": event.kind,
                "fields": event.fields,
            })
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(events: &[Value]) -> Vec<&str> {
        events
            .iter()
            .filter_map(|one| one["event"].as_str())
            .collect()
    }

    #[test]
    fn the_latest_are_kept_and_the_rest_is_forgotten() {
        let recent = Recent::default();
        recent.note("flow_opened", "INFO", Map::new());
        assert!(recent.since(0, 9, "hub-a").is_empty());
        for _ in 0..KEPT {
            recent.note("registry_up", "INFO", Map::new());
        }
        recent.note("drain_started", "INFO", Map::new());
        let all = recent.since(0, usize::MAX, "hub-a");
        assert_eq!((all.len(), &all[0]["number"]), (KEPT, &json!(2)));
        let last = recent.since(0, 2, "hub-a");
        assert_eq!(kinds(&last), ["registry_up", "drain_started"]);
        assert!(recent.since(now_ms(), 9, "hub-a").is_empty());
    }

    #[test]
    fn an_event_is_bounded() {
        let recent = Recent::default();
        let long = |key: &str| (key.to_owned(), Value::from("x".repeat(1500)));
        let fields = Map::from_iter([long("a"), long("b")]);
        recent.note("registry_down", "WARN", fields);
        let kept = recent.since(0, 1, "hub-a");
        assert!(kept[0]["fields"]["a"].is_string() && kept[0]["fields"]["b"].is_null());
    }
}
