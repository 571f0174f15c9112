//! Agents: who they are, what they export, and the tunnels that they keep open.

mod admission;
mod certificates;
mod directory;
mod gate;
mod newcomer;
mod proofs;
mod session;
mod shedder;
mod terms;
mod uptime;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nowconnect_link::counters::Engine;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::LiveTrust;
use nowconnect_proto::Reason;
use parking_lot::Mutex;
use tokio::time::interval;

use crate::auth::Verifier;
use crate::config::HubConfig;
use crate::metrics::Metrics;
use crate::policy::KeyedGate;
use crate::registry::{Owner, Registry};

pub use directory::Directory;
pub use gate::Gate;
pub use session::Session;

use shedder::Shedder;
use terms::Terms;

/// Between looks at whether the last flow of a tunnel that is left has ended.
const LAST_FLOW_POLL: Duration = Duration::from_secs(1);
/// The flows of a tunnel that is left may take as long as they need.
const NO_DEADLINE: Duration = Duration::from_millis(u32::MAX as u64);

type Arrival = Box<dyn Fn(&Arc<Session>) + Send + Sync>;

/// Every tunnel of this hub.
pub struct Tunnels {
    terms: ArcSwap<Terms>,
    gate: Gate,
    places: KeyedGate<Arc<str>>,
    shedder: Mutex<Shedder>,
    since: Instant,
    registry: Arc<Registry>,
    directory: Directory,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    arrival: OnceLock<Arrival>,
    /// Who vouches for the certificates of agents.
    trust: OnceLock<Arc<LiveTrust>>,
    /// Set once: tunnels that come from then on are told to go elsewhere.
    leaving: Mutex<Option<Reason>>,
    /// Why an agent's last tunnel ended, by its metric label, which bounds it.
    endings: Mutex<HashMap<String, &'static str>>,
    quiet: Mutex<HashMap<&'static str, Quiet>>,
}

impl Tunnels {
    /// No tunnels yet; their tasks are `tasks`.
    pub fn new(
        config: &HubConfig,
        gate: Gate,
        registry: Arc<Registry>,
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Arc<Self> {
        let tunnels = Arc::new(Self {
            terms: ArcSwap::from_pointee(Terms::of(config)),
            gate,
            places: KeyedGate::default(),
            shedder: Mutex::default(),
            since: Instant::now(),
            registry,
            directory: Directory::default(),
            arrival: OnceLock::new(),
            trust: OnceLock::new(),
            engine,
            metrics,
            tasks,
            leaving: Mutex::new(None),
            endings: Mutex::default(),
            quiet: Mutex::default(),
        });
        uptime::show(&tunnels);
        let weak = Arc::downgrade(&tunnels);
        tunnels.registry.on_superseded(move |agent_id, owner| {
            if let Some(tunnels) = weak.upgrade() {
                tunnels.superseded(agent_id, owner);
            }
        });
        tunnels
    }

    /// Who is let in.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The tunnels that are open.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Calls `tell` with every tunnel that is open from now on, once it can be found. For one caller.
    pub fn on_arrival(&self, tell: impl Fn(&Arc<Session>) + Send + Sync + 'static) {
        let _ = self.arrival.set(Box::new(tell));
    }

    /// Judges the certificates of agents by `trust`, where they must have one. For one caller.
    pub(crate) fn judge_certificates_by(&self, trust: Arc<LiveTrust>) {
        let _ = self.trust.set(trust);
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// How long flows wait for a path.
    pub fn resume_grace(&self) -> Duration {
        self.terms.load().resume_grace
    }

    /// Puts other rules in force: those for connectors at once, the rest for tunnels that come from
    /// now on.
    pub fn set_rules(&self, config: &HubConfig, verifier: Verifier) {
        self.terms.store(Arc::new(Terms::of(config)));
        self.gate.set_rules(verifier, &config.security);
        for session in self.directory.sessions() {
            session.rules_changed(self);
        }
    }

    /// Whether an agent's offence is logged: one of a kind per second, and how many were not.
    fn pass(&self, offence: &'static str) -> Option<u64> {
        self.quiet.lock().entry(offence).or_default().pass()
    }

    /// Tells every agent, and those who come from now on, to go elsewhere within `deadline`.
    pub fn send_away(&self, reason: Reason, deadline: Duration) {
        *self.leaving.lock() = Some(reason);
        for session in self.directory.sessions() {
            session.link().go_away(reason, deadline);
        }
    }

    /// Tells an agent to make another tunnel, elsewhere if it can, and leaves this one to the flows
    /// that it carries.
    pub fn send_on(&self, session: &Arc<Session>) {
        let link = session.link().clone();
        // Who asks again and again is followed once.
        if !link.takes_flows() {
            return;
        }
        link.go_away(Reason::Operator, NO_DEADLINE);
        let stop = self.tasks.token();
        self.tasks.spawn("tunnel_leaving", async move {
            // Not at once: its agent may be about to make the other one.
            let mut looks = interval(LAST_FLOW_POLL);
            looks.tick().await;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = looks.tick() => {}
                }
                if link.is_closed() {
                    return;
                }
                if link.active_flows() == 0 {
                    return link.close(Reason::Operator);
                }
            }
        });
    }

    /// Closes every tunnel.
    pub fn close(&self, reason: Reason) {
        *self.leaving.lock() = Some(reason);
        for session in self.directory.sessions() {
            session.link().close(reason);
        }
    }

    /// A tunnel is open.
    fn arrive(&self, session: &Arc<Session>) {
        let displaced = self.directory.enter(session);
        for other in &displaced {
            self.supersede(other, session.owner());
        }
        if displaced.iter().any(|other| Arc::ptr_eq(other, session)) {
            return;
        }
        // A later owner that became known before this tunnel entered could not displace it.
        if let Some(by) = self.registry.successor(&session.agent_id, session.owner()) {
            return self.superseded(&session.agent_id, by);
        }
        // CAs may have changed since it was let in.
        self.review_certificate(session);
        if let Some(tell) = self.arrival.get() {
            tell(session);
        }
        let label = self.metrics.agent_label(&session.agent_id);
        if let Some(reason) = self.endings.lock().remove(label) {
            self.metrics.tunnels.reconnects.with([label, reason]).inc();
        }
        // Drain may have begun since this tunnel was let in.
        if let Some(reason) = *self.leaving.lock() {
            session.link().go_away(reason, Duration::ZERO);
        }
    }

    /// Another hub has a later owner of the agent's id.
    fn superseded(&self, agent_id: &Arc<str>, by: Owner) {
        for session in self.directory.displace(agent_id, by) {
            self.supersede(&session, by);
        }
    }

    fn supersede(&self, session: &Session, by: Owner) {
        tracing::info!(
            event = "agent_superseded",
            agent_id = %session.agent_id,
            remote = %session.remote,
            epoch = session.epoch(),
            by = by.epoch,
            audit = true,
        );
        session.supersede();
    }

    /// A tunnel is no more.
    fn depart(&self, session: &Arc<Session>, reason: Reason) {
        self.directory.leave(session);
        let label = self.metrics.agent_label(&session.agent_id).to_owned();
        self.endings.lock().insert(label, reason.name());
    }
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
