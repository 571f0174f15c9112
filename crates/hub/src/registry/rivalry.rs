//! Damping of two living agents that use one id.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Displacements of living agents within [`WINDOW`] after which the incumbent stays.
pub(super) const MOST: usize = 3;
/// For how long a displacement is remembered.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// The recent displacements of one agent id.
#[derive(Debug, Default)]
pub(super) struct Rivalry(VecDeque<Instant>);

impl Rivalry {
    /// Records that a living agent is about to be displaced; false when that has happened too often
    /// and the incumbent stays. It does for as long as the other keeps trying: every minute anew
    /// they would end each other's flows.
    pub(super) fn displace(&mut self, now: Instant) -> bool {
        self.forget(now);
        if self.0.len() >= MOST {
            self.0.iter_mut().for_each(|then| *then = now);
            return false;
        }
        self.0.push_back(now);
        true
    }

    /// Whether nothing recent is left to remember.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.0.is_empty()
    }

    fn forget(&mut self, now: Instant) {
        while self
            .0
            .front()
            .is_some_and(|then| now.duration_since(*then) >= WINDOW)
        {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incumbent_stays_after_three_displacements_in_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rivalry = Rivalry::default();
        assert!(rivalry.displace(at(0)) && rivalry.displace(at(1)) && rivalry.displace(at(2)));
        assert!(!rivalry.displace(at(3)));
        assert!(!rivalry.displace(at(59)));
        assert!(!rivalry.displace(at(118)), "the other has not given up");
        assert!(!rivalry.is_over(at(177)));
        assert!(rivalry.displace(at(178)));
        assert!(rivalry.is_over(at(238)));
    }
}
