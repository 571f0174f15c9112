//! What is known of targets, for people and for scrapes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Probes;
use super::look::Certificate;
use super::rounds::{Pair, Watched};
use super::vital::State;
use crate::metrics::Metrics;

/// Targets that `/readyz` lists, those that are down before the others.
const MOST_LISTED: usize = 1000;
/// Targets that have series of their own; the sums count all of them.
const MOST_SERIES: usize = 4096;

impl Probes {
    /// How many targets are in which state, and the first of them: those that are down before the others.
    pub fn summary(&self) -> Value {
        let rounds = self.rounds.lock();
        let mut shown: Vec<_> = rounds
            .all()
            .filter(|(_, watched)| watched.present)
            .collect();
        let mut counts = BTreeMap::from(State::ALL.map(|state| (state.as_str(), 0)));
        for (_, watched) in &shown {
            *counts.entry(watched.vital.state.as_str()).or_default() += 1;
        }
        shown.sort_by_key(|(_, watched)| std::cmp::Reverse(watched.vital.state));
        let targets = shown.iter().take(MOST_LISTED).map(|(pair, watched)| {
            let mut target = target(pair, watched);
            target["agent_id"] = json!(&*pair.0);
            target
        });
        json!({
            "up": counts["up"],
            "down": counts["down"],
            "unknown": counts["unknown"],
            "targets": targets.collect::<Vec<_>>(),
        })
    }

    /// What is known of the targets of an agent, by connector.
    pub fn of_agent(&self, agent_id: &Arc<str>) -> Vec<Value> {
        let rounds = self.rounds.lock();
        let own = rounds.of_agent(agent_id);
        own.map(|(pair, watched)| target(pair, watched)).collect()
    }

    /// What is known of the target of one connector of an agent; `None` when it is not probed.
    pub fn of_target(&self, agent_id: &Arc<str>, connector: &str) -> Option<Value> {
        let rounds = self.rounds.lock();
        let (pair, watched) = rounds
            .of_agent(agent_id)
            .find(|((_, one), _)| **one == *connector)?;
        Some(target(pair, watched))
    }

    /// How many targets of each connector are in which state.
    pub fn by_connector(&self) -> BTreeMap<Arc<str>, [u64; 3]> {
        let mut counts = BTreeMap::<Arc<str>, [u64; 3]>::new();
        let rounds = self.rounds.lock();
        for ((_, connector), watched) in rounds.all().filter(|(_, watched)| watched.present) {
            counts.entry(connector.clone()).or_default()[watched.vital.state as usize] += 1;
        }
        counts
    }
}

fn target((_, connector): &Pair, watched: &Watched) -> Value {
    let last = watched.last.as_ref();
    let fault = last.and_then(|last| last.fault.as_ref());
    let since = SystemTime::now().duration_since(watched.vital.since);
    let took = last.map(|last| last.took.as_micros() as f64 / 1e3);
    json!({
        "connector": &**connector,
        "type": watched.spec.config.kind.as_str(),
        "state": watched.vital.state.as_str(),
        "since_sec": since.unwrap_or_default().as_secs(),
        "checked_sec": last.map(|last| (Instant::now() - last.at).as_secs()),
        "latency_ms": took.filter(|_| fault.is_none()),
        "reason": fault.map(|fault| fault.reason),
        "detail": fault.map(|fault| &fault.detail),
        "certificate": last.and_then(|last| last.certificate.as_ref()).map(certificate),
    })
}

fn certificate(shown: &Certificate) -> Value {
    let ends = shown.ends.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "expires_at": ends.as_secs(),
        "subject": shown.subject,
        "issuer": shown.issuer,
        "judged": match shown.judged {
            None => "not_judged",
            Some(Ok(())) => "trusted",
            Some(Err(fault)) => fault.code(),
        },
    })
}

/// Lets every scrape read what is known.
pub(super) fn on_scrape(probes: &Arc<Probes>) {
    let weak = Arc::downgrade(probes);
    let shown = Mutex::<Series>::default();
    probes.metrics.on_scrape(move |metrics| {
        if let Some(probes) = weak.upgrade() {
            let series = Series::of(&probes, metrics);
            series.show(metrics, &mut shown.lock());
        }
    });
}

/// The series that there are.
#[derive(Default)]
struct Series {
    connectors: HashSet<String>,
    up: HashSet<(String, String)>,
    certificates: HashSet<(String, String)>,
}

impl Series {
    /// Sets the gauges of what is known now.
    fn of(probes: &Probes, metrics: &Metrics) -> Self {
        let gauges = &metrics.probes;
        let mut series = Self::default();
        let mut sums = BTreeMap::<&str, [i64; 3]>::new();
        let by_connector = probes.by_connector();
        for (connector, counts) in &by_connector {
            let sum = sums.entry(metrics.connector_label(connector)).or_default();
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += i64::try_from(*count).unwrap_or(i64::MAX);
            }
        }
        for (connector, sum) in sums {
            for state in State::ALL {
                let count = sum[state as usize];
                gauges.targets.with([connector, state.as_str()]).set(count);
            }
            series.connectors.insert(connector.to_owned());
        }
        let rounds = probes.rounds.lock();
        let present = rounds.all().filter(|(_, watched)| watched.present);
        for ((agent_id, connector), watched) in present.take(MOST_SERIES) {
            let labels = [
                metrics.agent_label(agent_id),
                metrics.connector_label(connector),
            ];
            let pair = (labels[0].to_owned(), labels[1].to_owned());
            if watched.vital.state != State::Unknown {
                let up = i64::from(watched.vital.state == State::Up);
                gauges.up.with(labels).set(up);
                series.up.insert(pair.clone());
            }
            let last = watched.last.as_ref();
            if let Some(certificate) = last.and_then(|last| last.certificate.as_ref()) {
                let left = match certificate.ends.duration_since(SystemTime::now()) {
                    Ok(left) => left.as_secs_f64(),
                    Err(past) => -past.duration().as_secs_f64(),
                };
                gauges.cert_expiry.with(labels).set(left);
                series.certificates.insert(pair);
            }
        }
        series
    }

    /// Removes those of `before` that are no more.
    fn show(self, metrics: &Metrics, before: &mut Self) {
        let gauges = &metrics.probes;
        for gone in before.connectors.difference(&self.connectors) {
            for state in State::ALL {
                gauges.targets.remove([gone, state.as_str()]);
            }
        }
        for (agent_id, connector) in before.up.difference(&self.up) {
            gauges.up.remove([agent_id, connector]);
        }
        for (agent_id, connector) in before.certificates.difference(&self.certificates) {
            gauges.cert_expiry.remove([agent_id, connector]);
        }
        *before = self;
    }
}
