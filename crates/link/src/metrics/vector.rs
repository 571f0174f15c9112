//! Metrics with labels: a family whose label names are fixed and whose values are bounded.

use std::borrow::Cow;
use std::collections::HashSet;

use parking_lot::Mutex;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A counter of fractional units, for seconds.
pub type SecondsCounter = Counter<f64, std::sync::atomic::AtomicU64>;
/// A gauge of fractional units, for seconds.
pub type SecondsGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// What stands in a label for every name beyond the bound of its kind.
pub const OTHER: &str = "other";

/// One metric per set of label values. A lookup takes a lock: resolve the handle once, keep it.
#[derive(Debug, Clone)]
pub struct Vector<M, const N: usize> {
    family: Family<Labels<N>, M, fn() -> M>,
    names: [&'static str; N],
}

impl<M: Clone, const N: usize> Vector<M, N> {
    /// The metric of these label values, created at zero when it is new.
    pub fn with(&self, values: [&str; N]) -> M {
        self.family.get_or_create_owned(&self.labels(values))
    }

    /// Forgets the metric of these label values, so that it is served no longer.
    pub fn remove(&self, values: [&str; N]) {
        self.family.remove(&self.labels(values));
    }

    fn labels(&self, values: [&str; N]) -> Labels<N> {
        std::array::from_fn(|i| (self.names[i], Cow::Owned(values[i].to_owned())))
    }
}

impl<M: Clone> Vector<M, 1> {
    /// Creates the metric of each value at zero, so that rates and alerts see the first event.
    pub fn known(self, values: &[&str]) -> Self {
        for value in values {
            self.with([value]);
        }
        self
    }
}

/// Names that come from the network, bounded in number: a label value costs memory for ever.
#[derive(Debug)]
pub struct BoundedNames {
    seen: Mutex<HashSet<Box<str>>>,
    bound: usize,
}

impl BoundedNames {
    /// Room for `bound` distinct names.
    pub fn new(bound: usize) -> Self {
        Self {
            seen: Mutex::default(),
            bound,
        }
    }

    /// `name` itself while there is room for it, [`OTHER`] beyond.
    pub fn admit<'a>(&self, name: &'a str) -> &'a str {
        let mut seen = self.seen.lock();
        if seen.contains(name) {
            return name;
        }
        if seen.len() >= self.bound {
            return OTHER;
        }
        seen.insert(name.into());
        name
    }
}

/// Registers metrics under the very names that are served.
#[derive(Debug)]
pub struct Catalog<'a>(pub &'a mut Registry);

impl Catalog<'_> {
    /// A counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Counter {
        let metric = Counter::default();
        self.0.register(counter_stem(name), help, metric.clone());
        metric
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Gauge {
        let metric = Gauge::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    /// A counter per set of label values.
    pub fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
    ) -> Vector<Counter, N> {
        self.vector(name, help, labels, Counter::default)
    }

    /// A counter of seconds per set of label values.
    pub fn seconds_counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
    ) -> Vector<SecondsCounter, N> {
        self.vector(name, help, labels, SecondsCounter::default)
    }

    /// A gauge per set of label values.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
    ) -> Vector<Gauge, N> {
        self.vector(name, help, labels, Gauge::default)
    }

    /// A gauge of seconds per set of label values.
    pub fn seconds_gauges<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
    ) -> Vector<SecondsGauge, N> {
        self.vector(name, help, labels, SecondsGauge::default)
    }

    /// A histogram per set of label values, each made by `make`.
    pub fn histograms<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: [&'static str; N],
        make: fn() -> Histogram,
    ) -> Vector<Histogram, N> {
        self.vector(name, help, labels, make)
    }

    /// `nowconnect_build_info`, which tells which build runs.
    pub fn build_info(&mut self) {
        let build = self.gauges(
            "nowconnect_build_info",
            "Always 1; the labels say which build runs",
            ["version", "revision"],
        );
        let revision = option_env!("NOWCONNECT_REVISION").unwrap_or("unknown");
        build.with([env!("CARGO_PKG_VERSION"), revision]).set(1);
    }

    fn vector<M, const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        names: [&'static str; N],
        make: fn() -> M,
    ) -> Vector<M, N>
    where
        M: prometheus_client::encoding::EncodeMetric + TypedMetric + Clone + Send + Sync,
        M: std::fmt::Debug + 'static,
    {
        let family = Family::new_with_constructor(make);
        let stem = match M::TYPE {
            MetricType::Counter => counter_stem(name),
            _ => name,
        };
        self.0.register(stem, help, family.clone());
        Vector { family, names }
    }
}

/// The encoder appends `_total` to the name of a counter by itself.
fn counter_stem(name: &'static str) -> &'static str {
    name.strip_suffix("_total").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_are_other() {
        let names = BoundedNames::new(2);
        assert_eq!(names.admit("a"), "a");
        assert_eq!(names.admit("b"), "b");
        assert_eq!(names.admit("c"), OTHER);
        assert_eq!(names.admit("a"), "a");
    }
}
