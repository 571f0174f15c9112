//! One configured decision point: what it was asked, what it allowed, and how many ask at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use nowconnect_link::metrics::Vector;
use nowconnect_link::tasks::Tasks;
use nowconnect_settings::{Secret, mask_url};
use prometheus_client::metrics::histogram::Histogram;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::desk::{Desk, Known, MOST_ASKED, Outlook};
use super::outcome::{Outcome, Verdict};
use super::{Question, wire};
use crate::config::{PdpConfig, PdpFormat};
use nowconnect_link::web_client::{WebClient, WebError};

/// Bytes of the largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Bytes of the largest answer that is shown to an operator.
const MAX_SHOWN_BYTES: usize = 4096;
/// Where AuthZEN puts the evaluation (Authorization API 1.0, section 10.1.1).
const AUTHZEN_PATH: &str = "/access/v1/evaluation";
/// Header of the request's name (section 10.1.3).
const REQUEST_ID: &str = "x-request-id";

/// Whom to ask, and how. What is remembered holds under these rules only.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) config: PdpConfig,
    pub(super) audience: String,
}

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No answer.
    #[error(transparent)]
    Web(#[from] WebError),
    /// An answer that is no decision.
    #[error("{0}")]
    Answer(String),
}

/// One request and its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) verdict: Verdict,
    /// How long an allow may be remembered.
    ttl: Duration,
    /// The answer, where it is small JSON.
    pub(super) answer: Value,
    pub(super) request_id: Uuid,
    pub(super) took: Duration,
}

#[derive(Debug)]
pub(super) struct Point {
    rules: Rules,
    hub: Arc<str>,
    url: Uri,
    client: WebClient,
    bearer: ArcSwapOption<HeaderValue>,
    /// For clients of this hub, and for those of others.
    desks: [Desk; 2],
    /// How long answers took, by what they were.
    latency: Vector<Histogram, 1>,
}

/// A question on its way; the answer goes to all who wait for it.
struct Flight {
    point: Arc<Point>,
    question: Question,
    told: watch::Sender<Option<Outcome>>,
}

impl Flight {
    async fn run(self) {
        let Exchange {
            verdict,
            ttl,
            request_id,
            took,
            ..
        } = self.point.exchange(&self.question).await;
        let latency = self.point.latency.with([verdict.as_str()]);
        latency.observe(took.as_secs_f64());
        if let Verdict::Allow = verdict {
            self.desk().allow(self.question.clone(), ttl);
        }
        self.told.send_replace(Some(Outcome {
            verdict,
            request_id,
        }));
    }

    fn desk(&self) -> &Desk {
        self.point.desk(&self.question)
    }
}

impl Drop for Flight {
    /// However it ends.
    fn drop(&mut self) {
        self.desk().leave(&self.question);
    }
}

