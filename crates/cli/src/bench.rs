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

/// Put load on a service and measure latencies
#[derive(Debug, clap::Args)]
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
