//! Keeping one repeated event from filling the log.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// At most one record of an event is logged in this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one record per second pass and counts those between.
#[derive(Debug, Default)]
pub struct Quiet {
    /// Milliseconds after the process's first use, plus one; 0 = never passed.
    passed: AtomicU64,
    suppressed: AtomicU64,
}

impl Quiet {
    /// The number of records suppressed since the last one that passed, if this one may pass.
    pub fn pass(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        let now = START.get_or_init(Instant::now).elapsed();
        self.pass_at(now)
    }

    fn pass_at(&self, now: Duration) -> Option<u64> {
        let stamp = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = self.passed.load(Ordering::Relaxed);
        let due = last == 0 || stamp.saturating_sub(last) >= INTERVAL.as_millis() as u64;
        let won = || {
            let swap =
                self.passed
                    .compare_exchange(last, stamp, Ordering::Relaxed, Ordering::Relaxed);
            swap.is_ok()
        };
        if due && won() {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_per_interval_passes_and_tells_how_many_did_not() {
        let quiet = Quiet::default();
        assert_eq!(quiet.pass_at(Duration::ZERO), Some(0));
        assert_eq!(quiet.pass_at(Duration::from_millis(1)), None);
        assert_eq!(quiet.pass_at(Duration::from_millis(999)), None);
        assert_eq!(quiet.pass_at(Duration::from_millis(1001)), Some(2));
    }
}
