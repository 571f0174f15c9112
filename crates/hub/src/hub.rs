//! A running hub: everything is bound before anything is served, and ended in a stated order.

mod background;
mod certificates;
mod change;
mod crossings;
mod identity;
mod ports;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::budget::Budget;
use nowconnect_link::counters::{Engine, EngineCounters};
use nowconnect_link::shards::Shards;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::TlsError;
use nowconnect_proto::Reason;
use nowconnect_settings::{Effective, LogLevel};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Order, Orders, Recent, Scope, Token, TokenError};
use crate::config::{AdminConfig, HubConfig, ListenerConfig};
use crate::forward::{self, Forward};
use crate::listener::{self, BindError, Listener};
use crate::mesh::{self, Mesh, MeshError, MeshEvents};
use crate::metrics::Metrics;
use crate::pdp::{Pdp, PdpError};
use crate::policy::{Door, Policy};
use crate::registry::{Registry, StoreConfig};
use crate::router::{self, Router};
use crate::server::{self, CurrentTls, Doorman, Health, MeshSurface, PortTls, Stage, Surface};
use crate::tunnels::{Gate, Tunnels};

use crossings::Crossings;
use identity::KeyKeeper;
use ports::MeshPort;

/// How long resets may take to reach agents when the drain is over.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long agents may take to open a tunnel elsewhere when they are told to.
const MOVE: Duration = Duration::from_secs(5);
const MOVE_POLL: Duration = Duration::from_millis(50);
/// How long tasks may take to end after they were told to.
const WIND_DOWN: Duration = Duration::from_secs(5);

/// Why a hub does not start, or does not take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A certificate or key.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The links to other hubs.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The token of the admin API.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The policy decision point.
    #[error(transparent)]
    Pdp(#[from] PdpError),
    /// More connections than the memory that was set aside at the start can take.
    #[error(
        "limits.max_conn_total: this process has memory for {0} connections; restart it for {1}, or allow fewer"
    )]
    Memory(u64, usize),
}

/// Puts another log level in force.
pub type LogLevelHook = Box<dyn Fn(LogLevel) + Send + Sync>;

/// Where a hub listens, with the ports that the system chose where 0 was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// `/tunnel` and the rest of the HTTP surface.
    pub tunnel: SocketAddr,
    /// The second port for metrics and health.
    pub metrics: Option<SocketAddr>,
    /// The admin API.
    pub admin: SocketAddr,
    /// The port for `/mesh` alone, while it is open.
    pub mesh: Option<SocketAddr>,
    /// The listeners by name.
    pub listeners: Vec<(String, SocketAddr)>,
}

/// A hub that serves. Dropping it without [`Hub::drain`] or [`Hub::stop`] leaves its tasks running.
pub struct Hub {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    policy: Arc<Policy>,
    pdp: Arc<Pdp>,
    registry: Arc<Registry>,
    mesh: Arc<Mesh>,
    mesh_port: MeshPort,
    crossings: Arc<Crossings>,
    tunnels: Arc<Tunnels>,
    router: Arc<Router>,
    engine: Arc<Engine>,
    keys: KeyKeeper,
    tls: Option<Arc<PortTls>>,
    config: tokio::sync::Mutex<HubConfig>,
    listeners: Arc<Mutex<Vec<Listener>>>,
    /// Cancelled once clients may come in.
    settled: CancellationToken,
    admin: Arc<Admin>,
    orders: tokio::sync::Mutex<Orders>,
    http: Http,
    set_log_level: LogLevelHook,
    shards: Shards,
    tasks: Tasks,
}

/// Where HTTP is served.
struct Http {
    tunnel: SocketAddr,
    metrics: Option<SocketAddr>,
    admin: SocketAddr,
}

/// What is bound and not yet served.
struct Ports {
    tunnel: server::Bound,
    metrics: Option<server::Bound>,
    admin: server::Bound,
    listeners: Vec<listener::Bound>,
}

