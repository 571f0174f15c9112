//! Whether the targets behind agents are well, asked the way clients go: through the tunnel.
//!
//! The hub that holds an agent's tunnel probes each of its connectors that the configuration names.
//! A probe is an ordinary flow to exactly this agent whose client is the hub itself; limits, networks
//! and the decision point are for clients and are not asked. What is found decides nothing alone: the
//! router takes targets that are down last, here and, by the registry, on all hubs.

mod fault;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod ldap;
mod look;
mod passage;
mod rounds;
mod show;
mod vital;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use nowconnect_link::counters::Engine;
use nowconnect_link::tls::{LiveTrust, TlsError, Trust, TrustFiles};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{HubConfig, ProbeConfig};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::tunnels::{Session, Tunnels};

pub use fault::Fault;
pub use look::Certificate;
pub use vital::State;

use look::{Outcome, look};
use rounds::{Pair, Rounds, Turn};

/// Looks at one time. Each holds three sockets for as long as its `timeout_ms` at most.
const MOST_LOOKS: usize = 256;
/// Between looks at who is here.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// How one connector is probed.
#[derive(Debug)]
struct Spec {
    config: ProbeConfig,
    trust: Option<Arc<Trust>>,
}

type Plan = BTreeMap<String, Arc<Spec>>;

/// A configuration whose files have been read.
#[derive(Debug)]
pub struct Prepared(Plan);

/// Probes of all targets behind this hub's own tunnels.
pub struct Probes {
    tunnels: Arc<Tunnels>,
    registry: Arc<Registry>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    plan: ArcSwap<Plan>,
    rounds: Mutex<Rounds>,
    replanned: Notify,
}

type Looked = (Pair, Arc<Spec>, Outcome);

impl Probes {
    /// Probes of nothing yet; [`Probes::run`] is to be started once.
    pub fn new(
        tunnels: Arc<Tunnels>,
        registry: Arc<Registry>,
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let probes = Arc::new(Self {
            tunnels,
            registry,
            engine,
            metrics,
            plan: ArcSwap::default(),
            rounds: Mutex::default(),
            replanned: Notify::new(),
        });
        show::on_scrape(&probes);
        probes
    }

