//! What the flows that cross a link between hubs may hold in the hub that passes them on.
//!
//! Memory is shared as in a switch with dynamic thresholds (Choudhury and Hahne, 1998): nobody may
//! hold more than what is still free, so one agent that takes nothing leaves room for the others,
//! and one that is alone has nearly all. A flow is told what it may send by [`Share::room`].
//!
//! What a flow was told cannot be taken back, and all flows may use it at the same moment, when the
//! link that has taken everything so far takes no more. So the room is divided among the flows that
//! have sent lately; those that only might are not counted, or thousands of silent connections would
//! slow down the few that are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a flow may always have waiting, in bytes: less would make a frame of every few bytes.
const LEAST_ROOM: u64 = 4 * 1024;

/// Into how many parts the room is divided at least.
const LEAST_PARTS: u64 = 4;

/// A flow counts as busy for one to two of these after its last bytes.
const PERIOD: Duration = Duration::from_millis(500);

/// The bytes that may wait for one link, or from one link, all flows together.
#[derive(Debug)]
pub struct Pool {
    limit: u64,
    queued: AtomicU64,
    since: Instant,
}

impl Pool {
    /// A pool of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            queued: AtomicU64::new(0),
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
    counted: Mutex<Counted>,
    /// Flows that have sent lately.
    busy: AtomicU64,
}

/// Flows that have sent in a period and in the one before it.
#[derive(Debug, Default)]
struct Counted {
    period: u64,
    flows: u64,
    before: u64,
}

/// When a flow was counted as busy last.
#[derive(Debug, Default)]
pub struct Mark(u64);

impl Share {
    /// A share of `pool`.
    #[must_use]
    pub fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::clone(pool),
            queued: AtomicU64::new(0),
            counted: Mutex::default(),
            busy: AtomicU64::new(0),
        })
    }

    /// How many bytes of one flow may wait here, in bytes. What all busy flows were told fits below
    /// the bound of [`Share::is_over`], with something to spare for those that begin.
    #[must_use]
    pub fn room(&self) -> u64 {
        let free = self.pool.limit.saturating_sub(self.pool.queued());
        let left = free.saturating_sub(self.queued.load(Ordering::Relaxed));
        let busy = self.busy.load(Ordering::Relaxed);
        let parts = (busy + busy / 2).max(LEAST_PARTS);
        (left / parts).min(self.pool.limit / 8).max(LEAST_ROOM)
    }

    /// Whether more waits for this place than may. Who holds most of the pool leaves the last fifth
    /// of it to the others, who are not at fault when it runs full.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let (all, limit) = (self.pool.queued(), self.pool.limit);
        let holds_most = self.queued.load(Ordering::Relaxed) > all / 2;
        all > if holds_most { limit / 5 * 4 } else { limit }
    }

    /// One flow that held `before` bytes holds `now`. More of them have just come in; `mark` is the
    /// flow's own.
    pub fn change(&self, mark: &mut Mark, before: u64, now: u64) {
        if now > before {
            self.count(mark, self.pool.period());
        }
        // Wrapping arithmetic: adding the difference subtracts when it is negative.
        let change = now.wrapping_sub(before);
        self.queued.fetch_add(change, Ordering::Relaxed);
        self.pool.queued.fetch_add(change, Ordering::Relaxed);
    }

    /// Counts a flow once in each period.
    fn count(&self, mark: &mut Mark, period: u64) {
        if std::mem::replace(&mut mark.0, period) == period {
            return;
        }
        let mut counted = self.counted.lock();
        if counted.period < period {
            let follows = counted.period + 1 == period;
            counted.before = if follows { counted.flows } else { 0 };
            (counted.period, counted.flows) = (period, 0);
        }
        counted.flows += 1;
        let busy = counted.flows.max(counted.before);
        self.busy.store(busy, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_takes_nothing_leaves_room_for_the_others() {
        let pool = Pool::new(8 << 20);
        let (slow, quick) = (Share::new(&pool), Share::new(&pool));
        let mut mark = Mark::default();
        let mut flows = vec![0; 500];
        loop {
            let before = pool.queued();
            for held in &mut flows {
                let more = slow.room().max(*held);
                slow.change(&mut mark, *held, more);
                *held = more;
            }
            if pool.queued() == before {
                break;
            }
        }
        assert!(!slow.is_over());
        assert_eq!(slow.room(), LEAST_ROOM);
        assert!(quick.room() >= 512 << 10, "{}", quick.room());
        slow.change(&mut mark, 0, 1 << 20);
        quick.change(&mut mark, 0, 1 << 19);
        assert!(slow.is_over() && !quick.is_over());
        quick.change(&mut mark, 1 << 19, 0);
        slow.change(&mut mark, 1 << 20, 0);
        for held in flows {
            slow.change(&mut mark, held, 0);
        }
        assert_eq!(pool.queued(), 0);
        assert_eq!(slow.room(), 1 << 20);
    }
    #[test]
    fn what_busy_flows_were_told_fits_when_the_link_stops() {
        let pool = Pool::new(8 << 20);
        let share = Share::new(&pool);
        let mut marks: Vec<Mark> = (0..100).map(|_| Mark::default()).collect();
        for mark in &mut marks {
            share.count(mark, 1);
        }
        let told = marks.iter().map(|_| share.room()).sum::<u64>();
        share.change(&mut Mark::default(), 0, told);
        assert!(told > 4 << 20, "{told}");
        assert!(!share.is_over(), "{told}");
    }

    #[test]
    fn a_flow_counts_while_it_sends_and_for_a_moment_after() {
        let share = Share::new(&Pool::new(8 << 20));
        let alone = share.room();
        let mut marks: Vec<Mark> = (0..100).map(|_| Mark::default()).collect();
        for mark in &mut marks {
            share.count(mark, 7);
            share.count(mark, 7);
        }
        let shared = share.room();
        assert!(shared < alone / 10, "{shared} of {alone}");
        share.count(&mut marks[0], 8);
        assert_eq!(share.room(), shared, "the others may only have paused");
        share.count(&mut marks[0], 9);
        assert_eq!(share.room(), alone);
    }
}
