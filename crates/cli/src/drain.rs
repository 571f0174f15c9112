//! `nowconnect drain`: lets a running hub end in good order.

use crate::admin::{Access, Admin};
use crate::failure::Failure;
use crate::runtime::block_on;

const EXAMPLES: &str = "\
Examples:
  nowconnect drain
  nowconnect drain --url http://127.0.0.1:8766
  nowconnect drain --url https://hub-a.example.com:8766 --token-file /run/secrets/admin.token

The hub answers at once and then drains: /readyz turns 503, agents are sent to other hubs, flows get
limits.drain_timeout_sec to end, and the process ends with exit code 0.";

/// Let a running hub finish its flows and stop
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let admin = Admin::new(&args.access)?;
    let answer = block_on(admin.post("drain"))??;
    println!(
        "{}: draining; {} agents move, {} flows have up to {} s to end",
        admin.url(),
        answer["agents"],
        answer["flows"],
        answer["drain_timeout_sec"]
    );
    Ok(())
}
