//! The thread that appends audit records to the trail: in order, retrying what fails, counting what
//! does not fit in memory meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use nowconnect_hub::metrics::AuditMetrics;
use serde_json::json;

use super::record::{Draft, Head, Seal};
use super::trail::Trail;

/// Between looks at the path, attempts to write after a failure, and syncs.
const TICK: Duration = Duration::from_secs(1);
/// Between lines in the log that tell where the trail stands.
const HEAD_PERIOD: Duration = Duration::from_secs(300);
/// Records of one append.
const BATCH: usize = 512;

/// What the thread is to do.
pub(super) enum Job {
    /// To be written.
    Write(Draft),
    /// From now on to that file, or to none.
    Follow(Option<Box<Destination>>),
    /// Look now whether the file was moved away.
    Look,
    /// Write what waits, say where the trail stands, and answer.
    Finish(SyncSender<()>),
}

/// Where records go.
pub(super) struct Destination {
    pub(super) path: PathBuf,
    /// `None`: they are not chained.
    pub(super) seal: Option<Seal>,
    /// The file, unless it is the one that is written to already.
    pub(super) trail: Option<Trail>,
}

/// What became of records, for metrics and for whoever hands them over.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Appended.
    pub(crate) written: AtomicU64,
    /// Given up.
    pub(crate) lost: AtomicU64,
    /// The file cannot be written at present.
    pub(crate) failing: AtomicBool,
    /// Bytes that wait to be written.
    pub(super) waiting: AtomicU64,
    /// Lost since the trail last told of any.
    untold: AtomicU64,
}

impl Tally {
    /// Brings what is scraped up to date.
    pub(crate) fn show(&self, metrics: &AuditMetrics) {
        for (result, now) in [("written", &self.written), ("lost", &self.lost)] {
            let counter = metrics.records.with([result]);
            counter.inc_by(now.load(Ordering::Relaxed).saturating_sub(counter.get()));
        }
        let failing = self.failing.load(Ordering::Relaxed);
        metrics.failing.set(failing.into());
    }

    /// A record was given up.
    pub(super) fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.untold.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) struct Writer {
    tally: Arc<Tally>,
    seal: Option<Seal>,
    /// Where to write; `None`: nowhere.
    path: Option<PathBuf>,
    /// `None`: it could not be opened again, after this record.
    trail: Option<Trail>,
    last: Option<Head>,
    waiting: Vec<Draft>,
    shown: (Option<Head>, Instant),
    unsynced: bool,
}

