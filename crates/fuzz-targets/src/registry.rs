//! What a hub reads in Redis, which others may have written.

use std::collections::BTreeSet;

use nowconnect_hub::fuzzing::registry::{self, Answer, Copy, MAX_AGENTS, MAX_HUBS};
use nowconnect_proto::hello::{MAX_CONNECTORS, is_name};
use serde_json::Value;

/// Longest entry and notification.
const MAX_TEXT: usize = 64 * 1024;

/// Any bytes as an answer in Redis' own encoding, taken for everything that a hub asks for.
pub fn answer(data: &[u8]) {
    for answer in registry::answers(data) {
        match answer {
            Answer::Table(agents) => assert!(agents <= MAX_AGENTS && agents <= data.len()),
            Answer::Cluster(ranges) => assert!(ranges <= 16_384),
            Answer::Master(node) => assert!(node.len() <= data.len() + 8),
        }
    }
}

/// The first line is an agent's id, the rest what a table says of it: what is taken is written again to
/// what is read alike, and has the names and numbers that it may have.
pub fn entry(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (id, json) = data.split_at(at);
    let (id, json) = (
        String::from_utf8_lossy(id),
        json.strip_prefix(b"\n").unwrap_or(json),
    );
    let Some(written) = registry::entry(&id, json) else {
        return;
    };
    assert!(is_name(&id) && json.len() <= MAX_TEXT);
    assert_eq!(
        registry::entry(&id, written.as_bytes()).as_ref(),
        Some(&written)
    );
    check_entry(&serde_json::from_str(&written).expect("JSON"));
}

fn check_entry(entry: &Value) {
    let epoch = entry["epoch"].as_u64().expect("an epoch");
    assert!(epoch > 0 && epoch < 1 << 53);
    let connectors = entry["connectors"].as_array().expect("a list");
    assert!(connectors.len() <= MAX_CONNECTORS);
    let named: BTreeSet<_> = connectors.iter().filter_map(Value::as_str).collect();
    assert!(named.iter().all(|name| is_name(name)));
    assert_eq!(named.len(), connectors.len(), "a name that is told twice");
    let ailing = entry["ailing"].as_array().into_iter().flatten();
    let ailing: Vec<_> = ailing.filter_map(Value::as_str).collect();
    assert!(ailing.len() <= named.len() && ailing.iter().all(|name| named.contains(name)));
}

/// Any bytes as a notification of another hub: what is taken is written again to what is read alike.
pub fn notice(data: &[u8]) {
    let Some(written) = registry::notice(data) else {
        return;
    };
    assert!(data.len() <= MAX_TEXT && written.len() <= MAX_TEXT);
    assert_eq!(
        registry::notice(written.as_bytes()).as_ref(),
        Some(&written)
    );
    let value: Value = serde_json::from_str(&written).expect("JSON");
    assert!(value["hub"].as_str().is_some_and(is_name));
    for (id, entry) in value["agents"].as_object().into_iter().flatten() {
        assert!(is_name(id));
        if !entry.is_null() {
            check_entry(entry);
        }
    }
}

/// Any lines as notifications, one after the other: what the routes are told of adds up to what the
/// tables hold, within their bounds.
pub fn notices(data: &[u8]) {
    let mut copy = Copy::default();
    let mut agents = BTreeSet::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((hub, changes)) = copy.hear(line) else {
            continue;
        };
        for (id, came) in changes {
            let agent = (hub.clone(), id);
            if came {
                agents.insert(agent);
            } else {
                agents.remove(&agent);
            }
        }
    }
    assert!(agents.len() <= MAX_HUBS * MAX_AGENTS);
    assert_eq!(copy.into_agents(), agents);
}
