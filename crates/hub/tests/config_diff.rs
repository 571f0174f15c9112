//! What a reload does, for every kind of change.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use nowconnect_hub::config::{Change, HaMode, HubConfig};
use nowconnect_settings::{Env, Source};

const RUNNING: &str = "
listeners:
  - { name: a, bind: '127.0.0.1:1', connector: c }
  - { name: b, bind: '127.0.0.1:2', connector: c }
";

fn config(env: &[(&str, &str)]) -> HubConfig {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cloud.yaml");
    std::fs::write(&file, RUNNING).unwrap();
    let env: Env = env.iter().copied().collect();
    HubConfig::inspect(&Source::new(Some(file), env))
        .unwrap()
        .config
}

/// Variables set at a reload, what takes effect, what needs a restart.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

/// What changes when these variables are set at a reload.
fn change(env: &[(&str, &str)]) -> Change {
    config(&[]).diff(&config(env))
}

#[test]
fn every_section_is_told_apart() {
    let tls = [
        ("NOWCONNECT__TUNNEL__TLS__CERT_FILE", "/c"),
        ("NOWCONNECT__TUNNEL__TLS__KEY_FILE", "/k"),
    ];
    let ha = [
        ("NOWCONNECT__HA__REPLICA_ID", "hub"),
        ("NOWCONNECT__HA__MODE", "active"),
    ];
    let cases: &[Case<'_>] = &[
        (&[], &[], &[]),
        (
            &[("NOWCONNECT__TUNNEL__HOST", "127.0.0.1")],
            &[],
            &["tunnel.host"],
        ),
        (&[("NOWCONNECT__TUNNEL__PORT", "9")], &[], &["tunnel.port"]),
        (&tls, &[], &["tunnel.tls"]),
        (
            &[("NOWCONNECT__TUNNEL__PING_INTERVAL_SEC", "9")],
            &["tunnel"],
            &[],
        ),
        (
            &[("NOWCONNECT__TUNNEL__TRUSTED_PROXIES", "::1")],
            &["tunnel"],
            &[],
        ),
        // Listeners inherit this one.
        (
            &[("NOWCONNECT__LIMITS__IDLE_TIMEOUT_MS", "9")],
            &["listeners", "limits"],
            &[],
        ),
        (
            &[("NOWCONNECT__LIMITS__MAX_CONN_TOTAL", "9")],
            &["limits"],
            &[],
        ),
        (
            &[("NOWCONNECT__LIMITS__MEMORY_BUDGET_MB", "99")],
            &[],
            &["limits.memory_budget_mb"],
        ),
        (
            &[("NOWCONNECT__SECURITY__ALLOW_CIDRS", "::/0")],
            &["security"],
            &[],
        ),
        (
            &[("NOWCONNECT_JWKS_URL", "https://idp")],
            &["security"],
            &[],
        ),
        (&[("LOG_LEVEL", "debug")], &["observability.log_level"], &[]),
        (
            &[("NOWCONNECT__OBSERVABILITY__LOG_FORMAT", "plain")],
            &[],
            &["observability.log_format"],
        ),
        (
            &[("NOWCONNECT__OBSERVABILITY__METRICS_PORT", "0")],
            &[],
            &["observability.metrics_port"],
        ),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://o")],
            &[],
            &["observability.traces"],
        ),
        (&[("NOWCONNECT_PDP_URL", "http://p")], &["pdp"], &[]),
        (&[("NOWCONNECT__PROBES__C__TYPE", "tcp")], &["probes"], &[]),
        (
            &[("NOWCONNECT__ADMIN__BIND", "127.0.0.1:9")],
            &[],
            &["admin.bind"],
        ),
        (
            &[("NOWCONNECT__ADMIN__TOKEN_FILE", "/t")],
            &["admin.token_file"],
            &[],
        ),
        (&ha, &["ha.mode"], &[]),
        (
            &[("NOWCONNECT__HA__REPLICA_ID", "x")],
            &["ha.mode"],
            &["ha.replica_id"],
        ),
        (
            &[
                ("NOWCONNECT__HA__ENABLED", "0"),
                ("NOWCONNECT__HA__REDIS_URL", "redis://h"),
            ],
            &["ha.redis_url"],
            &[],
        ),
        (
            &[
                ("NOWCONNECT__HA__ENABLED", "0"),
                ("NOWCONNECT__HA__MESH__PEERS", "wss://b"),
            ],
            &["ha.mesh"],
            &[],
        ),
        (
            &[
                ("LOG_LEVEL", "debug"),
                ("NOWCONNECT__TUNNEL__PORT", "9"),
                ("NOWCONNECT__LIMITS__MAX_CONN_TOTAL", "9"),
            ],
            &["limits", "observability.log_level"],
            &["tunnel.port"],
        ),
    ];
    for (env, live, needs_restart) in cases {
        let change = change(env);
        assert_eq!(
            (&change.live[..], &change.needs_restart[..]),
            (*live, *needs_restart),
            "{env:?}"
        );
        assert_eq!(change.is_empty(), live.is_empty());
        // Going over is idempotent: what the hub runs with then differs in nothing but the rest.
        let again = change.config.diff(&config(env));
        assert_eq!(
            (&again.live[..], &again.needs_restart[..]),
            (&[][..], *needs_restart),
            "{env:?}"
        );
    }
}

