//! The way to the servers, whatever their organisation: found, connected, subscribed.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::dial::{Connection, Dialer, Login, OnPush, Push};
use super::fault::Fault;
use super::sentinel::Watch;
use crate::config::redis_url::{Kind, Node};

/// How long any operation may take.
pub(super) const OPERATION: Duration = Duration::from_millis(500);
/// Notifications that wait to be read; what is beyond is found by its gap.
const MESSAGES: usize = 1024;

/// A connection, or several, over which every operation takes up to [`OPERATION`].
pub(super) struct Link {
    servers: Servers,
    /// The connection that notifications come on.
    subscriber: Connection,
    /// The channel that they are sent to.
    pub(super) channel: String,
    /// Cancelled when the link is of no use any more.
    pub(super) lost: CancellationToken,
}

enum Servers {
    One,
    Watched(Watch),
    Cluster(Cluster),
}

impl Link {
    /// Finds the servers, and hears what hubs notify each other of.
    pub(super) async fn establish(
        dialer: Dialer,
    ) -> Result<(Self, mpsc::Receiver<Vec<u8>>), Fault> {
        let dialer = Arc::new(dialer);
        let lost = CancellationToken::new();
        let (messages, inbox) = mpsc::channel(MESSAGES);
        let on_push = || listen(messages.clone(), lost.clone());
        let (servers, subscriber) = match &dialer.target.kind {
            Kind::Standalone => {
                let subscriber = any(&dialer, on_push).await?;
                (Servers::One, subscriber)
            }
            Kind::Cluster => {
                let subscriber = any(&dialer, on_push).await?;
                let cluster = Cluster::meet(dialer.clone(), &subscriber).await?;
                (Servers::Cluster(cluster), subscriber)
            }
            Kind::Sentinel { master } => {
                let watch = Watch::find(dialer.clone(), master, lost.clone()).await?;
                let node = watch.master();
                let subscriber = dialer.connect(node, Login::Server, on_push()).await?;
                check_master(&subscriber).await?;
                (Servers::Watched(watch), subscriber)
            }
        };
        // Channels know no databases, so the name does.
        let channel = format!("nowconnect:changes:{}", dialer.target.db);
        let subscribe = subscriber.subscribe(&channel);
        subscriber.limit(OPERATION, subscribe).await?;
        let link = Self {
            servers,
            subscriber,
            channel,
            lost,
        };
        Ok((link, inbox))
    }

    /// Asks the server of `key`.
    pub(super) async fn ask(&self, key: &str, command: &Cmd) -> Result<Value, Fault> {
        match &self.servers {
            Servers::Cluster(cluster) => {
                match timeout(OPERATION, cluster.ask(key, command)).await {
                    Ok(done) => done,
                    Err(_) => Err(self.late()),
                }
            }
            _ => self.subscriber.ask_within(OPERATION, command).await,
        }
    }

    /// Whether notifications still come, and from the right server.
    pub(super) async fn check(&self) -> Result<(), Fault> {
        match &self.servers {
            Servers::One => {}
            Servers::Watched(watch) => watch.check().await?,
            Servers::Cluster(_) => {
                let ping = redis::cmd("PING");
                self.subscriber.ask_within(OPERATION, &ping).await?;
            }
        }
        match self.lost.is_cancelled() {
            true => Err(Fault::Lost),
            false => Ok(()),
        }
    }

    /// A fault for a caller that did not wait longer.
    pub(super) fn late(&self) -> Fault {
        Fault::Late {
            node: self.node().clone(),
            after_ms: OPERATION.as_millis(),
        }
    }

    /// The server that notifications come from.
    pub(super) fn node(&self) -> &Node {
        &self.subscriber.node
    }
}

/// Connects to a node of the target that answers. Not always to the same: one that is cut off from
/// the others would be of no use for ever.
async fn any(dialer: &Dialer, on_push: impl Fn() -> OnPush) -> Result<Connection, Fault> {
    let mut last = Fault::Lost;
    for node in dialer.target.shuffled() {
        match dialer.connect(node, Login::Server, on_push()).await {
            Ok(connection) => return Ok(connection),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

fn listen(messages: mpsc::Sender<Vec<u8>>, lost: CancellationToken) -> OnPush {
    Box::new(move |push| match push {
        Push::Message(payload) => {
            // One that does not fit is missed, as its version will be.
            let _ = messages.try_send(payload);
        }
        Push::Lost => lost.cancel(),
    })
}

/// A server that was demoted, or is about to be, must not be written to.
async fn check_master(connection: &Connection) -> Result<(), Fault> {
    let answer = connection
        .ask_within(OPERATION, &redis::cmd("ROLE"))
        .await?;
    let role = match &answer {
        Value::Array(parts) => parts.first(),
        _ => None,
    };
    match role {
        Some(Value::BulkString(role)) if role == b"master" => Ok(()),
        _ => Err(Fault::NotMaster {
            node: connection.node.clone(),
        }),
    }
}
