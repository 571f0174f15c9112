//! `nowconnect status`: what a running hub does, as tables or JSON.

mod screen;
mod table;

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::admin::{Access, Admin};
use crate::failure::Failure;
use crate::runtime::block_on;
use screen::Screen;
use table::Table;

/// Between two looks with `--watch`.
const PERIOD: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  nowconnect status
  nowconnect status --watch
  nowconnect status --json | jq '.agents[].agent_id'
  nowconnect status --url https://hub-a.example.com:8766 --token-file /run/secrets/admin.token

Tables are cut to the width of the terminal; NO_COLOR turns colors off.";

/// Show what a running hub does: agents, connectors, flows
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
    /// Print JSON; with --watch one document per line
    #[arg(long)]
    json: bool,
    /// Look again every 2 seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let admin = Admin::new(&args.access)?;
    let screen = Screen::new();
    Ok(block_on(async {
        loop {
            let report = fetch(&admin).await;
            match (report, args.watch) {
                (Ok(report), _) => show(args, &screen, &report)?,
                (Err(error), false) => return Err(error),
                // A hub that restarts comes back.
                (Err(error), true) => eprintln!("error: {error:#}"),
            }
            if !args.watch {
                return anyhow::Ok(());
            }
            tokio::time::sleep(PERIOD).await;
        }
    })??)
}

async fn fetch(admin: &Admin) -> anyhow::Result<Value> {
    let mut status = admin.get("status?scope=hub").await?["hubs"][0].take();
    status["replica_id"] = status["hub"].take();
    status["connectors"] = admin.get("connectors?scope=hub").await?["connectors"].take();
    let agents = admin.get("agents?scope=hub").await?;
    let mesh = admin.get("mesh?scope=hub").await?["hubs"][0].take();
    Ok(json!({ "status": status, "agents": agents["agents"], "mesh": mesh }))
}

