//! Metrics of listeners and flows, by connector.

use std::time::Duration;

use nowconnect_link::counters::FlowCounters;
use nowconnect_link::metrics::{Catalog, SecondsCounter, Vector};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::open_times::OpenTimes;

/// Why a client was turned away: the values of `type` in `nowconnect_listener_errors_total`, and of
/// `reason` in the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerError {
    /// Its address is not within the allowed networks.
    CidrBlocked,
    /// The hub holds `limits.max_conn_total` connections.
    MaxConnTotal,
    /// The listener holds its `max_conn` connections.
    MaxConnListener,
    /// The client's address holds `limits.max_conn_per_client` connections.
    MaxConnClient,
    /// The hub lets in `limits.max_opens_per_sec` connections in a second.
    MaxOpensTotal,
    /// The listener lets in its `max_opens_per_sec`.
    MaxOpensListener,
    /// The client's address opened `limits.max_opens_per_sec_per_client`.
    MaxOpensClient,
    /// The PROXY header was missing, malformed, or did not come in time.
    ProxyHeader,
    /// A PROXY header is due, and the sender is not one of `tunnel.trusted_proxies`.
    ProxyUntrusted,
    /// No agent exports the connector.
    NoAgent,
    /// Every agent that exports the connector refused.
    Refused,
    /// The policy decision point said no, or nothing.
    PdpDenied,
}

impl ListenerError {
    /// All of them, in the order of declaration.
    pub const ALL: [Self; 12] = [
        Self::CidrBlocked,
        Self::MaxConnTotal,
        Self::MaxConnListener,
        Self::MaxConnClient,
        Self::MaxOpensTotal,
        Self::MaxOpensListener,
        Self::MaxOpensClient,
        Self::ProxyHeader,
        Self::ProxyUntrusted,
        Self::NoAgent,
        Self::Refused,
        Self::PdpDenied,
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CidrBlocked => "cidr_blocked",
            Self::MaxConnTotal => "max_conn_total",
            Self::MaxConnListener => "max_conn_listener",
            Self::MaxConnClient => "max_conn_client",
            Self::MaxOpensTotal => "max_opens_total",
            Self::MaxOpensListener => "max_opens_listener",
            Self::MaxOpensClient => "max_opens_client",
            Self::ProxyHeader => "proxy_header",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::NoAgent => "no_agent",
            Self::Refused => "refused",
            Self::PdpDenied => "pdp_denied",
        }
    }
}

const PDP_RESULTS: [&str; 3] = ["allow", "deny", "error"];
const DRAIN_PHASES: [&str; 2] = ["data", "close"];
const SIDES: [&str; 2] = ["client", "agent"];

/// The families whose series are per connector, and the totals over all flows.
#[derive(Debug)]
pub struct FlowMetrics {
    /// FINs sent to agents or peers.
    pub fin_sent: Counter,
    /// FINs received from agents or peers.
    pub fin_recv: Counter,
    /// RSTs sent to agents or peers.
    pub rst_sent: Counter,
    /// RSTs received from agents or peers.
    pub rst_recv: Counter,
    /// Bytes and frames that had been received before and were dropped.
    pub dedup_dropped: Counter,
    /// Seconds that flows waited for credit, by the `side` whose bytes waited.
    pub blocked_seconds: Vector<SecondsCounter, 1>,
    /// Attempts to continue a flow on a new path, by `result`.
    pub resumes: Vector<Counter, 1>,
    connections: Vector<Counter, 1>,
    active: Vector<Gauge, 1>,
    bytes: Vector<Counter, 2>,
    duration: Vector<Histogram, 1>,
    open_latency: Vector<Histogram, 1>,
    listener_errors: Vector<Counter, 2>,
    accept_errors: Vector<Counter, 1>,
    queue_overflow: Vector<Counter, 2>,
    queue_size: Vector<Gauge, 1>,
    write_drain: Vector<Histogram, 2>,
    pdp_decisions: Vector<Counter, 2>,
}