impl Ports {
    fn bind(config: &HubConfig, metrics: &Metrics) -> Result<Self, BindError> {
        let second = config.observability.metrics_port;
        let second = second.map(|port| SocketAddr::new(config.tunnel.bind.ip(), port));
        Ok(Self {
            tunnel: server::Bound::new("tunnel", config.tunnel.bind)?,
            metrics: second
                .map(|at| server::Bound::new("observability.metrics_port", at))
                .transpose()?,
            admin: server::Bound::new("admin", config.admin.bind)?,
            listeners: bind_all(&config.listeners, metrics)?,
        })
    }

    fn http(&self) -> Http {
        Http {
            tunnel: self.tunnel.address(),
            metrics: self.metrics.as_ref().map(server::Bound::address),
            admin: self.admin.address(),
        }
    }
}

fn bind_all(
    listeners: &[ListenerConfig],
    metrics: &Metrics,
) -> Result<Vec<listener::Bound>, BindError> {
    let doors = listeners
        .iter()
        .map(|config| Arc::new(Door::new(config.clone(), metrics)));
    doors.map(listener::Bound::new).collect()
}

impl Hub {
    /// Binds everything, then serves: tunnels on `shards`, all else on the current runtime.
    ///
    /// # Errors
    /// Nothing is left bound or running.
    pub async fn start(
        config: HubConfig,
        shards: Shards,
        set_log_level: LogLevelHook,
    ) -> Result<Self, HubError> {
        let metrics = Metrics::new();
        let ports = Ports::bind(&config, &metrics)?;
        let mesh_port = MeshPort::default();
        let mesh_change = mesh_port.prepare(&config)?;
        let tls = PortTls::load(&config)?;
        let mesh_config = mesh::Prepared::load(&config)?;
        let token = token(&config.admin)?;
        let decisions = Pdp::prepare(&config)?;
        let tasks = Tasks::new();
        let keys = KeyKeeper::new(&config.security, tasks.clone())?;

        let health = Arc::new(Health::new(config.ha.mode));
        let policy = Arc::new(Policy::new(&config));
        let engine = Arc::new(engine(&config, &metrics));
        let gate = Gate::new(
            keys.verifier(&config.security),
            &config.security,
            metrics.clone(),
        );
        let hub: Arc<str> = config.ha.replica_id.as_str().into();
        let pdp = Pdp::new(hub.clone(), metrics.clone(), tasks.clone());
        pdp.commit(decisions);
        let registry = Registry::new(hub, metrics.clone(), tasks.clone());
        let tunnels = Tunnels::new(
            &config,
            gate,
            registry.clone(),
            engine.clone(),
            metrics.clone(),
            tasks.clone(),
        );
        if let Some(tls) = &tls {
            tunnels.judge_certificates_by(tls.agents.clone());
        }
        let mesh = Mesh::new(
            &mesh_config,
            engine.clone(),
            metrics.clone(),
            tasks.clone(),
            shards.clone(),
        );
        let parts = router::Parts {
            tunnels: tunnels.clone(),
            registry: registry.clone(),
            mesh: mesh.clone(),
            pdp: pdp.clone(),
            engine: engine.clone(),
            metrics: metrics.clone(),
        };
        let router = Router::new(parts, config.ha.mode, tasks.clone());
        let parts = forward::Parts {
            tunnels: tunnels.clone(),
            policy: policy.clone(),
            pdp: pdp.clone(),
            metrics: metrics.clone(),
        };
        let forward = Forward::new(&config, parts, tasks.clone());
        let crossings = Crossings::new(&router, forward.clone(), tasks.clone());
        let events: Arc<dyn MeshEvents> = crossings.clone();
        mesh.set_events(Arc::downgrade(&events));
        let listeners = Arc::<Mutex<_>>::default();
        let scope = Scope {
            health: health.clone(),
            tunnels: tunnels.clone(),
            registry: registry.clone(),
            mesh: mesh.clone(),
            forward: forward.clone(),
            router: router.clone(),
            policy: policy.clone(),
            pdp: pdp.clone(),
            listeners: listeners.clone(),
            metrics: metrics.clone(),
        };
        let over_tls = tls.is_some() && !is_local(&config.admin);
        let (admin, orders) = Admin::new(scope, &config, token, over_tls);
        crossings.set_admin(&admin);
        let hub = Self {
            http: ports.http(),
            config: tokio::sync::Mutex::new(config),
            listeners,
            settled: CancellationToken::new(),
            admin,
            orders: tokio::sync::Mutex::new(orders),
            metrics,
            health,
            policy,
            pdp,
            registry,
            mesh,
            mesh_port,
            crossings,
            tunnels,
            router,
            engine,
            keys,
            tls,
            set_log_level,
            shards,
            tasks,
        };
        hub.show().await;
        {
            let config = hub.config.lock().await;
            hub.registry.configure(StoreConfig::of(&config.ha));
            hub.mesh.commit(mesh_config);
        }
        hub.watch_troubles();
        hub.serve(ports);
        hub.open_mesh(mesh_change);
        Ok(hub)
    }

