//! `nowconnect flows`: the connections of clients, page by page.

use serde_json::Value;

use crate::admin::Admin;
use crate::cells::{age_ms, bytes, list, row, silent, word};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::view::View;

const EXAMPLES: &str = "\
Examples:
  nowconnect flows
  nowconnect flows --connector ldap --state waiting
  nowconnect flows --client 192.0.2.10 --all
  nowconnect flows --agent site-1 --json | jq -r '.flows[].cid'
  nowconnect flows --cid 0193 --watch

The oldest come first. HUB is where the client is, OWNER where the agent's tunnel ends; a flow that
is waiting has lost its path and looks for another.";

/// Show flows: client connections and where they lead
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    view: View,
    /// Only flows of this connector
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// Only flows held by this agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Only flows of this client: an address, with or without a port
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// Only flows of this listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Only flows whose client or whose agent is at this hub
    #[arg(long, value_name = "ID")]
    hub: Option<String>,
    /// Only flows whose name begins so
    #[arg(long, value_name = "START")]
    cid: Option<String>,
    /// Only flows in this state
    #[arg(long, value_parser = ["opening", "open", "waiting"])]
    state: Option<String>,
    /// Flows to show
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Begin behind this flow, as the page before says
    #[arg(long, value_name = "CID")]
    cursor: Option<String>,
    /// Show all that match, however many
    #[arg(long, conflicts_with = "watch")]
    all: bool,
    /// Show flows of clients of the asked hub alone
    #[arg(long)]
    this_hub: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let fetch = async |admin: &Admin| fetch(admin, args).await;
    args.view.show(fetch, tables).map(drop)
}

async fn fetch(admin: &Admin, args: &Args) -> anyhow::Result<Value> {
    let limit = if args.all { 1000 } else { args.limit }.to_string();
    let keys = [
        ("connector", args.connector.as_deref()),
        ("agent", args.agent.as_deref()),
        ("client", args.client.as_deref()),
        ("listener", args.listener.as_deref()),
        ("hub", args.hub.as_deref()),
        ("cid", args.cid.as_deref()),
        ("state", args.state.as_deref()),
        ("limit", Some(&*limit)),
        ("scope", args.this_hub.then_some("hub")),
    ];
    let cursor = args.cursor.clone();
    admin.pages("flows", &keys, cursor, args.all).await
}

fn tables(report: &Value, screen: &Screen, width: Option<usize>) -> String {
    let width = width.unwrap_or(usize::MAX);
    let mut table = Table::new(&[
        "CLIENT",
        "CONNECTOR",
        "STATE",
        "AGE",
        "IDLE",
        "C2A",
        "A2C",
        "AGENT",
        "HUB",
        "OWNER",
        "CID",
    ]);
    for flow in list(&report["flows"]) {
        let mut cells = row(flow, &["client", "connector", "state"]);
        cells.extend([
            age_ms(&flow["duration_ms"]),
            age_ms(&flow["idle_ms"]),
            bytes(&flow["bytes_c2a"]),
            bytes(&flow["bytes_a2c"]),
        ]);
        cells.extend(row(flow, &["agent_id", "hub", "owner", "cid"]));
        table.row(cells);
    }
    let mut text = match table.is_empty() {
        true => "no flow matches\n".to_owned(),
        false => table.render_within(screen, width),
    };
    text += &silent(report);
    if let Some(next) = report["next"].as_str() {
        let shown = list(&report["flows"]).len();
        let next = word(&next.into());
        text += &format!(
            "\n{shown} of {} in all, and there are more: --all, or --cursor {next}\n",
            word(&report["total"])
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_is_cut_to_the_screen_and_says_what_comes_next() {
        let report = json!({
            "hubs": [{ "hub": "hub-b", "answered": false, "reason": "timeout", "detail": "late" }],
            "flows": [{
                "client": "192.0.2.1:50000", "connector": "ldap", "state": "open", "duration_ms": 61_000,
                "idle_ms": 7, "bytes_c2a": 2048, "bytes_a2c": 5, "agent_id": "site-1", "hub": "hub-a",
                "owner": "hub-a", "cid": "0193c0de-0000-7000-8000-000000000001",
            }],
            "next": "0193c0de-0000-7000-8000-000000000001", "total": 7,
        });
        let text = tables(&report, &Screen::plain(), Some(80));
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[..2].iter().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(
            lines[1].contains('…') && lines[1].contains("1m1s"),
            "{text}"
        );
        assert_eq!(lines[2], "no answer from hub-b (timeout): late");
        assert!(
            text.ends_with("--cursor 0193c0de-0000-7000-8000-000000000001\n"),
            "{text}"
        );
        let text = tables(&json!({ "flows": [] }), &Screen::plain(), None);
        assert_eq!(text, "no flow matches\n");
    }
}
