//! `nowconnect reload`: lets a running hub read its configuration again.

use crate::admin::{Access, Admin};
use crate::failure::Failure;
use crate::runtime::block_on;

const EXAMPLES: &str = "\
Examples:
  nowconnect reload
  nowconnect reload --url http://127.0.0.1:8766
  nowconnect reload --url https://hub-a.example.com:8766 --token-file /run/secrets/admin.token

A configuration is applied whole or not at all: when it is invalid, nothing changes, its problems
are printed and the exit code is 1.";

/// Let a running hub read its configuration again
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let admin = Admin::new(&args.access)?;
    let answer = block_on(admin.post("reload"))??;
    println!("{}: the configuration is in effect", admin.url());
    let waiting: Vec<_> = answer["needs_restart"]
        .as_array()
        .map(|keys| keys.iter().filter_map(|key| key.as_str()).collect())
        .unwrap_or_default();
    if !waiting.is_empty() {
        println!("waiting for a restart: {}", waiting.join(", "));
    }
    Ok(())
}
