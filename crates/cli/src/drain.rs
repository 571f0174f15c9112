//! `nowconnect drain`: lets a running hub end in good order.

use std::time::Duration;

use anyhow::{anyhow, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::admin::{Access, Admin};
use crate::cells::counted;
use crate::failure::Failure;
use crate::runtime::block_on;

/// Between looks at a hub that drains.
const LOOK: Duration = Duration::from_millis(500);
/// Longest drain that is waited for.
const MOST: Duration = Duration::from_secs(7 * 24 * 3600);
/// What a hub may take beyond `limits.drain_timeout_sec`.
const MORE: Duration = Duration::from_secs(15);

const EXAMPLES: &str = "\
Examples:
  nowconnect drain
  nowconnect drain --wait
  nowconnect drain --url http://127.0.0.1:8766
  nowconnect drain --url https://hub-a.example.com:8766 --token-file /run/secrets/admin.token

The hub answers at once and then drains: /readyz turns 503, agents are sent to other hubs, flows get
limits.drain_timeout_sec to end, and the process ends with exit code 0. With --wait the command
ends when the hub has, and shows what is left meanwhile; exit code 1 when that takes too long.";

/// Let a running hub finish its flows and stop
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
    /// Wait until the hub has ended
    #[arg(long)]
    wait: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let admin = Admin::new(&args.access)?;
    block_on(async {
        let answer = admin.post("drain").await?;
        println!(
            "{}: draining; {} to move, {} left with up to {} s to end",
            admin.url(),
            counted(&answer["agents"], "agent"),
            counted(&answer["flows"], "flow"),
            answer["drain_timeout_sec"]
        );
        match args.wait {
            true => wait(&admin, &answer).await,
            false => anyhow::Ok(()),
        }
    })??;
    Ok(())
}

async fn wait(admin: &Admin, answer: &Value) -> anyhow::Result<()> {
    let seconds = answer["drain_timeout_sec"].as_u64().unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(seconds).min(MOST) + MORE;
    let mut shown = (answer["agents"].clone(), answer["flows"].clone());
    while Instant::now() < deadline {
        sleep(LOOK).await;
        let mut report = match admin.get("status?scope=hub").await {
            Ok(report) => report,
            Err(_) if !admin.is_reachable().await => {
                println!("{}: ended", admin.url());
                return Ok(());
            }
            // It is there, and too busy to answer.
            Err(_) => continue,
        };
        let hub = report["hubs"][0].take();
        if hub["status"] != "draining" {
            bail!("{} runs again: somebody has restarted it", admin.url());
        }
        let now = (
            hub["agents"]["total"].clone(),
            hub["flows"]["total"].clone(),
        );
        if now != shown {
            println!(
                "{}: {} and {} are left",
                admin.url(),
                counted(&now.0, "agent"),
                counted(&now.1, "flow")
            );
            shown = now;
        }
    }
    Err(anyhow!(
        "{} has not ended in time; see its log",
        admin.url()
    ))
}
