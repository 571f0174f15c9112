//! How much all flows of a process may hold in memory together.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Least window of a flow, in bytes.
const LEAST_WINDOW: u64 = 4 * 1024;
/// Window of a new flow when memory is plenty, in bytes.
const MOST_FIRST_WINDOW: u64 = 64 * 1024;
/// No flow's window grows beyond this, in bytes: 1.3 Gbit/s at 100 ms of round-trip time.
pub const MOST_WINDOW: u64 = 16 * 1024 * 1024;

/// Memory for the windows and replay buffers of all flows (`limits.memory_budget_mb`).
///
/// Half of it is set aside in equal shares, one for each flow that may exist, so that a new flow
/// works even when every other one is stalled; the rest is lent to flows that prove they need
/// larger windows, and comes back when they end.
#[derive(Debug)]
pub struct Budget {
    first_window: u32,
    free: AtomicU64,
    /// Flows that have a share set aside.
    shares: Mutex<u64>,
}

impl Budget {
    /// A budget of `total` bytes for at most `flows` flows.
    #[must_use]
    pub fn new(total: u64, flows: usize) -> Self {
        let flows = (flows as u64).max(1);
        // Each flow has a window it grants and a replay buffer it keeps.
        let first = (total / 2 / flows / 2).clamp(LEAST_WINDOW, MOST_FIRST_WINDOW);
        Self {
            first_window: u32::try_from(first).unwrap_or(u32::MAX),
            free: AtomicU64::new(total.saturating_sub(flows * 2 * first)),
            shares: Mutex::new(flows),
        }
    }

    /// The window and allowance that every new flow has, in bytes.
    #[must_use]
    pub fn first_window(&self) -> u32 {
        self.first_window
    }

    /// Flows that have a share set aside.
    pub(crate) fn shares(&self) -> u64 {
        *self.shares.lock()
    }

    /// Sets shares aside for `flows` flows in all, from what is free.
    ///
    /// # Errors
    /// There is not enough; how many there may be. Nothing has changed.
    pub fn reserve(&self, flows: usize) -> Result<(), u64> {
        let mut shares = self.shares.lock();
        let share = 2 * u64::from(self.first_window);
        let more = (flows as u64).saturating_sub(*shares);
        let take = |free: u64| free.checked_sub(more.saturating_mul(share));
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|free| *shares + free / share)?;
        *shares += more;
        Ok(())
    }

    /// Borrows up to `want` bytes: never more than a quarter of what is free, so that the last to
    /// ask still gets something; 0 when that would be too little to matter.
    #[must_use]
    pub fn borrow(&self, want: u64) -> u64 {
        let mut lent = 0;
        let _ = self
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                lent = want.min(free / 4);
                if lent < LEAST_WINDOW {
                    lent = 0;
                }
                (lent > 0).then(|| free - lent)
            });
        lent
    }

    /// Gives back what was borrowed.
    pub fn give_back(&self, bytes: u64) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that can still be lent.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn more_flows_get_shares_only_while_there_is_memory() {
        let budget = Budget::new(256 * MIB, 2000);
        let share = 2 * u64::from(budget.first_window());
        let free = budget.free();
        assert_eq!(budget.reserve(1000), Ok(()));
        assert_eq!(budget.reserve(2100), Ok(()));
        assert_eq!(budget.free(), free - 100 * share);
        let most = 2100 + budget.free() / share;
        assert_eq!(budget.reserve(100_000), Err(most));
        assert_eq!(budget.reserve(usize::try_from(most).unwrap()), Ok(()));
        assert!(budget.free() < share);
    }

    #[test]
    fn the_shares_and_the_loans_stay_within_the_total() {
        let budget = Budget::new(256 * MIB, 2000);
        let shares = 2000 * 2 * u64::from(budget.first_window());
        let mut lent = 0;
        loop {
            match budget.borrow(MIB) {
                0 => break,
                bytes => lent += bytes,
            }
        }
        assert!(shares + lent <= 256 * MIB, "{shares} + {lent}");
        assert!(shares + lent > 255 * MIB);
        budget.give_back(lent);
        assert_eq!(budget.borrow(MIB), MIB);
    }

    #[test]
    fn a_small_budget_still_has_a_window_for_each_flow() {
        assert_eq!(
            u64::from(Budget::new(MIB, 10_000).first_window()),
            LEAST_WINDOW
        );
        assert_eq!(Budget::new(MIB, 10_000).borrow(MIB), 0);
    }
}
