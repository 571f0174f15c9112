//! What the agent measures: the same names as the hub's where they mean the same.
//!
//! Every label value comes from the configuration or from a fixed list, so nobody outside can make
//! new series.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use nowconnect_link::counters::{EngineCounters, FlowCounters};
use nowconnect_link::metrics::{
    Catalog, Format, SecondsCounter, SecondsGauge, TraceMetrics, Vector,
};
use nowconnect_proto::Reason;
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Every metric of the process. Made once, shared by `Arc`.
pub struct Metrics {
    /// Tunnels that are up; one per hub is wanted.
    pub tunnels: Gauge,
    /// Tunnels made after an earlier one had ended, by `agent` and the `reason` of that end.
    pub reconnects: Vector<Counter, 2>,
    /// Attempts to reach a hub that failed, by `reason`.
    pub connect_failures: Vector<Counter, 1>,
    /// How long there has been a tunnel without a break, by `agent`, in seconds.
    pub uptime: Vector<SecondsGauge, 1>,
    /// Offences of the hub, by `interface` and `kind`.
    pub protocol_errors: Vector<Counter, 2>,
    /// Reloads, by `result` (applied, rejected).
    pub config_reloads: Vector<Counter, 1>,
    /// Seconds until a certificate ends, by `use` (client, hub_ca).
    pub cert_expiry: Vector<SecondsGauge, 1>,
    /// CA bundles and certificates with new content, by `use` (hub) and `result` (applied, rejected).
    pub cert_reloads: Vector<Counter, 2>,
    /// Seconds that bytes of targets waited for credit.
    pub blocked_seconds: SecondsCounter,
    /// Flows that were refused, by `connector` and `reason`.
    pub refused: Vector<Counter, 2>,
    /// What the flow engine is to count with.
    pub engine: EngineCounters,
    /// Flows that ended because no new path came in time.
    pub expired: Counter,
    /// Spans for a tracing system.
    pub traces: TraceMetrics,
    families: Families,
    registry: Registry,
    connectors: Mutex<HashMap<String, Arc<ConnectorMetrics>>>,
    refresh: RwLock<Vec<Refresh>>,
}

/// What is counted per connector.
struct Families {
    connections: Vector<Counter, 1>,
    active: Vector<Gauge, 1>,
    bytes: Vector<Counter, 2>,
    duration: Vector<Histogram, 1>,
    open_latency: Vector<Histogram, 1>,
    queue_overflow: Vector<Counter, 2>,
    queue_size: Vector<Gauge, 1>,
}

/// The handles of one connector, resolved once and kept by its flows.
#[derive(Debug)]
pub struct ConnectorMetrics {
    /// Flows that the hub opened.
    pub connections: Counter,
    /// Flows that are open.
    pub active: Gauge,
    /// Seconds from OPEN to the end.
    pub duration: Histogram,
    /// Seconds from OPEN to a connected target.
    pub open_latency: Histogram,
    /// What the flow engine counts.
    pub flow: FlowCounters,
}