    fn serve(&self, ports: Ports) {
        let main = self.surface(true);
        let (tls, shards) = (current(self.tls.clone()), self.shards.clone());
        Doorman::new(main, tls, shards, &self.tasks).open(ports.tunnel);
        if let Some(port) = ports.metrics {
            let second = self.surface(false);
            Doorman::new(second, current(None), Shards::current(), &self.tasks).open(port);
        }
        let tls = current(self.tls.clone().filter(|_| self.admin.tls()));
        let admin = Doorman::new(self.admin.clone(), tls, Shards::current(), &self.tasks);
        admin.open(ports.admin);
        let open = ports.listeners.into_iter().map(|bound| self.open(bound));
        self.listeners.lock().extend(open);
        self.tend();
        self.settle();
        tracing::info!(
            event = "hub_started",
            version = env!("CARGO_PKG_VERSION"),
            hub = %self.registry.hub(),
            address = %self.http.tunnel,
            admin = %self.http.admin,
            tls = self.tls.is_some(),
            audit = true,
        );
    }

    fn surface(&self, is_main: bool) -> Arc<Surface> {
        Arc::new(Surface {
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            tunnels: is_main.then(|| self.tunnels.clone()),
            mesh: is_main.then(|| self.mesh.clone()),
        })
    }

    fn open_mesh(&self, change: ports::MeshPortChange) {
        let surface = MeshSurface {
            mesh: self.mesh.clone(),
            metrics: self.metrics.clone(),
        };
        self.mesh_port
            .commit(change, surface, &self.shards, &self.tasks);
    }

    fn open(&self, bound: listener::Bound) -> Listener {
        bound.start(&self.policy, &self.router, &self.settled, &self.tasks)
    }

    /// Where it listens now.
    pub fn addresses(&self) -> Addresses {
        let listeners = self.listeners.lock();
        let named = listeners
            .iter()
            .map(|one| (one.door().name.to_string(), one.address()));
        Addresses {
            tunnel: self.http.tunnel,
            metrics: self.http.metrics,
            admin: self.http.admin,
            mesh: self.mesh_port.address(),
            listeners: named.collect(),
        }
    }

    /// What it measures.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Whether it wants traffic.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Its agents.
    pub fn tunnels(&self) -> &Arc<Tunnels> {
        &self.tunnels
    }

    /// Where the agents of all hubs are.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Its links to other hubs.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Its flows.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// What the admin API asks for next. Cancel safe; for one caller at a time.
    pub async fn order(&self) -> Order {
        self.orders.lock().await.next().await
    }

    /// Lets the admin API show `effective` as the configuration in effect, but for the keys that
    /// [`Hub::reload`] has returned.
    pub fn show_config(&self, effective: Effective, needs_restart: Vec<&'static str>) {
        self.admin.show(effective, needs_restart);
    }

