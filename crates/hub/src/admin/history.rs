//! How the last minutes went: a sample every few seconds.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Scope;
use super::millis::{ms, now_ms};
use crate::metrics::{ConnectorMetrics, ListenerError, OPEN_BOUNDS_MS};

/// Between two samples, which are taken at whole multiples of it, in seconds since 1970.
pub(super) const PERIOD_SEC: u64 = 5;
/// Samples that are kept: a quarter of an hour.
const KEPT: usize = 180;

/// What only ever rises.
#[derive(Debug, Clone, Default)]
struct Totals {
    opened: u64,
    bytes_c2a: u64,
    bytes_a2c: u64,
    waits: Vec<u64>,
}

impl Totals {
    fn of(scope: &Scope) -> Self {
        let mut totals = Self {
            waits: vec![0; OPEN_BOUNDS_MS.len() + 1],
            ..Self::default()
        };
        for (_, connector) in scope.metrics.connectors() {
            totals.opened += connector.connections.get();
            totals.bytes_c2a += connector.bytes_c2a.get();
            totals.bytes_a2c += connector.bytes_a2c.get();
            let counts = connector.open_times.counts();
            for (total, count) in totals.waits.iter_mut().zip(counts) {
                *total += count;
            }
        }
        totals
    }
}

/// The samples of this hub.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    before: Totals,
    samples: VecDeque<(u64, Value)>,
}

