//! How often something may happen: a token bucket with no clock inside.
//!
//! A bucket holds as many tokens as it gains in one second, so a burst of one second's worth passes
//! after a pause and the rate holds over every longer time.

use std::num::NonZeroU32;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A token bucket. Its rate is told with every use and may change in between. Times (`now`) count
/// from any fixed instant on a monotonic clock.
///
/// ```
/// # use nowconnect_proto::bucket::Bucket;
/// # use std::{num::NonZeroU32, time::Duration};
/// let (mut bucket, rate) = (Bucket::default(), NonZeroU32::new(2).unwrap());
/// assert_eq!([0, 0, 0].map(|s| bucket.take(Duration::from_secs(s), rate).is_ok()), [true, true, false]);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// When it is full again. One state is enough: tokens that are missing are time until then.
    full_at: Duration,
}

impl Bucket {
    /// Takes a token out of a bucket that gains `per_sec` of them.
    ///
    /// # Errors
    /// It is empty: how long until it holds a token. Nothing was taken.
    pub fn take(&mut self, now: Duration, per_sec: NonZeroU32) -> Result<(), Duration> {
        self.wait(now, per_sec).map_or(Ok(()), Err)?;
        self.full_at = self.full_at.max(now) + SECOND / per_sec.get();
        Ok(())
    }

    /// How long until it holds a token; `None` when it holds one now.
    #[must_use]
    pub fn wait(&self, now: Duration, per_sec: NonZeroU32) -> Option<Duration> {
        let full_at = self.full_at.max(now) + SECOND / per_sec.get();
        full_at
            .checked_sub(now + SECOND)
            .filter(|wait| !wait.is_zero())
    }

    /// Whether it holds all of its tokens, like one that was never used.
    #[must_use]
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_sec: u32) -> NonZeroU32 {
        NonZeroU32::new(per_sec).expect("not zero")
    }

    fn taken(bucket: &mut Bucket, now: Duration, per_sec: u32) -> u32 {
        let mut taken = 0;
        while bucket.take(now, rate(per_sec)).is_ok() {
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_burst_is_one_seconds_worth_whatever_the_rate() {
        for per_sec in [1, 2, 3, 7, 200, 999, 1_000_000] {
            let mut bucket = Bucket::default();
            let now = Duration::from_secs(100);
            assert_eq!(taken(&mut bucket, now, per_sec), per_sec);
            assert_eq!(taken(&mut bucket, now + SECOND, per_sec), per_sec);
            assert_eq!(taken(&mut bucket, now + 60 * SECOND, per_sec), per_sec);
        }
    }

    #[test]
    fn over_time_the_rate_holds() {
        let mut bucket = Bucket::default();
        let hits = (0..10_000u64)
            .filter(|ms| bucket.take(Duration::from_millis(*ms), rate(50)).is_ok())
            .count();
        assert_eq!(hits, 50 + 499);
    }

    #[test]
    fn the_wait_is_exact_and_costs_nothing() {
        let mut bucket = Bucket::default();
        taken(&mut bucket, Duration::ZERO, 4);
        for _ in 0..3 {
            let wait = bucket.take(Duration::ZERO, rate(4)).expect_err("empty");
            assert_eq!(wait, SECOND / 4);
        }
        assert!(bucket.take(SECOND / 4, rate(4)).is_ok());
        assert!(!bucket.is_full(SECOND) && bucket.is_full(SECOND + SECOND / 4));
    }

    #[test]
    fn another_rate_holds_at_once() {
        let mut bucket = Bucket::default();
        taken(&mut bucket, Duration::ZERO, 1000);
        assert_eq!(taken(&mut bucket, SECOND / 2, 2), 1);
        let mut bucket = Bucket::default();
        taken(&mut bucket, Duration::ZERO, 1);
        assert_eq!(taken(&mut bucket, SECOND / 2, 1000), 500);
    }
}
