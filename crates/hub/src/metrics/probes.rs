//! Metrics of what probes find out about targets.

use nowconnect_link::metrics::{Catalog, SecondsGauge, Vector};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// What probes find out.
#[derive(Debug)]
pub struct ProbeMetrics {
    /// Whether the target of an `agent`'s `connector` is up; absent while that is unknown.
    pub up: Vector<Gauge, 2>,
    /// Targets of a `connector`, by `state` (up, down, unknown).
    pub targets: Vector<Gauge, 2>,
    /// How long probes of a `connector` took that found its target well.
    pub duration: Vector<Histogram, 1>,
    /// Probes of a `connector` that failed, by `reason`.
    pub failures: Vector<Counter, 2>,
    /// Until the certificate ends that the target of an `agent`'s `connector` shows, in seconds.
    pub cert_expiry: Vector<SecondsGauge, 2>,
    /// Connections for a `connector` that went to a target that is down, for want of another.
    pub fail_open: Vector<Counter, 1>,
}

/// Reasons of failures, in `nowconnect_probe_failures_total`.
const REASONS: [&str; 10] = [
    "connect_failed",
    "timeout",
    "dns_failed",
    "closed",
    "socket_reset",
    "tls",
    "certificate",
    "ldap",
    "http",
    "path",
];

impl ProbeMetrics {
    /// Shows at zero what is counted of a connector.
    pub fn begin(&self, connector: &str) {
        self.duration.with([connector]);
        self.fail_open.with([connector]);
        for reason in REASONS {
            self.failures.with([connector, reason]);
        }
    }

    pub(super) fn register(r: &mut Catalog<'_>) -> Self {
        Self {
            up: r.gauges(
                "nowconnect_probe_up",
                "1 while probes reach the target of the agent's connector, 0 while they do not; absent before that is known",
                ["agent", "connector"],
            ),
            targets: r.gauges(
                "nowconnect_probe_targets",
                "Targets behind agents of this hub that are probed, by state: up, down or unknown",
                ["connector", "state"],
            ),
            duration: r.histograms(
                "nowconnect_probe_duration_seconds",
                "How long probes took that found their target well, from the wish to connect to the answer, in seconds",
                ["connector"],
                || {
                    Histogram::new([
                        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
                    ])
                },
            ),
            failures: r.counters(
                "nowconnect_probe_failures_total",
                "Probes that failed, by reason",
                ["connector", "reason"],
            ),
            cert_expiry: r.seconds_gauges(
                "nowconnect_probe_cert_expiry_seconds",
                "Until the certificate ends that the target of the agent's connector shows, in seconds; negative when it has",
                ["agent", "connector"],
            ),
            fail_open: r.counters(
                "nowconnect_probe_fail_open_total",
                "Connections that went to a target that is down, because no other agent could serve them",
                ["connector"],
            ),
        }
    }
}
