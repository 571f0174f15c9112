//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::failure::{Context, Failure, Result};

pub(crate) const HELP: &str = "\
Compares NowConnect with rathole, wstunnel and OpenSSH on this machine.

Usage: run [OPTIONS]

  --quick                short periods, 2 rounds, 1000 idle connections: does everything work?
  --only CASE,...        cases by name or its first words: bulk, bulk-up, bulk-up-8, requests, churn,
                         idle, burst, half-close, ldap
  --systems NAME,...     systems likewise: ours, ours-wss, rathole, wstunnel, openssh, relay, loopback;
                         ours-mesh, rathole-relay
  --rounds N             measurements of every system and case [default: 5]
  --seconds S            length of every timed measurement [default: 4]
  --idle-connections N   [default: 10000, or what the limit of open files allows]
  --json FILE            writes every single measurement and the medians
  --list                 names cases and systems, and does nothing

  --ours-bin PATH        an existing nowconnect binary; otherwise it is built in release mode
  --rathole-bin PATH     likewise; otherwise cargo install from crates.io
  --wstunnel-bin PATH    likewise; otherwise cargo install from --wstunnel-source
  --wstunnel-source S    git URL, or a directory with its sources
                         [default: https://github.com/erebe/wstunnel]
  --cache DIR            where installed peers are kept [default: ~/.cache/nowconnect-compare]
  --keep                 leaves the temporary directory (configurations, logs) behind

Examples:
  run --quick
  run --only bulk,requests --systems ours,rathole --rounds 7
  run --ours-bin target/release/nowconnect --json results.json
";

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) only: Vec<String>,
    pub(crate) systems: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) period: Duration,
    pub(crate) idle_connections: usize,
    pub(crate) json: Option<PathBuf>,
    pub(crate) list: bool,
    pub(crate) help: bool,
    pub(crate) ours: Option<PathBuf>,
    pub(crate) rathole: Option<PathBuf>,
    pub(crate) wstunnel: Option<PathBuf>,
    pub(crate) wstunnel_source: String,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: Vec::new(),
            systems: Vec::new(),
            rounds: 5,
            period: Duration::from_secs(4),
            idle_connections: 10_000,
            json: None,
            list: false,
            help: false,
            ours: None,
            rathole: None,
            wstunnel: None,
            wstunnel_source: "https://github.com/erebe/wstunnel".into(),
            cache: None,
            keep: false,
        }
    }
}

impl Options {
    /// `--quick` gives defaults, wherever it stands: what is said explicitly wins.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        if arguments.iter().any(|argument| argument == "--quick") {
            options.rounds = 2;
            options.period = Duration::from_secs(1);
            options.idle_connections = 1000;
        }
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().context(format!("{name} wants a value"));
            match name.as_str() {
                "--quick" => {}
                "--list" => options.list = true,
                "--keep" => options.keep = true,
                "--help" | "-h" => options.help = true,
                "--only" => options.only.extend(list(value()?)),
                "--systems" => options.systems.extend(list(value()?)),
                "--rounds" => options.rounds = number(name, value()?, 1, 1000)?,
                "--seconds" => {
                    options.period = Duration::from_secs_f64(number(name, value()?, 0.1, 600.0)?);
                }
                "--idle-connections" => {
                    options.idle_connections = number(name, value()?, 1, 1_000_000)?;
                }
                "--json" => options.json = Some(value()?.into()),
                "--ours-bin" => options.ours = Some(value()?.into()),
                "--rathole-bin" => options.rathole = Some(value()?.into()),
                "--wstunnel-bin" => options.wstunnel = Some(value()?.into()),
                "--wstunnel-source" => options.wstunnel_source.clone_from(value()?),
                "--cache" => options.cache = Some(value()?.into()),
                other => {
                    return Err(Failure::new(format!(
                        "unknown option '{other}'; see --help"
                    )));
                }
            }
        }
        Ok(options)
    }
}

fn list(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    text: &str,
    least: T,
    most: T,
) -> Result<T> {
    let parsed = text
        .parse()
        .ok()
        .filter(|value| *value >= least && *value <= most);
    parsed.context(format!(
        "{name} wants a number from {least} to {most}, not '{text}'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(
            &line
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn explicit_values_win_over_quick() {
        let options = parse("--rounds 9 --quick --only bulk,idle").map_err(|e| e.to_string());
        let options = options
            .as_ref()
            .map(|o| (o.rounds, o.period.as_secs(), o.only.len()));
        assert_eq!(options, Ok((9, 1, 2)));
    }

    #[test]
    fn mistakes_are_errors() {
        for line in ["--rounds", "--rounds 0", "--seconds x", "--fast"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
