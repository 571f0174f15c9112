//! What the flows that cross a link between hubs may hold in the hub that passes them on.
//!
//! Memory is shared as in a switch with dynamic thresholds (Choudhury and Hahne, 1998): nobody may
//! hold more than what is still free, so one agent that takes nothing leaves room for the others,
//! and one that is alone has nearly all. A flow is told what it may send by [`Share::room`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a flow may always have waiting, in bytes: less would make a frame of every few bytes.
const LEAST_ROOM: u64 = 4 * 1024;

/// The bytes that may wait for one link, or from one link, all flows together.
#[derive(Debug)]
pub struct Pool {
    limit: u64,
    queued: AtomicU64,
}

impl Pool {
    /// A pool of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            queued: AtomicU64::new(0),
        })
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
}

impl Share {
    /// A share of `pool`.
    #[must_use]
    pub fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::clone(pool),
            queued: AtomicU64::new(0),
        })
    }

    /// How many bytes of one flow may wait here, in bytes.
    #[must_use]
    pub fn room(&self) -> u64 {
        let free = self.pool.limit.saturating_sub(self.pool.queued());
        let left = free.saturating_sub(self.queued.load(Ordering::Relaxed));
        (left / 4).min(self.pool.limit / 8).max(LEAST_ROOM)
    }

    /// Whether more waits for this place than may. Who holds most of the pool leaves the last fifth
    /// of it to the others, who are not at fault when it runs full.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let (all, limit) = (self.pool.queued(), self.pool.limit);
        let holds_most = self.queued.load(Ordering::Relaxed) > all / 2;
        all > if holds_most { limit / 5 * 4 } else { limit }
    }

    /// One flow that held `before` bytes holds `now`.
    pub fn change(&self, before: u64, now: u64) {
        // Wrapping arithmetic: adding the difference subtracts when it is negative.
        let change = now.wrapping_sub(before);
        self.queued.fetch_add(change, Ordering::Relaxed);
        self.pool.queued.fetch_add(change, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_takes_nothing_leaves_room_for_the_others() {
        let pool = Pool::new(8 << 20);
        let (slow, quick) = (Share::new(&pool), Share::new(&pool));
        let mut flows = vec![0; 500];
        loop {
            let before = pool.queued();
            for held in &mut flows {
                let more = slow.room().max(*held);
                slow.change(*held, more);
                *held = more;
            }
            if pool.queued() == before {
                break;
            }
        }
        assert!(!slow.is_over());
        assert_eq!(slow.room(), LEAST_ROOM);
        assert!(quick.room() >= 512 << 10, "{}", quick.room());
        slow.change(0, 1 << 20);
        quick.change(0, 1 << 19);
        assert!(slow.is_over() && !quick.is_over());
        quick.change(1 << 19, 0);
        slow.change(1 << 20, 0);
        for held in flows {
            slow.change(held, 0);
        }
        assert_eq!(pool.queued(), 0);
        assert_eq!(slow.room(), 1 << 20);
    }
}
