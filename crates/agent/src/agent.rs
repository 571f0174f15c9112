//! The agent as a whole: what is started in which order, and stopped in which.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nowconnect_link::budget::Budget;
use nowconnect_link::counters::Engine;
use nowconnect_link::dial::{WsUrl, WsUrlError};
use nowconnect_link::tasks::Tasks;
use nowconnect_link::trace::Tracer;
use nowconnect_proto::Reason;
use nowconnect_proto::hello::Instance;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::AgentConfig;
use crate::fleet::Fleet;
use crate::flows::Flows;
use crate::health::{self, Readiness, Surface};
use crate::metrics::Metrics;
use crate::standing::Standing;
use crate::surroundings::Surroundings;
use crate::targets::Targets;
use crate::tunnel::Tunnels;
use crate::uplink::{Uplink, UplinkError};

/// How long resets, goodbyes and last answers may take at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// A running agent. Dropping it stops nothing; [`Agent::shutdown`] does.
#[derive(Debug)]
pub struct Agent {
    config: watch::Sender<Arc<AgentConfig>>,
    uplink: Arc<Uplink>,
    flows: Arc<Flows>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    drain: watch::Sender<Duration>,
    links: Tasks,
    tasks: Tasks,
    ports: Tasks,
    health: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    reloading: tokio::sync::Mutex<()>,
}

/// Why an agent cannot start, or a configuration cannot take effect.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error("cannot listen on {address} for {what}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Who wants it.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// CA certificates or proxies cannot be used.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// A hub's URL is none.
    #[error("tunnel.url: {0}")]
    Url(#[from] WsUrlError),
    /// More flows than the memory that was set aside at the start can take.
    #[error(
        "limits.max_inflight_cids: this process has memory for {0} flows; restart it for {1}, or allow fewer"
    )]
    Memory(u64, usize),
}

impl Agent {
    /// Binds the ports, checks what can be checked, and starts to look for a hub. That none can be
    /// reached is no error. Flows that hubs trace are traced by `tracer`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: AgentConfig, tracer: Tracer) -> Result<Self, StartError> {
        let health = bind("health", config.health).await?;
        let metrics_port = bind("metrics", metrics_address(&config)).await?;
        let metrics = Metrics::new();
        let uplink = Arc::new(Uplink::new(Arc::clone(&metrics)));
        check(&config, &uplink).await?;

        let budget = Budget::new(
            config.limits.memory_budget as u64,
            config.limits.max_inflight_cids,
        );
        let engine = Arc::new(Engine::new(budget, metrics.engine.clone()));
        let (tasks, links, ports) = (Tasks::new(), Tasks::new(), Tasks::new());
        let (targets, limits) = (Targets::new(&config), config.limits.clone());
        let flows = Flows::new(
            &engine,
            targets,
            limits,
            Arc::clone(&metrics),
            tracer,
            tasks.clone(),
        );
        let readiness = Arc::new(Readiness::default());
        refresh_metrics(&metrics, &readiness, &engine, &config.tunnel.agent_id);
        uplink.show_expiry();