impl FlowMetrics {
    pub(super) fn register(r: &mut Catalog<'_>) -> Self {
        let connector = ["connector"];
        Self {
            connections: r.counters(
                "nowconnect_tcp_connections_total",
                "Client connections that were admitted",
                connector,
            ),
            active: r.gauges(
                "nowconnect_tcp_active_connections",
                "Client connections that are open now",
                connector,
            ),
            bytes: r.counters(
                "nowconnect_tcp_bytes_total",
                "Payload bytes relayed; direction is c2a (client to agent) or a2c",
                ["direction", "connector"],
            ),
            duration: r.histograms(
                "nowconnect_connection_duration_seconds",
                "How long client connections lived, in seconds",
                connector,
                || Histogram::new([0.01, 0.1, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 28800.0]),
            ),
            open_latency: r.histograms(
                "nowconnect_open_latency_seconds",
                "From accepting a client to the agent's answer that the target is connected, in seconds",
                connector,
                latency,
            ),
            listener_errors: r.counters(
                "nowconnect_listener_errors_total",
                "Client connections that were turned away, by type of reason",
                ["connector", "type"],
            ),
            accept_errors: r.counters(
                "nowconnect_listener_accept_errors_total",
                "Failures of accept(), for instance when file descriptors ran out",
                connector,
            ),
            queue_overflow: r.counters(
                "nowconnect_queue_overflow_total",
                "Flows reset because a version 1 queue was full; side is the receiver that was too slow",
                ["side", "connector"],
            ),
            queue_size: r.gauges(
                "nowconnect_inbound_queue_size",
                "Bytes from agents that wait to be written to clients",
                connector,
            ),
            write_drain: r.histograms(
                "nowconnect_write_drain_seconds",
                "How long bytes waited that the client's socket did not take at once, in seconds; phase is data, or close for the last ones of a flow",
                ["connector", "phase"],
                latency,
            ),
            fin_sent: r.counter("nowconnect_fin_sent_total", "Half closes sent to agents and peers"),
            fin_recv: r.counter("nowconnect_fin_recv_total", "Half closes received from agents and peers"),
            rst_sent: r.counter("nowconnect_rst_sent_total", "Resets sent to agents and peers"),
            rst_recv: r.counter("nowconnect_rst_recv_total", "Resets received from agents and peers"),
            dedup_dropped: r.counter(
                "nowconnect_cid_dedup_dropped_total",
                "Frames that repeated bytes already received, as after a resumption, and were dropped",
            ),
            blocked_seconds: r
                .seconds_counters(
                    "nowconnect_flow_blocked_seconds_total",
                    "Seconds that flows waited for credit; side is the one whose bytes waited",
                    ["side"],
                )
                .known(&SIDES),
            resumes: r
                .counters(
                    "nowconnect_flow_resumes_total",
                    "Flows whose path was lost, by result: resumed, refused or expired",
                    ["result"],
                )
                .known(&["resumed", "refused", "expired"]),
            pdp_decisions: r.counters(
                "nowconnect_pdp_decisions_total",
                "Answers of the policy decision point, by result: allow, deny or error",
                ["result", "connector"],
            ),
        }
    }

    pub(super) fn connector(&self, name: &str) -> ConnectorMetrics {
        ConnectorMetrics {
            connections: self.connections.with([name]),
            active: self.active.with([name]),
            bytes_c2a: self.bytes.with(["c2a", name]),
            bytes_a2c: self.bytes.with(["a2c", name]),
            duration: self.duration.with([name]),
            open_latency: self.open_latency.with([name]),
            open_times: OpenTimes::default(),
            accept_errors: self.accept_errors.with([name]),
            errors: ListenerError::ALL.map(|e| self.listener_errors.with([name, e.as_str()])),
            queue_overflow: SIDES.map(|side| self.queue_overflow.with([side, name])),
            queue_size: self.queue_size.with([name]),
            write_drain: DRAIN_PHASES.map(|phase| self.write_drain.with([name, phase])),
            pdp: PDP_RESULTS.map(|result| self.pdp_decisions.with([result, name])),
        }
    }
}

/// 0.5 ms to 10 s, the span between a cached local answer and every deadline.
fn latency() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
    ])
}

/// The handles of one connector, resolved once and kept by its listeners and flows.
#[derive(Debug)]
pub struct ConnectorMetrics {
    /// Admitted connections.
    pub connections: Counter,
    /// Open connections.
    pub active: Gauge,
    /// Payload bytes from clients to agents.
    pub bytes_c2a: Counter,
    /// Payload bytes from agents to clients.
    pub bytes_a2c: Counter,
    /// Seconds from accept to close.
    pub duration: Histogram,
    open_latency: Histogram,
    /// The same in a form that can be read.
    pub open_times: OpenTimes,
    /// Failures of accept().
    pub accept_errors: Counter,
    /// Bytes that wait for clients' sockets.
    pub queue_size: Gauge,
    errors: [Counter; ListenerError::ALL.len()],
    queue_overflow: [Counter; 2],
    write_drain: [Histogram; 2],
    pdp: [Counter; 3],
}

impl ConnectorMetrics {
    /// Records how long a client waited for the agent's answer.
    pub fn note_open(&self, waited: Duration) {
        self.open_latency.observe(waited.as_secs_f64());
        self.open_times.note(waited);
    }

    /// Connections turned away for this reason.
    pub fn error(&self, kind: ListenerError) -> &Counter {
        &self.errors[kind as usize]
    }

    /// The handles that the flow engine counts with.
    pub fn flow_counters(&self) -> FlowCounters {
        FlowCounters {
            bytes_c2a: self.bytes_c2a.clone(),
            bytes_a2c: self.bytes_a2c.clone(),
            inbox_bytes: self.queue_size.clone(),
            queue_overflow: self.queue_overflow[0].clone(),
            write_drain: Some(self.write_drain.clone()),
        }
    }

    /// Decisions to allow.
    pub fn pdp_allow(&self) -> &Counter {
        &self.pdp[0]
    }

    /// Decisions to deny.
    pub fn pdp_deny(&self) -> &Counter {
        &self.pdp[1]
    }

    /// Decisions that could not be had.
    pub fn pdp_error(&self) -> &Counter {
        &self.pdp[2]
    }
}
