//! What the engine counts. The hub and the agent name these in their metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::budget::Budget;

/// Counts of the flows of one connector; cheap to clone, resolved once per flow.
#[derive(Clone, Debug, Default)]
pub struct FlowCounters {
    /// Payload bytes from client to agent.
    pub bytes_c2a: Counter,
    /// Payload bytes from agent to client.
    pub bytes_a2c: Counter,
    /// Bytes that arrived and wait for their socket.
    pub inbox_bytes: Gauge,
    /// Version 1 flows reset because their queue ran over.
    pub queue_overflow: Counter,
    /// How long bytes waited that their socket did not take at once, in seconds; the second one is
    /// for the last bytes of a flow. Bytes that it took are not counted, which keeps this off the
    /// fast path.
    pub write_drain: Option<[Histogram; 2]>,
}

/// Counts of all flows and links of a process.
#[derive(Clone, Debug, Default)]
pub struct EngineCounters {
    /// FINs sent.
    pub fin_sent: Counter,
    /// FINs received.
    pub fin_recv: Counter,
    /// RSTs (and refusals) sent.
    pub rst_sent: Counter,
    /// RSTs (and refusals) received.
    pub rst_recv: Counter,
    /// DATA frames that repeated bytes which had arrived before.
    pub dedup_dropped: Counter,
    /// Frames and opens that named a path or an epoch that is no longer current.
    pub epoch_mismatch: Counter,
    /// Flows that went on over a new path.
    pub resumed: Counter,
}

/// What all links and flows of a process share.
#[derive(Debug)]
pub struct Engine {
    /// Memory for flows.
    pub budget: Budget,
    /// Counts.
    pub counters: EngineCounters,
    /// Time that flows spent waiting for the peer's credit, in microseconds.
    pub blocked_micros: AtomicU64,
    /// Flows that have ended and wait for the peer's word that it knows.
    farewells: AtomicU64,
    started: Instant,
}

impl Engine {
    /// The engine of a process.
    #[must_use]
    pub fn new(budget: Budget, counters: EngineCounters) -> Self {
        Self {
            budget,
            counters,
            blocked_micros: AtomicU64::new(0),
            farewells: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// A flow that has ended begins to wait for its peer's word; false when as many do as there may
    /// be flows, so that nobody can make this process remember more by opening and resetting.
    pub(crate) fn begin_farewell(&self) -> bool {
        let most = self.budget.shares();
        let more = |n: u64| (n < most).then_some(n + 1);
        let (order, begun) = (Ordering::Relaxed, &self.farewells);
        begun.fetch_update(order, order, more).is_ok()
    }

    /// It waits no longer.
    pub(crate) fn end_farewell(&self) {
        self.farewells.fetch_sub(1, Ordering::Relaxed);
    }

    /// Milliseconds of the process's monotonic clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_micros() / 1000
    }

    /// Microseconds of the process's monotonic clock.
    #[must_use]
    pub fn now_micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The moment that is `micros` on the process's monotonic clock.
    pub(crate) fn instant(&self, micros: u64) -> Instant {
        self.started + Duration::from_micros(micros)
    }
}
