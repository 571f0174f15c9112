//! Is the other side still there? Pings on a quiet or busy link alike, judged without a clock.
//!
//! Only an answered ping counts as life: bytes that come in say nothing about whether ours go out
//! (a path can die in one direction only). A link is therefore found dead at most
//! `interval + timeout` after it died, in whichever direction it did.

/// What to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beat {
    /// Send a ping with this value.
    Ping(u64),
    /// The link is dead.
    Dead,
    /// Nothing before this moment.
    Wait(u64),
}

/// The pings of one link. All times are counts of one monotonic clock, in whatever unit
/// the caller keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    interval: u64,
    timeout: u64,
    next: u64,
    /// When the oldest unanswered ping was sent; its value is that moment.
    waiting_since: Option<u64>,
}

impl Keepalive {
    /// Pings every `interval` and gives up when one is not answered within `timeout`. The first
    /// ping is due at once.
    #[must_use]
    pub fn new(interval: u64, timeout: u64, now: u64) -> Self {
        Self {
            interval: interval.max(1),
            timeout: timeout.max(1),
            next: now,
            waiting_since: None,
        }
    }

    /// What is due.
    pub fn poll(&mut self, now: u64) -> Beat {
        if let Some(since) = self.waiting_since {
            let deadline = since.saturating_add(self.timeout);
            return if now >= deadline {
                Beat::Dead
            } else {
                Beat::Wait(deadline)
            };
        }
        if now < self.next {
            return Beat::Wait(self.next);
        }
        self.ping_now(now).map_or(Beat::Wait(self.next), Beat::Ping)
    }

    /// A ping ahead of time, for who wants to know how the path is doing; `None` while another one is
    /// not answered.
    pub fn ping_now(&mut self, now: u64) -> Option<u64> {
        if self.waiting_since.is_some() {
            return None;
        }
        self.next = now.saturating_add(self.interval);
        self.waiting_since = Some(now);
        Some(now)
    }

    /// A pong came; returns the round-trip time when it answers the ping that is
    /// waited for.
    pub fn on_pong(&mut self, value: u64, now: u64) -> Option<u64> {
        if self.waiting_since != Some(value) {
            return None;
        }
        self.waiting_since = None;
        Some(now.saturating_sub(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_dead_after_interval_and_timeout() {
        let mut keepalive = Keepalive::new(5000, 10_000, 0);
        assert_eq!(keepalive.poll(0), Beat::Ping(0));
        assert_eq!(keepalive.on_pong(0, 20), Some(20));
        // It dies right now.
        assert_eq!(keepalive.poll(20), Beat::Wait(5000));
        assert_eq!(keepalive.poll(5000), Beat::Ping(5000));
        assert_eq!(keepalive.poll(14_999), Beat::Wait(15_000));
        assert_eq!(keepalive.poll(15_000), Beat::Dead);
    }

    #[test]
    fn a_ping_ahead_of_time_counts_like_any_other() {
        let mut keepalive = Keepalive::new(5000, 10_000, 0);
        assert_eq!(keepalive.ping_now(1000), Some(1000));
        assert_eq!(keepalive.ping_now(1001), None);
        assert_eq!(keepalive.poll(10_999), Beat::Wait(11_000));
        assert_eq!(keepalive.on_pong(1000, 1200), Some(200));
        assert_eq!(keepalive.poll(1200), Beat::Wait(6000));
    }

    #[test]
    fn an_answer_nobody_waits_for_is_no_life() {
        let mut keepalive = Keepalive::new(5000, 10_000, 0);
        assert_eq!(keepalive.poll(0), Beat::Ping(0));
        assert_eq!(keepalive.on_pong(77, 10), None);
        assert_eq!(keepalive.poll(10_000), Beat::Dead);
    }
}
