//! Keeps the events of a hub that its admin API shows.

use std::sync::Arc;

use nowconnect_hub::admin::{KINDS, Recent};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::line::Fields;

/// The prefix of the hub's targets.
const HUB: &str = "nowconnect_hub";

/// Gives the hub's events to the ring, which picks those that it keeps.
pub(super) struct RecentEvents(Arc<Recent>);

impl RecentEvents {
    pub(super) fn layer<S>(recent: Arc<Recent>) -> impl Layer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        // Not flows: they are many, and their names are not among those that are kept.
        let targets = Targets::new()
            .with_target(HUB, LevelFilter::INFO)
            .with_target("nowconnect_hub::router", LevelFilter::OFF)
            .with_target("nowconnect_hub::forward", LevelFilter::OFF);
        Self(recent).with_filter(targets)
    }
}

impl<S: Subscriber> Layer<S> for RecentEvents {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if !fields.is_named_among(&KINDS) {
            return;
        }
        let (name, mut fields) = fields.into_json();
        fields.remove("audit");
        self.0
            .note(&name, event.metadata().level().as_str(), fields);
    }
}