        let tunnels = Arc::new(Tunnels {
            instance: Instance(rand::random()),
            epoch_seen: AtomicU64::new(0),
            standing: Standing::new(),
            uplink: Arc::clone(&uplink),
            engine,
            flows: Arc::clone(&flows),
            metrics: Arc::clone(&metrics),
            links: links.clone(),
        });
        let agent = Self {
            config: watch::Sender::new(Arc::new(config)),
            uplink,
            flows: Arc::clone(&flows),
            metrics,
            readiness: Arc::clone(&readiness),
            drain: watch::Sender::new(Duration::ZERO),
            links,
            tasks,
            ports,
            health: agent_address(health.as_ref()),
            metrics_address: agent_address(metrics_port.as_ref()),
            reloading: tokio::sync::Mutex::new(()),
        };
        for port in [health, metrics_port].into_iter().flatten() {
            agent.serve(port);
        }
        let fleet = Fleet::new(Surroundings {
            tunnels,
            config: agent.config.subscribe(),
            readiness,
            drain: agent.drain.subscribe(),
            tasks: agent.tasks.clone(),
        });
        agent.tasks.spawn("fleet", fleet.run());
        let stop = agent.tasks.token();
        agent.tasks.spawn("sweeper", async move {
            stop.run_until_cancelled(flows.sweep()).await;
        });
        Ok(agent)
    }

    fn serve(&self, port: TcpListener) {
        let (readiness, metrics) = (Arc::clone(&self.readiness), Arc::clone(&self.metrics));
        let surface = Arc::new(Surface { readiness, metrics });
        self.ports
            .spawn("health", health::serve(port, surface, self.ports.token()));
    }

    /// Where the health port listens.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health
    }

    /// Where the second port for metrics listens.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Whether flows can be opened, and when that changes.
    pub fn readiness(&self) -> &Arc<Readiness> {
        &self.readiness
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Flows that are open.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Goes on with another configuration, whole or not at all: targets, connectors, limits, token
    /// file, URLs and the way out. Only flows of connectors that are gone end. Returns the keys
    /// whose change needs a restart.
    ///
    /// # Errors
    /// See [`StartError`]; nothing has changed then.
    pub async fn reload(&self, mut config: AgentConfig) -> Result<Vec<&'static str>, StartError> {
        let _one_at_a_time = self.reloading.lock().await;
        if let Err(error) = check(&config, &self.uplink).await {
            self.reject_reload(&error);
            return Err(error);
        }
        let pending = config.keep_fixed(&self.config.borrow());
        let flows = config.limits.max_inflight_cids;
        if let Err(most) = self.flows.reserve(flows) {
            let error = StartError::Memory(most, flows);
            self.reject_reload(&error);
            return Err(error);
        }
        self.flows.set_limits(config.limits.clone());
        self.flows.targets().replace(&config);
        self.flows.end_removed();
        self.config.send_replace(Arc::new(config));
        self.metrics.config_reloads.with(["applied"]).inc();
        tracing::info!(
            event = "config_reloaded",
            audit = true,
            needs_restart = pending.join(",")
        );
        Ok(pending)
    }

    /// Counts and logs a new configuration that was found invalid before it got here.
    pub fn reject_reload(&self, error: &dyn fmt::Display) {
        self.metrics.config_reloads.with(["rejected"]).inc();
        tracing::error!(event = "config_rejected", audit = true, %error);
    }

    /// Stops: tells the hubs, gives flows `drain` to end by themselves, resets those that are left,
    /// closes the links, and at last the health port.
    pub async fn shutdown(self, drain: Duration) {
        tracing::info!(event = "agent_stopping", flows = self.flows.len());
        self.readiness.drain();
        self.drain.send_replace(drain);
        self.tasks.cancel();
        if timeout(drain, self.flows.drain()).await.is_err() {
            tracing::warn!(event = "flows_reset", flows = self.flows.len());
            self.flows.abort_all(Reason::Shutdown);
        }
        // Time for the resets to reach the hubs; flows without a path have none to wait for.
        let _ = timeout(FAREWELL, self.flows.all_over()).await;
        self.tasks.shutdown(FAREWELL).await;
        self.links.shutdown(FAREWELL).await;
        self.ports.shutdown(FAREWELL).await;
        tracing::info!(event = "agent_stopped");
    }
}

async fn bind(
    what: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else {
        return Ok(None);
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) => Err(StartError::Bind {
            address,
            what,
            source,
        }),
    }
}

/// The second port stands on the host of the health port.
fn metrics_address(config: &AgentConfig) -> Option<SocketAddr> {
    let host = config
        .health
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |health| health.ip());
    config
        .observability
        .metrics_port
        .map(|port| SocketAddr::new(host, port))
}

fn agent_address(port: Option<&TcpListener>) -> Option<SocketAddr> {
    port.and_then(|port| port.local_addr().ok())
}

/// What a configuration must be fit for before it takes effect, and what is worth a warning.
async fn check(config: &AgentConfig, uplink: &Arc<Uplink>) -> Result<(), StartError> {
    for url in &config.tunnel.urls {
        let url = WsUrl::try_from(url.clone())?;
        if !url.is_tls() && !url.is_loopback() {
            tracing::warn!(
                event = "insecure_url", %url,
                hint = "the token and everything that clients send travel unencrypted: use wss://"
            );
        }
    }
    let (uplink, config) = (Arc::clone(uplink), config.clone());
    match tokio::task::spawn_blocking(move || uplink.check(&config)).await {
        Ok(checked) => checked.map_err(StartError::Uplink),
        // The runtime is shutting down.
        Err(_) => Ok(()),
    }
}

/// Values that are read at a scrape rather than counted.
fn refresh_metrics(
    metrics: &Metrics,
    readiness: &Arc<Readiness>,
    engine: &Arc<Engine>,
    agent_id: &str,
) {
    let (readiness, engine, agent) = (
        Arc::clone(readiness),
        Arc::clone(engine),
        agent_id.to_owned(),
    );
    metrics.on_scrape(move |metrics| {
        metrics
            .tunnels
            .set(i64::try_from(readiness.tunnels()).unwrap_or(i64::MAX));
        match readiness.up_for() {
            Some(age) => drop(metrics.uptime.with([&agent]).set(age.as_secs_f64())),
            None => metrics.uptime.remove([&agent]),
        }
        let blocked = engine.blocked_micros.load(Ordering::Relaxed) as f64 / 1e6;
        let counted = metrics.blocked_seconds.get();
        metrics.blocked_seconds.inc_by((blocked - counted).max(0.0));
    });
}
