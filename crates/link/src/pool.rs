//! What the flows that cross a link between hubs may hold in the hub that passes them on.
//!
//! Memory is shared as in a switch with dynamic thresholds (Choudhury and Hahne, 1998): nobody may
//! hold more than what is still free, so one agent that takes nothing leaves room for the others,
//! and one that is alone has nearly all. A flow is told what it may send by [`Share::room`].
//!
//! What a flow was told cannot be taken back, and all flows may use it at the same moment, when the
//! link that has taken everything so far takes no more. So a promise counts like the bytes that it is
//! for, as long as the flow is busy; those that are silent are not counted, or thousands of silent
//! connections would slow down the few that are not. A flow whose receiver has taken next to nothing so
//! far gets less: many that begin behind a slow agent leave room for what others will send unasked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a flow may always have waiting, in bytes: less would make a frame of every few bytes.
const LEAST_ROOM: u64 = 4 * 1024;

/// What one flow may take of the room that is left.
const PART: u64 = 2;

/// A flow counts as busy for one to two of these after its last bytes.
const PERIOD: Duration = Duration::from_millis(500);

/// The bytes that may wait for one link, or from one link, all flows together.
#[derive(Debug)]
pub struct Pool {
    limit: u64,
    queued: AtomicU64,
    /// Locked before that of a [`Share`].
    promised: Mutex<Promised>,
    since: Instant,
}

impl Pool {
    /// A pool of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            queued: AtomicU64::new(0),
            promised: Mutex::default(),
            since: Instant::now(),
        })
    }

    /// The running period, counted from 1.
    fn period(&self) -> u64 {
        let periods = self.since.elapsed().as_millis() / PERIOD.as_millis();
        u64::try_from(periods).map_or(u64::MAX, |periods| periods.saturating_add(1))
    }

    /// Bytes that wait now.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }
}

/// The part of a [`Pool`] that is used towards one place: an agent, or the other hub.
#[derive(Debug)]
pub struct Share {
    pool: Arc<Pool>,
    queued: AtomicU64,
    promised: Mutex<Promised>,
}

/// Bytes that flows may still send, by whether they were busy in a period or in the one before it.
#[derive(Debug, Default)]
struct Promised {
    period: u64,
    now: u64,
    before: u64,
}

/// What one flow may still send, and when it was busy last.
#[derive(Debug, Default)]
pub struct Mark {
    period: u64,
    bytes: u64,
}

impl Promised {
    fn turn_to(&mut self, period: u64) {
        if self.period < period {
            let follows = self.period + 1 == period;
            self.before = if follows { self.now } else { 0 };
            (self.period, self.now) = (period, 0);
        }
    }

    /// Counts `bytes` in place of those of `mark`, which may be forgotten by now.
    fn renew(&mut self, mark: &Mark, bytes: u64) {
        match self.period - mark.period {
            0 => self.now -= mark.bytes,
            1 => self.before -= mark.bytes,
            _ => {}
        }
        self.now += bytes;
    }

    fn sum(&self) -> u64 {
        self.now + self.before
    }
}