impl Writer {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self {
            tally,
            seal: None,
            path: None,
            trail: None,
            last: None,
            waiting: Vec::new(),
            shown: (None, Instant::now()),
            unsynced: false,
        }
    }

    /// Works until nobody can send any more jobs.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut tick = Instant::now() + TICK;
        loop {
            let job = match jobs.recv_timeout(tick.saturating_duration_since(Instant::now())) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(job) = job {
                self.take(job);
                while self.waiting.len() < BATCH
                    && let Ok(job) = jobs.try_recv()
                {
                    self.take(job);
                }
            }
            let now = Instant::now();
            let due = now >= tick;
            if due {
                tick = now + TICK;
                self.tend();
            }
            // What failed is tried again once a second.
            if due || !self.tally.failing.load(Ordering::Relaxed) {
                self.write();
            }
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Write(draft) if self.path.is_some() => self.waiting.push(draft),
            // Handed over before the file was given up.
            Job::Write(draft) => self.settle(&draft),
            Job::Follow(destination) => self.follow(destination),
            Job::Look => self.reopen_if_moved(),
            Job::Finish(answer) => {
                self.close();
                let _ = answer.try_send(());
            }
        }
    }

    fn follow(&mut self, destination: Option<Box<Destination>>) {
        let Some(destination) = destination else {
            self.close();
            (self.path, self.trail, self.last) = (None, None, None);
            return;
        };
        let Destination { path, seal, trail } = *destination;
        if let Some(trail) = trail {
            self.close();
            self.last = None;
            self.trail = Some(trail);
        }
        // What waits belongs to the chain as it was.
        self.write();
        (self.path, self.seal) = (Some(path), seal);
        self.tell_opened(None);
        self.write();
        self.show_head();
    }

    /// The file was moved away: another one is begun, the trail goes on.
    fn reopen_if_moved(&mut self) {
        let in_place = self.trail.as_ref().is_some_and(Trail::is_in_place);
        let Some(path) = self.path.clone().filter(|_| !in_place) else {
            return;
        };
        // What is known already belongs to the old one.
        self.write();
        self.sync();
        if let Some(trail) = self.trail.take() {
            self.last = Some(trail.head());
        }
        match Trail::open(&path, self.last) {
            Ok(trail) => {
                self.trail = Some(trail);
                self.tell_opened(Some("moved"));
                self.write();
                self.show_head();
            }
            Err(error) => self.fail(&path, &error),
        }
    }

    fn tell_opened(&mut self, because: Option<&str>) {
        let seal = self.seal.as_ref();
        let fields = json!({
            "because": because.unwrap_or("configured"),
            "chain": seal.map_or("none", Seal::name),
            "key_id": seal.and_then(Seal::key_id),
            "version": env!("CARGO_PKG_VERSION"),
        });
        self.note(0, super::note("audit_opened", fields));
    }

    /// Lets a record of the trail's own wait at a place among the others.
    fn note(&mut self, at: usize, draft: Draft) {
        let waiting = &self.tally.waiting;
        waiting.fetch_add(draft.weight() as u64, Ordering::Relaxed);
        self.waiting.insert(at, draft);
    }

    /// Writes what waits, and how many were lost.
    fn write(&mut self) {
        let Some(path) = self.path.clone() else {
            return;
        };
        let Some(trail) = &mut self.trail else {
            return;
        };
        let lost = self.tally.untold.load(Ordering::Relaxed);
        if self.waiting.is_empty() && lost == 0 {
            return;
        }
        let waiting = self.waiting.len();
        if lost > 0 {
            let fields = json!({ "lost": lost, "reason": "not_written_in_time" });
            self.waiting.push(super::note("audit_gap", fields));
        }
        let outcome = trail.append(&self.waiting, self.seal.as_ref());
        self.waiting.truncate(waiting);
        let (written, error) = match outcome {
            Ok(()) => (waiting, None),
            Err(failed) => (failed.written.min(waiting), Some(failed.error)),
        };
        self.unsynced |= written > 0;
        self.tally
            .written
            .fetch_add(written as u64, Ordering::Relaxed);
        for draft in self.waiting.drain(..written).collect::<Vec<_>>() {
            self.settle(&draft);
        }
        match error {
            Some(error) => self.fail(&path, &error),
            None => {
                self.tally.untold.fetch_sub(lost, Ordering::Relaxed);
                if self.tally.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(event = "audit_file_recovered", file = %path.display(), lost);
                }
            }
        }
    }

    /// The draft is no longer held.
    fn settle(&self, draft: &Draft) {
        let waiting = &self.tally.waiting;
        waiting.fetch_sub(draft.weight() as u64, Ordering::Relaxed);
    }

    fn fail(&self, path: &Path, error: &std::io::Error) {
        if !self.tally.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(
                event = "audit_file_failed",
                file = %path.display(),
                %error,
                detail = "records are kept in memory and written when it works again; \
                    those beyond 16 MiB are lost and counted",
            );
        }
    }

    /// Once in a while.
    fn tend(&mut self) {
        self.reopen_if_moved();
        self.sync();
        if self.shown.1.elapsed() >= HEAD_PERIOD {
            self.show_head();
        }
    }

    fn sync(&mut self) {
        if let Some(trail) = self.trail.as_ref().filter(|_| self.unsynced) {
            self.unsynced = false;
            if let Err(error) = trail.sync() {
                tracing::warn!(event = "audit_file_not_synced", %error);
            }
        }
    }

    /// Says in the log where the trail stands, so that an end which is cut off can be noticed.
    fn show_head(&mut self) {
        let Some(trail) = &self.trail else { return };
        let head = trail.head();
        self.shown.1 = Instant::now();
        if self.shown.0.replace(head) != Some(head) {
            tracing::info!(
                event = "audit_head",
                file = %trail.path().display(),
                seq = head.seq,
                hash = %head.hash,
            );
        }
    }

    fn close(&mut self) {
        if self.path.is_some() {
            self.note(self.waiting.len(), super::note("audit_closed", json!({})));
            self.write();
            self.sync();
            self.show_head();
        }
        if !self.waiting.is_empty() {
            let lost = self.waiting.len();
            tracing::error!(event = "audit_records_lost", lost);
            self.tally.lost.fetch_add(lost as u64, Ordering::Relaxed);
            for draft in std::mem::take(&mut self.waiting) {
                self.settle(&draft);
            }
        }
    }
}
