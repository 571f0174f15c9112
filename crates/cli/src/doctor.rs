//! `nowconnect doctor`: what is in the way of a hub or an agent, step by step.

mod agent;
mod chain;
mod claims;
mod decisions;
mod hub;
mod keys;
mod machine;
mod peers;
mod report;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use nowconnect_settings::{Env, Loaded, Problem, Problems, Severity, Source};

use crate::failure::Failure;
use crate::runtime::block_on;
use report::Report;

const GROUP: &str = "\
Examples:
  nowconnect doctor agent --config premise.yaml
  nowconnect doctor hub --config cloud.yaml";

/// Find out what is in the way of a hub or an agent
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(AgentArgs),
    Hub(HubArgs),
}

const AGENT_EXAMPLES: &str = "\
Examples:
  nowconnect doctor agent --config premise.yaml
  sudo -u nowconnect nowconnect doctor agent --json | jq '.findings[] | select(.result == \"fault\")'

Looks at the configuration, the token, the way to each hub (proxy, name, TLS, upgrade with the token) and
each target. An agent that runs stays as it is: the hub is left before it is told who is there. Run it as
the user and in the environment of the agent.
Exit code 0: nothing is in the way; 1: something is; 2: the configuration cannot be used.";

/// Look at everything that an agent needs
#[derive(Debug, clap::Args)]
#[command(after_help = AGENT_EXAMPLES)]
struct AgentArgs {
    #[command(flatten)]
    about: About,
}

const HUB_EXAMPLES: &str = "\
Examples:
  nowconnect doctor hub --config cloud.yaml
  nowconnect doctor hub --config cloud.yaml --token agent.jwt
  nowconnect doctor hub --config cloud.yaml --json | jq .faults

Looks at the configuration, ports, certificates, the keys for tokens, Redis, the peers, the policy decision
point and the limits of the machine. A hub that runs stays as it is. Run it as the user and in the
environment of the hub.
Exit code 0: nothing is in the way; 1: something is; 2: the configuration cannot be used.";

/// Look at everything that a hub needs
#[derive(Debug, clap::Args)]
#[command(after_help = HUB_EXAMPLES)]
struct HubArgs {
    #[command(flatten)]
    about: About,
    /// Also judge this agent's token as the hub would
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
}

/// Whom to look at
#[derive(Debug, clap::Args)]
struct About {
    /// Configuration file [env: NC_CONFIG]; without one, environment and defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let about = match &args.command {
        Command::Agent(args) => &args.about,
        Command::Hub(args) => &args.about,
    };
    let source = Source::new(about.config.clone(), Env::of_process());
    let mut report = Report::new(about.json);
    let usable = match &args.command {
        Command::Agent(_) => block_on(agent::examine(&source, &mut report))?,
        Command::Hub(args) => block_on(hub::examine(&source, args.token.as_deref(), &mut report))?,
    };
    let faults = report.end()?;
    Ok(match (usable, faults) {
        (false, _) => ExitCode::from(2),
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::FAILURE,
    })
}

/// Tells what is wrong with a configuration; `None` when it cannot be used.
fn configuration<T>(
    loaded: Result<Loaded<T>, Problems>,
    report: &mut Report,
    what: impl Fn(&T) -> String,
) -> Option<Loaded<T>> {
    const AREA: &str = "configuration";
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(Problems(problems)) => {
            problems.iter().for_each(|problem| tell(problem, report));
            return None;
        }
    };
    let place = match &loaded.file {
        Some(file) => file.display().to_string(),
        None => "environment".to_owned(),
    };
    report.ok(AREA, format!("{place}: {}", what(&loaded.config)));
    for problem in &loaded.warnings {
        tell(problem, report);
    }
    for problem in loaded.missing_files().iter().chain(&loaded.exposed_files()) {
        tell(problem, report);
    }
    Some(loaded)
}

fn tell(problem: &Problem, report: &mut Report) {
    let hint = problem.hint.clone();
    let plain = Problem {
        hint: None,
        ..problem.clone()
    };
    let next = hint.unwrap_or_else(|| "see docs/configuration.md".to_owned());
    // The result is told in a column of its own.
    let text = plain.to_string();
    match problem.severity {
        Severity::Warning => {
            report.warning("configuration", text.replacen("warning: ", "", 1), next);
        }
        Severity::Error => report.fault("configuration", text.replacen("error: ", "", 1), next),
    }
}
