//! The metrics that are served against the ones that are documented.
#![allow(clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;

use nowconnect_agent::metrics::Metrics;
use nowconnect_link::metrics::Format;
use nowconnect_proto::Reason;

fn served() -> String {
    let metrics = Metrics::new();
    metrics.connector("ldap");
    metrics.refused("ldap", Reason::Limit);
    metrics.connect_failures.with(["dns"]);
    metrics.reconnects.with(["site-1", "closed"]);
    metrics.uptime.with(["site-1"]);
    metrics.cert_expiry.with(["client"]);
    metrics.protocol_errors.with(["tunnel", "malformed"]);
    metrics.render(Format::Prometheus).expect("text")
}

#[test]
fn documentation_and_metrics_agree() {
    let text = served();
    let shapes = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeMap<_, _> = shapes.filter_map(|rest| rest.split_once(' ')).collect();
    let docs = include_str!("../../../docs/agent.md");
    let rows = docs
        .lines()
        .filter(|line| line.starts_with("| `nowconnect_"));
    let documented: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            for label in cells[3]
                .split(',')
                .map(str::trim)
                .filter(|label| !label.is_empty())
            {
                let name = cells[1].trim_matches('`');
                let has =
                    |line: &&str| line.starts_with(name) && line.contains(&format!("{label}=\""));
                assert!(
                    text.lines().any(|line| has(&line)),
                    "{name} has no label {label}"
                );
            }
            (cells[1].trim_matches('`'), cells[2])
        })
        .collect();
    assert_eq!(served, documented);
}

#[test]
fn every_metric_has_help() {
    let text = served();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().expect("a name");
        assert!(
            text.contains(&format!("# HELP {name} ")),
            "{name} has no help"
        );
    }
}
