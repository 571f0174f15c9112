//! The life of a process that serves: ready, reload, stop.

use std::path::PathBuf;

use nowconnect_hub::admin::Order;
use nowconnect_settings::{LogFormat, LogLevel, Problem, Watcher};
use tracing::level_filters::LevelFilter;

use crate::failure::Failure;
use crate::logging::{Log, Shape};
use crate::platform::{Request, Signals, supervisor};

/// Something that runs until it is told to stop.
pub(crate) trait Service {
    /// Reads the configuration again and applies it whole or not at all; says so in the log.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed.
    async fn reload(&mut self) -> Result<Reloaded, String>;

    /// What is asked of it through an interface of its own. Cancel safe.
    async fn order(&mut self) -> Order {
        std::future::pending().await
    }

    /// Ends it gracefully.
    async fn stop(self);
}

/// What became of a reload.
pub(crate) struct Reloaded {
    /// The files to watch from now on.
    pub(crate) files: Vec<PathBuf>,
    /// The keys whose new values wait for the next start.
    pub(crate) needs_restart: Vec<&'static str>,
}

/// The files that a configuration consists of.
pub(crate) struct Watch {
    files: Vec<PathBuf>,
    watcher: Watcher,
}

impl Watch {
    /// Begins to watch `files`; to be called before they are put to use. Needs a tokio runtime.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        let watcher = Watcher::with_exposure(files.clone(), Watcher::PERIOD);
        Self { files, watcher }
    }

    /// Takes the files' present state as known: they are about to be read.
    fn about_to_read(&mut self) {
        self.watcher = Watcher::with_exposure(self.files.clone(), Watcher::PERIOD);
    }

    fn follow(&mut self, files: Vec<PathBuf>) {
        self.watcher.watch(files.clone());
        self.files = files;
    }
}

/// Serves until SIGTERM, SIGINT or an order to drain; reloads on SIGHUP, on order, and when a watched
/// file changes.
///
/// # Errors
/// When a second signal cuts the graceful end short.
pub(crate) async fn serve(
    mut service: impl Service,
    mut watch: Watch,
    mut signals: Signals,
) -> Result<(), Failure> {
    supervisor::ready();
    loop {
        let mut reply = None;
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop => break,
                Request::Reload => {}
            },
            order = service.order() => match order {
                Order::Drain => break,
                Order::Reload(asker) => reply = Some(asker),
            },
            files = watch.watcher.changed() => {
                let files: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
                tracing::info!(event = "files_changed", files = files.join(","));
            }
        }
        supervisor::reloading();
        watch.about_to_read();
        let outcome = service.reload().await.map(|reloaded| {
            watch.follow(reloaded.files);
            reloaded.needs_restart
        });
        supervisor::ready();
        if let Some(asker) = reply {
            // Whoever asked may have hung up.
            let _ = asker.send(outcome);
        }
    }
    tracing::info!(event = "stopping");
    supervisor::stopping();
    tokio::select! {
        () = service.stop() => Ok(()),
        () = signals.stop() => {
            tracing::warn!(event = "stopped_at_once");
            Err(Failure::Runtime(anyhow::anyhow!("stopped at once by a second signal")))
        }
    }
}

/// Starts the log as a configuration wants it.
pub(crate) fn start_log(level: LogLevel, format: LogFormat) -> Result<Log, Failure> {
    let shape = match format {
        LogFormat::Json => Shape::Json,
        LogFormat::Plain => Shape::Plain { color: false },
    };
    Ok(Log::start(level_filter(level), shape)?)
}

/// The filter for a configured level.
pub(crate) fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

/// What a configuration allows but somebody should look at.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Vec<Problem>);

impl Warnings {
    /// Logs those that were not there the last time.
    pub(crate) fn log(&mut self, warnings: &[Problem]) {
        for warning in warnings.iter().filter(|warning| !self.0.contains(warning)) {
            tracing::warn!(event = "config_warning", problem = %warning);
        }
        self.0 = warnings.to_vec();
    }
}
