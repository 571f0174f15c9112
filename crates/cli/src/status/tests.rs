//! What operators see, at several widths.

use super::*;

fn report() -> Value {
    json!({
        "status": {
            "hubs": [
                {
                    "hub": "hub-a", "answered": true, "version": "0.1.0", "status": "degraded", "mode": "active",
                    "uptime_sec": 61, "agents": { "total": 1 }, "flows": { "total": 3, "forwarded": 2 },
                    "reasons": ["registry: connection refused"], "needs_restart": ["tunnel.port"],
                    "listeners": [{ "name": "l1", "address": "0.0.0.0:389", "connector": "ldap" }],
                },
                { "hub": "hub-b", "answered": false, "reason": "timeout", "detail": "it did not answer in time" },
            ],
            "agents": { "total": 1 },
            "flows": { "total": 3, "open": 3, "opening": 0, "waiting": 0 },
        },
        "agents": [{
            "agent_id": "site-1", "version": "0.1.0", "epoch": 1_795_390_375_220_u64,
            "connectors": ["ldap", "ldaps_dc2", "postgres_reporting"],
            "tunnels": [{
                "hub": "hub-a", "remote": "192.0.2.1", "protocol": 2, "rtt_ms": 1.25, "flows": 3,
                "connected_sec": 3700, "epoch": 1_795_390_375_220_u64, "takes_flows": true,
            }],
            "probes": [
                { "hub": "hub-a", "connector": "ldap", "type": "ldap", "state": "up" },
                { "hub": "hub-a", "connector": "ldaps_dc2", "type": "ldaps", "state": "down", "since_sec": 65,
                  "detail": "the certificate has expired",
                  "certificate": { "expires_at": 1, "judged": "certificate_expired" } },
            ],
        }],
        "connectors": [{
            "name": "ldap", "listeners": 1, "tunnels": 1, "flows": 3,
            "probes": { "up": 1, "down": 1, "unknown": 1 },
            "hubs": [{ "counts": { "open_p50_ms": 2.0, "open_p95_ms": 11.3, "errors": { "no_agent": 4 } } }],
        }],
        "mesh": [{
            "hub": "hub-a", "answered": true, "registry": { "state": "down" },
            "links": [
                { "peer": "b.example.com", "hub": "hub-b", "direction": "outbound", "state": "backoff",
                  "since_sec": 4, "rtt_ms": null, "flows": 0, "queue_frames": 0, "inflight_bytes": 0,
                  "last_error": "connection refused" },
                { "peer": "b.example.com", "hub": "hub-b", "direction": "inbound", "state": "closed" },
            ],
        }],
    })
}

const WIDE: &str = "\
HUB    VERSION  STATUS     HA      REGISTRY  UPTIME  AGENTS  FLOWS  FORWARDED
hub-a  0.1.0    degraded   active  down      1m1s    1       3      2
hub-b  -        no answer  -       -         -       -       -      -
no answer from hub-b (timeout): it did not answer in time
hub-a is degraded: registry: connection refused
hub-a waits for a restart: tunnel.port

AGENT   HUB    RTT    FLOWS  SINCE  REMOTE     CONNECTORS                           EPOCH          PROTO  VERSION
site-1  hub-a  1.2ms  3      1h1m   192.0.2.1  ldap, ldaps_dc2, postgres_reporting  1795390375220  v2     0.1.0

CONNECTOR  LISTENERS  TUNNELS  UP   FLOWS  OPEN P50  OPEN P95  TURNED AWAY
ldap       1          1        1/3  3      2.0ms     11ms      4 no_agent

TARGET OF  AGENT   HUB    PROBE  STATE  SINCE  LATENCY  CERTIFICATE                   WHY
ldaps_dc2  site-1  hub-a  ldaps  down   1m5s   -        expired, certificate_expired  the certificate has expired

LISTENER  HUB    ADDRESS      CONNECTOR
l1        hub-a  0.0.0.0:389  ldap

LINK FROM  TO     STATE    SINCE  RTT  FLOWS  QUEUED  IN FLIGHT  LAST ERROR
hub-a      hub-b  backoff  4s     -    0      0       0B         connection refused

flows: 3 open, 0 opening, 0 waiting for their path; 1 agent
";

#[test]
fn a_pipe_and_a_wide_screen_get_everything() {
    let screen = Screen::plain();
    assert_eq!(tables(&report(), &screen, None), WIDE);
    assert_eq!(tables(&report(), &screen, Some(200)), WIDE);
}

#[test]
fn narrow_screens_get_cells_that_are_cut_with_a_mark() {
    let agents = |width| {
        let text = tables(&report(), &Screen::plain(), Some(width));
        let wide = text.lines().filter(|line| line.chars().count() > width);
        assert!(
            wide.filter(|line| !line.contains(": ")).count() == 0,
            "{text}"
        );
        let lines = text.lines().skip_while(|line| !line.starts_with("AGENT"));
        lines.take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        agents(80),
        [
            "AGENT   HUB    RTT    FLOWS  SINCE  REMOTE    CONNECT…  EPOCH     PROTO  VERSION",
            "site-1  hub-a  1.2ms  3      1h1m   192.0.2…  ldap, l…  1795390…  v2     0.1.0",
        ]
    );
    assert_eq!(
        agents(60),
        [
            "AGENT   HUB    RTT    FLOWS  SINCE  REMOTE  CONNE…  EPOCH  …",
            "site-1  hub-a  1.2ms  3      1h1m   192.0…  ldap,…  17953… …",
        ]
    );
}
