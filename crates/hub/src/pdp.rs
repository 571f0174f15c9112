//! An external policy decision point (PDP), asked about every flow before an agent hears of it.
//!
//! An allow that is remembered costs a look into a table. Everything else is asked in a task of its
//! own, once for all who want to know the same, within one deadline. A question is compared as a
//! whole: what was allowed to one client never lets another in.

mod cache;
mod desk;
mod outcome;
mod point;
pub(crate) mod wire;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::TlsError;
use nowconnect_settings::Secret;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::config::{HubConfig, PdpConfig};
use crate::metrics::Metrics;
use crate::token_file::{self, TokenFileError};
use nowconnect_link::web_client;

use desk::Outlook;
use outcome::{Outcome, Verdict};
pub use point::AskError;
use point::{Point, Rules};

/// Whether an agent may serve a client: everything that a decision may depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The agent that the flow would go to.
    pub agent_id: Arc<str>,
    /// What it would be connected to.
    pub connector: Arc<str>,
    /// The client's address; `None` when another hub did not tell it.
    pub client: Option<IpAddr>,
    /// The listener that the client came through.
    pub listener: Arc<str>,
    /// The hub that holds the client's socket; `None` = this one.
    pub origin: Option<Arc<str>>,
}

/// On what grounds a flow may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// There is nobody to ask.
    Unasked,
    /// An allow that was remembered.
    Cached,
    /// An allow.
    Allowed,
    /// There was no answer, and `pdp.fail_open` is set.
    FailedOpen,
}

impl Pass {
    /// The value of `pdp` in the logs.
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Unasked => None,
            Self::Cached => Some("cached"),
            Self::Allowed => Some("allow"),
            Self::FailedOpen => Some("fail_open"),
        }
    }
}

/// Why a flow may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The answer is no.
    Denied,
    /// There was no answer.
    Failed,
}

/// What is known at once.
#[derive(Debug)]
pub enum Judged {
    /// The flow may go on.
    Pass(Pass),
    /// The decision comes later.
    Asked(Pending),
}

/// A decision that is waited for.
#[derive(Debug)]
pub struct Pending {
    pdp: Arc<Pdp>,
    question: Question,
    fail_open: bool,
    outlook: Outlook,
}

/// Why the configured decision point cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum PdpError {
    /// The certificates to trust.
    #[error("pdp: {0}")]
    Tls(#[from] TlsError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenFileError),
}

/// A question that was asked for the sake of asking.
#[derive(Debug)]
pub struct Trial {
    /// What was asked, in the configured format.
    pub question: Value,
    /// Whether it would be allowed, or why there is no decision.
    pub asked: Result<bool, AskError>,
    /// From the question to the answer.
    pub took: Duration,
}

/// Asks the decision point of `config`, as a hub of it would; `None` when it has none. Nothing is
/// remembered or counted.
///
/// # Errors
/// A file that it names cannot be used.
pub async fn attempt(config: &HubConfig, question: &Question) -> Result<Option<Trial>, PdpError> {
    let Some((rules, trust, token)) = Pdp::prepare(config)?.0 else {
        return Ok(None);
    };
    let hub = config.ha.replica_id.as_str().into();
    let latency = Metrics::new().tunnels.pdp_latency.clone();
    let point = Point::new(rules, hub, trust, token.as_ref(), latency);
    let begun = Instant::now();
    let asked = point.ask(question, Uuid::new_v4(), &mut Value::Null).await;
    Ok(Some(Trial {
        question: point.question(question),
        asked: asked.map(|answer| answer.allowed),
        took: begun.elapsed(),
    }))
}

/// What another configuration asks for, and nothing has been done about yet.
#[derive(Debug)]
pub(crate) struct Prepared(Option<(Rules, ClientConfig, Option<Secret>)>);

/// Asks the decision point in force, if there is one.
#[derive(Debug)]
pub struct Pdp {
    point: ArcSwapOption<Point>,
    hub: Arc<str>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    runtime: Handle,
    denied: Quiet,
    failed: Quiet,
}