    /// Reads the files that a configuration names.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn prepare(config: &HubConfig) -> Result<Prepared, TlsError> {
        let specs = config.probes.iter().map(|(connector, config)| {
            let bundle = config.ca_file.clone().filter(|_| config.over_tls());
            let trust = bundle.map(|bundle| {
                let bundle = Some(bundle);
                LiveTrust::load(TrustFiles { bundle }).map(|trust| trust.current())
            });
            let spec = Spec {
                config: config.clone(),
                trust: trust.transpose()?,
            };
            Ok((connector.clone(), Arc::new(spec)))
        });
        specs.collect::<Result<_, _>>().map(Prepared)
    }

    /// Puts a configuration in force. Where a connector is asked something else, what was believed
    /// of its targets is forgotten.
    pub fn commit(&self, prepared: Prepared) {
        for connector in prepared.0.keys() {
            self.metrics
                .probes
                .begin(self.metrics.connector_label(connector));
        }
        self.plan.store(Arc::new(prepared.0));
        self.replanned.notify_one();
    }

    /// Probes until it is told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = JoinSet::<Looked>::new();
        let mut around = interval(LOOK_AROUND);
        loop {
            if self.plan.load().is_empty() && looks.is_empty() {
                self.reconcile();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.replanned.notified() => {}
                }
            }
            self.begin_due(&mut looks);
            let next = self.rounds.lock().next_due();
            let next = next.filter(|_| looks.len() < MOST_LOOKS);
            tokio::select! {
                () = stop.cancelled() => return,
                Some(done) = looks.join_next() => match done {
                    Ok((pair, spec, outcome)) => self.note(&pair, &spec, outcome),
                    Err(error) => tracing::error!(event = "task_panicked", task = "probe", %error),
                },
                () = until(next) => {}
                _ = around.tick() => self.reconcile(),
                () = self.replanned.notified() => self.reconcile(),
            }
        }
    }

    /// Finds out who is here.
    fn reconcile(&self) {
        let plan = self.plan.load_full();
        let mut present = BTreeMap::new();
        if !plan.is_empty() {
            for session in self.tunnels.directory().sessions() {
                for connector in session.exports().iter() {
                    let spec = plan.get(connector);
                    if let Some(spec) = spec.filter(|_| session.link().takes_flows()) {
                        let pair = (session.agent_id.clone(), connector.as_str().into());
                        present.insert(pair, spec.clone());
                    }
                }
            }
        }
        let is_probed = |connector: &str| plan.contains_key(connector);
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut rounds = self.rounds.lock();
        let altered = rounds.reconcile(present, is_probed, now, clock, rand::random);
        for agent_id in altered {
            self.registry.set_ailing(&agent_id, rounds.down(&agent_id));
        }
    }

    fn begin_due(&self, looks: &mut JoinSet<Looked>) {
        while looks.len() < MOST_LOOKS {
            let Some((pair, spec)) = self.rounds.lock().take(Instant::now()) else {
                return;
            };
            let session = self.tunnel(&pair);
            let engine = self.engine.clone();
            looks.spawn(async move {
                let outcome = match session {
                    Some(session) => look(session, pair.1.clone(), spec.clone(), engine).await,
                    None => Outcome::failed(
                        Instant::now(),
                        Fault::of_path("path", "the agent has just left"),
                    ),
                };
                (pair, spec, outcome)
            });
        }
    }

    /// The tunnel that a client would be sent over to this agent.
    fn tunnel(&self, (agent_id, connector): &Pair) -> Option<Arc<Session>> {
        let sessions = self.tunnels.directory().of_agent(agent_id).into_iter();
        let fit = sessions.filter(|session| {
            session.link().takes_flows() && session.exports().iter().any(|one| **one == **connector)
        });
        fit.min_by_key(|session| session.link().active_flows())
    }

    fn note(&self, pair: &Pair, spec: &Arc<Spec>, outcome: Outcome) {
        self.count(pair, &outcome);
        let fault = outcome.verdict.as_ref().err().cloned();
        let took = outcome.took;
        let (now, clock) = (Instant::now(), SystemTime::now());
        let mut rounds = self.rounds.lock();
        let turn = rounds.note(pair, spec, outcome, now, clock, rand::random());
        if let Some(turn) = turn {
            self.registry.set_ailing(&pair.0, rounds.down(&pair.0));
            drop(rounds);
            report(pair, spec, &turn, fault.as_ref(), took);
        } else if let Some(fault) = fault {
            let (agent_id, connector) = pair;
            tracing::debug!(
                event = "probe_unanswered", %agent_id, %connector, reason = fault.reason, detail = %fault
            );
        }
    }

    fn count(&self, (_, connector): &Pair, outcome: &Outcome) {
        let metrics = &self.metrics.probes;
        let connector = self.metrics.connector_label(connector);
        match &outcome.verdict {
            Ok(()) => metrics
                .duration
                .with([connector])
                .observe(outcome.took.as_secs_f64()),
            Err(fault) => {
                metrics.failures.with([connector, fault.reason]).inc();
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Logs that another thing is believed now.
fn report(
    (agent_id, connector): &Pair,
    spec: &Spec,
    turn: &Turn,
    fault: Option<&Fault>,
    took: Duration,
) {
    let kind = spec.config.kind.as_str();
    match (turn.to, turn.from) {
        (State::Down, _) => tracing::warn!(
            event = "probe_down",
            %agent_id,
            %connector,
            kind,
            reason = fault.map(|fault| fault.reason),
            detail = fault.map(tracing::field::display),
            failures = spec.config.down_after,
        ),
        (_, State::Down) => tracing::info!(
            event = "probe_up",
            %agent_id,
            %connector,
            kind,
            latency_ms = took.as_millis() as u64,
            down_sec = turn.lasted.as_secs(),
        ),
        _ => tracing::debug!(event = "probe_up", %agent_id, %connector, kind),
    }
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes")
            .field("plan", &self.plan.load())
            .finish_non_exhaustive()
    }
}
