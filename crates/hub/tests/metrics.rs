//! The metrics that are served against the ones that are documented.
#![allow(clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use nowconnect_hub::metrics::{Format, Metrics};

/// Kind and label names of a metric.
type Shape = (String, BTreeSet<String>);

fn everything() -> String {
    let metrics = Metrics::new();
    metrics.connector("ldap");
    metrics.peer("hub-b");
    let agent = metrics.agent_label("site-1");
    metrics.tunnels.reconnects.with([agent, "closed"]);
    metrics.tunnels.uptime.with([agent]);
    metrics.tunnels.token_expiry.with([agent]);
    metrics.tunnels.auth_failures.with(["expired"]);
    metrics
        .tunnels
        .protocol_errors
        .with(["tunnel", "bad_frame"]);
    metrics.tunnels.cert_expiry.with(["tunnel"]);
    metrics.probes.up.with([agent, "ldap"]);
    metrics.probes.targets.with(["ldap", "up"]);
    metrics.probes.duration.with(["ldap"]);
    metrics.probes.failures.with(["ldap", "timeout"]);
    metrics.probes.cert_expiry.with([agent, "ldap"]);
    metrics.probes.fail_open.with(["ldap"]);
    metrics.render(Format::Prometheus).expect("text")
}

fn served(text: &str) -> BTreeMap<String, Shape> {
    let mut shapes = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            let before = shapes.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            assert!(before.is_none(), "{name} is declared twice");
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).expect("a sample");
            let sample = &line[..end];
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| sample.strip_suffix(suffix))
                .find(|stem| shapes.contains_key(*stem))
                .unwrap_or(sample);
            let (_, labels) = shapes
                .get_mut(name)
                .unwrap_or_else(|| panic!("{sample} has no type"));
            let set = line
                .split_once('{')
                .and_then(|(_, rest)| rest.split_once('}'));
            for pair in set.map(|(set, _)| set.split(',')).into_iter().flatten() {
                let (label, _) = pair.split_once('=').expect("a label");
                if label != "le" {
                    labels.insert(label.to_owned());
                }
            }
        }
    }
    shapes
}

fn documented(text: &str) -> BTreeMap<String, Shape> {
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| `nowconnect_"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(str::trim).filter(|l| !l.is_empty());
        let shape = (cells[2].to_owned(), labels.map(str::to_owned).collect());
        (cells[1].trim_matches('`').to_owned(), shape)
    })
    .collect()
}

#[test]
fn documentation_and_metrics_agree() {
    let docs = documented(include_str!("../../../docs/metrics.md"));
    assert_eq!(served(&everything()), docs);
}

#[test]
fn every_metric_has_help() {
    let text = everything();
    for name in served(&text).keys() {
        assert!(
            text.contains(&format!("# HELP {name} ")),
            "{name} has no help"
        );
    }
}

#[test]
fn series_without_open_labels_exist_at_zero() {
    let text = Metrics::new().render(Format::Prometheus).expect("text");
    for line in [
        "nowconnect_agents_connected 0",
        "nowconnect_owner_epoch_mismatch_total 0",
        "nowconnect_config_reloads_total{result=\"rejected\"} 0",
        "nowconnect_ha_mode{mode=\"active\"} 0",
        "nowconnect_mesh_frames_total{dir=\"in\",type=\"M_OPEN\"} 0",
    ] {
        assert!(
            text.lines().any(|served| served == line),
            "{line} is missing"
        );
    }
}

#[test]
fn handles_of_one_name_are_shared() {
    let metrics = Metrics::new();
    metrics.connector("ldap").connections.inc();
    metrics.connector("ldap").connections.inc();
    assert_eq!(metrics.connector("ldap").connections.get(), 2);
}

#[test]
fn values_are_read_at_the_scrape() {
    let metrics = Metrics::new();
    metrics.on_scrape(|metrics| {
        metrics.tunnels.agents_connected.set(7);
    });
    let text = metrics.render(Format::OpenMetrics).expect("text");
    assert!(text.contains("nowconnect_agents_connected 7\n"));
    assert!(text.ends_with("# EOF\n"));
}
