//! `nowconnect hub`: the cloud side.

use std::path::PathBuf;

use anyhow::Context as _;
use nowconnect_hub::admin::Order;
use nowconnect_hub::config::HubConfig;
use nowconnect_hub::hub::{Hub, HubError};
use nowconnect_hub::listener::Inherited;
use nowconnect_link::shards::Shards;
use nowconnect_settings::{Env, Loaded, Source};

use crate::audit::Audit;
use crate::check::{self, Kind};
use crate::failure::Failure;
use crate::logging::Log;
use crate::platform::{Signals, inherited_sockets, keep_memory_private, raise_open_files};
use crate::runtime::{Threads, block_on};
use crate::service::{Reloaded, Service, Warnings, Watch, level_filter, serve, start_log};
use crate::traces::Traces;

const EXAMPLES: &str = "\
Examples:
  nowconnect check --config cloud.yaml
  nowconnect hub --config cloud.yaml
  NC_CONFIG=/etc/nowconnect/cloud.yaml LOG_LEVEL=DEBUG nowconnect hub

SIGHUP, `nowconnect reload`, or a change of the file or of a certificate, key or JWKS file, reloads
the configuration. SIGTERM, SIGINT and `nowconnect drain` drain: agents are sent to other hubs and
flows get limits.drain_timeout_sec to end; a second signal ends at once with exit code 1.

Listening sockets that systemd passes (LISTEN_FDS) are used for the listeners of the same name or
address; everything else is bound as configured.";

/// Run a hub: the cloud side, where clients connect
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Configuration file (cloud.yaml) [env: NC_CONFIG]; without one, environment and defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    // Before anything else is opened: descriptors are named by number.
    let sockets = inherited_sockets().map_err(Failure::usage)?;
    let inherited = Inherited::new(sockets)?;
    let source = Source::new(args.config, Env::of_process());
    let loaded = HubConfig::load(&source)
        .map_err(|problems| check::refused(&source, Kind::Hub, problems))?;
    let observability = &loaded.config.observability;
    let log = start_log(observability.log_level, observability.log_format)?;
    keep_memory_private();
    raise_open_files();
    let threads = args.threads.count();
    block_on(run_hub(source, loaded, inherited, threads, &log))?
}

async fn run_hub(
    source: Source,
    loaded: Loaded<HubConfig>,
    inherited: Inherited,
    threads: usize,
    log: &Log,
) -> Result<(), Failure> {
    let shards = Shards::start(threads).context("cannot start threads")?;
    let signals = Signals::install()?;
    let watch = Watch::new(loaded.files());
    let hub = HubService::start(source, loaded, inherited, shards, log).await?;
    serve(hub, watch, signals).await
}

/// A hub and where its configuration comes from.
pub(crate) struct HubService {
    source: Source,
    warnings: Warnings,
    audit: Audit,
    traces: Traces,
    /// The running hub.
    pub(crate) hub: Hub,
}

impl HubService {
    /// Starts a hub whose log level, audit trail and traces follow its configuration.
    pub(crate) async fn start(
        source: Source,
        loaded: Loaded<HubConfig>,
        inherited: Inherited,
        shards: Shards,
        log: &Log,
    ) -> Result<Self, Failure> {
        let mut warnings = Warnings::default();
        warnings.log(&loaded.warnings);
        let (level, audit) = (log.level(), log.audit().clone());
        let trail = audit.prepare(&loaded.config.audit);
        audit.commit(trail.map_err(Failure::usage)?)?;
        let (spans, name) = (
            &loaded.config.observability.traces,
            &loaded.config.ha.replica_id,
        );
        let traces = Traces::start(spans.as_ref(), "nowconnect-hub", name)?;
        let follow = Box::new(move |configured| level.set(level_filter(configured)));
        let hub = Hub::start(loaded.config, inherited, shards, follow, traces.tracer())
            .await
            .map_err(|error| match error {
                HubError::Bind(error) if error.is_misfit() => Failure::usage(error),
                HubError::Bind(_) | HubError::Memory(..) => Failure::from(error),
                HubError::Tls(_) | HubError::Mesh(_) | HubError::Token(_) | HubError::Pdp(_) => {
                    Failure::usage(error)
                }
            })?;
        hub.show_config(loaded.effective, Vec::new());
        let tally = audit.tally().clone();
        hub.metrics()
            .on_scrape(move |metrics| tally.show(&metrics.audit));
        let tally = traces.tally();
        hub.metrics()
            .on_scrape(move |metrics| metrics.traces.show(&tally));
        hub.show_events(log.recent());
        Ok(Self {
            source,
            warnings,
            audit,
            traces,
            hub,
        })
    }
}

impl Service for HubService {
    async fn reload(&mut self) -> Result<Reloaded, String> {
        // Whatever becomes of the configuration: whoever moved the file away waits for this.
        self.audit.look();
        let loaded = HubConfig::load(&self.source).map_err(|problems| {
            self.hub.reject_reload(&problems);
            problems.to_string()
        })?;
        let files = loaded.files();
        self.warnings.log(&loaded.warnings);
        let trail = self.audit.prepare(&loaded.config.audit).map_err(|error| {
            let error = format!("{error:#}");
            self.hub.reject_reload(&error);
            error
        })?;
        // The hub says itself, in its log and metrics, whether it took it.
        let taken = self
            .hub
            .reload_as(loaded.config, Some(&loaded.effective))
            .await;
        let needs_restart = taken.map_err(|error| error.to_string())?;
        let audit = self.audit.clone();
        // It may have to wait for a slow disk.
        let followed = tokio::task::spawn_blocking(move || audit.commit(trail)).await;
        followed
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| error.to_string())?;
        self.hub
            .show_config(loaded.effective, needs_restart.clone());
        Ok(Reloaded {
            files,
            needs_restart,
        })
    }

    async fn order(&mut self) -> Order {
        self.hub.order().await
    }

    async fn stop(self) {
        self.hub.drain().await;
        self.traces.stop().await;
    }
}
