//! How long clients waited for their targets, in buckets that can be read again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of all buckets but the last, in milliseconds: each half an octave above the one
/// before, so that a percentile is wrong by a fifth at most.
pub const OPEN_BOUNDS_MS: [f64; 30] = [
    0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 45.3, 64.0,
    90.5, 128.0, 181.0, 256.0, 362.0, 512.0, 724.0, 1024.0, 1448.0, 2048.0, 4096.0, 8192.0,
    16384.0,
];

/// Waits by duration, since the start.
#[derive(Debug, Default)]
pub struct OpenTimes([AtomicU64; OPEN_BOUNDS_MS.len() + 1]);

impl OpenTimes {
    /// Counts a wait.
    pub fn note(&self, waited: Duration) {
        let ms = waited.as_secs_f64() * 1e3;
        let bucket = OPEN_BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.0[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// How many waits each bucket has had.
    pub fn counts(&self) -> [u64; OPEN_BOUNDS_MS.len() + 1] {
        std::array::from_fn(|bucket| self.0[bucket].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let times = OpenTimes::default();
        for micros in [1, 250, 251, 20_000_000] {
            times.note(Duration::from_micros(micros));
        }
        let counts = times.counts();
        assert_eq!((counts[0], counts[1], counts[30]), (2, 1, 1));
        assert!(OPEN_BOUNDS_MS.is_sorted());
    }
}
