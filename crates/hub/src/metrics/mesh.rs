//! Metrics of the mesh and of high availability.

use nowconnect_link::metrics::{Catalog, Vector};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// The states of a mesh link.
pub const LINK_STATES: [&str; 4] = ["connecting", "established", "backoff", "closed"];
/// The modes of high availability.
pub const HA_MODES: [&str; 3] = ["off", "shadow", "active"];
/// The frames of a mesh link as they are counted.
pub const FRAME_TYPES: [&str; 16] = [
    "M_HELLO",
    "M_HELLO_ACK",
    "M_OPEN",
    "M_OPEN_ACK",
    "M_REFUSE",
    "M_DATA",
    "M_FIN",
    "M_RST",
    "M_CREDIT",
    "M_PING",
    "M_PONG",
    "M_GOAWAY",
    "M_DETACH",
    "M_QUERY",
    "M_ANSWER",
    "M_OTHER",
];
/// Why a frame or a flow was held up or refused on a mesh link.
pub const BACKPRESSURE_REASONS: [&str; 4] = ["queue_full", "inflight_bytes", "refused", "reset"];

/// Mesh links, ownership, and what high availability decided.
#[derive(Debug)]
pub struct MeshMetrics {
    /// Opens and frames that carried an epoch that is no longer valid.
    pub epoch_mismatch: Counter,
    /// Decisions of shadow mode, by `decision`.
    pub shadow_decisions: Vector<Counter, 1>,
    /// Flows whose agent is on another hub.
    pub cross_hub_flows: Counter,
    /// 1 while the registry answers.
    pub registry_healthy: Gauge,
    /// Frames by `dir` (in, out) and `type`.
    pub frames: Vector<Counter, 2>,
    /// Events of backpressure by `reason`.
    pub backpressure: Vector<Counter, 1>,
    mode: Vector<Gauge, 1>,
    links: Vector<Gauge, 2>,
    bytes: Vector<Counter, 2>,
    rtt_ms: Vector<Histogram, 1>,
    rtt_seconds: Vector<Histogram, 1>,
    backpressure_drops: Vector<Counter, 2>,
    queue_frames: Vector<Gauge, 1>,
    inflight_bytes: Vector<Gauge, 1>,
    reconnects: Vector<Counter, 1>,
    errors: Vector<Counter, 1>,
}

impl MeshMetrics {
    pub(super) fn register(r: &mut Catalog<'_>) -> Self {
        let peer = ["peer"];
        let frames = r.counters(
            "nowconnect_mesh_frames_total",
            "Frames on mesh links, by direction (in, out) and type",
            ["dir", "type"],
        );
        for kind in FRAME_TYPES {
            frames.with(["in", kind]);
            frames.with(["out", kind]);
        }
        Self {
            frames,
            links: r.gauges(
                "nowconnect_mesh_links",
                "1 for the state that the link to the peer is in, 0 for the others",
                ["peer", "state"],
            ),
            bytes: r.counters(
                "nowconnect_mesh_bytes_total",
                "Bytes on mesh links, frame headers included",
                ["dir", "peer"],
            ),
            rtt_ms: r.histograms(
                "nowconnect_mesh_rtt_ms",
                "Round-trip time of pings to the peer, in milliseconds",
                peer,
                || Histogram::new([0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0]),
            ),
            rtt_seconds: r.histograms(
                "nowconnect_mesh_rtt_seconds",
                "Round-trip time of pings to the peer, in seconds",
                peer,
                || {
                    Histogram::new([
                        0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
                    ])
                },
            ),
            backpressure: r
                .counters(
                    "nowconnect_mesh_backpressure_total",
                    "Times that a bound of a mesh link was reached, by reason",
                    ["reason"],
                )
                .known(&BACKPRESSURE_REASONS),
            backpressure_drops: r.counters(
                "nowconnect_mesh_backpressure_drops_total",
                "Flows that were refused or reset because a bound of the link to the peer was reached",
                ["peer", "reason"],
            ),
            queue_frames: r.gauges(
                "nowconnect_mesh_queue_frames",
                "Frames that wait to be sent to the peer",
                peer,
            ),
            inflight_bytes: r.gauges(
                "nowconnect_mesh_inflight_bytes",
                "Bytes sent or queued to the peer that it has not acknowledged",
                peer,
            ),
            reconnects: r.counters(
                "nowconnect_mesh_link_reconnects_total",
                "Times that a lost link to the peer was established again",
                peer,
            ),
            errors: r.counters(
                "nowconnect_mesh_link_errors_total",
                "Failed attempts to reach the peer, and links that broke",
                peer,
            ),
            epoch_mismatch: r.counter(
                "nowconnect_owner_epoch_mismatch_total",
                "Opens and frames refused because they carried an epoch that is no longer valid",
            ),
            shadow_decisions: r
                .counters(
                    "nowconnect_shadow_decisions_total",
                    "Where shadow mode would have sent the connection: local, remote, none or error",
                    ["decision"],
                )
                .known(&["local", "remote", "none", "error"]),
            cross_hub_flows: r.counter(
                "nowconnect_cross_hub_flows_total",
                "Flows that were opened through another hub",
            ),
            registry_healthy: r.gauge(
                "nowconnect_registry_healthy",
                "1 while the registry of agents answers, 0 while it does not",
            ),
            mode: r
                .gauges("nowconnect_ha_mode", "1 for the mode in force, 0 for the others", ["mode"])
                .known(&HA_MODES),
        }
    }

