//! From an event marked `audit = true` to the trail, without ever waiting for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nowconnect_hub::config::AuditConfig;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::{Context, Layer};

use super::record::{Draft, Seal};
use super::trail::Trail;
use super::writer::{Destination, Job, Tally, Writer};
use crate::logging::marked;

/// The field that makes an event an audit record.
const MARK: &str = "audit";
/// Records that may be on their way to the writer's thread.
const MAX_WAITING: usize = 8192;
/// Bytes of records that may wait, there and in the thread.
const MAX_WAITING_BYTES: u64 = 16 * 1024 * 1024;
/// How long the end of the process waits for the last records.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The audit trail of the process; off until it is told where to write.
#[derive(Clone, Default)]
pub(crate) struct Audit(Arc<Inner>);

#[derive(Default)]
struct Inner {
    on: AtomicBool,
    /// To the writer's thread, once there is one.
    jobs: OnceLock<SyncSender<Job>>,
    tally: Arc<Tally>,
    current: Mutex<Option<Place>>,
}

/// What makes two configurations the same.
#[derive(Clone, PartialEq)]
struct Place {
    path: PathBuf,
    chain: &'static str,
    key_id: Option<String>,
}

/// A configuration of the trail that can be put in force.
pub(crate) struct Prepared(Option<(Place, Destination)>);

impl Audit {
    /// Opens what `config` names. Blocks on file I/O.
    ///
    /// # Errors
    /// The file cannot be written or holds something else, or the key cannot be read.
    pub(crate) fn prepare(&self, config: &AuditConfig) -> anyhow::Result<Prepared> {
        let Some(path) = config.file.clone() else {
            return Ok(Prepared(None));
        };
        let seal = match (&config.key_file, config.hash_chain) {
            (_, false) => None,
            (None, true) => Some(Seal::Plain),
            (Some(key), true) => Some(Seal::load(key).context("audit.key_file")?),
        };
        let place = Place {
            path: path.clone(),
            chain: seal.as_ref().map_or("none", Seal::name),
            key_id: seal.as_ref().and_then(Seal::key_id),
        };
        let is_open = self.current().as_ref().is_some_and(|at| at.path == path);
        let trail = match is_open {
            true => None,
            false => Some(
                Trail::open(&path, None)
                    .with_context(|| format!("audit.file: cannot use {}", path.display()))?,
            ),
        };
        let destination = Destination { path, seal, trail };
        Ok(Prepared(Some((place, destination))))
    }

    /// Puts a configuration in force: records go there from now on.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn commit(&self, prepared: Prepared) -> std::io::Result<()> {
        let (place, destination) = prepared.0.unzip();
        let mut current = self.current();
        if *current == place {
            return Ok(());
        }
        let job = Job::Follow(destination.map(Box::new));
        self.jobs()?.send(job).ok();
        // No sooner: a record in front of the job would go nowhere, and not be counted.
        self.0.on.store(place.is_some(), Ordering::Relaxed);
        *current = place;
        Ok(())
    }

    /// Looks now whether the file was moved away.
    pub(crate) fn look(&self) {
        if let Some(jobs) = self.0.jobs.get() {
            let _ = jobs.try_send(Job::Look);
        }
    }

    /// What became of the records.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.0.tally
    }

    /// What feeds it: a layer for every event that is marked, whatever the level of the log.
    pub(crate) fn layer<S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>>(
        &self,
    ) -> impl Layer<S> + use<S> {
        let may_be_marked: fn(&tracing::Metadata<'_>) -> bool =
            |metadata| metadata.fields().field(MARK).is_some();
        let filter: FilterFn = filter_fn(may_be_marked);
        // No audit event is less important.
        let filter = filter.with_max_level_hint(LevelFilter::INFO);
        Marked(self.clone()).with_filter(filter)
    }

    /// Waits until what was recorded before is written, but not for ever.
    pub(crate) fn finish(&self) {
        let Some(jobs) = self.0.jobs.get() else {
            return;
        };
        let deadline = Instant::now() + LAST_WORDS;
        let (answer, done) = sync_channel(1);
        let mut job = Job::Finish(answer);
        while let Err(TrySendError::Full(back)) = jobs.try_send(job) {
            if Instant::now() >= deadline {
                return;
            }
            job = back;
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Place>> {
        let current = self.0.current.lock();
        current.unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs(&self) -> std::io::Result<&SyncSender<Job>> {
        if let Some(jobs) = self.0.jobs.get() {
            return Ok(jobs);
        }
        let (jobs, queue) = sync_channel(MAX_WAITING);
        let writer = Writer::new(self.0.tally.clone());
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&queue))?;
        Ok(self.0.jobs.get_or_init(|| jobs))
    }

    fn push(&self, draft: Draft) {
        let tally = &self.0.tally;
        let Some(jobs) = self.0.jobs.get() else {
            return;
        };
        let weight = draft.weight() as u64;
        let before = tally.waiting.fetch_add(weight, Ordering::Relaxed);
        let fits = before + weight <= MAX_WAITING_BYTES;
        if !fits || jobs.try_send(Job::Write(draft)).is_err() {
            tally.waiting.fetch_sub(weight, Ordering::Relaxed);
            tally.lose();
        }
    }
}

struct Marked(Audit);

impl<S: Subscriber> Layer<S> for Marked {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if self.0.0.on.load(Ordering::Relaxed)
            && let Some(draft) = marked(event, MARK)
        {
            self.0.push(draft);
        }
    }
}