impl Metrics {
    /// All metrics at zero, and the counters that the flow engine is to use.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let mut r = Catalog(&mut registry);
        r.build_info();
        let resumes = r.counters(
            "nowconnect_flow_resumes_total",
            "Flows whose path was lost, by result: resumed or expired",
            ["result"],
        );
        let cert_reloads = r.counters(
            "nowconnect_cert_reloads_total",
            "CA bundles, certificates and keys whose files had a new content, by use (hub) and result: applied or rejected",
            ["use", "result"],
        );
        for result in ["applied", "rejected"] {
            cert_reloads.with(["hub", result]);
        }
        Arc::new(Self {
            tunnels: r.gauge(
                "nowconnect_agent_tunnels",
                "Tunnels that are up; one per hub is wanted",
            ),
            reconnects: r.counters(
                "nowconnect_tunnel_reconnects_total",
                "Tunnels made after an earlier one had ended, by reason of that end",
                ["agent", "reason"],
            ),
            connect_failures: r.counters(
                "nowconnect_agent_connect_failures_total",
                "Attempts to reach a hub that failed, by reason",
                ["reason"],
            ),
            uptime: r.seconds_gauges(
                "nowconnect_tunnel_uptime_seconds",
                "How long there has been a tunnel without a break, in seconds; absent while there is none",
                ["agent"],
            ),
            protocol_errors: r.counters(
                "nowconnect_protocol_errors_total",
                "Violations of the protocol by the other side, by interface and kind",
                ["interface", "kind"],
            ),
            config_reloads: r
                .counters(
                    "nowconnect_config_reloads_total",
                    "Reloads of the configuration, by result: applied or rejected",
                    ["result"],
                )
                .known(&["applied", "rejected"]),
            cert_expiry: r.seconds_gauges(
                "nowconnect_cert_expiry_seconds",
                "Seconds until our certificate (client), or the first CA of the bundle (hub_ca), ends",
                ["use"],
            ),
            cert_reloads,
            blocked_seconds: r
                .seconds_counters(
                    "nowconnect_flow_blocked_seconds_total",
                    "Seconds that flows waited for credit; side is the one whose bytes waited",
                    ["side"],
                )
                .with(["agent"]),
            refused: r.counters(
                "nowconnect_agent_refused_total",
                "Flows that were refused, by reason: connect_failed, timeout, dns_failed and others",
                ["connector", "reason"],
            ),
            engine: engine(&mut r, resumes.with(["resumed"])),
            expired: resumes.with(["expired"]),
            traces: TraceMetrics::register(&mut r),
            families: Families::register(&mut r),
            registry,
            connectors: Mutex::default(),
            refresh: RwLock::default(),
        })
    }

    /// The handles of a connector; the same ones for the same name.
    pub fn connector(&self, name: &str) -> Arc<ConnectorMetrics> {
        let mut connectors = self.connectors.lock();
        if let Some(known) = connectors.get(name) {
            return known.clone();
        }
        let made = Arc::new(self.families.connector(name));
        connectors.insert(name.to_owned(), made.clone());
        made
    }

    /// A flow of `connector` was refused.
    pub fn refused(&self, connector: &str, reason: Reason) {
        self.refused.with([connector, reason.name()]).inc();
    }

    /// Calls `refresh` before each scrape, for values that are read rather than counted.
    pub fn on_scrape(&self, refresh: impl Fn(&Self) + Send + Sync + 'static) {
        self.refresh.write().push(Box::new(refresh));
    }

    /// The text of all metrics.
    ///
    /// # Errors
    /// Only if a metric cannot be written as text.
    pub fn render(&self, format: Format) -> Result<String, fmt::Error> {
        for refresh in self.refresh.read().iter() {
            refresh(self);
        }
        format.encode(&self.registry)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn engine(r: &mut Catalog<'_>, resumed: Counter) -> EngineCounters {
    EngineCounters {
        fin_sent: r.counter("nowconnect_fin_sent_total", "Half closes sent to hubs"),
        fin_recv: r.counter(
            "nowconnect_fin_recv_total",
            "Half closes received from hubs",
        ),
        rst_sent: r.counter(
            "nowconnect_rst_sent_total",
            "Resets and refusals sent to hubs",
        ),
        rst_recv: r.counter("nowconnect_rst_recv_total", "Resets received from hubs"),
        dedup_dropped: r.counter(
            "nowconnect_cid_dedup_dropped_total",
            "Frames that repeated bytes already received, as after a resumption, and were dropped",
        ),
        epoch_mismatch: r.counter(
            "nowconnect_owner_epoch_mismatch_total",
            "Frames refused because of an epoch that is no longer valid",
        ),
        resumed,
    }
}

impl Families {
    fn register(r: &mut Catalog<'_>) -> Self {
        let connector = ["connector"];
        Self {
            connections: r.counters(
                "nowconnect_tcp_connections_total",
                "Flows that hubs opened",
                connector,
            ),
            active: r.gauges(
                "nowconnect_tcp_active_connections",
                "Flows that are open now",
                connector,
            ),
            bytes: r.counters(
                "nowconnect_tcp_bytes_total",
                "Payload bytes relayed; direction is c2a (client to agent) or a2c",
                ["direction", "connector"],
            ),
            duration: r.histograms(
                "nowconnect_connection_duration_seconds",
                "How long flows lived, in seconds",
                connector,
                || Histogram::new([0.01, 0.1, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 28800.0]),
            ),
            open_latency: r.histograms(
                "nowconnect_open_latency_seconds",
                "From the hub's OPEN until the target is connected, in seconds",
                connector,
                || Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0]),
            ),
            queue_overflow: r.counters(
                "nowconnect_queue_overflow_total",
                "Flows reset because a version 1 queue was full; side is the receiver that was too slow",
                ["side", "connector"],
            ),
            queue_size: r.gauges(
                "nowconnect_inbound_queue_size",
                "Bytes from hubs that wait to be written to targets",
                connector,
            ),
        }
    }

    fn connector(&self, name: &str) -> ConnectorMetrics {
        ConnectorMetrics {
            connections: self.connections.with([name]),
            active: self.active.with([name]),
            duration: self.duration.with([name]),
            open_latency: self.open_latency.with([name]),
            flow: FlowCounters {
                bytes_c2a: self.bytes.with(["c2a", name]),
                bytes_a2c: self.bytes.with(["a2c", name]),
                inbox_bytes: self.queue_size.with([name]),
                queue_overflow: self.queue_overflow.with(["agent", name]),
                write_drain: None,
            },
        }
    }
}
