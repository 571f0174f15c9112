//! When to try again: exponential backoff with full jitter, no clock and no randomness inside.
//!
//! Full jitter (the delay is uniform between zero and a ceiling that doubles) spreads a fleet that
//! lost its hub at one instant over the whole ceiling. The ceiling falls back to its base only
//! after a minute of proven life: a hub that accepts, then crashes, must not be hammered by
//! everyone it just accepted.

use std::time::Duration;

/// How long a connection must live before its loss counts as a new incident and not as the same
/// one.
pub const PROVEN_LIFE: Duration = Duration::from_secs(60);

/// Longest `Retry-After` that is honoured: no server may send its clients away for good.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Jitter on top of a `Retry-After`, at least: those who are told the same whole second shall not
/// come at its first instant.
const LEAST_JITTER: Duration = Duration::from_secs(1);

/// State of one reconnecting party. Times (`now`) count from any fixed instant on a monotonic
/// clock.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
    connected_at: Option<Duration>,
    retry_after: Duration,
}

impl Backoff {
    /// A backoff whose first delay is at most `base` and whose later ones are at most `max`.
    #[must_use]
    pub fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max: max.max(base),
            failures: 0,
            connected_at: None,
            retry_after: Duration::ZERO,
        }
    }

    /// The delay before the next attempt; `random` is any 64 uniformly random bits.
    pub fn next(&mut self, random: u64) -> Duration {
        self.next_within(random, self.max)
    }

    /// The same with a ceiling of at most `most`, for attempts on which more than usual depends.
    pub fn next_within(&mut self, random: u64, most: Duration) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = self.base.saturating_mul(factor).min(self.max).min(most);
        self.failures = self.failures.saturating_add(1);
        let wish = std::mem::take(&mut self.retry_after);
        if wish.is_zero() {
            return fraction(ceiling, random);
        }
        // The wish is a floor, and the jitter goes on top: many may have been told the same. It is in
        // proportion, since a server that names the time has spread those whom it turned away.
        wish + fraction(ceiling.min(wish / 2).max(LEAST_JITTER), random)
    }

    /// The server asked to come back no sooner than `wait` (RFC 9110 section 10.2.3), which holds
    /// for the next delay only and is cut to [`MAX_RETRY_AFTER`].
    pub fn note_retry_after(&mut self, wait: Duration) {
        self.retry_after = wait.min(MAX_RETRY_AFTER);
    }

    /// A connection was made; it proves nothing yet.
    pub fn note_connected(&mut self, now: Duration) {
        self.connected_at = Some(now);
    }

    /// The connection was lost: one that lived for [`PROVEN_LIFE`] starts the series anew.
    pub fn note_lost(&mut self, now: Duration) {
        let lived = self
            .connected_at
            .take()
            .map_or(Duration::ZERO, |at| now.saturating_sub(at));
        if lived >= PROVEN_LIFE {
            self.failures = 0;
        }
    }

    /// Delays handed out since the last proven connection.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// `ceiling` times a uniform fraction in [0, 1).
fn fraction(ceiling: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    // The high half of a 128-bit product: uniform without a division.
    Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(250);
    const MAX: Duration = Duration::from_secs(30);

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn ceilings(backoff: &mut Backoff, count: usize) -> Vec<u128> {
        (0..count)
            .map(|_| (backoff.next(u64::MAX).as_micros() + 1) / 1000)
            .collect()
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::new(BASE, MAX);
        let seen = ceilings(&mut backoff, 10);
        assert_eq!(
            seen,
            [
                250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000
            ]
        );
        for _ in 0..100 {
            assert!(
                backoff.next(u64::MAX) <= MAX,
                "no overflow however long it lasts"
            );
        }
    }

    #[test]
    fn a_lower_ceiling_holds_for_one_delay() {
        let mut backoff = Backoff::new(BASE, MAX);
        ceilings(&mut backoff, 6);
        assert!(backoff.next_within(u64::MAX, secs(5)) <= secs(5));
        assert_eq!(ceilings(&mut backoff, 1), [30_000]);
    }

    #[test]
    fn jitter_covers_everything_from_zero() {
        let mut backoff = Backoff::new(secs(8), secs(8));
        assert_eq!(backoff.next(0), Duration::ZERO);
        assert_eq!(backoff.next(1 << 63), secs(4));
        assert!(backoff.next(u64::MAX) < secs(8));
    }

    #[test]
    fn a_handshake_alone_does_not_reset() {
        let mut backoff = Backoff::new(BASE, MAX);
        ceilings(&mut backoff, 3);
        backoff.note_connected(secs(100));
        backoff.note_lost(secs(159));
        assert_eq!(ceilings(&mut backoff, 1), [2000]);
        backoff.note_connected(secs(200));
        backoff.note_lost(secs(260));
        assert_eq!(ceilings(&mut backoff, 1), [250]);
    }

    #[test]
    fn a_loss_without_a_connection_does_not_reset() {
        let mut backoff = Backoff::new(BASE, MAX);
        backoff.note_connected(secs(0));
        backoff.note_lost(secs(10));
        ceilings(&mut backoff, 3);
        backoff.note_lost(secs(1000));
        assert_eq!(backoff.failures(), 3);
    }

    #[test]
    fn retry_after_is_a_floor_for_one_delay_and_bounded() {
        let mut backoff = Backoff::new(BASE, MAX);
        backoff.note_retry_after(secs(5));
        assert_eq!(backoff.next(0), secs(5));
        assert_eq!(backoff.next(0), Duration::ZERO);
        ceilings(&mut backoff, 10);
        for (wish, most) in [(1, 2), (8, 12), (100, 130)] {
            backoff.note_retry_after(secs(wish));
            let delay = backoff.next(u64::MAX);
            assert!(delay < secs(most) && delay > secs(most) - Duration::from_millis(1));
        }
        backoff.note_retry_after(secs(1_000_000));
        assert_eq!(backoff.next(0), MAX_RETRY_AFTER);
    }
}
