//! What scrapes read about agents.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use nowconnect_link::metrics::OTHER;
use parking_lot::Mutex;

use super::Tunnels;

/// Lets every scrape read the agents, the age of their oldest tunnels, and how long the token that
/// ends first is still good.
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
        let now = SystemTime::now();
        let mut agents: HashMap<String, (f64, f64)> = HashMap::new();
        for session in tunnels.directory.sessions() {
            let label = metrics.agent_label(&session.agent_id);
            if label != OTHER {
                let age = session.since.elapsed().as_secs_f64();
                let left = session.token_expires().duration_since(now);
                let left = left.unwrap_or_default().as_secs_f64();
                let (oldest, soonest) = agents.entry(label.to_owned()).or_insert((age, left));
                *oldest = oldest.max(age);
                *soonest = soonest.min(left);
            }
        }
        let mut shown = shown.lock();
        for gone in shown.iter().filter(|label| !agents.contains_key(*label)) {
            gauges.uptime.remove([gone]);
            gauges.token_expiry.remove([gone]);
        }
        for (label, (age, left)) in &agents {
            gauges.uptime.with([label]).set(*age);
            gauges.token_expiry.with([label]).set(*left);
        }
        *shown = agents.into_keys().collect();
    });
}
