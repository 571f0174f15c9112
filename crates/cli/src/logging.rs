//! Logs: one line per event to stdout, as JSON or for people, written without ever blocking the caller.

mod line;
mod recent;
#[cfg(any(windows, test))]
mod rolling;
mod writer;

use std::io::IsTerminal as _;
use std::sync::Arc;

use nowconnect_hub::admin::Recent;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;

use crate::audit::Audit;
use crate::platform::log_output;
pub(crate) use line::{Shape, is_dangerous, marked};
use recent::RecentEvents;
#[cfg(windows)]
pub(crate) use rolling::{Limit, Rolling};
use writer::{Flush, Lines};

/// The prefix of our own crates' targets.
const OURS: &str = "nowconnect";

/// The process's log. Dropping it writes out what waits, for a few seconds at most.
pub(crate) struct Log {
    level: LevelControl,
    recent: Arc<Recent>,
    audit: Audit,
    _flush: Flush,
}

/// Changes what is logged while the process runs.
#[derive(Clone)]
pub(crate) struct LevelControl(reload::Handle<Targets, Registry>);

impl Log {
    /// Starts logging to stdout.
    ///
    /// # Errors
    /// When the writer's thread cannot be started or a logger is there already.
    pub(crate) fn start(level: LevelFilter, shape: Shape) -> std::io::Result<Self> {
        let shape = shape.with_color(std::io::stdout().is_terminal() && color_wanted());
        let (lines, flush) = writer::start(log_output(), shape)?;
        let (filter, handle) = reload::Layer::new(targets(level));
        let recent = Arc::<Recent>::default();
        let audit = Audit::default();
        let subscriber = Registry::default()
            .with(EventLines { shape, lines }.with_filter(filter))
            .with(RecentEvents::layer(recent.clone()))
            .with(audit.layer());
        tracing::subscriber::set_global_default(subscriber).map_err(std::io::Error::other)?;
        let to_stderr = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            log_panic(info);
            to_stderr(info);
        }));
        Ok(Self {
            level: LevelControl(handle),
            recent,
            audit,
            _flush: flush,
        })
    }

    /// The latest events that matter to those who run a hub, whatever the level of the log.
    pub(crate) fn recent(&self) -> Arc<Recent> {
        self.recent.clone()
    }

    /// To change the level later.
    pub(crate) fn level(&self) -> LevelControl {
        self.level.clone()
    }

    /// The second place where events go that are marked as audit records.
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // It has last words for the log.
        self.audit.finish();
    }
}

impl LevelControl {
    /// Sets the least important level that is logged, at once.
    pub(crate) fn set(&self, level: LevelFilter) {
        if let Err(error) = self.0.modify(|filter| *filter = targets(level)) {
            tracing::warn!(event = "log_level_unchanged", error = %error);
        }
    }
}

/// Our own events from `level` on; those of libraries are details unless they are warnings.
fn targets(level: LevelFilter) -> Targets {
    let libraries = if level == LevelFilter::TRACE {
        level
    } else {
        level.min(LevelFilter::WARN)
    };
    Targets::new()
        .with_default(libraries)
        .with_target(OURS, level)
}

/// <https://no-color.org>
fn color_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A panic ends one task, and the log must say so as well as stderr.
fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let at = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("no text");
    tracing::error!(event = "panic", at, message);
}

struct EventLines {
    shape: Shape,
    lines: Lines,
}

impl<S: Subscriber> Layer<S> for EventLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.lines.push(line::render(event, self.shape));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_are_quiet_and_ours_follow_the_level() {
        let info = targets(LevelFilter::INFO);
        assert!(info.would_enable("nowconnect_hub::auth", &Level::INFO));
        assert!(!info.would_enable("nowconnect_hub::auth", &Level::DEBUG));
        assert!(info.would_enable("hyper", &Level::WARN));
        assert!(!info.would_enable("hyper", &Level::INFO));
        assert!(!targets(LevelFilter::ERROR).would_enable("hyper", &Level::WARN));
        assert!(targets(LevelFilter::TRACE).would_enable("hyper", &Level::TRACE));
    }
}
