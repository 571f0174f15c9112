//! `nowconnect policy`: why a client is let in, or is not.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

use anyhow::anyhow;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::admin::{Access, Admin};
use crate::cells::{list, word};
use crate::failure::Failure;
use crate::runtime::block_on;

const GROUP: &str = "\
Examples:
  nowconnect policy explain --connector ldap --client 10.0.0.5";

/// Ask a running hub about its decisions
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Explain(Explain),
}

const EXAMPLES: &str = "\
Examples:
  nowconnect policy explain --connector ldap --client 10.0.0.5
  nowconnect policy explain --connector ldap --client 10.0.0.5 --listener l1 --agent site-1
  nowconnect policy explain --connector ldap --client 10.0.0.5 --json | jq .verdict

The hub looks at what it would look at for a client, in the same order, and asks the policy decision
point if there is one. Nothing is opened, counted or remembered. Exit code 0 if the client would be
let in now, 1 if not.";

/// Explain what would become of a client now, step by step
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct Explain {
    #[command(flatten)]
    access: Access,
    /// The connector that the client wants
    #[arg(long, value_name = "NAME")]
    connector: String,
    /// The client's address
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// The listener that it comes through [default: the first that would let it in]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Look at this agent alone
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Command::Explain(explain) = &args.command;
    let admin = Admin::new(&explain.access)?;
    let mut case = json!({ "connector": explain.connector, "client": explain.client });
    for (key, value) in [("listener", &explain.listener), ("agent", &explain.agent)] {
        if let Some(value) = value {
            case[key] = value.as_str().into();
        }
    }
    let report = block_on(admin.post_json("policy/explain", &case))??;
    let text = match explain.json {
        true => format!("{report:#}\n"),
        false => describe(&report),
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    match report["verdict"].as_str() {
        Some("allowed") => Ok(()),
        _ => Err(anyhow!(
            "{} would be turned away: {}",
            explain.client,
            word(&report["reason"])
        )
        .into()),
    }
}

fn describe(report: &Value) -> String {
    let mut text = String::new();
    for step in list(&report["steps"]) {
        let (result, name) = (word(&step["result"]), word(&step["step"]));
        let _ = writeln!(text, "{result:<8}{name:<10}{}", word(&step["detail"]));
        let lines = match name.as_str() {
            "agents" => list(&step["more"]).iter().map(candidate).collect(),
            "pdp" => list(&step["more"]).iter().flat_map(asked).collect(),
            _ => Vec::new(),
        };
        for line in lines {
            let _ = writeln!(text, "{:18}{line}", "");
        }
    }
    let verdict = word(&report["verdict"]);
    let _ = match (&report["agent_id"], &report["hub"]) {
        (Value::Null, _) => writeln!(text, "{verdict}: {}", word(&report["reason"])),
        (agent, Value::Null) => writeln!(text, "{verdict}: to {}", word(agent)),
        (agent, hub) => writeln!(text, "{verdict}: to {} over {}", word(agent), word(hub)),
    };
    text
}

fn candidate(one: &Value) -> String {
    let place = match &one["hub"] {
        Value::Null => "here".to_owned(),
        hub => format!("at {}", word(hub)),
    };
    let why = match &one["why_not"] {
        Value::Null => "comes first".to_owned(),
        why => word(why),
    };
    let (agent, epoch, flows) = (
        word(&one["agent_id"]),
        word(&one["epoch"]),
        word(&one["flows"]),
    );
    format!("{agent} {place}, epoch {epoch}, {flows} flows: {why}")
}

fn asked(one: &Value) -> Vec<String> {
    let mut lines = vec![
        format!("POST {} ({})", word(&one["url"]), word(&one["format"])),
        format!("asked     {}", word(&one["question"])),
        format!(
            "answered  {} in {} ms of {}: {}",
            word(&one["answered"]),
            word(&one["took_ms"]),
            word(&one["deadline_ms"]),
            match &one["error"] {
                Value::Null => word(&one["answer"]),
                error => word(error),
            }
        ),
    ];
    if let Some(left) = one["cached_ms_left"].as_u64() {
        lines.push(format!("an earlier allow counts for {left} ms more"));
    }
    let fail_open = word(&one["fail_open"]);
    let ttl = word(&one["cache_ttl_sec"]);
    lines.push(format!(
        "fail_open {fail_open}, allows remembered for {ttl} s"
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_told() {
        let report = json!({
            "verdict": "denied", "reason": "pdp_denied", "agent_id": null, "hub": null,
            "steps": [
                { "step": "listener", "result": "ok", "detail": "l1 leads to ldap", "more": {} },
                { "step": "agents", "result": "ok", "detail": "1 way", "more": [
                    { "agent_id": "site-1", "hub": "hub-b", "epoch": 7, "flows": 3, "why_not": null },
                ] },
                { "step": "pdp", "result": "no", "detail": "1 agents are denied", "more": [{
                    "url": "http://pdp/", "format": "simple", "question": { "action": "connect" },
                    "answered": "deny", "took_ms": 1.5, "deadline_ms": 500, "fail_open": false,
                    "answer": { "allow": false }, "cache_ttl_sec": 5, "cached_ms_left": null,
                }] },
            ],
        });
        let text = describe(&report);
        for part in [
            "ok      listener  l1 leads to ldap",
            "site-1 at hub-b, epoch 7, 3 flows: comes first",
            "POST http://pdp/ (simple)",
            "deny in 1.5 ms of 500: {\"allow\":false}",
            "no      pdp",
            "denied: pdp_denied",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }
}
