//! The async runtime.

use std::future::Future;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Builder;

/// How many threads carry the traffic
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Threads {
    /// Threads that carry traffic; each tunnel lives on one [default: one per core]
    #[arg(long, value_name = "N", env = "NOWCONNECT_WORKER_THREADS", value_parser = count)]
    worker_threads: Option<Count>,
}

type Count = Option<NonZeroUsize>;

/// A variable that is set to nothing counts as unset.
fn count(text: &str) -> Result<Count, std::num::ParseIntError> {
    match text {
        "" => Ok(None),
        number => number.parse().map(Some),
    }
}

impl Threads {
    /// How many.
    pub(crate) fn count(self) -> usize {
        // A core that a container may not use is not counted.
        match self.worker_threads.flatten() {
            Some(threads) => threads.get(),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        }
    }
}

/// Runs `work` to its end on a new runtime on this thread. Tasks that are left are dropped.
///
/// # Errors
/// When the runtime cannot be made.
pub(crate) fn block_on<F: Future>(work: F) -> anyhow::Result<F::Output> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let output = runtime.block_on(work);
    // A name lookup that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(output)
}
