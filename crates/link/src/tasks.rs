//! Every task has an owner that can stop it and wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns tasks: the only way to start one outside of a `JoinSet`.
///
/// Clones own the same tasks. Dropping the last clone stops nothing; [`shutdown`](Self::shutdown)
/// does.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    tasks: BTreeMap<u64, (&'static str, Option<AbortHandle>)>,
}

impl Tasks {
    /// An owner without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An owner whose tasks are asked to stop when those of `self` are; each must be shut down.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            stop: self.stop.child_token(),
            ..Self::default()
        }
    }

    /// Cancelled when the tasks should stop; cancelling it stops nobody else.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Starts a task on the current runtime. `name` says in logs what it does.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.spawn_on(&Handle::current(), name, work)
    }

    /// Starts a task on `runtime`.
    pub fn spawn_on<F>(
        &self,
        runtime: &Handle,
        name: &'static str,
        work: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let id = {
            let mut running = self.running.lock();
            running.next += 1;
            let id = running.next;
            running.tasks.insert(id, (name, None));
            id
        };
        let entry = Entry {
            running: Arc::clone(&self.running),
            id,
        };
        let work = async move {
            let _entry = entry;
            work.await
        };
        let handle = self.tracker.spawn_on(work, runtime);
        // The lock is not held while spawning, which may drop the task on the spot. A task that is
        // over already has taken its entry along.
        if let Some((_, abort)) = self.running.lock().tasks.get_mut(&id) {
            *abort = Some(handle.abort_handle());
        }
        handle
    }

    /// How many tasks are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.lock().tasks.len()
    }

    /// Whether no task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks all tasks to stop and does not wait.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Asks all tasks to stop, waits up to `patience`, then aborts those that are left and waits
    /// for them to be gone. Returns the names of the aborted ones, which are logged too.
    pub async fn shutdown(&self, patience: Duration) -> Vec<&'static str> {
        self.stop.cancel();
        self.tracker.close();
        if timeout(patience, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let left: Vec<_> = self.running.lock().tasks.values().cloned().collect();
        for (name, abort) in &left {
            tracing::warn!(event = "task_aborted", task = name);
            if let Some(abort) = abort {
                abort.abort();
            }
        }
        // An aborted task is gone at its next await; one that never awaits must not hold us up.
        let _ = timeout(Duration::from_secs(1), self.tracker.wait()).await;
        left.into_iter().map(|(name, _)| name).collect()
    }
}

/// Strikes a task off the list, however it ends.
struct Entry {
    running: Arc<Mutex<Running>>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let task = self.running.lock().tasks.remove(&self.id);
        if std::thread::panicking() {
            let name = task.map(|(name, _)| name);
            tracing::error!(event = "task_panicked", task = name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn tasks_stop_when_asked() {
        let tasks = Tasks::new();
        let child = tasks.child();
        for owner in [&tasks, &child] {
            let token = owner.token();
            owner.spawn("polite", async move { token.cancelled().await });
        }
        assert_eq!((tasks.len(), child.len()), (1, 1));
        assert!(tasks.shutdown(PATIENCE).await.is_empty());
        assert!(
            child.shutdown(PATIENCE).await.is_empty(),
            "asked along with its parent"
        );
        assert!(tasks.is_empty() && child.is_empty());
    }

    #[tokio::test]
    async fn a_child_stops_alone() {
        let tasks = Tasks::new();
        let child = tasks.child();
        child.shutdown(PATIENCE).await;
        assert!(!tasks.token().is_cancelled());
    }

    #[tokio::test]
    async fn deaf_tasks_are_aborted_and_named() {
        let tasks = Tasks::new();
        let deaf = tasks.spawn("deaf", std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_millis(10)).await, ["deaf"]);
        assert!(deaf.await.unwrap_err().is_cancelled());
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn ended_and_panicked_tasks_leave_nothing_behind() {
        let tasks = Tasks::new();
        assert_eq!(tasks.spawn("fine", async { 7 }).await.unwrap(), 7);
        let panicked = tasks.spawn("broken", async { panic!("on purpose") });
        assert!(panicked.await.unwrap_err().is_panic());
        assert!(tasks.is_empty());
    }
}
