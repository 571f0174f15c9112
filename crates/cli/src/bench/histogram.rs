//! Times in buckets whose width is under 1 % of what they hold, from a microsecond to 19 hours.

use std::time::Duration;

/// Buckets of one doubling.
const STEPS: usize = 128;
/// Longest time that is told apart, in microseconds.
const LONGEST: u64 = (1 << 36) - 1;
const BUCKETS: usize = STEPS * 31;

/// How often each time was seen. 31 KiB, whatever the number of samples.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    total: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            total: 0,
            max: 0,
        }
    }
}

impl Histogram {
    pub(super) fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).map_or(LONGEST, |micros| micros.min(LONGEST));
        if let Some(bucket) = self.buckets.get_mut(bucket(micros)) {
            *bucket += 1;
        }
        self.count += 1;
        self.total += u128::from(micros);
        self.max = self.max.max(micros);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *ours += theirs;
        }
        self.count += other.count;
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Milliseconds that `part` of all samples (0 to 1) did not exceed; at most 0.8 % too long.
    pub(super) fn quantile_ms(&self, part: f64) -> f64 {
        let rank = ((part * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return upper_edge(at).min(self.max) as f64 / 1000.0;
            }
        }
        self.max_ms()
    }

    pub(super) fn max_ms(&self) -> f64 {
        self.max as f64 / 1000.0
    }

    pub(super) fn avg_ms(&self) -> f64 {
        match self.count {
            0 => 0.0,
            count => self.total as f64 / count as f64 / 1000.0,
        }
    }
}

/// The first 256 buckets hold one value each; every later 128 are twice as wide as those before.
fn bucket(micros: u64) -> usize {
    let bits = u64::BITS - micros.leading_zeros();
    let shift = bits.saturating_sub(8);
    shift as usize * STEPS + (micros >> shift) as usize
}

fn upper_edge(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let first = (bucket - shift * STEPS) as u64;
    ((first + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_that_is_narrow_enough() {
        let mut value = 0;
        let mut last = 0;
        while value <= LONGEST {
            let at = bucket(value);
            assert!(at < BUCKETS && at >= last, "{value} in {at}");
            let edge = upper_edge(at);
            assert!(
                edge >= value && edge - value <= value / 128,
                "{value} in {at} up to {edge}"
            );
            last = at;
            value += 1 + value / 977;
        }
        assert!(bucket(LONGEST) < BUCKETS);
    }

    #[test]
    fn quantiles_count_samples_and_survive_merging() {
        let (mut one, mut two) = (Histogram::default(), Histogram::default());
        (1..=500).for_each(|ms| one.record(Duration::from_millis(ms)));
        (501..=1000).for_each(|ms| two.record(Duration::from_millis(ms)));
        one.merge(&two);
        for (part, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = one.quantile_ms(part);
            assert!(
                (expected..=expected * 1.01).contains(&found),
                "{part}: {found}"
            );
        }
        assert_eq!(
            (one.count(), one.avg_ms(), one.max_ms()),
            (1000, 500.5, 1000.0)
        );
        assert_eq!(Histogram::default().quantile_ms(0.99), 0.0);
    }
}
