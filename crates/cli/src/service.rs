//! The life of a process that serves: ready, reload, stop.

use std::path::PathBuf;

use nowconnect_settings::{LogFormat, LogLevel, Problem, Watcher};
use tracing::level_filters::LevelFilter;

use crate::failure::Failure;
use crate::logging::{Log, Shape};
use crate::signals::{Request, Signals};
use crate::systemd;

/// Something that runs until it is told to stop.
pub(crate) trait Service {
    /// Reads the configuration again and applies it whole or not at all; says so in the log. Returns
    /// the files to watch from now on, or `None` when nothing has changed.
    async fn reload(&mut self) -> Option<Vec<PathBuf>>;

    /// Ends it gracefully.
    async fn stop(self);
}

/// Serves until SIGTERM or SIGINT; reloads on SIGHUP and when one of `files` changes.
///
/// # Errors
/// When a second signal cuts the graceful end short.
pub(crate) async fn serve(
    mut service: impl Service,
    files: Vec<PathBuf>,
    mut signals: Signals,
) -> Result<(), Failure> {
    let mut watcher = Watcher::new(files, Watcher::PERIOD);
    systemd::ready();
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop => break,
                Request::Reload => {}
            },
            changed = watcher.changed() => tracing::info!(event = "files_changed", files = ?changed),
        }
        systemd::reloading();
        if let Some(files) = service.reload().await {
            watcher.watch(files);
        }
        systemd::ready();
    }
    tracing::info!(event = "stopping");
    systemd::stopping();
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

/// Logs what a configuration allows but somebody should look at.
pub(crate) fn log_warnings(warnings: &[Problem]) {
    for warning in warnings {
        tracing::warn!(event = "config_warning", problem = %warning);
    }
}
