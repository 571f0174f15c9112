//! `nowconnect status`: what the hubs of a cluster do, as tables or JSON.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::admin::Admin;
use crate::cells::{age, bytes, counted, list, ms, row, silent, word, words};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::view::View;

const EXAMPLES: &str = "\
Examples:
  nowconnect status
  nowconnect status --watch
  nowconnect status --json | jq '.agents[].agent_id'
  nowconnect status --url https://hub-a.example.com:8766 --token-file /run/secrets/admin.token

Any hub shows all of them; --this-hub leaves the others alone. A hub that does not answer within a
second is named. Cells are cut to the width of the terminal (…); NO_COLOR turns attributes off.";

/// Show what the hubs do: agents, connectors, listeners, links, flows
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    view: View,
    /// Show the asked hub alone
    #[arg(long)]
    this_hub: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let scope = if args.this_hub { "hub" } else { "cluster" };
    let fetch = async |admin: &Admin| fetch(admin, scope).await;
    args.view.show(fetch, tables).map(drop)
}

async fn fetch(admin: &Admin, scope: &str) -> anyhow::Result<Value> {
    let ask = async |path: &str| admin.get(&format!("{path}?scope={scope}")).await;
    let (status, mut agents, mut connectors, mesh) =
        tokio::try_join!(ask("status"), ask("agents"), ask("connectors"), ask("mesh"))?;
    Ok(json!({
        "status": status,
        "agents": agents["agents"].take(),
        "more_agents": !agents["next"].is_null(),
        "connectors": connectors["connectors"].take(),
        "mesh": mesh["hubs"],
    }))
}

fn tables(report: &Value, screen: &Screen, width: Option<usize>) -> String {
    let status = &report["status"];
    let width = width.unwrap_or(usize::MAX);
    let mut text = hubs(report).render_within(screen, width);
    text += &silent(status);
    for hub in list(&status["hubs"]) {
        for (what, key) in [
            ("is degraded", "reasons"),
            ("waits for a restart", "needs_restart"),
        ] {
            let words = words(&hub[key]);
            if !words.is_empty() {
                let _ = writeln!(text, "{} {what}: {words}", word(&hub["hub"]));
            }
        }
    }
    for table in [
        agents(report),
        connectors(report),
        target_table(&report["agents"], |probe| probe["state"] != "up"),
        listeners(status),
        links(report),
    ] {
        if !table.is_empty() {
            text.push('\n');
            text += &table.render_within(screen, width);
        }
    }
    if report["more_agents"] == true {
        text += "and more agents: nowconnect agents list\n";
    }
    let flows = &status["flows"];
    let _ = writeln!(
        text,
        "\nflows: {} open, {} opening, {} waiting for their path; {}",
        word(&flows["open"]),
        word(&flows["opening"]),
        word(&flows["waiting"]),
        counted(&status["agents"]["total"], "agent")
    );
    text
}

fn hubs(report: &Value) -> Table {
    let mut table = Table::new(&[
        "HUB",
        "VERSION",
        "STATUS",
        "HA",
        "REGISTRY",
        "UPTIME",
        "AGENTS",
        "FLOWS",
        "FORWARDED",
    ]);
    for hub in list(&report["status"]["hubs"]) {
        if hub["answered"] == false {
            let name = if hub["hub"].is_null() {
                &hub["peer"]
            } else {
                &hub["hub"]
            };
            let mut cells = vec![word(name), "-".into(), "no answer".into()];
            cells.resize(9, "-".into());
            table.row(cells);
            continue;
        }
        let of_mesh = list(&report["mesh"])
            .iter()
            .find(|one| one["hub"] == hub["hub"]);
        let registry = of_mesh.map(|one| word(&one["registry"]["state"]));
        let mut cells = row(hub, &["hub", "version", "status", "mode"]);
        cells.extend([
            registry.unwrap_or("-".into()),
            age(&hub["uptime_sec"]),
            word(&hub["agents"]["total"]),
            word(&hub["flows"]["total"]),
            word(&hub["flows"]["forwarded"]),
        ]);
        table.row(cells);
    }
    table
}

fn agents(report: &Value) -> Table {
    agent_table(&report["agents"])
}

/// Agents, a row for each tunnel.
pub(crate) fn agent_table(agents: &Value) -> Table {
    let mut table = Table::new(&[
        "AGENT",
        "HUB",
        "RTT",
        "FLOWS",
        "SINCE",
        "REMOTE",
        "CONNECTORS",
        "EPOCH",
        "PROTO",
        "VERSION",
    ]);
    for agent in list(agents) {
        for tunnel in list(&agent["tunnels"]) {
            let leaves = tunnel["takes_flows"] == false;
            table.row(vec![
                word(&agent["agent_id"]),
                word(&tunnel["hub"]),
                ms(&tunnel["rtt_ms"]),
                word(&tunnel["flows"]),
                age(&tunnel["connected_sec"]) + if leaves { " leaving" } else { "" },
                word(&tunnel["remote"]),
                words(&agent["connectors"]),
                word(&tunnel["epoch"]),
                format!("v{}", word(&tunnel["protocol"])),
                word(&agent["version"]),
            ]);
        }
    }
    table
}

