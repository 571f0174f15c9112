//! Waits with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// How long a test waits for anything that ought to happen soon. Long, because machines that run
/// tests are busy; a passing test never uses it up.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks `probe` again until it returns a value.
///
/// # Errors
/// After [`DEADLINE`], with the last reason `probe` gave.
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    until_within(DEADLINE, what, probe).await
}

/// [`until`] with a deadline of its own.
///
/// # Errors
/// After `deadline`, with the last reason `probe` gave.
pub async fn until_within<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut tick = interval(Duration::from_millis(20));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let reason = match probe().await {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if Instant::now() >= end {
            bail!("waited {deadline:?} for {what}: {reason:#}");
        }
    }
}

/// Gives a future [`DEADLINE`] to finish.
///
/// # Errors
/// When it takes longer.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    match timeout(DEADLINE, future).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("waited {DEADLINE:?} for {what}"),
    }
}
