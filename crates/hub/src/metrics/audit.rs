//! Metrics of the audit trail.

use nowconnect_link::metrics::{Catalog, Vector};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// What became of audit records, for whoever writes them to set.
#[derive(Debug)]
pub struct AuditMetrics {
    /// Records, by `result` (written, lost).
    pub records: Vector<Counter, 1>,
    /// Whether the file cannot be written at present.
    pub failing: Gauge,
}

impl AuditMetrics {
    pub(super) fn register(r: &mut Catalog<'_>) -> Self {
        let records = r.counters(
            "nowconnect_audit_records_total",
            "Records for the audit file, by what became of them",
            ["result"],
        );
        for result in ["written", "lost"] {
            records.with([result]);
        }
        let failing = r.gauge(
            "nowconnect_audit_file_failing",
            "Whether the audit file cannot be written at present",
        );
        Self { records, failing }
    }
}
