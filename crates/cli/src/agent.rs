//! `nowconnect agent`: the premises side.

use std::path::PathBuf;
use std::time::Duration;

use nowconnect_agent::config::AgentConfig;
use nowconnect_agent::{Agent, StartError};
use nowconnect_settings::{Env, Loaded, Source};

use crate::check::{self, Kind};
use crate::failure::Failure;
use crate::logging::{LevelControl, Log};
use crate::platform::{Signals, keep_memory_private, raise_open_files};
use crate::runtime::block_on;
use crate::service::{Reloaded, Service, Warnings, Watch, level_filter, serve, start_log};
use crate::traces::Traces;

const EXAMPLES: &str = "\
Examples:
  nowconnect check --config premise.yaml
  nowconnect agent --config premise.yaml
  NC_AGENT_URL=wss://hub.example.com/tunnel NC_AGENT_ID=premise-01 NC_TOKEN_FILE=agent.jwt \\
    NC_CONNECTORS=ldap NC_TARGET_ldap_HOST=dc1.corp.local NC_TARGET_ldap_PORT=389 nowconnect agent

SIGHUP, or a change of the file or of the token, reloads the configuration. SIGTERM and SIGINT let
flows end; a second signal ends at once with exit code 1.";

/// Run an agent: the premises side, which dials out to hubs and to its targets
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Configuration file (premise.yaml) [env: NC_CONFIG]; without one, environment and defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[cfg(windows)]
impl Args {
    /// As if `--config` named `config`.
    pub(crate) fn of(config: PathBuf) -> Self {
        let config = Some(config);
        Self { config }
    }
}

/// How long flows get to end by themselves when the agent is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let source = Source::new(args.config, Env::of_process());
    let loaded = AgentConfig::load(&source)
        .map_err(|problems| check::refused(&source, Kind::Agent, problems))?;
    let observability = &loaded.config.observability;
    let log = start_log(observability.log_level, observability.log_format)?;
    keep_memory_private();
    raise_open_files();
    block_on(run_agent(source, loaded, &log))?
}

async fn run_agent(source: Source, loaded: Loaded<AgentConfig>, log: &Log) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let watch = Watch::new(loaded.files());
    let agent = AgentService::start(source, loaded, log.level(), DRAIN).await?;
    serve(agent, watch, signals).await
}

/// An agent and where its configuration comes from.
pub(crate) struct AgentService {
    source: Source,
    warnings: Warnings,
    agent: Agent,
    level: LevelControl,
    traces: Traces,
    drain: Duration,
}

impl AgentService {
    /// Starts an agent whose log level follows its configuration, and whose flows get `drain` to end
    /// when it stops.
    pub(crate) async fn start(
        source: Source,
        loaded: Loaded<AgentConfig>,
        level: LevelControl,
        drain: Duration,
    ) -> Result<Self, Failure> {
        let mut warnings = Warnings::default();
        warnings.log(&loaded.warnings);
        let (spans, name) = (
            &loaded.config.observability.traces,
            &loaded.config.tunnel.agent_id,
        );
        let traces = Traces::start(spans.as_ref(), "nowconnect-agent", name)?;
        let agent =
            Agent::start(loaded.config, traces.tracer())
                .await
                .map_err(|error| match error {
                    StartError::Bind { .. } | StartError::Memory(..) => Failure::from(error),
                    StartError::Uplink(_) | StartError::Url(_) => Failure::usage(error),
                })?;
        let tally = traces.tally();
        agent
            .metrics()
            .on_scrape(move |metrics| metrics.traces.show(&tally));
        Ok(Self {
            source,
            warnings,
            agent,
            level,
            traces,
            drain,
        })
    }
}

impl Service for AgentService {
    async fn reload(&mut self) -> Result<Reloaded, String> {
        let loaded = AgentConfig::load(&self.source).map_err(|problems| {
            self.agent.reject_reload(&problems);
            problems.to_string()
        })?;
        let files = loaded.files();
        self.warnings.log(&loaded.warnings);
        let level = loaded.config.observability.log_level;
        // The agent says itself, in its log and metrics, whether it took it.
        let taken = self.agent.reload(loaded.config).await;
        taken.map_err(|error| error.to_string())?;
        self.level.set(level_filter(level));
        Ok(Reloaded {
            files,
            needs_restart: Vec::new(),
        })
    }

    async fn stop(self) {
        self.agent.shutdown(self.drain).await;
        self.traces.stop().await;
    }
}
