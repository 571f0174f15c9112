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
use crate::listener::Inherited;
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
        let Prepared {
            ports,
            mesh_port,
            mesh_change,
            tls,
            mesh: mesh_config,
            token,
            decisions,
            questions,
            keys,
        } = Prepared::load(&config, &inherited, &metrics, &tasks)?;

        let hub: Arc<str> = config.ha.replica_id.as_str().into();
        let health = Arc::new(Health::new(config.ha.mode));
        let policy = Arc::new(Policy::new(&config));
        let engine = Arc::new(engine(&config, &metrics));
        let pdp = Pdp::new(hub.clone(), metrics.clone(), tasks.clone());
        pdp.commit(decisions);
        let registry = Registry::new(hub, metrics.clone(), tasks.clone());
        let tunnels = Tunnels::new(
            &config,
            Gate::new(
                keys.verifier(&config.security),
                &config.security,
                metrics.clone(),
            ),
            registry.clone(),
            engine.clone(),
            metrics.clone(),
            tasks.clone(),
        );
        if let Some(tls) = &tls {
            tunnels.judge_certificates_by(tls.agents.clone());
        }
        let probes = Probes::new(
            tunnels.clone(),
            registry.clone(),
            engine.clone(),
            metrics.clone(),
        );
        probes.commit(questions);
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
            tracer: tracer.clone(),
        };
        let router = Router::new(parts, config.ha.mode, tasks.clone());
        let parts = forward::Parts {
            tunnels: tunnels.clone(),
            policy: policy.clone(),
            pdp: pdp.clone(),
            metrics: metrics.clone(),
            tracer,
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
            forward,
            probes: probes.clone(),
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
            inherited,
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
            mesh_port: Arc::new(mesh_port),
            crossings,
            tunnels,
            probes,
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
            hub.inherited.report_idle(&config);
        }
        hub.watch_troubles();
        hub.serve(ports);
        hub.open_mesh(mesh_change);
        Ok(hub)
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