    /// Shows `mode`, one of [`HA_MODES`], as the one in force.
    pub fn set_mode(&self, mode: &str) {
        for known in HA_MODES {
            self.mode.with([known]).set(i64::from(known == mode));
        }
    }

    pub(super) fn peer(&self, peer: &str) -> PeerMetrics {
        PeerMetrics {
            links: LINK_STATES.map(|state| self.links.with([peer, state])),
            bytes_in: self.bytes.with(["in", peer]),
            bytes_out: self.bytes.with(["out", peer]),
            rtt_ms: self.rtt_ms.with([peer]),
            rtt_seconds: self.rtt_seconds.with([peer]),
            drops: BACKPRESSURE_REASONS.map(|reason| self.backpressure_drops.with([peer, reason])),
            queue_frames: self.queue_frames.with([peer]),
            inflight_bytes: self.inflight_bytes.with([peer]),
            reconnects: self.reconnects.with([peer]),
            errors: self.errors.with([peer]),
        }
    }
}

/// The handles of one mesh peer.
#[derive(Debug)]
pub struct PeerMetrics {
    links: [Gauge; 4],
    drops: [Counter; 4],
    rtt_ms: Histogram,
    rtt_seconds: Histogram,
    /// Bytes received from the peer.
    pub bytes_in: Counter,
    /// Bytes sent to the peer.
    pub bytes_out: Counter,
    /// Frames that wait to be sent.
    pub queue_frames: Gauge,
    /// Bytes not yet acknowledged by the peer.
    pub inflight_bytes: Gauge,
    /// Links established again after a loss.
    pub reconnects: Counter,
    /// Failed attempts and broken links.
    pub errors: Counter,
}

impl PeerMetrics {
    /// Shows `state`, one of [`LINK_STATES`], as the link's.
    pub fn set_state(&self, state: &str) {
        for (gauge, known) in self.links.iter().zip(LINK_STATES) {
            gauge.set(i64::from(known == state));
        }
    }

    /// Records one round trip in both units.
    pub fn observe_rtt(&self, rtt: std::time::Duration) {
        self.rtt_seconds.observe(rtt.as_secs_f64());
        self.rtt_ms.observe(rtt.as_secs_f64() * 1e3);
    }

    /// Flows refused or reset for `reason`, one of [`BACKPRESSURE_REASONS`].
    pub fn drops(&self, reason: &str) -> &Counter {
        let known = BACKPRESSURE_REASONS
            .iter()
            .position(|known| *known == reason);
        &self.drops[known.unwrap_or(3)]
    }
}
