//! The `nowconnect` binary: arguments in, exit code out; one file per subcommand.

mod admin;
mod agent;
mod agents;
mod audit;
mod bench;
mod cells;
mod certs;
mod check;
mod completions;
mod dev;
mod doctor;
mod drain;
mod duration;
mod failure;
mod flows;
mod health;
mod hub;
mod logging;
mod man;
mod path;
mod platform;
mod policy;
mod private_file;
mod reload;
mod replace_file;
mod runtime;
mod screen;
mod service;
mod status;
mod table;
mod timestamp;
mod token;
mod traces;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// musl's own allocator is many times slower when several threads allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ABOUT: &str = "Reach TCP services inside a private network from the cloud, \
    with no inbound firewall port";

const AFTER_HELP: &str = "\
Examples:
  nowconnect dev --map 1389=dc1.corp.local:389    try it out, nothing else needed
  nowconnect hub --config cloud.yaml              in the cloud
  nowconnect agent --config premise.yaml          on the premises
  nowconnect doctor agent --config premise.yaml   what is in the way?

Exit codes: 0 success, 1 failure at run time, 2 wrong usage or configuration.";

/// `nowconnect`
#[derive(Debug, Parser)]
#[command(name = "nowconnect", version, about = ABOUT, after_help = AFTER_HELP)]
#[command(propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(visible_alias = "cloud")]
    Hub(hub::Args),
    #[command(visible_alias = "premise")]
    Agent(agent::Args),
    Dev(dev::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Status(status::Args),
    Agents(agents::Args),
    Flows(flows::Args),
    Path(path::Args),
    Health(health::Args),
    Reload(reload::Args),
    Drain(drain::Args),
    Policy(policy::Args),
    Audit(audit::Args),
    Bench(bench::Args),
    Token(token::Args),
    Certs(certs::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[cfg(windows)]
    Service(platform::service::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Hub(args) => hub::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => {
            return doctor::run(args).unwrap_or_else(Failure::report);
        }
        Command::Status(args) => status::run(&args),
        Command::Agents(args) => agents::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Path(args) => path::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Audit(args) => return audit::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Token(args) => token::run(args),
        Command::Certs(args) => certs::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        #[cfg(windows)]
        Command::Service(args) => platform::service::run(args),
    };
    result.map_or_else(Failure::report, |()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    /// Whoever types `--help` finds something to copy.
    #[test]
    fn every_command_shows_examples() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let after = command.get_after_help().map(ToString::to_string);
            let after = after.unwrap_or_default();
            assert!(after.contains("Examples:"), "{path} --help has no examples");
            assert!(command.get_about().is_some(), "{path} is not described");
            for line in after.lines() {
                assert!(line.len() <= 110, "{path} --help is wide: {line}");
            }
            let subcommands = command.get_subcommands();
            subcommands.for_each(|subcommand| walk(subcommand, &path));
        }
        walk(&Cli::command(), "");
    }
}
