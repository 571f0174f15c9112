//! Where connectors lead: the only addresses that the agent ever dials.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nowconnect_link::dial::{DialErrorKind, TcpOptions, dial_tcp};
use nowconnect_link::quiet::Quiet;
use nowconnect_proto::Reason;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{AgentConfig, Target};

/// Dials of one connector under way at once. A target that swallows connection attempts then
/// holds up its own connector only, and one that comes back is not met by thousands at once.
const DIALS_PER_CONNECTOR: usize = 64;
/// How long a target may be silent before the kernel asks whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The exported connectors with their targets. Replaced as a whole.
#[derive(Debug)]
pub struct Targets {
    current: ArcSwap<BTreeMap<String, Arc<Destination>>>,
}

/// Where one connector leads.
#[derive(Debug)]
pub struct Destination {
    target: Target,
    places: Arc<Semaphore>,
    /// For what goes wrong with it, in the log.
    pub(crate) quiet: Quiet,
}

/// Why there is no connection to a target.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct DialFailure {
    /// What the hub is told.
    pub reason: Reason,
    /// What the log is told.
    pub detail: String,
}

impl Targets {
    /// The targets of a configuration.
    pub fn new(config: &AgentConfig) -> Self {
        let targets = Self {
            current: ArcSwap::default(),
        };
        targets.replace(config);
        targets
    }

    /// Goes on with another configuration. Connections that stand are left alone.
    pub fn replace(&self, config: &AgentConfig) {
        let old = self.current.load();
        let destination = |name: &String| {
            let target = config.targets.get(name)?.clone();
            // Dials under way keep their places.
            let places = old.get(name).map_or_else(
                || Arc::new(Semaphore::new(DIALS_PER_CONNECTOR)),
                |known| Arc::clone(&known.places),
            );
            let quiet = Quiet::default();
            let destination = Destination {
                target,
                places,
                quiet,
            };
            Some((name.clone(), Arc::new(destination)))
        };
        let exported = &config.tunnel.exported_connectors;
        self.current
            .store(Arc::new(exported.iter().filter_map(destination).collect()));
    }

    /// Where a connector leads; `None` when it is not exported.
    pub fn get(&self, connector: &str) -> Option<Arc<Destination>> {
        self.current.load().get(connector).cloned()
    }

    /// The names of the exported connectors.
    pub fn names(&self) -> Vec<String> {
        self.current.load().keys().cloned().collect()
    }
}

impl Destination {
    /// Connects within `limit`, the wait for a place included.
    ///
    /// # Errors
    /// See [`DialFailure`].
    pub async fn dial(&self, limit: Duration) -> Result<TcpStream, DialFailure> {
        let began = Instant::now();
        let Ok(_place) = timeout(limit, self.places.acquire()).await else {
            let Target { host, port } = &self.target;
            let detail = format!("{DIALS_PER_CONNECTOR} dials to {host}:{port} are under way");
            return Err(DialFailure {
                reason: Reason::Limit,
                detail,
            });
        };
        let options = TcpOptions {
            keepalive: Some(KEEPALIVE),
            user_timeout: None,
        };
        let left = limit.saturating_sub(began.elapsed());
        dial_tcp(&self.target.host, self.target.port, left, options)
            .await
            .map_err(|error| {
                let reason = match error.kind() {
                    DialErrorKind::Dns => Reason::DnsFailed,
                    DialErrorKind::Timeout => Reason::ConnectTimeout,
                    DialErrorKind::LocalResource => Reason::LocalResource,
                    _ => Reason::ConnectFailed,
                };
                DialFailure {
                    reason,
                    detail: error.to_string(),
                }
            })
    }
}
