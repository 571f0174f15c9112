//! The registry's part of [`crate::fuzzing`].

use std::collections::BTreeSet;
use std::sync::Arc;

use ::redis::{Value, parse_redis_value};

use super::redis::{cluster, operations, sentinel};
use super::tables::{Heard, Tables};
use super::wire::{Changes, Notice, Stamp, read_entry, write_entry};
use crate::config::redis_url::Node;

pub use super::tables::{MAX_AGENTS, MAX_HUBS};

/// A notification, read and written again; `None` when it is not fit for use.
pub fn notice(json: &[u8]) -> Option<String> {
    Notice::read(json).map(|notice| notice.write())
}

/// An agent of a table, read and written again; `None` when it is not fit for use.
pub fn entry(agent_id: &str, json: &[u8]) -> Option<String> {
    read_entry(agent_id, json).map(|entry| write_entry(&entry))
}

/// What an answer of Redis is understood as.
#[derive(Debug)]
pub enum Answer {
    /// A hub's table with so many agents.
    Table(usize),
    /// So many ranges of slots of a cluster.
    Cluster(usize),
    /// The master that a Sentinel names.
    Master(String),
}

/// Reads an answer in Redis' own encoding (RESP 2 and 3) as everything that it may be.
pub fn answers(resp: &[u8]) -> Vec<Answer> {
    let Ok(value) = parse_redis_value(resp) else {
        return Vec::new();
    };
    let asked = Node {
        host: "asked".into(),
        port: 6379,
    };
    let table = match &value {
        Value::Map(fields) => operations::table(fields),
        _ => None,
    };
    let table = table.map(|(_, agents)| Answer::Table(agents.len()));
    let cluster = cluster::ranges(&value, &asked).map(|ranges| Answer::Cluster(ranges.len()));
    let master = sentinel::address(&value).map(|node| Answer::Master(node.to_string()));
    table.into_iter().chain(cluster).chain(master).collect()
}

/// A copy of what other hubs say, as it follows from their notifications alone.
#[derive(Default)]
pub struct Copy {
    tables: Tables,
    hubs: BTreeSet<Arc<str>>,
}

impl Copy {
    /// Takes a notification in. One that wants the table to be read finds it empty. Returns which
    /// agents of which hub came (`true`) or went.
    pub fn hear(&mut self, json: &[u8]) -> Option<(String, Vec<(String, bool)>)> {
        let notice = Notice::read(json)?;
        let (hub, stamp): (_, Stamp) = (notice.hub.clone(), notice.stamp.clone());
        let changes = match self.tables.hear(notice) {
            Heard::Apply(changes) => changes,
            Heard::Old => Vec::new(),
            Heard::Read => self.tables.replace(&hub, stamp, Default::default()),
        };
        self.hubs.insert(hub.clone());
        Some((hub.to_string(), told(changes)))
    }

    /// Every agent in the copy, by hub.
    pub fn into_agents(mut self) -> BTreeSet<(String, String)> {
        let mut all = BTreeSet::new();
        for hub in &self.hubs {
            let agents = told(self.tables.remove(hub));
            all.extend(agents.into_iter().map(|(id, _)| (hub.to_string(), id)));
        }
        all
    }
}

fn told(changes: Changes) -> Vec<(String, bool)> {
    let one = |(id, entry): (Arc<str>, Option<_>)| (id.to_string(), entry.is_some());
    changes.into_iter().map(one).collect()
}
