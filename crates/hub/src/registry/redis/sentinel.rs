//! Sentinels: who the master is, now and after a failover.
//!
//! The `redis` crate asks once and stays with a master that was demoted; here the answer is asked
//! for again and the Sentinel's own word of a switch ends the link.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dial::{Connection, Dialer, Login, Push};
use super::fault::Fault;
use crate::config::redis_url::Node;

/// How long a Sentinel may take to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// How long it may take to find another Sentinel while the master is at work.
const OTHERS: Duration = Duration::from_secs(1);
/// The channel on which a Sentinel tells of a new master.
const SWITCH: &str = "+switch-master";

/// A master and a Sentinel that is asked about it.
pub(super) struct Watch {
    dialer: Arc<Dialer>,
    name: String,
    master: Node,
    sentinel: Mutex<Connection>,
    lost: CancellationToken,
}

impl Watch {
    /// Asks the Sentinels for the master `name`; cancels `lost` when one tells of another.
    pub(super) async fn find(
        dialer: Arc<Dialer>,
        name: &str,
        lost: CancellationToken,
    ) -> Result<Self, Fault> {
        let (sentinel, master) = first(&dialer, name, &lost).await?;
        Ok(Self {
            dialer,
            name: name.to_owned(),
            master,
            sentinel: Mutex::new(sentinel),
            lost,
        })
    }

    pub(super) fn master(&self) -> &Node {
        &self.master
    }

    /// Asks again; where the Sentinel of last time is gone, the others.
    pub(super) async fn check(&self) -> Result<(), Fault> {
        let mut sentinel = self.sentinel.lock().await;
        let master = match locate(&sentinel, &self.name).await {
            Ok(master) => master,
            Err(_) => {
                let others = first(&self.dialer, &self.name, &self.lost);
                match timeout(OTHERS, others).await {
                    Ok(Ok((other, master))) => {
                        *sentinel = other;
                        master
                    }
                    // The master is what counts: one that was demoted refuses to be written to.
                    _ => return Ok(()),
                }
            }
        };
        match master == self.master {
            true => Ok(()),
            false => Err(Fault::Moved),
        }
    }
}

/// The first Sentinel that knows the master.
async fn first(
    dialer: &Dialer,
    name: &str,
    lost: &CancellationToken,
) -> Result<(Connection, Node), Fault> {
    let mut last = Fault::NoMaster(name.to_owned());
    for node in dialer.target.shuffled() {
        match consult(dialer, node, name, lost).await {
            Ok(found) => return Ok(found),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn consult(
    dialer: &Dialer,
    node: &Node,
    name: &str,
    lost: &CancellationToken,
) -> Result<(Connection, Node), Fault> {
    let (lost, ours) = (lost.clone(), format!("{name} "));
    let on_push = Box::new(move |push| {
        if matches!(push, Push::Message(payload) if payload.starts_with(ours.as_bytes())) {
            lost.cancel();
        }
    });
    let sentinel = dialer.connect(node, Login::Sentinel, on_push).await?;
    let subscribe = sentinel.subscribe(SWITCH);
    sentinel.limit(ANSWER, subscribe).await?;
    let master = locate(&sentinel, name).await?;
    Ok((sentinel, master))
}

async fn locate(sentinel: &Connection, name: &str) -> Result<Node, Fault> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let answer = sentinel.ask_within(ANSWER, &command).await?;
    address(&answer).ok_or_else(|| Fault::NoMaster(name.to_owned()))
}

pub(in crate::registry) fn address(answer: &Value) -> Option<Node> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [Value::BulkString(host), Value::BulkString(port)] = parts.as_slice() else {
        return None;
    };
    Some(Node {
        host: String::from_utf8(host.clone()).ok()?,
        port: std::str::from_utf8(port).ok()?.parse().ok()?,
    })
}