impl Share {
    /// A share of `pool`.
    #[must_use]
    pub fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::clone(pool),
            queued: AtomicU64::new(0),
            promised: Mutex::default(),
        })
    }

    /// How many bytes of one flow may wait here, in bytes; `proven`: its receiver takes them. What all
    /// busy flows were told fits below the bound of [`Share::is_over`], with something to spare for
    /// those that begin: two thirds of it are proven flows', one third is others'.
    #[must_use]
    pub fn room(&self, proven: bool) -> u64 {
        self.room_in(proven, self.pool.period())
    }

    fn room_in(&self, proven: bool, period: u64) -> u64 {
        let (all, own) = self.with_promised(period, |all, own| (all.sum(), own.sum()));
        let all = all + self.pool.queued();
        let own = own + self.queued.load(Ordering::Relaxed);
        // The share's own bytes count once more, in part or twice, so that others find room.
        let more = if proven { own / 2 } else { own * 2 };
        let left = self.pool.limit.saturating_sub(all + more);
        (left / PART).min(self.pool.limit / 8).max(LEAST_ROOM)
    }

    /// Whether more waits for this place than may. Who holds most of the pool leaves the last fifth
    /// of it to the others, who are not at fault when it runs full.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let (all, limit) = (self.pool.queued(), self.pool.limit);
        let holds_most = self.queued.load(Ordering::Relaxed) > all / 2;
        all > if holds_most { limit / 5 * 4 } else { limit }
    }

    /// One flow that held `before` bytes holds `now`, and may send `promised` more. `mark` is the
    /// flow's own.
    pub fn change(&self, mark: &mut Mark, before: u64, now: u64, promised: u64) {
        if promised != mark.bytes || now > before {
            self.promise(mark, promised, self.pool.period());
        }
        if now != before {
            // Wrapping arithmetic: adding the difference subtracts when it is negative.
            let change = now.wrapping_sub(before);
            self.queued.fetch_add(change, Ordering::Relaxed);
            self.pool.queued.fetch_add(change, Ordering::Relaxed);
        }
    }

    fn promise(&self, mark: &mut Mark, bytes: u64, period: u64) {
        self.with_promised(period, |all, own| {
            all.renew(mark, bytes);
            own.renew(mark, bytes);
            let period = all.period;
            *mark = Mark { period, bytes };
        });
    }

    /// Both in the same period, also for who looked at the clock a moment too early.
    fn with_promised<T>(
        &self,
        period: u64,
        then: impl FnOnce(&mut Promised, &mut Promised) -> T,
    ) -> T {
        let (mut all, mut own) = (self.pool.promised.lock(), self.promised.lock());
        let period = period.max(all.period);
        all.turn_to(period);
        own.turn_to(period);
        then(&mut all, &mut own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 8 << 20;
    /// What a flow sends unasked over a link with this limit.
    const FIRST: u64 = LIMIT / 1024;

    /// A flow as the shares see it.
    #[derive(Default)]
    struct Sender {
        mark: Mark,
        told: u64,
        held: u64,
    }

    impl Sender {
        fn of(share: &Share, unasked: u64) -> Self {
            let mut sender = Self {
                told: unasked,
                ..Self::default()
            };
            share.change(&mut sender.mark, 0, 0, unasked);
            sender
        }

        /// Is told what it may send beyond what has left, `most` at most.
        fn ask(&mut self, share: &Share, proven: bool, most: u64) {
            self.told = self.told.max(share.room(proven).min(most));
            share.change(&mut self.mark, self.held, self.held, self.told - self.held);
        }

        /// Sends all that it may.
        fn send(&mut self, share: &Share) {
            share.change(&mut self.mark, self.held, self.told, 0);
            self.held = self.told;
        }

        fn end(mut self, share: &Share) {
            share.change(&mut self.mark, self.held, 0, 0);
        }
    }

    #[test]
    fn an_agent_that_takes_nothing_leaves_room_for_the_others() {
        let pool = Pool::new(LIMIT);
        let (slow, quick) = (Share::new(&pool), Share::new(&pool));
        let mut flows: Vec<_> = (0..500).map(|_| Sender::default()).collect();
        loop {
            let before = pool.queued();
            for flow in &mut flows {
                flow.ask(&slow, false, u64::MAX);
                flow.send(&slow);
            }
            if pool.queued() == before {
                break;
            }
        }
        assert!(!slow.is_over());
        assert_eq!(slow.room(false), LEAST_ROOM);
        assert!(quick.room(false) >= 512 << 10, "{}", quick.room(false));
        let mut more = Mark::default();
        slow.change(&mut more, 0, 2 << 20, 0);
        quick.change(&mut Mark::default(), 0, 1 << 19, 0);
        assert!(slow.is_over() && !quick.is_over());
        quick.change(&mut Mark::default(), 1 << 19, 0, 0);
        slow.change(&mut more, 2 << 20, 0, 0);
        for flow in flows {
            flow.end(&slow);
        }
        assert_eq!(pool.queued(), 0);
        assert_eq!(slow.room(true), 1 << 20);
    }

    #[test]
    fn what_busy_flows_were_told_fits_when_the_link_stops() {
        for flows in [1, 8, 100, 500] {
            let share = Share::new(&Pool::new(LIMIT));
            let mut flows: Vec<_> = (0..flows).map(|_| Sender::of(&share, FIRST)).collect();
            for flow in &mut flows {
                flow.ask(&share, true, u64::MAX);
            }
            let told = flows.iter().map(|flow| flow.told).sum::<u64>();
            flows.iter_mut().for_each(|flow| flow.send(&share));
            assert!(!share.is_over(), "{told} by {}", flows.len());
            assert!(flows.len() < 8 || told > 4 << 20, "{told}");
        }
    }

    /// Each is answered before the next one comes, and the agent lets it send some window.
    #[test]
    fn what_flows_that_begin_were_told_fits_when_the_agent_takes_nothing() {
        for window in [16 << 10, 32 << 10, 64 << 10] {
            let share = Share::new(&Pool::new(LIMIT));
            let mut flows = Vec::new();
            for _ in 0..500 {
                let mut flow = Sender::of(&share, FIRST);
                flow.ask(&share, false, window);
                flows.push(flow);
            }
            flows.iter_mut().for_each(|flow| flow.send(&share));
            assert!(!share.is_over(), "{} with {window}", share.pool.queued());
        }
    }

    #[test]
    fn a_flow_that_is_alone_has_the_most_that_any_may_have() {
        for proven in [false, true] {
            let share = Share::new(&Pool::new(LIMIT));
            let mut alone = Sender::of(&share, FIRST);
            for _ in 0..5 {
                alone.ask(&share, proven, u64::MAX);
                assert_eq!(alone.told, LIMIT / 8);
            }
        }
    }

    #[test]
    fn a_promise_counts_while_the_flow_sends_and_for_a_moment_after() {
        let share = Share::new(&Pool::new(LIMIT));
        let alone = share.room_in(true, 7);
        let mut marks: Vec<Mark> = (0..100).map(|_| Mark::default()).collect();
        for mark in &mut marks {
            share.promise(mark, 30_000, 7);
            share.promise(mark, 50_000, 7);
        }
        let shared = share.room_in(true, 7);
        assert!(shared < alone, "{shared} of {alone}");
        share.promise(&mut marks[0], 50_000, 8);
        assert_eq!(
            share.room_in(true, 8),
            shared,
            "the others may only have paused"
        );
        share.promise(&mut marks[0], 0, 9);
        assert_eq!(share.room_in(true, 9), alone);
        // One that is forgotten and comes back takes nothing from those that are not.
        share.promise(&mut marks[1], 0, 9);
        assert_eq!(share.promised.lock().sum(), 0);
    }
}
