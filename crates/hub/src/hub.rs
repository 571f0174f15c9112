//! A running hub: everything is bound before anything is served, and ended in a stated order.

mod background;
mod certificates;
mod change;
mod crossings;
mod drain;
mod identity;
mod ports;
mod preflight;
mod serve;
mod start;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use nowconnect_link::counters::Engine;
use nowconnect_link::shards::Shards;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::TlsError;
use nowconnect_settings::{Effective, LogLevel};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Order, Orders, Recent, Token, TokenError};
use crate::config::{AdminConfig, HubConfig};
use crate::listener::{BindError, Inherited, Listener};
use crate::mesh::{Mesh, MeshError};
use crate::metrics::Metrics;
use crate::pdp::{Pdp, PdpError};
use crate::policy::Policy;
use crate::probes::Probes;
use crate::registry::Registry;
use crate::router::Router;
use crate::server::{Health, PortTls};
use crate::tunnels::Tunnels;

use crossings::Crossings;
use identity::KeyKeeper;
use ports::MeshPort;
use serve::Http;

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
    mesh_port: Arc<MeshPort>,
    crossings: Arc<Crossings>,
    tunnels: Arc<Tunnels>,
    probes: Arc<Probes>,
    router: Arc<Router>,
    engine: Arc<Engine>,
    keys: KeyKeeper,
    tls: Option<Arc<PortTls>>,
    config: tokio::sync::Mutex<HubConfig>,
    inherited: Inherited,
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

impl Hub {
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
}

fn token(admin: &AdminConfig) -> Result<Option<Token>, TokenError> {
    admin.token_file.as_deref().map(Token::load).transpose()
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("addresses", &self.addresses())
            .finish_non_exhaustive()
    }
}
