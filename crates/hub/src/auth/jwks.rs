//! The cached key set: refreshed in time, refreshed for an unknown `kid`, kept while the issuer is down.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use jsonwebtoken::Algorithm;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fetch::{FetchError, Fetched, Fetcher};
use super::key::{KeySet, KeySetError, Skipped, VerifyKey};
use super::reason::{Reason, Rejection};
use crate::config::JwksSource;

/// How often, how soon and how long keys are fetched.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Between refreshes over HTTP, unless the server says otherwise with Cache-Control: max-age.
    pub refresh: Duration,
    /// What the server's max-age is raised to.
    pub min_max_age: Duration,
    /// What the server's max-age is lowered to.
    pub max_max_age: Duration,
    /// Between fetches that unknown `kid`s cause, whoever sends them.
    pub unknown_kid_gap: Duration,
    /// First wait after a failed fetch; doubled up to [`Timing::unknown_kid_gap`].
    pub first_retry: Duration,
    /// Between looks at a file.
    pub file_poll: Duration,
    /// For one fetch, to its last byte.
    pub timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(300),
            min_max_age: Duration::from_secs(60),
            max_max_age: Duration::from_secs(3600),
            unknown_kid_gap: Duration::from_secs(30),
            first_retry: Duration::from_secs(1),
            file_poll: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
        }
    }
}

/// What is known about the key set, for status pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysStatus {
    /// Usable keys in the cache.
    pub keys: usize,
    /// When a fetch last gave a usable set.
    pub refreshed_at: Option<SystemTime>,
    /// Why the newest fetch did not; `None` while all is well.
    pub problem: Option<String>,
}

/// The keys that agents' tokens are checked with.
///
/// The last good set serves for as long as its source is down or delivers rubbish; an empty set counts
/// as rubbish. [`Keys::run`] must be spawned: it does all the fetching.
#[derive(Debug)]
pub struct Keys {
    source: Option<JwksSource>,
    fetcher: Fetcher,
    timing: Timing,
    set: ArcSwapOption<KeySet>,
    state: Mutex<State>,
    /// Wakes [`Keys::run`] when the date of the next fetch was moved forward.
    moved: Notify,
    /// Fires after every fetch, good or bad.
    attempts: watch::Sender<()>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// The document of the current set, to tell a change from a mere refresh.
    document: Bytes,
    refreshed_at: Option<SystemTime>,
    attempted_at: Option<Instant>,
    in_flight: bool,
    /// What is under way will not do: fetch again at once.
    again: bool,
    /// When to fetch next; `None` means at once.
    due_at: Option<Instant>,
    failures: u32,
    problem: Option<String>,
}

impl State {
    fn start_attempt(&mut self) {
        self.in_flight = true;
        self.attempted_at = Some(Instant::now());
    }

    fn finish_attempt(&mut self, wait: Duration) {
        self.in_flight = false;
        let again = std::mem::take(&mut self.again);
        self.due_at = (!again).then(|| Instant::now() + wait);
    }
}

/// Why a fetch gave no new set.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

impl Keys {
    /// An empty cache for `source`; without one every token is refused with [`Reason::NoJwks`].
    ///
    /// `tls` decides which `https://` servers are trusted.
    pub fn new(source: Option<JwksSource>, tls: rustls::ClientConfig, timing: Timing) -> Arc<Self> {
        Arc::new(Self {
            fetcher: Fetcher::new(tls, timing.timeout),
            source,
            timing,
            set: ArcSwapOption::empty(),
            state: Mutex::default(),
            moved: Notify::new(),
            attempts: watch::Sender::new(()),
            changes: watch::Sender::new(0),
        })
    }

    /// The source given to [`Keys::new`]: a reload that keeps it may keep this cache.
    pub fn source(&self) -> Option<&JwksSource> {
        self.source.as_ref()
    }

    /// The key that a token names. An unknown one costs a fetch, shared by all who ask, and at most
    /// one per [`Timing::unknown_kid_gap`].
    ///
    /// # Errors
    /// `no_jwks`, `unknown_key`; `keys_unavailable` when the newest fetch failed, so nobody knows.
    pub async fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Arc<VerifyKey>, Rejection> {
        if self.source.is_none() {
            return Err(Reason::NoJwks.into());
        }
        if let Some(key) = self.cached(kid, algorithm) {
            return Ok(key);
        }
        self.refresh_unless_tried_within(self.timing.unknown_kid_gap)
            .await;
        if let Some(key) = self.cached(kid, algorithm) {
            return Ok(key);
        }
        let state = self.state.lock();
        match &state.problem {
            Some(problem) => Err(Rejection::new(Reason::KeysUnavailable, problem)),
            None if state.refreshed_at.is_none() => Err(Reason::KeysUnavailable.into()),
            None => Err(Reason::UnknownKey.into()),
        }
    }

    /// Whether a token that was signed with this key ([`super::Identity::key_id`]) may go on: the
    /// key is in the set, or the set of this source was not seen yet.
    pub fn upholds(&self, key_id: &str) -> bool {
        let set = self.set.load();
        match set.as_ref() {
            Some(set) => set.holds(key_id),
            None => self.source.is_some(),
        }
    }

