//! One configured decision point: what it was asked, what it allowed, and how many ask at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use nowconnect_link::tasks::Tasks;
use nowconnect_settings::{Secret, mask_url};
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use uuid::Uuid;

use super::cache::Cache;
use super::{Question, wire};
use crate::config::{PdpConfig, PdpFormat};
use crate::web_client::{WebClient, WebError};

/// Bytes of the largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Bytes of the largest answer that is shown to an operator.
const MAX_SHOWN_BYTES: usize = 4096;
/// Questions that are asked at a time, about clients of this hub and about those of others. Each have
/// places of their own, so that no other hub can keep the clients of this one waiting.
const MOST_ASKED: usize = 32;
/// Questions that are asked or wait for a place. Beyond, there is no answer.
const MOST_OPEN: usize = 8192;
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

/// What a question led to.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    Allow,
    Deny,
    /// There is no answer, and why.
    Failed(Arc<str>),
}

impl Verdict {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Failed(_) => "error",
        }
    }
}

/// A verdict, and the name under which the decision point knows the request.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) request_id: Uuid,
}

impl Outcome {
    pub(super) fn failed(why: &str) -> Self {
        Self {
            verdict: Verdict::Failed(why.into()),
            request_id: Uuid::nil(),
        }
    }
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

/// What is known about a question.
pub(super) enum Known {
    Allowed,
    /// It is being asked.
    Asked(watch::Receiver<Option<Outcome>>),
}

#[derive(Debug)]
pub(super) struct Point {
    rules: Rules,
    hub: Arc<str>,
    url: Uri,
    client: WebClient,
    bearer: ArcSwapOption<HeaderValue>,
    /// For questions about clients of this hub, and of others.
    places: [Semaphore; 2],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    allowed: Cache,
    asked: HashMap<Question, watch::Receiver<Option<Outcome>>>,
}

/// A question on its way; the answer goes to all who wait for it.
struct Flight {
    point: Arc<Point>,
    question: Question,
    told: watch::Sender<Option<Outcome>>,
}

impl Flight {
    async fn run(self) {
        let exchange = self.point.exchange(&self.question).await;
        if let Verdict::Allow = exchange.verdict {
            let mut state = self.point.state.lock();
            let question = self.question.clone();
            state.allowed.allow(question, exchange.ttl, Instant::now());
        }
        self.told.send_replace(Some(Outcome {
            verdict: exchange.verdict,
            request_id: exchange.request_id,
        }));
    }
}

impl Drop for Flight {
    /// However it ends: who asks from now on asks anew.
    fn drop(&mut self) {
        self.point.state.lock().asked.remove(&self.question);
    }
}

impl Point {
    pub(super) fn new(
        rules: Rules,
        hub: Arc<str>,
        trust: ClientConfig,
        token: Option<&Secret>,
    ) -> Self {
        Self {
            url: address(&rules.config),
            client: WebClient::new(trust, rules.config.timeout, MOST_ASKED),
            bearer: ArcSwapOption::new(token.and_then(bearer)),
            places: [Semaphore::new(MOST_ASKED), Semaphore::new(MOST_ASKED)],
            state: Mutex::default(),
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

    /// For how long the question is still allowed without being asked.
    pub(super) fn remembered(&self, question: &Question) -> Option<Duration> {
        self.state.lock().allowed.left(question, Instant::now())
    }

    /// Whether the question is allowed; if that is not known, asks, or joins who asks already.
    pub(super) fn look_up(
        self: &Arc<Self>,
        question: &Question,
        tasks: &Tasks,
        runtime: &Handle,
    ) -> Known {
        let mut state = self.state.lock();
        if state.allowed.left(question, Instant::now()).is_some() {
            return Known::Allowed;
        }
        if let Some(asked) = state.asked.get(question) {
            return Known::Asked(asked.clone());
        }
        let (told, outcome) = watch::channel(None);
        if state.asked.len() >= MOST_OPEN {
            told.send_replace(Some(Outcome::failed(
                "too many questions wait for an answer",
            )));
            return Known::Asked(outcome);
        }
        state.asked.insert(question.clone(), outcome.clone());
        drop(state);
        let flight = Flight {
            point: self.clone(),
            question: question.clone(),
            told,
        };
        let stop = tasks.token();
        let work = stop.run_until_cancelled_owned(flight.run());
        tasks.spawn_on(runtime, "pdp_question", work);
        Known::Asked(outcome)
    }

    /// Asks, within the deadline, whatever is remembered.
    pub(super) async fn exchange(&self, question: &Question) -> Exchange {
        let (begun, request_id) = (Instant::now(), Uuid::new_v4());
        let deadline = self.rules.config.timeout;
        let mut answer = Value::Null;
        let asking = self.ask(question, request_id, &mut answer);
        let asked = timeout(deadline, asking).await;
        let asked = asked.unwrap_or_else(|_| Err(WebError::Timeout(deadline).to_string()));
        let cap = self.rules.config.cache_ttl;
        let (verdict, ttl) = match asked {
            Ok(it) if it.allowed => (Verdict::Allow, it.ttl.map_or(cap, |ttl| ttl.min(cap))),
            Ok(_) => (Verdict::Deny, Duration::ZERO),
            Err(error) => (Verdict::Failed(error.into()), Duration::ZERO),
        };
        Exchange {
            verdict,
            ttl,
            answer,
            request_id,
            took: begun.elapsed(),
        }
    }

    async fn ask(
        &self,
        question: &Question,
        request_id: Uuid,
        shown: &mut Value,
    ) -> Result<wire::Answer, String> {
        let places = &self.places[usize::from(question.origin.is_some())];
        let _place = places.acquire().await.map_err(|error| error.to_string())?;
        let response = self
            .client
            .send(self.request(question, request_id), MAX_ANSWER_BYTES);
        let response = response.await.map_err(|error| error.to_string())?;
        if response.body().len() <= MAX_SHOWN_BYTES {
            *shown = serde_json::from_slice(response.body()).unwrap_or_default();
        }
        wire::answer(self.format(), response.headers(), response.body())
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

    fn question(&self, question: &Question) -> Value {
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
