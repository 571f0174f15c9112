//! A hub is put together: first all that can fail, then parts that know only those before them.

use std::sync::Arc;

use nowconnect_link::budget::Budget;
use nowconnect_link::counters::{Engine, EngineCounters};
use nowconnect_link::shards::Shards;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::trace::Tracer;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::crossings::Crossings;
use super::identity::KeyKeeper;
use super::ports::{MeshPort, MeshPortChange};
use super::serve::Ports;
use super::{Hub, HubError, LogLevelHook, token};
use crate::admin::{Admin, Scope, Token};
use crate::config::{AdminConfig, HubConfig};
use crate::forward::{self, Forward};
use crate::listener::{Inherited, Listener};
use crate::mesh::{self, Mesh, MeshEvents};
use crate::metrics::Metrics;
use crate::pdp::{self, Pdp};
use crate::policy::Policy;
use crate::probes::{self, Probes};
use crate::registry::{Registry, StoreConfig};
use crate::router::{self, Router};
use crate::server::{Health, PortTls};
use crate::tunnels::{Gate, Tunnels};

/// What a configuration names, bound and loaded, and nothing of it in use yet.
struct Prepared {
    ports: Ports,
    mesh_port: MeshPort,
    mesh_change: MeshPortChange,
    tls: Option<Arc<PortTls>>,
    mesh: mesh::Prepared,
    token: Option<Token>,
    decisions: pdp::Prepared,
    questions: probes::Prepared,
    keys: KeyKeeper,
}

