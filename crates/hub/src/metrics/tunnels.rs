//! Metrics of agents, of who was let in, and of the process itself.

use nowconnect_link::metrics::{Catalog, SecondsGauge, Vector};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Offences of agents that end their tunnel or a flow, in `nowconnect_protocol_errors_total`.
const TUNNEL_OFFENCES: [&str; 30] = [
    // Before the upgrade.
    "bad_method",
    "bad_http_version",
    "browser_origin",
    "not_an_upgrade",
    "bad_websocket_version",
    "bad_upgrade",
    // After it.
    "bad_hello",
    "hello_timeout",
    "bad_body",
    "unexpected_frame",
    "open_from_agent",
    "control_flood",
    "unknown_flow",
    "websocket",
    "wrong_message_type",
    "truncated",
    "too_long",
    "malformed",
    "wrong_flow",
    "beyond_credit",
    "after_fin",
    "offset_gap",
    "bad_ack",
    "flood",
    // Version 1.
    "json",
    "unknown_type",
    "repeated_open",
    "data_after_fin",
    "seq",
    "fin",
];
/// Offences of HTTP clients.
const HTTP_OFFENCES: [&str; 5] = [
    "bad_request",
    "header_timeout",
    "unexpected_body",
    "tls_timeout",
    "tls_handshake",
];

/// Agents, authentication, protocol errors, the policy decision point, configuration.
#[derive(Debug)]
pub struct TunnelMetrics {
    /// Agents with a living tunnel here.
    pub agents_connected: Gauge,
    /// Returns of an agent, by `agent` and the `reason` why its last tunnel ended.
    pub reconnects: Vector<Counter, 2>,
    /// Age of an `agent`'s tunnel, in seconds.
    pub uptime: Vector<SecondsGauge, 1>,
    /// How long an `agent`'s token is still good, in seconds.
    pub token_expiry: Vector<SecondsGauge, 1>,
    /// Refused tokens, by `reason`.
    pub auth_failures: Vector<Counter, 1>,
    /// Peers that broke the protocol, by `interface` (tunnel, mesh, http) and `kind`.
    pub protocol_errors: Vector<Counter, 2>,
    /// Agents sent away before their token was judged, by `reason`.
    pub handshakes_shed: Vector<Counter, 1>,
    /// Connections to HTTP ports that were not served, by `reason`.
    pub http_refused: Vector<Counter, 1>,
    /// Two living agents fought over one id.
    pub identity_conflicts: Counter,
    /// Allowed by the policy decision point.
    pub pdp_allow: Counter,
    /// Denied by the policy decision point.
    pub pdp_deny: Counter,
    /// No answer from the policy decision point.
    pub pdp_errors: Counter,
    /// How long questions to the policy decision point took, by `result`.
    pub pdp_latency: Vector<Histogram, 1>,
    /// Reloads, by `result` (applied, rejected).
    pub config_reloads: Vector<Counter, 1>,
    /// Seconds until a certificate ends, by `use`.
    pub cert_expiry: Vector<SecondsGauge, 1>,
    /// Certificates, keys and CAs with new content, by `use` (tunnel, mesh) and `result` (applied,
    /// rejected).
    pub cert_reloads: Vector<Counter, 2>,
}

impl TunnelMetrics {
    pub(super) fn register(r: &mut Catalog<'_>) -> Self {
        Self {
            agents_connected: r.gauge(
                "nowconnect_agents_connected",
                "Agents that have a living tunnel to this hub",
            ),
            reconnects: r.counters(
                "nowconnect_tunnel_reconnects_total",
                "Tunnels that an agent opened after an earlier one had ended, by reason of that end",
                ["agent", "reason"],
            ),
            uptime: r.seconds_gauges(
                "nowconnect_tunnel_uptime_seconds",
                "Age of the agent's tunnel, in seconds; absent while it has none",
                ["agent"],
            ),
            token_expiry: r.seconds_gauges(
                "nowconnect_token_expiry_seconds",
                "Until the token of the agent's tunnel ends, in seconds; absent while it has none",
                ["agent"],
            ),
            auth_failures: r.counters(
                "nowconnect_auth_failures_total",
                "Agents turned away because of their token, by reason",
                ["reason"],
            ),
            protocol_errors: protocol_errors(r),
            handshakes_shed: r
                .counters(
                    "nowconnect_handshakes_shed_total",
                    "Agents sent away before their token was judged, by reason: rate, failures",
                    ["reason"],
                )
                .known(&["rate", "failures"]),
            http_refused: r
                .counters(
                    "nowconnect_http_refused_total",
                    "Connections to HTTP ports that were not served, by reason: busy, address, handshakes",
                    ["reason"],
                )
                .known(&["busy", "address", "handshakes"]),
            identity_conflicts: r.counter(
                "nowconnect_agent_identity_conflicts_total",
                "Tunnels refused because two living agents fight over one agent id",
            ),
            pdp_allow: r.counter(
                "nowconnect_pdp_allow_total",
                "Connections that the policy decision point allowed",
            ),
            pdp_deny: r.counter(
                "nowconnect_pdp_deny_total",
                "Connections that the policy decision point denied",
            ),
            pdp_errors: r.counter(
                "nowconnect_pdp_errors_total",
                "Questions that the policy decision point did not answer in time or in form",
            ),
            pdp_latency: r
                .histograms(
                    "nowconnect_pdp_request_seconds",
                    "Questions to the policy decision point, from the wish to ask to the answer, in seconds",
                    ["result"],
                    || Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]),
                )
                .known(&["allow", "deny", "error"]),
            config_reloads: r
                .counters(
                    "nowconnect_config_reloads_total",
                    "Reloads of the configuration, by result: applied or rejected",
                    ["result"],
                )
                .known(&["applied", "rejected"]),
            cert_expiry: r.seconds_gauges(
                "nowconnect_cert_expiry_seconds",
                "Seconds until the certificate in use, or the first of the CAs, ends, by use: tunnel, client_ca, mesh, mesh_ca",
                ["use"],
            ),
            cert_reloads: cert_reloads(r),
        }
    }

    /// New content of certificate files was taken or not.
    pub(crate) fn note_certificate(&self, r#use: &str, result: &str) {
        self.cert_reloads.with([r#use, result]).inc();
    }
}

fn protocol_errors(r: &mut Catalog<'_>) -> Vector<Counter, 2> {
    let errors = r.counters(
        "nowconnect_protocol_errors_total",
        "Violations of the protocol by the other side, by interface and kind",
        ["interface", "kind"],
    );
    for kind in TUNNEL_OFFENCES {
        errors.with(["tunnel", kind]);
    }
    for kind in HTTP_OFFENCES {
        errors.with(["http", kind]);
    }
    errors
}

fn cert_reloads(r: &mut Catalog<'_>) -> Vector<Counter, 2> {
    let reloads = r.counters(
        "nowconnect_cert_reloads_total",
        "Certificates, keys and CAs whose files had a new content, by use (tunnel, mesh) and result: applied or rejected",
        ["use", "result"],
    );
    for r#use in ["tunnel", "mesh"] {
        for result in ["applied", "rejected"] {
            reloads.with([r#use, result]);
        }
    }
    reloads
}
