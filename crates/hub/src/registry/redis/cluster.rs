//! Redis Cluster: which node serves which key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};

use super::dial::{Connection, Dialer, Login};
use super::fault::Fault;
use crate::config::redis_url::Node;

/// Hash slots of a cluster.
const SLOTS: u16 = 16384;
/// Ranges of slots that are remembered: more than any cluster has that makes sense.
const MAX_RANGES: usize = 16384;
/// Connections that are kept: more than a cluster has masters (its specification speaks of 1000 nodes).
const MAX_CONNECTIONS: usize = 1024;
/// How long the map of slots may take to come.
const MAP: Duration = Duration::from_millis(500);

/// The slots from `first` to `last` and who serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) struct Range {
    first: u16,
    last: u16,
    node: Node,
}

/// The masters of a cluster, connected when first needed.
pub(super) struct Cluster {
    dialer: Arc<Dialer>,
    map: RwLock<Vec<Range>>,
    connections: Mutex<HashMap<Node, Connection>>,
}

impl Cluster {
    /// A cluster as `seed`, one of its nodes, sees it.
    pub(super) async fn meet(dialer: Arc<Dialer>, seed: &Connection) -> Result<Self, Fault> {
        let cluster = Self {
            dialer,
            map: RwLock::default(),
            connections: Mutex::default(),
        };
        cluster.survey(seed).await?;
        Ok(cluster)
    }

    /// Sends a command to the master of `key`'s slot, and where that one refers to.
    pub(super) async fn ask(&self, key: &str, command: &Cmd) -> Result<Value, Fault> {
        let slot = slot(key);
        let connection = self.master(slot).await?;
        let error = match connection.ask(command).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match referral(&error) {
            Some((node, ServerErrorKind::Ask)) => {
                let other = self.connect(&node).await?;
                let answer = other.ask_importing(command).await;
                answer.map_err(|error| other.fault(error))
            }
            Some((node, _)) => {
                let other = self.connect(&node).await?;
                self.survey(&other).await?;
                let answer = other.ask(command).await;
                answer.map_err(|error| other.fault(error))
            }
            None => {
                if error.is_connection_dropped() {
                    self.connections.lock().remove(&connection.node);
                }
                Err(connection.fault(error))
            }
        }
    }

    async fn survey(&self, by: &Connection) -> Result<(), Fault> {
        let command = redis::cmd("CLUSTER").arg("SLOTS").to_owned();
        let answer = by.ask_within(MAP, &command).await?;
        let map = ranges(&answer, &by.node).ok_or_else(|| Fault::Answer {
            node: by.node.clone(),
            what: "CLUSTER SLOTS",
        })?;
        let serves = |node: &Node| map.iter().any(|range| range.node == *node);
        self.connections.lock().retain(|node, _| serves(node));
        *self.map.write() = map;
        Ok(())
    }

    async fn master(&self, slot: u16) -> Result<Connection, Fault> {
        let node = {
            let map = self.map.read();
            let range = map
                .iter()
                .find(|range| (range.first..=range.last).contains(&slot));
            range.map(|range| range.node.clone())
        };
        self.connect(&node.ok_or(Fault::NoSlot(slot))?).await
    }

    async fn connect(&self, node: &Node) -> Result<Connection, Fault> {
        let known = self.connections.lock().get(node).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let ignore = Box::new(|_| ());
        let made = self.dialer.connect(node, Login::Server, ignore).await?;
        let mut connections = self.connections.lock();
        if connections.len() >= MAX_CONNECTIONS {
            // Only a server that sends us from one stranger to the next gets here.
            connections.clear();
        }
        connections.insert(node.clone(), made.clone());
        Ok(made)
    }
}

fn referral(error: &RedisError) -> Option<(Node, ServerErrorKind)> {
    let ErrorKind::Server(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) = error.kind()
    else {
        return None;
    };
    let (node, _) = error.redirect_node()?;
    let (host, port) = node.rsplit_once(':')?;
    let node = Node {
        host: host.to_owned(),
        port: port.parse().ok()?,
    };
    Some((node, kind))
}

/// Reads `CLUSTER SLOTS`: per range its ends, then the master as host, port and more. A host that
/// is empty or nil is that of the node which was asked.
pub(in crate::registry) fn ranges(answer: &Value, asked: &Node) -> Option<Vec<Range>> {
    let Value::Array(rows) = answer else {
        return None;
    };
    let rows = rows.iter().take(MAX_RANGES);
    rows.map(|row| {
        let Value::Array(row) = row else { return None };
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(master),
            ..,
        ] = row.as_slice()
        else {
            return None;
        };
        let [host, Value::Int(port), ..] = master.as_slice() else {
            return None;
        };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
            _ => asked.host.clone(),
        };
        Some(Range {
            first: u16::try_from(*first).ok()?,
            last: u16::try_from(*last).ok()?,
            node: Node {
                host,
                port: u16::try_from(*port).ok()?,
            },
        })
    })
    .collect()
}

/// The slot of a key: of the part in its first braces, if there is one.
fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty());
    crc16(tag.unwrap_or(key).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as the cluster specification asks.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
        assert_eq!(slot("foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot("foo{{bar}}zap"), crc16(b"{bar") % SLOTS);
        assert_eq!(slot("foo"), 12182);
    }

    #[test]
    fn the_map_is_read_and_nonsense_is_not() {
        let text = |text: &str| Value::BulkString(text.into());
        let asked = Node {
            host: "seed".into(),
            port: 1,
        };
        let row = |first, last, host, port| {
            let master = Value::Array(vec![host, Value::Int(port), text("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master])
        };
        let map = Value::Array(vec![
            row(0, 99, text("a"), 7),
            row(100, 16383, Value::Nil, 8),
        ]);
        let map = ranges(&map, &asked).expect("a map");
        assert_eq!(
            (map[0].node.host.as_str(), map[1].node.host.as_str()),
            ("a", "seed")
        );
        for nonsense in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![row(-1, 5, text("a"), 7)]),
            Value::Array(vec![row(0, 5, text("a"), 70_000)]),
        ] {
            assert_eq!(ranges(&nonsense, &asked), None);
        }
    }
}
