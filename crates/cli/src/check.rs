//! `nowconnect check`: says everything that is wrong with a configuration.

use std::cmp::Ordering;
use std::io::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;
use nowconnect_agent::config::AgentConfig;
use nowconnect_agent::probe::Probe;
use nowconnect_hub::config::HubConfig;
use nowconnect_hub::hub::{Hub, HubError};
use nowconnect_settings::{
    Document, Effective, Env, KeySpec, Loaded, Problem, Problems, Severity, Source,
};

use crate::cells::count;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  nowconnect check --config cloud.yaml
  nowconnect check --config premise.yaml --print
  NC_CONNECTORS=ldap NC_AGENT_URL=wss://hub/tunnel nowconnect check --kind agent --print

The environment counts as it would for `nowconnect hub` and `nowconnect agent`. Problems go to
stderr, one a line: FILE:LINE:COLUMN: KEY: what is wrong (what to do). Files that the configuration
names and that are not here are warnings, because it may be meant for another machine. When all are
here, they are read: a certificate that has expired or does not fit its key is a problem.";

/// Check a configuration and print every problem at once
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// File of a hub (cloud.yaml) or an agent (premise.yaml) [env: NC_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What the file is for; found out from its keys otherwise
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Print the configuration in effect as YAML, defaults included and secrets masked
    #[arg(long)]
    print: bool,
}

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Hub,
    Agent,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let source = Source::new(args.config, Env::of_process());
    let checked = kind(&source, args.kind).and_then(|kind| match kind {
        Kind::Hub => HubConfig::inspect(&source).and_then(|loaded| Checked::hub(&loaded)),
        Kind::Agent => AgentConfig::inspect(&source).and_then(|loaded| Checked::agent(&loaded)),
    });
    let checked = match checked {
        Ok(checked) => checked,
        Err(Problems(problems)) => {
            report(&problems);
            let problems = count(problems.len(), "problem");
            return Err(Failure::usage(anyhow::anyhow!("{problems} found")));
        }
    };
    report(&checked.warnings);
    let mut stdout = std::io::stdout().lock();
    match args.print {
        true => {
            eprintln!("{}", checked.summary);
            write!(stdout, "{}", checked.effective)?;
        }
        false => writeln!(stdout, "{}", checked.summary)?,
    }
    stdout.flush()?;
    Ok(())
}

fn report(problems: &[Problem]) {
    for problem in problems {
        eprintln!("{problem}");
    }
}

/// What is said about a configuration that can be used.
struct Checked {
    summary: String,
    warnings: Vec<Problem>,
    effective: Effective,
}

impl Checked {
    fn hub(loaded: &Loaded<HubConfig>) -> Result<Self, Problems> {
        let config = &loaded.config;
        let what = format!(
            "{}, {}, HA {}",
            count(config.listeners.len(), "listener"),
            count(config.ha.mesh.peers.len(), "peer"),
            config.ha.mode
        );
        let unusable = || {
            let found = Hub::preflight(config).into_iter();
            let told = |(key, error): (&'static str, HubError)| {
                let message = error.to_string();
                let bare = message.strip_prefix(&format!("{key}: ")).map(str::to_owned);
                (key, bare.unwrap_or(message))
            };
            found.map(told).collect()
        };
        Self::new("hub", &what, loaded, unusable)
    }

    fn agent(loaded: &Loaded<AgentConfig>) -> Result<Self, Problems> {
        let tunnel = &loaded.config.tunnel;
        let what = format!(
            "{}, {}",
            count(tunnel.exported_connectors.len(), "connector"),
            count(tunnel.urls.len(), "hub")
        );
        let unusable = || {
            let error = Probe::new(&loaded.config).err();
            error
                .map(|error| ("tunnel", error.to_string()))
                .into_iter()
                .collect()
        };
        Self::new("agent", &what, loaded, unusable)
    }

    /// `unusable` reads files that the configuration names, and tells of sections that cannot be used.
    fn new<T>(
        kind: &str,
        what: &str,
        loaded: &Loaded<T>,
        unusable: impl FnOnce() -> Vec<(&'static str, String)>,
    ) -> Result<Self, Problems> {
        let missing = loaded.missing_files();
        let unusable = if missing.is_empty() {
            unusable()
        } else {
            Vec::new()
        };
        let unusable = unusable.into_iter().map(|(key, message)| Problem {
            file: loaded.file.clone(),
            key: key.to_owned(),
            ..Problem::new(message)
        });
        let missing = missing.into_iter().map(Problem::as_warning);
        let (exposed, refused): (Vec<_>, Vec<_>) = loaded
            .exposed_files()
            .into_iter()
            .partition(|problem| problem.severity == Severity::Warning);
        let refused: Vec<_> = refused.into_iter().chain(unusable).collect();
        if !refused.is_empty() {
            return Err(Problems(refused));
        }
        let warnings = loaded.warnings.iter().cloned();
        let warnings: Vec<_> = warnings.chain(missing).chain(exposed).collect();
        let place = match &loaded.file {
            Some(file) => file.display().to_string(),
            None => "environment".to_owned(),
        };
        Ok(Self {
            summary: format!(
                "{place}: ok ({kind}: {what}; {})",
                count(warnings.len(), "warning")
            ),
            warnings,
            effective: loaded.effective.clone(),
        })
    }
}

/// Whose configuration it is: what was asked for, or whoever knows more of the file's keys.
fn kind(source: &Source, asked: Option<Kind>) -> Result<Kind, Problems> {
    if let Some(kind) = asked {
        return Ok(kind);
    }
    let problem = Problem::new("this may be a hub's or an agent's configuration");
    let problem = Problem {
        file: source.file.clone(),
        ..problem
    };
    let hint = match source.file {
        Some(_) => "say which with --kind hub or --kind agent",
        None => {
            "name a file with --config, or say with --kind hub or --kind agent whose environment this is"
        }
    };
    likely(source)?.ok_or_else(|| problem.hint(hint).into())
}

/// Who knows more of the file's keys.
fn likely(source: &Source) -> Result<Option<Kind>, Problems> {
    let keys = Document::read(source, &[])?.keys();
    let known = |schema: Vec<KeySpec>| keys.iter().filter(|key| knows(&schema, key)).count();
    let (hub, agent) = (known(HubConfig::keys()), known(AgentConfig::keys()));
    Ok(match hub.cmp(&agent) {
        Ordering::Greater => Some(Kind::Hub),
        Ordering::Less => Some(Kind::Agent),
        Ordering::Equal => None,
    })
}

/// What to say of a configuration that a hub or an agent cannot be started with: it may be that of the
/// other one.
pub(crate) fn refused(source: &Source, started: Kind, problems: Problems) -> Failure {
    let (other, name) = match started {
        Kind::Hub => (Kind::Agent, "agent"),
        Kind::Agent => (Kind::Hub, "hub"),
    };
    match (&source.file, likely(source)) {
        (Some(file), Ok(Some(kind))) if kind == other => {
            let file = file.display();
            Failure::usage(anyhow::anyhow!(
                "{file} is the configuration of the other side: nowconnect {name} --config {file}"
            ))
        }
        _ => Failure::configuration(problems),
    }
}

/// Whether a schema has `key` or keys below it.
fn knows(schema: &[KeySpec], key: &str) -> bool {
    let below = |spec: &KeySpec| match spec.key.strip_prefix(key) {
        Some(rest) => rest.is_empty() || rest.starts_with(['.', '[']),
        None => false,
    };
    schema.iter().any(below)
}