    /// Wakes whenever the set has changed; ask [`Keys::upholds`] then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// For status pages.
    pub fn status(&self) -> KeysStatus {
        let keys = self.set.load().as_ref().map_or(0, |set| set.count());
        let state = self.state.lock();
        KeysStatus {
            keys,
            refreshed_at: state.refreshed_at,
            problem: state.problem.clone(),
        }
    }

    /// Fetches now, whatever the schedule says, and waits for the result.
    pub async fn refresh(&self) {
        self.refresh_unless_tried_within(Duration::ZERO).await;
    }

    /// Decides anew which `https://` servers are trusted, and fetches soon, whatever the schedule
    /// says: an operator's reload.
    pub fn trust(&self, tls: rustls::ClientConfig) {
        self.fetcher.trust(tls);
        let mut state = self.state.lock();
        state.due_at = None;
        state.again = state.in_flight;
        self.moved.notify_one();
    }

    /// Keeps the set fresh until `stop`; fetches at once. All fetches happen here, one at a time, so
    /// that a caller who goes away cannot take a fetch with it that others wait for.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(source) = &self.source else { return };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_fresh(source) => {}
        }
    }

    async fn keep_fresh(&self, source: &JwksSource) {
        loop {
            let due_at = self.state.lock().due_at;
            if let Some(due_at) = due_at.filter(|due_at| *due_at > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(due_at) => {}
                    () = self.moved.notified() => {}
                }
                continue;
            }
            self.state.lock().start_attempt();
            let result = self.fetcher.fetch(source).await;
            let wait = match result
                .map_err(RefreshError::from)
                .and_then(|f| self.install(source, f))
            {
                Ok(wait) => wait,
                Err(error) => self.keep_old(source, &error),
            };
            self.state.lock().finish_attempt(wait);
            self.attempts.send_replace(());
        }
    }

    fn cached(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<Arc<VerifyKey>> {
        self.set
            .load()
            .as_ref()
            .and_then(|set| set.find(kid, algorithm))
            .cloned()
    }

    /// Waits for the fetch under way, or for a new one unless the last is younger than `gap`.
    async fn refresh_unless_tried_within(&self, gap: Duration) {
        let mut attempts = self.attempts.subscribe();
        {
            let mut state = self.state.lock();
            if !state.in_flight {
                if state.attempted_at.is_some_and(|at| at.elapsed() < gap) {
                    return;
                }
                state.due_at = None;
                self.moved.notify_one();
            }
        }
        // The fetch has its own deadline; this one is for a cache that nobody runs.
        let patience = self.timing.timeout + Duration::from_secs(1);
        let _ = tokio::time::timeout(patience, attempts.changed()).await;
    }

    /// Puts a new document in place; returns how long to wait for the next.
    fn install(&self, source: &JwksSource, fetched: Fetched) -> Result<Duration, RefreshError> {
        let wait = match source {
            JwksSource::File(_) => self.timing.file_poll,
            JwksSource::Url(_) => fetched.max_age.map_or(self.timing.refresh, |age| {
                age.clamp(self.timing.min_max_age, self.timing.max_max_age)
            }),
        };
        let same = self.set.load().is_some() && self.state.lock().document == fetched.body;
        if !same {
            let (set, skipped) = KeySet::parse(&fetched.body)?;
            report(source, &set, &skipped);
            self.set.store(Some(Arc::new(set)));
            self.changes.send_modify(|generation| *generation += 1);
        }
        let mut state = self.state.lock();
        if state.problem.take().is_some() && same {
            tracing::info!(event = "jwks_recovered", source = %source);
        }
        state.document = fetched.body;
        state.refreshed_at = Some(SystemTime::now());
        state.failures = 0;
        Ok(wait)
    }

    /// Records a failure; returns how long to wait before trying again.
    fn keep_old(&self, source: &JwksSource, error: &RefreshError) -> Duration {
        let problem = error.to_string();
        let keys = self.set.load().as_ref().map_or(0, |set| set.count());
        let mut state = self.state.lock();
        let doublings = state.failures.min(16);
        state.failures = state.failures.saturating_add(1);
        let retry = self.timing.first_retry.saturating_mul(1 << doublings);
        if state.problem.as_deref() != Some(&problem) {
            tracing::warn!(
                event = "jwks_refresh_failed",
                source = %source,
                error = problem,
                keys_kept = keys,
            );
        }
        state.problem = Some(problem);
        match source {
            JwksSource::File(_) => self.timing.file_poll,
            JwksSource::Url(_) => retry.min(self.timing.unknown_kid_gap),
        }
    }
}

fn report(source: &JwksSource, set: &KeySet, skipped: &[Skipped]) {
    tracing::info!(
        event = "jwks_loaded",
        source = %source,
        keys = set.count(),
        skipped = skipped.len(),
        audit = true,
    );
    for Skipped { index, why } in skipped {
        tracing::warn!(event = "jwks_key_skipped", source = %source, index, why);
    }
}