impl Point {
    pub(super) fn new(
        rules: Rules,
        hub: Arc<str>,
        trust: ClientConfig,
        token: Option<&Secret>,
        latency: Vector<Histogram, 1>,
    ) -> Self {
        Self {
            url: address(&rules.config),
            client: WebClient::new(trust, rules.config.timeout, MOST_ASKED),
            bearer: ArcSwapOption::new(token.and_then(bearer)),
            desks: Default::default(),
            latency,
            rules,
            hub,
        }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Trusts and shows something else from the next question on.
    pub(super) fn renew(&self, trust: ClientConfig, token: Option<&Secret>) {
        self.client.trust(trust);
        self.bearer.store(token.and_then(bearer));
    }

    fn desk(&self, question: &Question) -> &Desk {
        &self.desks[usize::from(question.origin.is_some())]
    }

    /// For how long the question is still allowed without being asked.
    pub(super) fn remembered(&self, question: &Question) -> Option<Duration> {
        self.desk(question).left(question)
    }

    /// `None` when the question is allowed; if that is not known, asks, or joins who asks already.
    pub(super) fn look_up(
        self: &Arc<Self>,
        question: &Question,
        tasks: &Tasks,
        runtime: &Handle,
    ) -> Option<Outlook> {
        let (told, outlook) = match self.desk(question).look_up(question) {
            Known::Allowed => return None,
            Known::Asked(outlook) => return Some(outlook),
            Known::Full => {
                let failed = Outcome::failed("too many questions wait for an answer");
                return Some(watch::channel(Some(failed)).1);
            }
            Known::Unasked(told, outlook) => (told, outlook),
        };
        let flight = Flight {
            point: self.clone(),
            question: question.clone(),
            told,
        };
        let stop = tasks.token();
        let work = stop.run_until_cancelled_owned(flight.run());
        tasks.spawn_on(runtime, "pdp_question", work);
        Some(outlook)
    }

    /// Asks, within the deadline, whatever is remembered.
    pub(super) async fn exchange(&self, question: &Question) -> Exchange {
        let (begun, request_id) = (Instant::now(), Uuid::new_v4());
        let mut answer = Value::Null;
        let asked = self.ask(question, request_id, &mut answer).await;
        let cap = self.rules.config.cache_ttl;
        let (verdict, ttl) = match asked {
            Ok(it) if it.allowed => (Verdict::Allow, it.ttl.map_or(cap, |ttl| ttl.min(cap))),
            Ok(_) => (Verdict::Deny, Duration::ZERO),
            Err(error) => (Verdict::Failed(error.to_string().into()), Duration::ZERO),
        };
        Exchange {
            verdict,
            ttl,
            answer,
            request_id,
            took: begun.elapsed(),
        }
    }

    /// The answer, within the deadline; `shown` is what was answered, where it is small JSON.
    pub(super) async fn ask(
        &self,
        question: &Question,
        request_id: Uuid,
        shown: &mut Value,
    ) -> Result<wire::Answer, AskError> {
        let deadline = self.rules.config.timeout;
        let asking = self.ask_at_leisure(question, request_id, shown);
        let asked = timeout(deadline, asking).await;
        asked.unwrap_or_else(|_| Err(WebError::Timeout(deadline).into()))
    }

    async fn ask_at_leisure(
        &self,
        question: &Question,
        request_id: Uuid,
        shown: &mut Value,
    ) -> Result<wire::Answer, AskError> {
        let place = self.desk(question).place().await;
        let _place = place.map_err(|error| AskError::Answer(error.to_string()))?;
        let send = || {
            let request = self.request(question, request_id);
            self.client.send(request, MAX_ANSWER_BYTES)
        };
        let response = match send().await {
            // A server may close a kept connection at the moment when it is used again.
            Err(WebError::Lost(_)) => send().await,
            response => response,
        };
        let response = response?;
        if response.body().len() <= MAX_SHOWN_BYTES {
            *shown = serde_json::from_slice(response.body()).unwrap_or_default();
        }
        wire::answer(self.format(), response.headers(), response.body()).map_err(AskError::Answer)
    }

    fn request(&self, question: &Question, request_id: Uuid) -> Request<Full<Bytes>> {
        let body = self.question(question).to_string();
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json.clone());
        headers.insert(ACCEPT, json);
        let agent = concat!("nowconnect/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Ok(id) = HeaderValue::try_from(request_id.to_string()) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(bearer) = &*self.bearer.load() {
            headers.insert(AUTHORIZATION, HeaderValue::clone(bearer));
        }
        request
    }

    fn format(&self) -> PdpFormat {
        self.rules.config.format
    }

    pub(super) fn question(&self, question: &Question) -> Value {
        wire::question(self.format(), &self.hub, &self.rules.audience, question)
    }

    /// Whom it asks, what, and by which rules.
    pub(super) fn describe(&self, question: &Question) -> Value {
        let config = &self.rules.config;
        json!({
            "url": mask_url(&self.url.to_string()),
            "format": config.format.as_str(),
            "question": self.question(question),
            "deadline_ms": config.timeout.as_millis() as u64,
            "cache_ttl_sec": config.cache_ttl.as_secs(),
            "fail_open": config.fail_open,
        })
    }
}

/// Where questions go: AuthZEN has a path of its own for an address without one.
fn address(config: &PdpConfig) -> Uri {
    let url = &config.url;
    if config.format != PdpFormat::Authzen || url.path() != "/" || url.query().is_some() {
        return url.clone();
    }
    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(AUTHZEN_PATH));
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

fn bearer(token: &Secret) -> Option<Arc<HeaderValue>> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(Arc::new(value))
}
