//! The thread that sends spans.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use nowconnect_link::metrics::TraceTally;
use nowconnect_link::tls::TlsError;
use nowconnect_link::trace::Tracer;
use nowconnect_link::web_client::{self, WebClient, WebError};
use nowconnect_proto::backoff::Backoff;
use nowconnect_settings::{TracesConfig, mask_url};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::message::{Process, Speaker};
use crate::otlp::Response;
use crate::outage::{Failure, Outage};
use crate::queue::Queue;
use crate::sampler::Sampling;

/// How often one batch is sent before it is given up.
const ATTEMPTS: usize = 5;
/// Pauses between these, the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How long the rest may take when the process stops.
const LAST_WORDS: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const MOST_ANSWER: usize = 64 * 1024;
/// Characters of what a collector says about spans that it rejects.
const MOST_WORDS: usize = 200;

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificates to trust.
    #[error("observability.traces.ca_bundle: {0}")]
    Tls(#[from] TlsError),
    /// Its thread or what that runs on.
    #[error("cannot start the thread that sends spans: {0}")]
    Thread(#[from] std::io::Error),
}

/// Sends spans until it is [stopped](Exporter::stop).
#[derive(Debug)]
pub struct Exporter {
    queue: Arc<Queue>,
    tally: Arc<TraceTally>,
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
}

impl Exporter {
    /// Starts its thread. That no collector can be reached is no error.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: &TracesConfig, process: &Process) -> Result<Self, StartError> {
        let https = config.endpoint.scheme_str() == Some("https");
        let trust = web_client::trust(https, config.ca_bundle.as_deref())?;
        let tally = Arc::<TraceTally>::default();
        let queue = Arc::new(Queue::new(Sampling::new(config), tally.clone()));
        let stop = CancellationToken::new();
        let sender = Sender {
            queue: queue.clone(),
            tally: tally.clone(),
            speaker: Speaker::new(config, process),
            client: WebClient::new(trust, CONNECT.min(config.timeout), 1),
            endpoint: config.endpoint.clone(),
            headers: headers(config, process),
            timeout: config.timeout,
            outage: Outage::default(),
            under_way: 0,
            stop: stop.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (over, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("traces".to_owned())
            .spawn(move || {
                runtime.block_on(sender.run());
                // A name lookup that hangs must not keep the process.
                runtime.shutdown_background();
                // Nobody waits for it any more.
                let _ = over.send(());
            })?;
        tracing::info!(
            event = "traces_started",
            endpoint = mask_url(&config.endpoint.to_string()),
            sampler = config.sampler.as_str(),
        );
        Ok(Self {
            queue,
            tally,
            stop,
            ended,
        })
    }

    /// What makes spans for it.
    pub fn tracer(&self) -> Tracer {
        Tracer::new(self.queue.clone())
    }

    /// What became of spans.
    pub fn tally(&self) -> &Arc<TraceTally> {
        &self.tally
    }

    /// Sends what waits, for two seconds at most.
    pub async fn stop(self) {
        self.stop.cancel();
        // The thread keeps the time; a little more for its end.
        let _ = timeout(LAST_WORDS + PAUSE.0, self.ended).await;
    }
}

fn headers(config: &TracesConfig, process: &Process) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let agent = format!("nowconnect/{}", process.version);
    if let Ok(agent) = HeaderValue::try_from(agent) {
        headers.insert(USER_AGENT, agent);
    }
    headers.extend(config.headers.iter());
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-protobuf"),
    );
    headers
}

/// What the thread does.
struct Sender {
    queue: Arc<Queue>,
    tally: Arc<TraceTally>,
    speaker: Speaker,
    client: WebClient,
    endpoint: Uri,
    headers: HeaderMap,
    timeout: Duration,
    outage: Outage,
    /// Spans that are being sent.
    under_way: u64,
    stop: CancellationToken,
}

impl Sender {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let too_late = async {
            stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = self.work() => {}
            () = too_late => {}
        }
        let lost = self.under_way + self.queue.len() as u64;
        add(&self.tally.export_failed, lost);
        let all = self.tally.export_failed.load(Ordering::Relaxed);
        let full = self.tally.queue_full.load(Ordering::Relaxed);
        if all + full > 0 {
            let sent = self.tally.exported.load(Ordering::Relaxed);
            tracing::warn!(event = "traces_incomplete", sent, lost = all + full);
        }
    }

    /// Until the process stops and nothing is left, or cannot be sent.
    async fn work(&mut self) {
        while !self.stop.is_cancelled() {
            self.stop.run_until_cancelled(self.queue.ready()).await;
            self.deliver().await;
        }
        while self.queue.len() > 0 && self.deliver().await {}
    }

    /// Sends a batch, again if need be. Returns whether it arrived.
    async fn deliver(&mut self) -> bool {
        let batch = self.queue.batch();
        let count = batch.len() as u64;
        if count == 0 {
            return true;
        }
        self.under_way = count;
        let body = self.speaker.message(batch);
        let arrived = self.insist(body, count).await;
        self.under_way = 0;
        arrived
    }

    async fn insist(&mut self, body: Bytes, count: u64) -> bool {
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        for attempt in 1..=ATTEMPTS {
            let failure = match self.send(body.clone()).await {
                Ok(()) => {
                    add(&self.tally.exported, count);
                    self.outage.over();
                    return true;
                }
                Err(failure) => failure,
            };
            let again = failure.may_pass() && attempt < ATTEMPTS && !self.stop.is_cancelled();
            if !again {
                let lost = match failure {
                    Failure::Rejected(some, _) => some.min(count),
                    _ => count,
                };
                add(&self.tally.export_failed, lost);
                add(&self.tally.exported, count - lost);
                self.outage.note(&self.endpoint, &failure, lost);
                return lost < count;
            }
            self.outage.note(&self.endpoint, &failure, 0);
            let pause = sleep(backoff.next(rand::random()));
            self.stop.run_until_cancelled(pause).await;
        }
        false
    }

    async fn send(&self, body: Bytes) -> Result<(), Failure> {
        let mut request = Request::post(&self.endpoint).body(Full::new(body))?;
        request.headers_mut().clone_from(&self.headers);
        let sent = timeout(self.timeout, self.client.send(request, MOST_ANSWER)).await;
        let answer = sent.unwrap_or(Err(WebError::Timeout(self.timeout)))?;
        let answer = Response::decode(answer.into_body());
        match answer.map_err(Failure::Answer)?.partial_success {
            Some(partial) if partial.rejected_spans > 0 => {
                let rejected = partial.rejected_spans.unsigned_abs();
                let words = partial.error_message.chars().take(MOST_WORDS).collect();
                Err(Failure::Rejected(rejected, words))
            }
            _ => Ok(()),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
