//! What the hub measures, under the names that dashboards and alerts use.
//!
//! A series exists at zero as soon as its labels are known. Handles are resolved once per listener,
//! agent or peer and then cost an atomic add. Names that come from tokens are bounded in number.

mod audit;
mod flows;
mod mesh;
mod open_times;
mod probes;
mod shared;
mod tunnels;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use nowconnect_link::metrics::{BoundedNames, Catalog, TraceMetrics};
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;

use shared::Shared;

pub use audit::AuditMetrics;
pub use flows::{ConnectorMetrics, FlowMetrics, ListenerError};
pub use mesh::{
    BACKPRESSURE_REASONS, FRAME_TYPES, HA_MODES, LINK_STATES, MeshMetrics, PeerMetrics,
};
pub use nowconnect_link::metrics::Format;
pub use open_times::{OPEN_BOUNDS_MS, OpenTimes};
pub use probes::ProbeMetrics;
pub use tunnels::TunnelMetrics;

/// Distinct connector names, agent ids or peers that get series of their own.
const NAMES_PER_KIND: usize = 1024;

type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Every metric of the process. Made once, shared by `Arc`.
pub struct Metrics {
    /// Listeners and flows.
    pub flows: FlowMetrics,
    /// Agents, tokens, policy decisions, configuration.
    pub tunnels: TunnelMetrics,
    /// Mesh links and high availability.
    pub mesh: MeshMetrics,
    /// The audit trail.
    pub audit: AuditMetrics,
    /// Spans for a tracing system.
    pub traces: TraceMetrics,
    /// What probes find out about targets.
    pub probes: ProbeMetrics,
    registry: Registry,
    connector_names: BoundedNames,
    agent_names: BoundedNames,
    peer_names: BoundedNames,
    connectors: Mutex<HashMap<String, Arc<ConnectorMetrics>>>,
    refresh: RwLock<Vec<Refresh>>,
    shared: Shared,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let mut catalog = Catalog(&mut registry);
        let flows = FlowMetrics::register(&mut catalog);
        catalog.build_info();
        let tunnels = TunnelMetrics::register(&mut catalog);
        let mesh = MeshMetrics::register(&mut catalog);
        let audit = AuditMetrics::register(&mut catalog);
        let traces = TraceMetrics::register(&mut catalog);
        let probes = ProbeMetrics::register(&mut catalog);
        Arc::new(Self {
            flows,
            tunnels,
            mesh,
            audit,
            traces,
            probes,
            registry,
            connector_names: BoundedNames::new(NAMES_PER_KIND),
            agent_names: BoundedNames::new(NAMES_PER_KIND),
            peer_names: BoundedNames::new(NAMES_PER_KIND),
            connectors: Mutex::default(),
            refresh: RwLock::default(),
            shared: Shared::default(),
        })
    }

    /// The handles of a connector; the same ones for the same name.
    pub fn connector(&self, name: &str) -> Arc<ConnectorMetrics> {
        let name = self.connector_names.admit(name);
        let mut connectors = self.connectors.lock();
        if let Some(known) = connectors.get(name) {
            return known.clone();
        }
        let made = Arc::new(self.flows.connector(name));
        connectors.insert(name.to_owned(), made.clone());
        made
    }

    /// Every connector that has handles, in no order.
    pub fn connectors(&self) -> Vec<(String, Arc<ConnectorMetrics>)> {
        let connectors = self.connectors.lock();
        let all = connectors.iter();
        all.map(|(name, one)| (name.clone(), one.clone())).collect()
    }

    /// The value that stands for this agent in labels.
    pub fn agent_label<'a>(&self, agent_id: &'a str) -> &'a str {
        self.agent_names.admit(agent_id)
    }

    /// The value that stands for this connector in labels.
    pub fn connector_label<'a>(&self, name: &'a str) -> &'a str {
        self.connector_names.admit(name)
    }

    /// The handles of a mesh peer.
    pub fn peer(&self, name: &str) -> PeerMetrics {
        self.mesh.peer(self.peer_names.admit(name))
    }

    /// Calls `refresh` before each scrape, for values that are read rather than counted.
    pub fn on_scrape(&self, refresh: impl Fn(&Self) + Send + Sync + 'static) {
        self.refresh.write().push(Box::new(refresh));
    }

    /// The text of all metrics.
    ///
    /// # Errors
    /// Only if a metric cannot be written as text.
    pub fn render(&self, format: Format) -> Result<String, fmt::Error> {
        for refresh in self.refresh.read().iter() {
            refresh(self);
        }
        format.encode(&self.registry)
    }

    /// The same for strangers, who ask as often as they like: written four times a second at most.
    ///
    /// # Errors
    /// Only if a metric cannot be written as text.
    pub fn render_shared(&self, format: Format) -> Result<Bytes, fmt::Error> {
        self.shared.text(format, || self.render(format))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
