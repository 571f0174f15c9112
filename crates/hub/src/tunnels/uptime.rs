//! What scrapes read about agents.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use nowconnect_link::metrics::OTHER;
use parking_lot::Mutex;

use super::Tunnels;

/// Lets every scrape read the agents and the age of their oldest tunnels.
pub(super) fn show(tunnels: &Arc<Tunnels>) {
    let weak: Weak<Tunnels> = Arc::downgrade(tunnels);
    let shown: Mutex<HashSet<String>> = Mutex::default();
    tunnels.metrics.on_scrape(move |metrics| {
        let Some(tunnels) = weak.upgrade() else {
            return;
        };
        let gauges = &metrics.tunnels;
        gauges
            .agents_connected
            .set(i64::try_from(tunnels.directory.agents()).unwrap_or(i64::MAX));
        let mut ages: HashMap<String, f64> = HashMap::new();
        for session in tunnels.directory.sessions() {
            let label = metrics.agent_label(&session.agent_id);
            if label != OTHER {
                let age = session.since.elapsed().as_secs_f64();
                let oldest = ages.entry(label.to_owned()).or_default();
                *oldest = oldest.max(age);
            }
        }
        let mut shown = shown.lock();
        for gone in shown.iter().filter(|label| !ages.contains_key(*label)) {
            gauges.uptime.remove([gone]);
        }
        for (label, age) in &ages {
            gauges.uptime.with([label]).set(*age);
        }
        *shown = ages.into_keys().collect();
    });
}