    /// Lets the admin API show the events that are kept in `recent`.
    pub fn show_events(&self, recent: Arc<Recent>) {
        self.admin.show_events(recent);
    }

    /// The configuration in force.
    pub async fn config(&self) -> HubConfig {
        self.config.lock().await.clone()
    }

    /// Lets flows end, moves agents elsewhere, and stops. Takes up to `limits.drain_timeout_sec`
    /// and a few seconds.
    pub async fn drain(&self) {
        let grace = self.config.lock().await.limits.drain_timeout;
        self.health.enter(Stage::Draining);
        self.orders.lock().await.close();
        tracing::info!(
            event = "drain_started",
            flows = self.router.count(),
            agents = self.tunnels.directory().agents(),
            timeout_ms = grace.as_millis() as u64,
            audit = true,
        );
        self.close_listeners().await;
        self.tunnels.send_away(Reason::Draining, grace);
        let finished = timeout(grace, self.router.idle()).await.is_ok();
        let _ = timeout(MOVE.min(grace), self.agents_moved()).await;
        tracing::info!(
            event = "drain_ended",
            finished,
            flows = self.router.count(),
            audit = true
        );
        self.stop().await;
    }

    /// Waits until every agent has a tunnel at another hub, if there are any: clients there must not
    /// find it missing.
    async fn agents_moved(&self) {
        while self.mesh.is_up()
            && !self.tunnels.directory().sessions().iter().all(|session| {
                let routes = self.registry.routes();
                !routes
                    .of_instance(&session.agent_id, session.instance)
                    .is_empty()
            })
        {
            tokio::time::sleep(MOVE_POLL).await;
        }
        self.mesh.send_away(Reason::Draining, Duration::ZERO);
    }

    async fn close_listeners(&self) {
        let listeners = std::mem::take(&mut *self.listeners.lock());
        for listener in listeners {
            listener.close().await;
        }
    }

    /// Ends now: flows are reset, tunnels closed.
    pub async fn stop(&self) {
        self.health.enter(Stage::Draining);
        self.orders.lock().await.close();
        self.close_listeners().await;
        self.router.end(|_| Some(Reason::Shutdown));
        let _ = timeout(LAST_WORDS, self.router.all_over()).await;
        self.tunnels.close(Reason::Shutdown);
        self.mesh.close(Reason::Shutdown);
        self.tasks.shutdown(WIND_DOWN).await;
        tracing::info!(
            event = "hub_stopped",
            version = env!("CARGO_PKG_VERSION"),
            hub = %self.registry.hub(),
            audit = true,
        );
    }
}

fn token(admin: &AdminConfig) -> Result<Option<Token>, TokenError> {
    admin.token_file.as_deref().map(Token::load).transpose()
}

/// Whether the admin API is for this machine only: then nobody can listen in, and no certificate
/// would be for its address.
fn is_local(admin: &AdminConfig) -> bool {
    admin.bind.ip().is_loopback()
}

fn current(tls: Option<Arc<PortTls>>) -> CurrentTls {
    Arc::new(move || tls.as_ref().map(|tls| tls.server.current()))
}

fn engine(config: &HubConfig, metrics: &Metrics) -> Engine {
    let flows = &metrics.flows;
    let counters = EngineCounters {
        fin_sent: flows.fin_sent.clone(),
        fin_recv: flows.fin_recv.clone(),
        rst_sent: flows.rst_sent.clone(),
        rst_recv: flows.rst_recv.clone(),
        dedup_dropped: flows.dedup_dropped.clone(),
        epoch_mismatch: metrics.mesh.epoch_mismatch.clone(),
        resumed: flows.resumes.with(["resumed"]),
    };
    let limits = &config.limits;
    Engine::new(
        Budget::new(limits.memory_budget as u64, limits.max_conn_total),
        counters,
    )
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("addresses", &self.addresses())
            .finish_non_exhaustive()
    }
}
