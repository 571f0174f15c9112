//! `nowconnect path`: every hop from the listeners of a connector to its agents.

use std::fmt::Write as _;

use anyhow::anyhow;
use serde_json::Value;

use crate::admin::{Admin, query};
use crate::cells::{age, bytes, counted, list, ms, silent, word};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::status::{certificate, errors};
use crate::table::Table;
use crate::view::View;

const EXAMPLES: &str = "\
Examples:
  nowconnect path ldap
  nowconnect path ldap --from hub-b
  nowconnect path ldap --json | jq '.paths[] | {from, state, ends_at, reason}'

Exit code 1 when no way from any listener is complete; what is broken, and what to do, is said. The
last hop, from the agent to its target, is known to the agent alone.";

/// Show every hop from a connector's listeners to its agents, and where a way ends
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The connector
    connector: String,
    #[command(flatten)]
    view: View,
    /// Only ways from this hub
    #[arg(long, value_name = "HUB")]
    from: Option<String>,
    /// Ways to show from each hub, the best first
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    limit: u16,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if args.connector.is_empty() || !args.connector.chars().all(plain) {
        let error = anyhow!("{:?} is no name of a connector", args.connector);
        return Err(Failure::usage(error));
    }
    let limit = args.limit.to_string();
    let path = query(
        &format!("connectors/{}/path", args.connector),
        &[("limit", Some(&limit)), ("hub", args.from.as_deref())],
    );
    let fetch = async |admin: &Admin| admin.get(&path).await;
    let report = args.view.show(fetch, describe)?;
    let paths = list(&report["paths"]);
    if paths.iter().any(|path| path["state"] == "complete") {
        return Ok(());
    }
    let misspelt = paths.iter().all(|path| path["reason"] == "no_listener");
    let hint = match misspelt {
        true => "; nowconnect status lists the connectors that there are",
        false => "",
    };
    let error = anyhow!("no way to an agent of {} is complete{hint}", args.connector);
    Err(error.into())
}

fn describe(report: &Value, screen: &Screen, width: Option<usize>) -> String {
    let width = width.unwrap_or(usize::MAX);
    let mut text = String::new();
    for path in list(&report["paths"]) {
        let verdict = match (path["state"].as_str(), path["preferred"] == true) {
            (Some("complete"), true) => "complete; a new flow goes this way".to_owned(),
            (Some("complete"), false) => "complete; not the first choice now".to_owned(),
            (state, _) => format!(
                "{} at {}: {}",
                state.unwrap_or("unknown"),
                word(&path["ends_at"]).replace('_', " "),
                word(&path["reason"])
            ),
        };
        let name = format!(
            "{} from {}: {verdict}",
            word(&report["connector"]),
            word(&path["from"])
        );
        let _ = writeln!(text, "{}", screen.heading(&name));
        let mut table = Table::new(&["HOP", "AT", "", "WHAT"]);
        let hops = list(&path["hops"]);
        for hop in hops {
            table.row(cells(hop));
        }
        text += &table.render_within(screen, width);
        let faults = hops.iter().filter(|hop| hop["reason"].is_string());
        for hop in faults {
            let _ = writeln!(
                text,
                "-> {}: {}",
                word(&hop["reason"]),
                word(&hop["detail"])
            );
        }
        text.push('\n');
    }
    if list(&report["paths"]).is_empty() {
        text += "no hub that answered is of this name\n";
    }
    text += &silent(report);
    text
}

fn cells(hop: &Value) -> Vec<String> {
    let kind = word(&hop["kind"]);
    let mark = match (kind.as_str(), hop["ok"].as_bool()) {
        (_, Some(true)) => "ok",
        (_, Some(false)) => "BROKEN",
        ("target", None) => "",
        (_, None) => "?",
    };
    vec![
        kind.replace('_', " "),
        word(&hop["hub"]),
        mark.to_owned(),
        what(&kind, hop),
    ]
}

fn what(kind: &str, hop: &Value) -> String {
    match kind {
        "listener" => {
            let all = list(&hop["listeners"]).iter();
            let all: Vec<_> = all
                .map(|one| format!("{} {}", word(&one["name"]), word(&one["address"])))
                .collect();
            all.join(", ")
        }
        "origin" => origin(hop),
        "mesh_link" => mesh_link(hop),
        "owner" => format!(
            "{}, {}, epoch {}",
            word(&hop["status"]),
            word(&hop["mode"]),
            word(&hop["epoch"])
        ),
        "tunnel" => format!(
            "{} from {}: RTT {}, {}, first window {}, v{}, epoch {}",
            word(&hop["agent_id"]),
            word(&hop["remote"]),
            ms(&hop["rtt_ms"]),
            counted(&hop["flows"], "flow"),
            bytes(&hop["first_window"]),
            word(&hop["protocol"]),
            word(&hop["epoch"])
        ),
        "agent" if hop["agent_id"].is_string() => format!(
            "{} {}, instance {}",
            word(&hop["agent_id"]),
            word(&hop["version"]),
            word(&hop["instance"])
        ),
        "target" if hop["ok"] == true => answering(&hop["probe"]),
        "target" => word(&hop["detail"]),
        _ => String::new(),
    }
}

fn origin(hop: &Value) -> String {
    let counts = &hop["counts"];
    let mut what = format!("{}, {}", word(&hop["status"]), word(&hop["mode"]));
    if counts.is_object() {
        let _ = write!(
            what,
            ", {}, opens {} (p50) {} (p95), turned away {}",
            counted(&counts["flows"], "flow"),
            ms(&counts["open_p50_ms"]),
            ms(&counts["open_p95_ms"]),
            errors(std::slice::from_ref(hop))
        );
    }
    what
}

fn mesh_link(hop: &Value) -> String {
    format!(
        "to {}: {} for {}, RTT {}, {}, {} queued, {} in flight{}",
        word(&hop["to"]),
        word(&hop["state"]),
        age(&hop["since_sec"]),
        ms(&hop["rtt_ms"]),
        counted(&hop["flows"], "flow"),
        counted(&hop["queue_frames"], "frame"),
        bytes(&hop["inflight_bytes"]),
        match &hop["last_error"] {
            Value::Null => String::new(),
            error => format!(", {}", word(error)),
        }
    )
}

/// A target that is well, by its latest probe.
fn answering(probe: &Value) -> String {
    let (kind, took) = (word(&probe["type"]), ms(&probe["latency_ms"]));
    let mut what = format!("answers its {kind} probe in {took}");
    if probe["certificate"].is_object() {
        let _ = write!(
            what,
            ", certificate: {}",
            certificate(&probe["certificate"])
        );
    }
    what
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_broken_way_says_where_and_why() {
        let report = json!({ "connector": "ldap", "hubs": [], "paths": [{
            "from": "hub-a", "state": "broken", "ends_at": "mesh_link", "reason": "link_down", "hops": [
                { "kind": "listener", "hub": "hub-a", "ok": true, "reason": null, "detail": null,
                  "listeners": [{ "name": "l1", "address": "0.0.0.0:389" }] },
                { "kind": "mesh_link", "hub": "hub-a", "ok": false, "reason": "link_down", "detail": "see last_error",
                  "to": "hub-b", "state": "backoff", "last_error": "connection refused" },
            ],
        }]});
        let text = describe(&report, &Screen::plain(), None);
        for part in [
            "ldap from hub-a: broken at mesh link: link_down\n",
            "listener   hub-a  ok      l1 0.0.0.0:389\n",
            "BROKEN  to hub-b: backoff for -",
            "connection refused\n",
            "-> link_down: see last_error\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
