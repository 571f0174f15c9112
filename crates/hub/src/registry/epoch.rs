//! Fencing numbers that only ever rise.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far above the clock an epoch that an agent reports may be. More can only be a lie or a broken
/// clock, and would leave no room above it.
pub(super) const HEADROOM: Duration = Duration::from_secs(24 * 3600);

/// The clock as an epoch: milliseconds of Unix time. An epoch above the clock stays above every
/// earlier one even when the record of those is lost.
pub(super) fn of_clock(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether an epoch that an agent reports can have been granted to it.
pub(super) fn is_believable(reported: u64, now: SystemTime) -> bool {
    reported <= believable(now)
}

fn believable(now: SystemTime) -> u64 {
    of_clock(now).saturating_add(HEADROOM.as_millis() as u64)
}

/// An epoch above `stored` (granted here before), above `reported` (by the agent, within reason), and
/// not below the clock.
pub(super) fn above(stored: u64, reported: u64, now: SystemTime) -> u64 {
    let clock = of_clock(now);
    let reported = reported.min(believable(now));
    clock
        .max(stored.saturating_add(1))
        .max(reported.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn above_at(stored: u64, reported: u64) -> u64 {
        above(stored, reported, UNIX_EPOCH + NOW)
    }

    #[test]
    fn an_epoch_is_above_everything_seen() {
        let clock = NOW.as_millis() as u64;
        assert_eq!(above_at(0, 0), clock);
        assert_eq!(above_at(clock, 0), clock + 1);
        assert_eq!(above_at(clock + 7, clock + 9), clock + 10);
    }

    #[test]
    fn a_clock_set_back_does_not_lower_it() {
        let before = above_at(0, 0);
        let after = above(before, 0, UNIX_EPOCH);
        assert!(after > before);
    }

    #[test]
    fn a_lie_cannot_use_the_numbers_up() {
        let clock = NOW.as_millis() as u64;
        let lied = above_at(clock, u64::MAX);
        assert!(lied < clock + 2 * HEADROOM.as_millis() as u64);
        assert_eq!(above_at(lied, u64::MAX), lied + 1);
    }
}
