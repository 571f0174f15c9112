//! Looks at the servers of the registry, and tries what a hub does there on a key of its own.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nowconnect_link::tasks::Tasks;
use redis::{Cmd, FromRedisValue as _, Value, cmd};

use super::dial::{Connection, Dialer, Login};
use super::fault::Fault;
use super::link::{Link, OPERATION};
use crate::config::redis_url::{Kind, Target};
use crate::registry::StoreConfig;

/// What came of it.
#[derive(Debug)]
pub struct Probed {
    /// Each server that the URL names, and what it says of itself.
    pub nodes: Vec<(String, Result<Node, String>)>,
    /// Whether a hub could work with them.
    pub usable: Result<(), String>,
}

/// One server.
#[derive(Debug)]
pub struct Node {
    /// `master`, `slave` or `sentinel`.
    pub role: String,
    /// Of the software.
    pub version: Option<String>,
    /// How far its clock is ahead of ours, in milliseconds; negative: behind.
    pub ahead_ms: Option<i64>,
    /// Connecting and logging in.
    pub took: Duration,
}

/// Looks at everything that `config` names.
pub async fn probe(config: &StoreConfig) -> Probed {
    match Target::parse(config.url.expose()).ok_or(Fault::Url) {
        Ok(target) => look(config, target).await,
        Err(fault) => Probed {
            nodes: Vec::new(),
            usable: Err(fault.to_string()),
        },
    }
}

async fn look(config: &StoreConfig, target: Target) -> Probed {
    let tasks = Tasks::new();
    let names = target.nodes.clone();
    let login = match target.kind {
        Kind::Sentinel { .. } => Login::Sentinel,
        _ => Login::Server,
    };
    let mut nodes = Vec::new();
    let dialer = Dialer::new(target, config.ca.clone(), tasks.child()).await;
    let usable = match dialer {
        Ok(dialer) => {
            let dialer = Arc::new(dialer);
            for node in names {
                let began = Instant::now();
                let connected = dialer.connect(&node, login, Box::new(|_| {})).await;
                let seen = match connected {
                    Ok(connection) => Ok(describe(&connection, began.elapsed()).await),
                    Err(fault) => Err(fault.to_string()),
                };
                nodes.push((node.to_string(), seen));
            }
            match Arc::into_inner(dialer) {
                Some(dialer) => use_it(dialer).await,
                None => Err(Fault::Lost),
            }
        }
        Err(fault) => Err(fault),
    };
    tasks.shutdown(Duration::from_millis(100)).await;
    Probed {
        nodes,
        usable: usable.map_err(|fault| fault.to_string()),
    }
}

async fn describe(connection: &Connection, took: Duration) -> Node {
    let ask = async |command: &Cmd| connection.ask_within(OPERATION, command).await.ok();
    let role = match ask(&cmd("ROLE")).await {
        Some(Value::Array(parts)) => parts.into_iter().next(),
        _ => None,
    };
    let role = role.and_then(|role| String::from_redis_value(role).ok());
    let info = ask(cmd("INFO").arg("server")).await;
    let info = info.and_then(|info| String::from_redis_value(info).ok());
    let version = info.and_then(|info| {
        let mut lines = info.lines();
        lines.find_map(|line| line.strip_prefix("redis_version:").map(str::to_owned))
    });
    let time = ask(&cmd("TIME")).await;
    let time = time.and_then(|time| <(i64, i64)>::from_redis_value(time).ok());
    let ours = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Node {
        role: role.unwrap_or_else(|| "unknown".to_owned()),
        version,
        ahead_ms: time.map(|(seconds, micros)| {
            seconds * 1000 + micros / 1000 - i64::try_from(ours.as_millis()).unwrap_or(i64::MAX)
        }),
        took,
    }
}

/// Finds, connects and subscribes as a hub does; then writes, reads and removes a table that no hub
/// looks for, and notes a proof that nobody has made.
async fn use_it(dialer: Dialer) -> Result<(), Fault> {
    let (link, _inbox) = Link::establish(dialer).await?;
    let name = format!("doctor-{:016x}", rand::random::<u64>());
    let key = format!("nowconnect:{{hub:{name}}}");
    let script = "redis.call('HSET', KEYS[1], '#version', '0') \
                  redis.call('PEXPIRE', KEYS[1], 1000) \
                  local read = redis.call('HGETALL', KEYS[1]) \
                  redis.call('DEL', KEYS[1]) return #read";
    link.ask(&key, cmd("EVAL").arg(script).arg(1).arg(&key))
        .await?;
    let hubs = "nowconnect:hubs";
    let list = cmd("ZREVRANGE").arg(hubs).arg(0).arg(0).to_owned();
    link.ask(hubs, &list).await?;
    link.note_proof(&name).await?;
    link.check().await
}
