//! Whose turn it is: flows that wait to put bytes on a link.
//!
//! Start-time fair queuing (Goyal, Vin and Cheng, 1996): whoever has sent least is first, but
//! nobody saves up much by being silent. A flow that says little goes ahead of those that fill the
//! link, and these share it evenly.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::carried::Carried;

/// What a flow that comes back may have sent ahead of its share, in bytes: a few questions and
/// answers need not wait until everybody else has sent as much.
const AHEAD: u64 = 16 * 1024;

/// Flows that want to put bytes on a link, the next one first.
#[derive(Debug)]
pub(super) struct Turns<T = Carried> {
    heap: BinaryHeap<Turn<T>>,
    /// How far those have got that always have more to send.
    clock: u64,
    /// Breaks ties: first come, first served.
    count: u64,
}

#[derive(Debug)]
struct Turn<T> {
    order: Reverse<(u64, u64, u64)>,
    flow: T,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            clock: 0,
            count: 0,
        }
    }
}

impl<T> Turns<T> {
    /// Queues a flow that had nothing to send for a while, and has got to `mark` (0 when it never
    /// had a turn on this link).
    pub(super) fn come_back(&mut self, flow: T, mark: u64) {
        let level = mark.max(self.clock);
        self.queue(flow, mark, level.saturating_sub(AHEAD));
    }

    /// Queues a flow that has more to send, and has got to `mark`.
    pub(super) fn go_on(&mut self, flow: T, mark: u64) {
        self.queue(flow, mark, mark.max(self.clock));
    }

    fn queue(&mut self, flow: T, mark: u64, start: u64) {
        self.count += 1;
        // Among those that stand level, who has sent least is first.
        let order = Reverse((start, mark, self.count));
        self.heap.push(Turn { order, flow });
    }

    /// The flow whose turn it is, and its mark: with what it sends it gets that much further.
    pub(super) fn pop(&mut self) -> Option<(T, u64)> {
        let Turn { order, flow } = self.heap.pop()?;
        let (start, mark, _) = order.0;
        self.clock = self.clock.max(start);
        Some((flow, mark.max(self.clock)))
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<T> PartialEq for Turn<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T> Eq for Turn<T> {}

impl<T> PartialOrd for Turn<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Turn<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight flows that always have 4 KiB to send, and one with `size` bytes after every tenth turn
    /// of theirs. Returns how many of their turns it waited for at most, and how far they are apart.
    fn run(size: u64) -> (u32, u64) {
        let mut turns = Turns::default();
        let mut marks = [0; 9];
        (0..8).for_each(|bulk| turns.come_back(bulk, 0));
        let (mut waits, mut waited, mut most) = (false, 0, 0);
        for turn in 1..2000 {
            let (flow, mark) = turns.pop().unwrap();
            if flow == 8 {
                marks[8] = mark + size;
                (waits, most) = (false, waited.max(most));
            } else {
                marks[flow] = mark + 4096;
                // Bulk flows wait for credit now and then.
                if turn % 7 == 0 {
                    turns.come_back(flow, marks[flow]);
                } else {
                    turns.go_on(flow, marks[flow]);
                }
                waited += 1;
            }
            if turn % 10 == 0 && !waits {
                (waits, waited) = (true, 0);
                turns.come_back(8, marks[8]);
            }
        }
        let (least, furthest) = (marks[..8].iter().min(), marks[..8].iter().max());
        (most, furthest.unwrap() - least.unwrap())
    }

    #[test]
    fn who_says_little_does_not_wait_and_the_others_share() {
        let (waited, apart) = run(500);
        assert!(waited <= 1 && apart <= 4096 + AHEAD, "{waited}, {apart}");
    }

    #[test]
    fn who_says_much_gets_no_more_than_a_share() {
        let (waited, apart) = run(20_000);
        assert!(waited > 20 && apart <= 4096 + AHEAD, "{waited}, {apart}");
    }
}