#[test]
fn listeners_are_told_apart_by_their_address() {
    let change = change(&[(
        "NOWCONNECT__LISTENERS",
        r#"[{"name": "a", "bind": "127.0.0.1:3", "connector": "c"},
            {"name": "b", "bind": "127.0.0.1:2", "connector": "other"}]"#,
    )]);
    let names = |listeners: &[nowconnect_hub::config::ListenerConfig]| -> Vec<String> {
        listeners
            .iter()
            .map(|l| format!("{}@{}", l.name, l.bind))
            .collect()
    };
    assert_eq!(names(&change.listeners_added), ["a@127.0.0.1:3"]);
    assert_eq!(names(&change.listeners_changed), ["b@127.0.0.1:2"]);
    assert_eq!(change.listeners_removed, ["127.0.0.1:1".parse().unwrap()]);
    assert_eq!(change.live, ["listeners"]);
}

/// The order in the file is no change of any listener, and neither is a change elsewhere.
#[test]
fn listeners_that_stay_are_left_alone() {
    let reordered = change(&[(
        "NOWCONNECT__LISTENERS",
        r#"[{"name": "b", "bind": "127.0.0.1:2", "connector": "c"},
            {"name": "a", "bind": "127.0.0.1:1", "connector": "c"}]"#,
    )]);
    assert!(reordered.listeners_added.is_empty() && reordered.listeners_changed.is_empty());
    assert!(reordered.listeners_removed.is_empty());
}

/// While HA runs, its port stays and its registry may be another.
#[test]
fn the_registry_may_change_while_ha_runs() {
    let running = config(&[("NOWCONNECT__HA__REPLICA_ID", "a")]);
    assert_eq!(running.ha.mode, HaMode::Shadow);
    let env = [
        ("NOWCONNECT__HA__REPLICA_ID", "a"),
        ("NOWCONNECT__HA__REDIS_URL", "redis://h"),
        ("NOWCONNECT__HA__MESH__LISTEN", "127.0.0.1:9"),
    ];
    let change = running.diff(&config(&env));
    assert_eq!(change.needs_restart, ["ha.mesh.listen"]);
    assert_ne!(change.config.ha.redis_url, running.ha.redis_url);
    assert_eq!(change.config.ha.mesh, running.ha.mesh);
}

#[test]
fn a_running_address_does_not_lose_its_token() {
    let token = ("NOWCONNECT__ADMIN__TOKEN_FILE", "/token");
    let exposed = config(&[token, ("NOWCONNECT__ADMIN__BIND", "0.0.0.0:8766")]);
    let change = exposed.diff(&config(&[]));
    assert_eq!(change.needs_restart, ["admin.bind"]);
    assert_eq!(change.config.admin, exposed.admin);
    let local = config(&[token]);
    assert_eq!(local.diff(&config(&[])).config.admin.token_file, None);
}
