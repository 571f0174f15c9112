//! `nowconnect bench`: load, latencies, and a gate for pipelines.

use clap::Subcommand;

use crate::failure::Failure;

mod ber;
mod directory;
mod filter;
mod histogram;
mod ldap;
mod load;
mod options;
mod report;
mod slo;
mod tcp;

const GROUP: &str = "\
Examples:
  nowconnect bench ldap --port 389 --base-dn dc=example,dc=org --workload 10x2
  nowconnect bench tcp --port 7000 --mode echo --concurrency 32 --slo p99=20,errors=0";

/// Put load on a service and measure latencies
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ldap(Box<directory::Args>),
    Tcp(tcp::Args),
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Ldap(args) => directory::run(args),
        Command::Tcp(args) => tcp::run(args),
    }
}
