//! `nowconnect agents`: agents, and what may be done with their tunnels.

use anyhow::anyhow;
use serde_json::Value;

use crate::admin::{Access, Admin, query};
use crate::cells::{counted, list, silent, word};
use crate::failure::Failure;
use crate::runtime::block_on;
use crate::screen::Screen;
use crate::status::{agent_table, target_table};
use crate::view::View;

const LIST: &str = "\
Examples:
  nowconnect agents list
  nowconnect agents list --connector ldap
  nowconnect agents list --json | jq '.agents[] | {agent_id, hubs}'";

const MOVE: &str = "\
Examples:
  nowconnect agents move site-1
  nowconnect agents move site-1 --hub hub-a

The agent makes another tunnel, to the next of its hubs, before it leaves this one; its old tunnel
takes no new flows and ends with the last of those that it carries. Nothing is cut. An agent that
knows one hub alone comes back to that.";

const DISCONNECT: &str = "\
Examples:
  nowconnect agents disconnect site-1
  nowconnect agents disconnect site-1 --hub hub-a

The tunnels are closed at once. A living agent comes back within a moment, and its flows go on where
they were. To keep an agent out, withdraw its token.";

const GROUP: &str = "\
Examples:
  nowconnect agents list
  nowconnect agents move site-1
  nowconnect agents disconnect site-1";

/// Show agents, move them to other hubs, close their tunnels
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    List(List),
    Move(Move),
    Disconnect(Disconnect),
}

/// Show all agents and their tunnels
#[derive(Debug, clap::Args)]
#[command(after_help = LIST)]
struct List {
    #[command(flatten)]
    view: View,
    /// Only agents that export this connector
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
}

/// Tell an agent to make its tunnel elsewhere, without cutting anything
#[derive(Debug, clap::Args)]
#[command(after_help = MOVE)]
struct Move {
    #[command(flatten)]
    which: Which,
}

/// Close the tunnels of an agent
#[derive(Debug, clap::Args)]
#[command(after_help = DISCONNECT)]
struct Disconnect {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The agent, by its agent_id
    id: String,
    #[command(flatten)]
    access: Access,
    /// Only its tunnels to this hub
    #[arg(long, value_name = "HUB")]
    hub: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.action {
        Action::List(args) => show(args),
        Action::Move(args) => order(&args.which, "move"),
        Action::Disconnect(args) => order(&args.which, "disconnect"),
    }
}

fn show(args: &List) -> Result<(), Failure> {
    let keys = [
        ("limit", Some("1000")),
        ("connector", args.connector.as_deref()),
    ];
    let fetch = async |admin: &Admin| admin.pages("agents", &keys, None, true).await;
    let describe = |report: &Value, screen: &Screen, _: Option<usize>| {
        let mut text = agent_table(&report["agents"]).render(screen);
        let targets = target_table(&report["agents"], |_| true);
        if !targets.is_empty() {
            text.push('\n');
            text += &targets.render(screen);
        }
        text + &silent(report)
    };
    args.view.show(fetch, describe).map(drop)
}

fn order(which: &Which, action: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if which.id.is_empty() || !which.id.chars().all(plain) {
        return Err(Failure::usage(anyhow!("{:?} is no agent_id", which.id)));
    }
    let admin = Admin::new(&which.access)?;
    let keys = [("hub", which.hub.as_deref())];
    let path = query(&format!("agents/{}/{action}", which.id), &keys);
    let answer = block_on(admin.post(&path))??;
    for hub in list(&answer["hubs"]) {
        let count = |key: &str| hub[key].as_u64().unwrap_or(0);
        let (name, tunnels, untold) = (word(&hub["hub"]), count("tunnels"), count("untold"));
        if tunnels > 0 {
            let tunnels = counted(&tunnels.into(), "tunnel");
            match action {
                "move" => println!("{name}: {} was told to make {tunnels} elsewhere", which.id),
                _ => println!("{name}: closed {tunnels} of {}", which.id),
            }
        }
        if untold > 0 {
            let untold = counted(&untold.into(), "tunnel");
            println!("{name}: {untold} of version 1 cannot be told; use disconnect");
        }
    }
    eprint!("{}", silent(&answer));
    if answer["tunnels"] == 0 {
        return Err(anyhow!("nothing was done").into());
    }
    Ok(())
}
