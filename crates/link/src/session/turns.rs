//! Whose turn it is: flows that wait to put bytes on a link.
//!
//! Start-time fair queuing (Goyal, Vin and Cheng, 1996): whoever has sent least is first, but
//! nobody saves up by being silent. A flow that says little goes ahead of those that fill the link,
//! and these share it evenly.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::endpoint::SocketFlow;

/// Flows that want to put bytes on a link, the next one first.
#[derive(Debug)]
pub(super) struct Turns<T = Arc<SocketFlow>> {
    heap: BinaryHeap<Turn<T>>,
    /// Where the flow stood that had its turn last; no flow that waits stands below.
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
    /// Queues a flow that has got to `mark` (0 when it never had a turn on this link).
    pub(super) fn push(&mut self, flow: T, mark: u64) {
        self.count += 1;
        // Among those that stand level the one that was silent for longest is first.
        let order = Reverse((mark.max(self.clock), mark, self.count));
        self.heap.push(Turn { order, flow });
    }

    /// The flow whose turn it is, and where it stands: with what it sends it gets that much further.
    pub(super) fn pop(&mut self) -> Option<(T, u64)> {
        let Turn { order, flow } = self.heap.pop()?;
        self.clock = order.0.0;
        Some((flow, self.clock))
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

    #[test]
    fn a_quiet_flow_goes_first_and_the_others_share() {
        let mut turns = Turns::default();
        let mut marks = [0; 9];
        for bulk in 0..8 {
            turns.push(bulk, 0);
        }
        for round in 0..800 {
            let (flow, mark) = turns.pop().unwrap();
            marks[flow] = mark + if flow == 8 { 64 } else { 4096 };
            if flow != 8 {
                turns.push(flow, marks[flow]);
            }
            if round % 50 == 20 {
                turns.push(8, marks[8]);
                let (next, mark) = turns.pop().unwrap();
                assert_eq!(next, 8, "round {round}");
                marks[8] = mark + 64;
            }
        }
        let (least, most) = (marks[..8].iter().min(), marks[..8].iter().max());
        assert!(most.unwrap() - least.unwrap() <= 4096);
    }
}