impl Pdp {
    /// Nobody is asked before [`Pdp::commit`]. `hub` names this one. Questions are asked on the
    /// current runtime.
    pub(crate) fn new(hub: Arc<str>, metrics: Arc<Metrics>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            point: ArcSwapOption::empty(),
            hub,
            metrics,
            tasks,
            runtime: Handle::current(),
            denied: Quiet::default(),
            failed: Quiet::default(),
        })
    }

    /// Gets ready for another configuration. Blocks on file I/O.
    ///
    /// # Errors
    /// A file that it names cannot be used.
    pub(crate) fn prepare(config: &HubConfig) -> Result<Prepared, PdpError> {
        let Some(pdp) = &config.pdp else {
            return Ok(Prepared(None));
        };
        let https = pdp.url.scheme_str() == Some("https");
        let trust = web_client::trust(https, pdp.ca_bundle.as_deref())?;
        let load = |path| token_file::load("pdp.token_file", path);
        let token = pdp.token_file.as_deref().map(load).transpose()?;
        let rules = Rules {
            config: pdp.clone(),
            audience: config.security.audience.clone(),
        };
        Ok(Prepared(Some((rules, trust, token))))
    }

    /// Goes on with what was prepared. What was remembered is forgotten unless only certificates or
    /// the token have changed. Flows that were let in stay.
    pub(crate) fn commit(&self, prepared: Prepared) {
        let Some((rules, trust, token)) = prepared.0 else {
            return self.point.store(None);
        };
        match &*self.point.load() {
            Some(point) if *point.rules() == rules => point.renew(trust, token.as_ref()),
            _ => {
                let latency = self.metrics.tunnels.pdp_latency.clone();
                let point = Point::new(rules, self.hub.clone(), trust, token.as_ref(), latency);
                self.point.store(Some(Arc::new(point)));
            }
        }
    }

    /// Whether there is somebody to ask.
    pub fn is_on(&self) -> bool {
        self.point.load().is_some()
    }

    /// On what grounds a flow may go on without anybody being asked.
    pub fn known(&self, question: &Question) -> Option<Pass> {
        let point = self.point.load();
        let Some(point) = &*point else {
            return Some(Pass::Unasked);
        };
        point.remembered(question)?;
        self.count_allow(question);
        Some(Pass::Cached)
    }

    /// Judges a flow.
    pub fn judge(self: &Arc<Self>, question: &Question) -> Judged {
        let point = self.point.load();
        let Some(point) = &*point else {
            return Judged::Pass(Pass::Unasked);
        };
        let Some(outlook) = point.look_up(question, &self.tasks, &self.runtime) else {
            self.count_allow(question);
            return Judged::Pass(Pass::Cached);
        };
        Judged::Asked(Pending {
            pdp: self.clone(),
            question: question.clone(),
            fail_open: point.rules().config.fail_open,
            outlook,
        })
    }

    /// What would be decided now, and what is asked and answered; `Null` with nobody to ask. Asks,
    /// but neither counts nor remembers.
    pub(crate) async fn explain(&self, question: &Question) -> (Result<Pass, Refused>, Value) {
        let Some(point) = self.point.load_full() else {
            return (Ok(Pass::Unasked), Value::Null);
        };
        let PdpConfig { fail_open, .. } = point.rules().config;
        let left = point.remembered(question);
        let exchange = point.exchange(question).await;
        let result = match (&exchange.verdict, left) {
            // That is what a client would meet, whatever is answered now.
            (_, Some(_)) => Ok(Pass::Cached),
            (Verdict::Allow, None) => Ok(Pass::Allowed),
            (Verdict::Deny, None) => Err(Refused::Denied),
            (Verdict::Failed(_), None) if fail_open => Ok(Pass::FailedOpen),
            (Verdict::Failed(_), None) => Err(Refused::Failed),
        };
        let mut told = point.describe(question);
        told["cached_ms_left"] = json!(left.map(|left| left.as_millis() as u64));
        told["request_id"] = exchange.request_id.to_string().into();
        told["answer"] = exchange.answer;
        told["answered"] = exchange.verdict.as_str().into();
        told["took_ms"] = json!(exchange.took.as_micros() as f64 / 1e3);
        if let Verdict::Failed(error) = &exchange.verdict {
            told["error"] = (**error).into();
        }
        (result, told)
    }

    /// Where its questions are asked.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn count_allow(&self, question: &Question) {
        self.metrics.tunnels.pdp_allow.inc();
        self.metrics
            .connector(&question.connector)
            .pdp_allow()
            .inc();
    }

    fn conclude(
        &self,
        question: &Question,
        outcome: &Outcome,
        fail_open: bool,
    ) -> Result<Pass, Refused> {
        let (totals, connector) = (
            &self.metrics.tunnels,
            self.metrics.connector(&question.connector),
        );
        match &outcome.verdict {
            Verdict::Allow => {
                self.count_allow(question);
                Ok(Pass::Allowed)
            }
            Verdict::Deny => {
                totals.pdp_deny.inc();
                connector.pdp_deny().inc();
                self.report_denied(question, outcome);
                Err(Refused::Denied)
            }
            Verdict::Failed(error) => {
                totals.pdp_errors.inc();
                connector.pdp_error().inc();
                self.report_failed(question, outcome, error, fail_open);
                if fail_open {
                    Ok(Pass::FailedOpen)
                } else {
                    Err(Refused::Failed)
                }
            }
        }
    }

    fn report_denied(&self, question: &Question, outcome: &Outcome) {
        let Some(suppressed) = self.denied.pass() else {
            return;
        };
        tracing::warn!(
            event = "pdp_denied",
            agent_id = %question.agent_id,
            connector = %question.connector,
            listener = %question.listener,
            client = question.client.map(tracing::field::display),
            hub = question.origin.as_deref(),
            request_id = %outcome.request_id,
            suppressed,
            audit = true,
        );
    }

    fn report_failed(&self, question: &Question, outcome: &Outcome, error: &str, fail_open: bool) {
        let Some(suppressed) = self.failed.pass() else {
            return;
        };
        tracing::error!(
            event = "pdp_failed",
            error,
            allowed = fail_open,
            agent_id = %question.agent_id,
            connector = %question.connector,
            listener = %question.listener,
            client = question.client.map(tracing::field::display),
            hub = question.origin.as_deref(),
            request_id = %outcome.request_id,
            suppressed,
            audit = true,
        );
    }
}

impl Pending {
    /// Waits for the decision, and counts and reports it.
    pub async fn decision(mut self) -> Result<Pass, Refused> {
        let outcome = match self.outlook.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        // The task that asks answers always, unless the hub stops.
        let outcome = outcome.unwrap_or_else(|| Outcome::failed("the hub stops"));
        self.pdp.conclude(&self.question, &outcome, self.fail_open)
    }
}