impl History {
    /// Takes the sample of the period that ends now.
    pub(super) fn sample(&self, scope: &Scope) {
        let totals = Totals::of(scope);
        let peers = scope.mesh.hubs().into_iter();
        let rtt: BTreeMap<_, _> = peers
            .map(|peer| {
                let name = peer.hub.unwrap_or(peer.peer);
                (name.to_string(), ms(peer.outbound.rtt.or(peer.inbound.rtt)))
            })
            .collect();
        let at = now_ms() / 1000 / PERIOD_SEC * PERIOD_SEC;
        let mut kept = self.0.lock();
        let before = std::mem::replace(&mut kept.before, totals.clone());
        let per_sec = |now: u64, then: u64| now.saturating_sub(then) as f64 / PERIOD_SEC as f64;
        let waits = totals.waits.iter().enumerate();
        let waits: Vec<_> = waits
            .map(|(bucket, now)| (bucket, now - before.waits.get(bucket).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (bound(bucket), count))
            .collect();
        let sample = json!({
            "at": at,
            "flows": scope.router.count(),
            "forwarded": scope.forward.flows(),
            "tunnels": scope.tunnels.directory().sessions().len(),
            "opens_per_sec": per_sec(totals.opened, before.opened),
            "bytes_c2a_per_sec": per_sec(totals.bytes_c2a, before.bytes_c2a),
            "bytes_a2c_per_sec": per_sec(totals.bytes_a2c, before.bytes_a2c),
            "open_p50_ms": percentile(&waits, 0.50),
            "open_p95_ms": percentile(&waits, 0.95),
            "open_waits": waits,
            "mesh_rtt_ms": rtt,
        });
        kept.samples.push_back((at, sample));
        if kept.samples.len() > KEPT {
            kept.samples.pop_front();
        }
    }

    /// The samples after `since_ms`, in milliseconds since 1970.
    pub(super) fn since(&self, since_ms: u64) -> Vec<Value> {
        let kept = self.0.lock();
        let wanted = kept.samples.iter().filter(|(at, _)| at * 1000 > since_ms);
        wanted.map(|(_, sample)| sample.clone()).collect()
    }
}

/// The upper bound of a bucket; the last one has none, and is shown as twice the one before.
fn bound(bucket: usize) -> f64 {
    let last = OPEN_BOUNDS_MS[OPEN_BOUNDS_MS.len() - 1];
    OPEN_BOUNDS_MS.get(bucket).copied().unwrap_or(last * 2.0)
}

/// The upper bound of the bucket that holds this share of `waits`, which are sorted by bound.
pub(super) fn percentile(waits: &[(f64, u64)], share: f64) -> Option<f64> {
    let total: u64 = waits
        .iter()
        .fold(0, |total, (_, count)| total.saturating_add(*count));
    let rank = (total as f64 * share).ceil().max(1.0) as u64;
    let mut below = 0_u64;
    waits.iter().find_map(|(bound, count)| {
        below = below.saturating_add(*count);
        (below >= rank).then_some(*bound)
    })
}

/// What has been counted of a connector since the start of the hub.
pub(super) fn counts(metrics: &ConnectorMetrics) -> Value {
    let waits = metrics.open_times.counts().into_iter().enumerate();
    let waits: Vec<_> = waits
        .map(|(bucket, count)| (bound(bucket), count))
        .collect();
    let errors = ListenerError::ALL.map(|error| (error.as_str(), metrics.error(error).get()));
    let errors: BTreeMap<_, _> = errors.into_iter().filter(|(_, count)| *count > 0).collect();
    json!({
        "flows": metrics.active.get(),
        "connections_total": metrics.connections.get(),
        "bytes_c2a_total": metrics.bytes_c2a.get(),
        "bytes_a2c_total": metrics.bytes_a2c.get(),
        "open_p50_ms": percentile(&waits, 0.50).filter(|_| waits.iter().any(|w| w.1 > 0)),
        "open_p95_ms": percentile(&waits, 0.95).filter(|_| waits.iter().any(|w| w.1 > 0)),
        "errors": errors,
    })
}

/// Samples of several hubs as those of one: sums, and percentiles of all waits together. A time at
/// which a hub has no sample is shown without it.
pub(super) fn merge(hubs: &[&Value]) -> Vec<Value> {
    let mut times = BTreeMap::<u64, Vec<&Value>>::new();
    for sample in hubs
        .iter()
        .flat_map(|hub| super::merge::list(&hub["samples"]))
    {
        if let Some(at) = sample["at"].as_u64() {
            times.entry(at).or_default().push(sample);
        }
    }
    let merged = times.into_iter().map(|(at, samples)| {
        let sum = |key: &str| {
            samples
                .iter()
                .filter_map(|one| one[key].as_f64())
                .sum::<f64>()
        };
        let count = |key: &str| {
            samples
                .iter()
                .filter_map(|one| one[key].as_u64())
                .fold(0, u64::saturating_add)
        };
        let mut waits = BTreeMap::<u64, u64>::new();
        for wait in samples
            .iter()
            .flat_map(|one| super::merge::list(&one["open_waits"]))
        {
            if let (Some(bound), Some(count)) = (wait[0].as_f64(), wait[1].as_u64()) {
                // Positive numbers sort like their bits.
                let all = waits.entry(bound.abs().to_bits()).or_default();
                *all = all.saturating_add(count);
            }
        }
        let waits: Vec<_> = waits
            .into_iter()
            .map(|(bits, count)| (f64::from_bits(bits), count))
            .collect();
        json!({
            "at": at,
            "hubs": samples.len(),
            "flows": count("flows"),
            "tunnels": count("tunnels"),
            "opens_per_sec": sum("opens_per_sec"),
            "bytes_c2a_per_sec": sum("bytes_c2a_per_sec"),
            "bytes_a2c_per_sec": sum("bytes_a2c_per_sec"),
            "open_p50_ms": percentile(&waits, 0.50),
            "open_p95_ms": percentile(&waits, 0.95),
        })
    });
    merged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_upper_bounds() {
        let waits = [(1.0, 50), (2.0, 45), (4.0, 5)];
        assert_eq!(percentile(&waits, 0.50), Some(1.0));
        assert_eq!(percentile(&waits, 0.95), Some(2.0));
        assert_eq!(percentile(&waits, 0.99), Some(4.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn samples_of_hubs_are_added_by_time() {
        let sample = |at: u64, flows: u64, waits: Value| json!({ "at": at, "flows": flows, "opens_per_sec": 0.5, "open_waits": waits });
        let a = json!({ "samples": [sample(5, 1, json!([[1.0, 9]])), sample(10, 1, json!([]))] });
        let b = json!({ "samples": [sample(10, 2, json!([[8.0, 1]]))] });
        let merged = merge(&[&a, &b]);
        assert_eq!(merged.len(), 2);
        assert_eq!(
            (&merged[0]["hubs"], &merged[0]["open_p95_ms"]),
            (&json!(1), &json!(1.0))
        );
        assert_eq!(
            (&merged[1]["flows"], &merged[1]["opens_per_sec"]),
            (&json!(3), &json!(1.0))
        );
        assert_eq!(merged[1]["open_p50_ms"], json!(8.0));
    }
}
