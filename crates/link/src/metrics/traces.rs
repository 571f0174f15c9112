//! What became of spans.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

use super::{Catalog, Vector};

/// Counted where spans are sent from.
#[derive(Debug, Default)]
pub struct TraceTally {
    /// A collector has taken them.
    pub exported: AtomicU64,
    /// They came faster than they could be sent.
    pub queue_full: AtomicU64,
    /// The collector could not be reached, or refused them.
    pub export_failed: AtomicU64,
}

/// The same as metrics.
#[derive(Debug)]
pub struct TraceMetrics {
    exported: Counter,
    dropped: Vector<Counter, 1>,
}

impl TraceMetrics {
    /// All at zero.
    pub fn register(r: &mut Catalog<'_>) -> Self {
        Self {
            exported: r.counter(
                "nowconnect_trace_spans_exported_total",
                "Spans that the collector has taken",
            ),
            dropped: r
                .counters(
                    "nowconnect_trace_spans_dropped_total",
                    "Spans that were lost, by reason: queue_full or export_failed",
                    ["reason"],
                )
                .known(&["queue_full", "export_failed"]),
        }
    }

    /// Brings them up to date.
    pub fn show(&self, tally: &TraceTally) {
        let set = |counter: &Counter, counted: &AtomicU64| {
            let more = counted
                .load(Ordering::Relaxed)
                .saturating_sub(counter.get());
            counter.inc_by(more);
        };
        set(&self.exported, &tally.exported);
        set(&self.dropped.with(["queue_full"]), &tally.queue_full);
        set(&self.dropped.with(["export_failed"]), &tally.export_failed);
    }
}