fn show(args: &Args, screen: &Screen, report: &Value) -> std::io::Result<()> {
    let text = match (args.json, args.watch) {
        (true, true) => format!("{report}\n"),
        (true, false) => format!("{report:#}\n"),
        (false, _) => tables(report, screen),
    };
    let mut stdout = std::io::stdout().lock();
    if args.watch && !args.json {
        stdout.write_all(screen.home().as_bytes())?;
    }
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn tables(report: &Value, screen: &Screen) -> String {
    let (status, mut text) = (&report["status"], String::new());
    let mut hub = Table::new(&[
        "HUB", "VERSION", "STATUS", "HA", "UPTIME", "AGENTS", "FLOWS",
    ]);
    hub.row(vec![
        word(&status["replica_id"]),
        word(&status["version"]),
        word(&status["status"]),
        word(&status["mode"]),
        age(&status["uptime_sec"]),
        word(&status["agents"]["total"]),
        word(&status["flows"]["total"]),
    ]);
    text += &hub.render(screen);
    for (what, key) in [
        ("degraded", "reasons"),
        ("waiting for a restart", "needs_restart"),
    ] {
        let words = words(&status[key]);
        if !words.is_empty() {
            let _ = writeln!(text, "{what}: {words}");
        }
    }
    for table in [
        agents(report),
        connectors(status),
        listeners(status),
        links(report),
        routes(report),
    ] {
        if !table.is_empty() {
            text.push('\n');
            text += &table.render(screen);
        }
    }
    let flows = &status["flows"];
    let _ = writeln!(
        text,
        "\nflows: {} open, {} opening, {} waiting for their tunnel",
        word(&flows["open"]),
        word(&flows["opening"]),
        word(&flows["waiting"])
    );
    text
}

fn agents(report: &Value) -> Table {
    let mut table = Table::new(&[
        "AGENT",
        "VERSION",
        "EPOCH",
        "REMOTE",
        "PROTOCOL",
        "CONNECTED",
        "RTT",
        "FLOWS",
        "CONNECTORS",
    ]);
    for agent in list(&report["agents"]) {
        for tunnel in list(&agent["tunnels"]) {
            let rtt = tunnel["rtt_ms"].as_f64();
            table.row(vec![
                word(&agent["agent_id"]),
                word(&agent["version"]),
                word(&agent["epoch"]),
                word(&tunnel["remote"]),
                format!("v{}", word(&tunnel["protocol"])),
                age(&tunnel["connected_sec"]),
                rtt.map_or("-".into(), |rtt| format!("{rtt:.1} ms")),
                word(&tunnel["flows"]),
                words(&agent["connectors"]),
            ]);
        }
    }
    table
}

fn connectors(status: &Value) -> Table {
    let mut table = Table::new(&["CONNECTOR", "LISTENERS", "AGENTS", "FLOWS"]);
    for connector in list(&status["connectors"]) {
        let keys = ["name", "listeners", "agents", "flows"];
        table.row(keys.iter().map(|key| word(&connector[*key])).collect());
    }
    table
}

fn listeners(status: &Value) -> Table {
    let mut table = Table::new(&["LISTENER", "ADDRESS", "CONNECTOR"]);
    for listener in list(&status["listeners"]) {
        let keys = ["name", "address", "connector"];
        table.row(keys.iter().map(|key| word(&listener[*key])).collect());
    }
    table
}

fn links(report: &Value) -> Table {
    let columns = [
        "PEER",
        "HUB",
        "DIRECTION",
        "STATE",
        "SINCE",
        "RTT MS",
        "FLOWS",
    ];
    let mut table = Table::new(&columns);
    for link in list(&report["mesh"]["links"]) {
        let mut row: Vec<_> = ["peer", "hub", "direction", "state"]
            .iter()
            .map(|key| word(&link[*key]))
            .collect();
        row.extend([
            age(&link["since_sec"]),
            word(&link["rtt_ms"]),
            word(&link["flows"]),
        ]);
        table.row(row);
    }
    table
}

fn routes(report: &Value) -> Table {
    let mut table = Table::new(&["AGENT ELSEWHERE", "HUB", "EPOCH", "CONNECTORS", "FLOWS"]);
    for route in list(&report["mesh"]["routes"]) {
        table.row(vec![
            word(&route["agent_id"]),
            word(&route["hub"]),
            word(&route["epoch"]),
            words(&route["connectors"]),
            word(&route["flows"]),
        ]);
    }
    table
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as text that cannot steer the terminal: some of it comes from agents.
fn word(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.replace(char::is_control, "?")
}

fn words(value: &Value) -> String {
    let words: Vec<_> = list(value).iter().map(word).collect();
    words.join(", ")
}

/// Seconds in the two largest units that say something.
fn age(seconds: &Value) -> String {
    let Some(all) = seconds.as_u64() else {
        return "-".into();
    };
    let (days, hours, minutes) = (all / 86_400, all / 3600 % 24, all / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{all}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", all % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (3660, "1h1m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(age(&seconds.into()), text);
        }
    }

    #[test]
    fn what_an_agent_says_does_not_steer_the_terminal() {
        assert_eq!(word(&"a\u{1b}[2Jb".into()), "a?[2Jb");
        assert_eq!(words(&json!(["a", "b\n"])), "a, b?");
    }

    #[test]
    fn all_tables_are_there() {
        let report = json!({
            "status": {
                "replica_id": "hub-a", "status": "ready", "mode": "off", "uptime_sec": 61,
                "needs_restart": ["tunnel.port"],
                "connectors": [{ "name": "ldap", "listeners": 1, "agents": 1, "flows": 3 }],
                "flows": { "total": 3, "open": 3, "opening": 0, "waiting": 0 },
            },
            "agents": [{
                "agent_id": "site-1", "connectors": ["ldap", "pg"],
                "tunnels": [{ "remote": "192.0.2.1", "protocol": 2, "rtt_ms": 1.25 }],
            }],
        });
        let text = tables(&report, &Screen::plain());
        for part in [
            "hub-a",
            "1m1s",
            "tunnel.port",
            "site-1",
            "1.2 ms",
            "ldap, pg",
            "3 open",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("LISTENER  "), "no empty tables:\n{text}");
    }
}