fn connectors(report: &Value) -> Table {
    let mut table = Table::new(&[
        "CONNECTOR",
        "LISTENERS",
        "TUNNELS",
        "UP",
        "FLOWS",
        "OPEN P50",
        "OPEN P95",
        "TURNED AWAY",
    ]);
    for connector in list(&report["connectors"]) {
        let mut cells = row(connector, &["name", "listeners", "tunnels"]);
        cells.extend([targets_up(&connector["probes"]), word(&connector["flows"])]);
        let hubs = list(&connector["hubs"]);
        // Percentiles of hubs cannot be joined: the slowest counts.
        let slowest = |key: &str| {
            let times = hubs.iter().filter_map(|hub| hub["counts"][key].as_f64());
            ms(&json!(times.reduce(f64::max)))
        };
        cells.extend([slowest("open_p50_ms"), slowest("open_p95_ms"), errors(hubs)]);
        table.row(cells);
    }
    table
}

/// How many of the targets that are probed are up.
fn targets_up(counts: &Value) -> String {
    let count = |state: &str| counts[state].as_u64().unwrap_or(0);
    let (up, others) = (count("up"), count("down").saturating_add(count("unknown")));
    match up.saturating_add(others) {
        0 => "-".into(),
        all => format!("{up}/{all}"),
    }
}

/// Targets that are probed, or those alone that `wanted` names.
pub(crate) fn target_table(agents: &Value, wanted: impl Fn(&Value) -> bool) -> Table {
    let mut table = Table::new(&[
        "TARGET OF",
        "AGENT",
        "HUB",
        "PROBE",
        "STATE",
        "SINCE",
        "LATENCY",
        "CERTIFICATE",
        "WHY",
    ]);
    for agent in list(agents) {
        for probe in list(&agent["probes"]).iter().filter(|probe| wanted(probe)) {
            table.row(vec![
                word(&probe["connector"]),
                word(&agent["agent_id"]),
                word(&probe["hub"]),
                word(&probe["type"]),
                word(&probe["state"]),
                age(&probe["since_sec"]),
                ms(&probe["latency_ms"]),
                certificate(&probe["certificate"]),
                word(&probe["detail"]),
            ]);
        }
    }
    table
}

/// How long a target's certificate is still good, and what is wrong with it.
pub(crate) fn certificate(shown: &Value) -> String {
    let Some(ends) = shown["expires_at"].as_u64() else {
        return "-".into();
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut text = match ends.checked_sub(now.unwrap_or_default().as_secs()) {
        Some(left) => age(&left.into()),
        None => "expired".into(),
    };
    if !matches!(shown["judged"].as_str(), Some("trusted" | "not_judged")) {
        let _ = write!(text, ", {}", word(&shown["judged"]));
    }
    text
}

/// How many clients of all hubs were turned away, by reason.
pub(crate) fn errors(hubs: &[Value]) -> String {
    let mut sums = std::collections::BTreeMap::<&str, u64>::new();
    for hub in hubs {
        for (reason, count) in hub["counts"]["errors"].as_object().into_iter().flatten() {
            let sum = sums.entry(reason).or_default();
            *sum = sum.saturating_add(count.as_u64().unwrap_or(0));
        }
    }
    let words: Vec<_> = sums
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    match words.is_empty() {
        true => "-".into(),
        false => word(&words.join(", ").into()),
    }
}

fn listeners(status: &Value) -> Table {
    let mut table = Table::new(&["LISTENER", "HUB", "ADDRESS", "CONNECTOR"]);
    for hub in list(&status["hubs"]) {
        for listener in list(&hub["listeners"]) {
            let mut cells = row(listener, &["name", "address", "connector"]);
            cells.insert(1, word(&hub["hub"]));
            table.row(cells);
        }
    }
    table
}

/// Links as the hub sees them that dialed; those of hubs that do not answer as the other one does.
fn links(report: &Value) -> Table {
    let mut table = Table::new(&[
        "LINK FROM",
        "TO",
        "STATE",
        "SINCE",
        "RTT",
        "FLOWS",
        "QUEUED",
        "IN FLIGHT",
        "LAST ERROR",
    ]);
    let hubs = list(&report["mesh"]);
    let answers = |name: &Value| {
        hubs.iter()
            .any(|hub| hub["hub"] == *name && hub["answered"] == true)
    };
    for hub in hubs {
        for link in list(&hub["links"]) {
            let peer = if link["hub"].is_null() {
                &link["peer"]
            } else {
                &link["hub"]
            };
            let ends = match link["direction"] == "outbound" {
                true => [&hub["hub"], peer],
                false if answers(peer) || link["state"] == "closed" => continue,
                false => [peer, &hub["hub"]],
            };
            let mut cells: Vec<_> = ends.iter().map(|end| word(end)).collect();
            cells.extend([
                word(&link["state"]),
                age(&link["since_sec"]),
                ms(&link["rtt_ms"]),
                word(&link["flows"]),
                word(&link["queue_frames"]),
                bytes(&link["inflight_bytes"]),
                word(&link["last_error"]),
            ]);
            table.row(cells);
        }
    }
    table
}

#[cfg(test)]
mod tests;