impl Prepared {
    fn load(
        config: &HubConfig,
        inherited: &Inherited,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, HubError> {
        let ports = Ports::bind(config, metrics, inherited)?;
        let mesh_port = MeshPort::default();
        Ok(Self {
            ports,
            mesh_change: mesh_port.prepare(config, inherited)?,
            mesh_port,
            tls: PortTls::load(config)?,
            mesh: mesh::Prepared::load(config)?,
            token: token(&config.admin)?,
            decisions: Pdp::prepare(config)?,
            questions: Probes::prepare(config)?,
            // Last: from here on somebody asks for keys.
            keys: KeyKeeper::new(&config.security, tasks.clone())?,
        })
    }
}

/// What all parts share.
struct Base {
    hub: Arc<str>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    shards: Shards,
    tracer: Tracer,
    engine: Arc<Engine>,
    health: Arc<Health>,
    policy: Arc<Policy>,
    pdp: Arc<Pdp>,
}

impl Base {
    fn new(
        config: &HubConfig,
        metrics: Arc<Metrics>,
        tasks: Tasks,
        shards: Shards,
        tracer: Tracer,
    ) -> Self {
        let hub: Arc<str> = config.ha.replica_id.as_str().into();
        Self {
            engine: Arc::new(engine(config, &metrics)),
            health: Arc::new(Health::new(config.ha.mode)),
            policy: Arc::new(Policy::new(config)),
            pdp: Pdp::new(hub.clone(), metrics.clone(), tasks.clone()),
            hub,
            metrics,
            tasks,
            shards,
            tracer,
        }
    }
}

/// Who serves clients: the agents of this hub, and what is known of those of others.
struct Agents {
    registry: Arc<Registry>,
    tunnels: Arc<Tunnels>,
    probes: Arc<Probes>,
}

impl Agents {
    fn new(config: &HubConfig, prepared: &Prepared, base: &Base) -> Self {
        let (metrics, tasks) = (&base.metrics, &base.tasks);
        let registry = Registry::new(base.hub.clone(), metrics.clone(), tasks.clone());
        let verifier = prepared.keys.verifier(&config.security);
        let gate = Gate::new(verifier, &config.security, metrics.clone());
        let tunnels = Tunnels::new(
            config,
            gate,
            registry.clone(),
            base.engine.clone(),
            metrics.clone(),
            tasks.clone(),
        );
        if let Some(tls) = &prepared.tls {
            tunnels.judge_certificates_by(tls.agents.clone());
        }
        let probes = Probes::new(
            tunnels.clone(),
            registry.clone(),
            base.engine.clone(),
            metrics.clone(),
        );
        Self {
            registry,
            tunnels,
            probes,
        }
    }
}

/// How clients get to them: those of this hub, and those of others.
struct Ways {
    listeners: Arc<Mutex<Vec<Listener>>>,
    mesh: Arc<Mesh>,
    router: Arc<Router>,
    forward: Arc<Forward>,
    crossings: Arc<Crossings>,
}

impl Ways {
    fn new(config: &HubConfig, prepared: &mesh::Prepared, agents: &Agents, base: &Base) -> Self {
        let (metrics, tasks) = (&base.metrics, &base.tasks);
        let mesh = Mesh::new(
            prepared,
            base.engine.clone(),
            metrics.clone(),
            tasks.clone(),
            base.shards.clone(),
        );
        let parts = router::Parts {
            tunnels: agents.tunnels.clone(),
            registry: agents.registry.clone(),
            mesh: mesh.clone(),
            pdp: base.pdp.clone(),
            engine: base.engine.clone(),
            metrics: metrics.clone(),
            tracer: base.tracer.clone(),
        };
        let router = Router::new(parts, config.ha.mode, tasks.clone());
        let parts = forward::Parts {
            tunnels: agents.tunnels.clone(),
            policy: base.policy.clone(),
            pdp: base.pdp.clone(),
            metrics: metrics.clone(),
            tracer: base.tracer.clone(),
        };
        let forward = Forward::new(config, parts, tasks.clone());
        let crossings = Crossings::new(&router, forward.clone(), tasks.clone());
        let events: Arc<dyn MeshEvents> = crossings.clone();
        mesh.set_events(Arc::downgrade(&events));
        Self {
            listeners: Arc::default(),
            mesh,
            router,
            forward,
            crossings,
        }
    }
}

impl Hub {
    /// Binds everything that is not `inherited`, then serves: tunnels on `shards`, all else on the current
    /// runtime. Flows are traced by `tracer`.
    ///
    /// # Errors
    /// Nothing is left bound or running.
    pub async fn start(
        config: HubConfig,
        inherited: Inherited,
        shards: Shards,
        set_log_level: LogLevelHook,
        tracer: Tracer,
    ) -> Result<Self, HubError> {
        let (metrics, tasks) = (Metrics::new(), Tasks::new());
        let prepared = Prepared::load(&config, &inherited, &metrics, &tasks)?;
        let base = Base::new(&config, metrics, tasks, shards, tracer);
        let agents = Agents::new(&config, &prepared, &base);
        let ways = Ways::new(&config, &prepared.mesh, &agents, &base);
        base.pdp.commit(prepared.decisions);
        agents.probes.commit(prepared.questions);
        let over_tls = prepared.tls.is_some() && !is_local(&config.admin);
        let scope = scope(&base, &agents, &ways);
        let (admin, orders) = Admin::new(scope, &config, prepared.token, over_tls);
        ways.crossings.set_admin(&admin);
        let hub = Self {
            http: prepared.ports.http(),
            config: tokio::sync::Mutex::new(config),
            inherited,
            listeners: ways.listeners,
            settled: CancellationToken::new(),
            admin,
            orders: tokio::sync::Mutex::new(orders),
            metrics: base.metrics,
            health: base.health,
            policy: base.policy,
            pdp: base.pdp,
            registry: agents.registry,
            mesh: ways.mesh,
            mesh_port: Arc::new(prepared.mesh_port),
            crossings: ways.crossings,
            tunnels: agents.tunnels,
            probes: agents.probes,
            router: ways.router,
            engine: base.engine,
            keys: prepared.keys,
            tls: prepared.tls,
            set_log_level,
            shards: base.shards,
            tasks: base.tasks,
        };
        hub.show().await;
        {
            let config = hub.config.lock().await;
            hub.registry.configure(StoreConfig::of(&config.ha));
            hub.mesh.commit(prepared.mesh);
            hub.inherited.report_idle(&config);
        }
        hub.watch_troubles();
        hub.serve(prepared.ports);
        hub.open_mesh(prepared.mesh_change);
        Ok(hub)
    }
}

/// What the admin API shows and does.
fn scope(base: &Base, agents: &Agents, ways: &Ways) -> Scope {
    Scope {
        health: base.health.clone(),
        tunnels: agents.tunnels.clone(),
        registry: agents.registry.clone(),
        mesh: ways.mesh.clone(),
        forward: ways.forward.clone(),
        probes: agents.probes.clone(),
        router: ways.router.clone(),
        policy: base.policy.clone(),
        pdp: base.pdp.clone(),
        listeners: ways.listeners.clone(),
        metrics: base.metrics.clone(),
    }
}

/// Whether the admin API is for this machine only: then nobody can listen in, and no certificate
/// would be for its address.
fn is_local(admin: &AdminConfig) -> bool {
    admin.bind.ip().is_loopback()
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
