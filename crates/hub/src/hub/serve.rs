//! What a hub listens on: bound before anything runs, served when all is there.

use std::net::SocketAddr;
use std::sync::Arc;

use nowconnect_link::shards::Shards;

use super::Hub;
use super::ports::MeshPortChange;
use crate::config::{HubConfig, ListenerConfig};
use crate::listener::{self, ADMIN, BindError, Inherited, Listener, METRICS, TUNNEL, Who};
use crate::metrics::Metrics;
use crate::policy::Door;
use crate::server::{self, CurrentTls, Doorman, MeshSurface, PortTls, Surface};

/// Where HTTP is served.
pub(super) struct Http {
    pub(super) tunnel: SocketAddr,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) admin: SocketAddr,
}

/// What is bound and not yet served.
pub(super) struct Ports {
    tunnel: server::Bound,
    metrics: Option<server::Bound>,
    admin: server::Bound,
    listeners: Vec<listener::Bound>,
}

impl Ports {
    pub(super) fn bind(
        config: &HubConfig,
        metrics: &Metrics,
        inherited: &Inherited,
    ) -> Result<Self, BindError> {
        let port = |socket, what, at| server::Bound::new(Who::port(socket, what), at, inherited);
        let second = config.observability.metrics_port;
        let second = second.map(|port| SocketAddr::new(config.tunnel.bind.ip(), port));
        Ok(Self {
            tunnel: port(TUNNEL, "tunnel", config.tunnel.bind)?,
            metrics: second
                .map(|at| port(METRICS, "observability.metrics_port", at))
                .transpose()?,
            admin: port(ADMIN, "admin", config.admin.bind)?,
            listeners: bind_all(&config.listeners, metrics, inherited)?,
        })
    }

    pub(super) fn http(&self) -> Http {
        Http {
            tunnel: self.tunnel.address(),
            metrics: self.metrics.as_ref().map(server::Bound::address),
            admin: self.admin.address(),
        }
    }
}

pub(super) fn bind_all(
    listeners: &[ListenerConfig],
    metrics: &Metrics,
    inherited: &Inherited,
) -> Result<Vec<listener::Bound>, BindError> {
    let doors = listeners
        .iter()
        .map(|config| Arc::new(Door::new(config.clone(), metrics)));
    doors
        .map(|door| listener::Bound::new(door, inherited))
        .collect()
}

impl Hub {
    pub(super) fn serve(&self, ports: Ports) {
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
            probes: self.probes.clone(),
            tunnels: is_main.then(|| self.tunnels.clone()),
            mesh: is_main.then(|| self.mesh.clone()),
        })
    }

    pub(super) fn open_mesh(&self, change: MeshPortChange) {
        let surface = MeshSurface {
            mesh: self.mesh.clone(),
            metrics: self.metrics.clone(),
        };
        self.mesh_port
            .commit(change, surface, &self.shards, &self.tasks);
        self.mesh_port.tend(&self.mesh);
    }

    pub(super) fn open(&self, bound: listener::Bound) -> Listener {
        let opening = self.opening(&bound);
        bound.start(&self.policy, &self.router, &opening, &self.tasks)
    }
}

fn current(tls: Option<Arc<PortTls>>) -> CurrentTls {
    Arc::new(move || tls.as_ref().map(|tls| tls.server.current()))
}
