//! Where connectors lead: the only addresses that the agent ever dials.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nowconnect_link::dial::{DialError, DialErrorKind, TcpOptions, dial_tcp};
use nowconnect_link::quiet::Quiet;
use nowconnect_proto::Reason;
use nowconnect_proto::bucket::Bucket;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use crate::config::{AgentConfig, Target};
use crate::proxy_header;

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
    pace: Arc<Pace>,
    max_per_sec: Option<NonZeroU32>,
    /// For what goes wrong with it, in the log.
    pub(crate) quiet: Quiet,
}

/// What bounds the dials of one connector. Outlives a change of its target.
#[derive(Debug)]
struct Pace {
    places: Semaphore,
    /// Held while waiting for a token, so that those who wait get theirs in the order they came, and
    /// one who gives up takes none.
    bucket: Mutex<Bucket>,
    since: Instant,
}

impl Pace {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            places: Semaphore::new(DIALS_PER_CONNECTOR),
            bucket: Mutex::default(),
            since: Instant::now(),
        })
    }

    async fn token(&self, per_sec: NonZeroU32) {
        let mut bucket = self.bucket.lock().await;
        while let Err(wait) = bucket.take(self.since.elapsed(), per_sec) {
            sleep(wait).await;
        }
    }
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
            let pace = old
                .get(name)
                .map_or_else(Pace::new, |known| Arc::clone(&known.pace));
            let destination = Destination {
                target,
                pace,
                max_per_sec: config.limits.max_dials_per_sec,
                quiet: Quiet::default(),
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
    /// What is dialed.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Connects within `limit`, the wait for a place and a turn included, and introduces `client`,
    /// who connected to `destination`, if the target wants that. Nothing of the wait for a dial that
    /// is dropped counts.
    ///
    /// # Errors
    /// See [`DialFailure`].
    pub async fn dial(
        &self,
        limit: Duration,
        client: &str,
        destination: &str,
    ) -> Result<TcpStream, DialFailure> {
        let began = Instant::now();
        let turn = async {
            // It is never closed.
            let place = self.pace.places.acquire().await.ok();
            if let Some(per_sec) = self.max_per_sec {
                self.pace.token(per_sec).await;
            }
            place
        };
        let Ok(_place) = timeout(limit, turn).await else {
            return Err(self.no_turn());
        };
        let options = TcpOptions {
            keepalive: Some(KEEPALIVE),
            user_timeout: None,
        };
        let Target { host, port, .. } = &self.target;
        let left = || limit.saturating_sub(began.elapsed());
        let mut socket = dial_tcp(host, *port, left(), options)
            .await
            .map_err(|error| DialFailure::of(&error))?;
        let header = proxy_header::header(self.target.proxy_protocol, client, destination);
        // It fits into the buffer of a new socket.
        match timeout(left(), socket.write_all(&header)).await {
            Ok(Ok(())) => Ok(socket),
            Ok(Err(error)) => Err(self.not_introduced(&error)),
            Err(late) => Err(self.not_introduced(&late.into())),
        }
    }

    fn no_turn(&self) -> DialFailure {
        let Target { host, port, .. } = &self.target;
        let rate = match self.max_per_sec {
            Some(per_sec) => format!(", and no more than {per_sec} begin in a second"),
            None => String::new(),
        };
        DialFailure {
            reason: Reason::Limit,
            detail: format!(
                "{DIALS_PER_CONNECTOR} dials to {host}:{port} may be under way at a time{rate}"
            ),
        }
    }

    fn not_introduced(&self, error: &io::Error) -> DialFailure {
        let Target { host, port, .. } = &self.target;
        DialFailure {
            reason: Reason::ConnectFailed,
            detail: format!("PROXY header to {host}:{port}: {error}"),
        }
    }
}

impl DialFailure {
    fn of(error: &DialError) -> Self {
        let reason = match error.kind() {
            DialErrorKind::Dns => Reason::DnsFailed,
            DialErrorKind::Timeout => Reason::ConnectTimeout,
            DialErrorKind::LocalResource => Reason::LocalResource,
            _ => Reason::ConnectFailed,
        };
        Self {
            reason,
            detail: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_sec: u32) -> NonZeroU32 {
        NonZeroU32::new(per_sec).expect("not zero")
    }

    #[tokio::test]
    async fn one_who_gives_up_costs_the_others_nothing() {
        let pace = Pace::new();
        pace.token(rate(1)).await;
        let hour = Duration::from_secs(3600);
        for _ in 0..100 {
            let gave_up = timeout(Duration::ZERO, pace.token(rate(1))).await;
            assert!(gave_up.is_err());
        }
        // The next token is at most a second away, not a hundred.
        assert!(timeout(hour, pace.token(rate(100))).await.is_ok());
        assert!(pace.since.elapsed() < Duration::from_secs(3));
    }
}
