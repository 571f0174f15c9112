//! Notices that files changed by comparing their content, and who else can touch them.
//!
//! Polling on purpose: change notifications miss the `..data` symlink swap by which Kubernetes
//! updates mounted files, and do not exist on network file systems.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::exposure::{Holds, exposure};
use crate::regular::open_file;

/// Polls a set of files.
#[derive(Debug)]
pub struct Watcher {
    files: Vec<(PathBuf, Option<u64>)>,
    ticks: Interval,
    /// That everybody can read or change a file is a change too.
    with_exposure: bool,
}

impl Watcher {
    /// How often to look when nothing else is asked for.
    pub const PERIOD: Duration = Duration::from_secs(2);

    /// Watches `files` from their present content on, looking every `period` (at least 10 ms).
    ///
    /// Make it before reading the files, or a change in between goes unseen. Runs in a tokio runtime
    /// with timers.
    pub fn new(files: impl IntoIterator<Item = PathBuf>, period: Duration) -> Self {
        Self::start(files, period, false)
    }

    /// The same, but what [`exposure`] says of a file counts as well as what is in it.
    pub fn with_exposure(files: impl IntoIterator<Item = PathBuf>, period: Duration) -> Self {
        Self::start(files, period, true)
    }

    fn start(
        files: impl IntoIterator<Item = PathBuf>,
        period: Duration,
        with_exposure: bool,
    ) -> Self {
        let mut ticks = interval(period.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = Self {
            files: Vec::new(),
            ticks,
            with_exposure,
        };
        watcher.watch(files);
        watcher
    }

    /// Watches another set of files, from now on; those that stay keep their last seen content.
    pub fn watch(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let old = std::mem::take(&mut self.files);
        for path in files {
            let known = |(p, _): &&(PathBuf, _)| *p == path;
            if self.files.iter().any(|file| known(&file)) {
                continue;
            }
            let seen = match old.iter().find(known) {
                Some((_, seen)) => *seen,
                None => fingerprint(&path, self.with_exposure),
            };
            self.files.push((path, seen));
        }
    }

    /// Waits until at least one file has other content than when last seen, and names those.
    ///
    /// A file that is gone or cannot be read has not changed: it is compared again once it is back,
    /// so a replacement in two steps is one change. Cancel safe.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            self.ticks.tick().await;
            let mut changed = Vec::new();
            for (path, seen) in &mut self.files {
                let now = fingerprint(path, self.with_exposure);
                if now.is_some() && now != *seen {
                    *seen = now;
                    changed.push(path.clone());
                }
            }
            if !changed.is_empty() {
                return changed;
            }
        }
    }
}

/// A hash of a file's content, and of its exposure if asked for; `None` when it cannot be read, or is a pipe or device, whose reading
/// might never end. The files are few and small, so they are read in place rather than on another
/// thread.
fn fingerprint(path: &Path, with_exposure: bool) -> Option<u64> {
    let mut file = open_file(path).ok()?;
    let mut hasher = DefaultHasher::new();
    if with_exposure {
        let severity = exposure(path, Holds::Secret).map(|problem| problem.severity);
        severity.hash(&mut hasher);
    }
    let mut chunk = [0; 8192];
    loop {
        match file.read(&mut chunk).ok()? {
            0 => return Some(hasher.finish()),
            n => chunk[..n].hash(&mut hasher),
        }
    }
}
