//! The report: a table per case, ratios to the best peer and to the references, targets.

use std::fmt::Write as _;

use crate::cases::{self, Better, Case, Metric, Target};
use crate::failure::Result;
use crate::load::Sample;
use crate::options::Options;
use crate::systems::{Class, System};

/// More foreign work than this, and rates and latencies say as much about it as about the systems.
const QUIET_CORES: f64 = 0.1;

/// What crossing a second hub is held against.
const LOCAL: System = System::Ours { tls: true };

/// Everything measured for one case, systems in the order of their turns.
pub(crate) struct Outcome {
    pub(crate) case: Case,
    pub(crate) results: Vec<(System, Vec<Result<Sample>>)>,
}

/// Median and extremes of a figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let median = (values[upper] + values[(values.len() - 1) / 2]) / 2.0;
        Some(Self {
            median,
            least,
            most,
        })
    }
}

/// One of our figures against the best of the peers that do the same work.
pub(crate) struct Comparison {
    pub(crate) ours: System,
    pub(crate) metric: Metric,
    pub(crate) median: f64,
    pub(crate) best_peer: Option<(System, f64)>,
    pub(crate) target: Target,
    /// The median of our own path without a second hub.
    local: Option<f64>,
}

impl Comparison {
    pub(crate) fn ratio(&self) -> Option<f64> {
        let (_, best) = self.best_peer?;
        // CPU time has a resolution: a nought says only that there was too little of it.
        (best > 0.0).then_some(self.median / best)
    }

    fn of_local(&self) -> Option<f64> {
        Some(self.median / self.local.filter(|local| *local > 0.0)?)
    }

    /// `None` when there is no target, or no peer to hold ours against.
    pub(crate) fn met(&self) -> Option<bool> {
        let (figure, bound) = match self.target {
            Target::OfBestPeer(bound) => (self.ratio()?, bound),
            Target::OfOurLocalPath(bound) => (self.of_local()?, bound),
            Target::Value(bound) => (self.median, bound),
            Target::None => return None,
        };
        Some(match self.metric.better {
            Better::Higher => figure >= bound,
            Better::Lower => figure <= bound,
        })
    }
}

impl Outcome {
    /// Of the figure number `index`, over the rounds that did not fail.
    pub(crate) fn spread(&self, system: System, index: usize) -> Option<Spread> {
        let (_, results) = self.results.iter().find(|(other, _)| *other == system)?;
        Spread::of(
            results
                .iter()
                .flatten()
                .map(|sample| sample.values[index])
                .collect(),
        )
    }

    pub(crate) fn comparisons(&self) -> Vec<Comparison> {
        let ours = self
            .results
            .iter()
            .map(|(system, _)| *system)
            .filter(|s| s.is_ours());
        let metrics = || self.case.metrics.iter().enumerate();
        ours.flat_map(|ours| metrics().map(move |(index, metric)| (ours, index, *metric)))
            .filter_map(|(ours, index, metric)| {
                let median = self.spread(ours, index)?.median;
                let best_peer = self.best_peer(ours.class(), index, metric.better);
                Some(Comparison {
                    ours,
                    metric,
                    median,
                    best_peer,
                    target: cases::target(&self.case, ours.class(), metric),
                    local: self.spread(LOCAL, index).map(|spread| spread.median),
                })
            })
            .collect()
    }

    fn best_peer(&self, class: Class, index: usize, better: Better) -> Option<(System, f64)> {
        let peers = self.results.iter().map(|(system, _)| *system);
        let peers = peers.filter(|system| system.class() == class && !system.is_ours());
        let medians = peers.filter_map(|peer| Some((peer, self.spread(peer, index)?.median)));
        match better {
            Better::Higher => medians.max_by(|a, b| a.1.total_cmp(&b.1)),
            Better::Lower => medians.min_by(|a, b| a.1.total_cmp(&b.1)),
        }
    }

    fn foreign_cores(&self) -> Option<Spread> {
        let samples = self
            .results
            .iter()
            .flat_map(|(_, results)| results.iter().flatten());
        Spread::of(samples.map(|sample| sample.foreign_cores).collect())
    }
}

pub(crate) fn head(facts: &[(&'static str, String)], options: &Options) {
    println!("NowConnect, compared");
    for (name, value) in facts {
        println!("  {name:10} {value}");
    }
    println!(
        "  {:10} {} of {:?} each; median (least .. most)\n",
        "rounds", options.rounds, options.period
    );
}

pub(crate) fn table(outcome: &Outcome) {
    let case = &outcome.case;
    let mut text = format!("{}: {}\n", case.name, case.title);
    let heads: String = case
        .metrics
        .iter()
        .map(|metric| format!("  {:>28}", metric.name))
        .collect();
    let _ = writeln!(text, "  {:13}{heads}", "");
    for class in [
        Class::Reference,
        Class::Plain,
        Class::Encrypted,
        Class::Across,
    ] {
        rows(&mut text, outcome, class);
    }
    if let Some(foreign) = outcome.foreign_cores() {
        let _ = writeln!(
            text,
            "  cores busy with other work meanwhile: {:.2} ({:.2} .. {:.2}){}",
            foreign.median,
            foreign.least,
            foreign.most,
            if foreign.median > QUIET_CORES {
                "; too many to rely on the figures"
            } else {
                ""
            }
        );
    }
    println!("{text}");
}

fn rows(text: &mut String, outcome: &Outcome, class: Class) {
    let metrics = outcome.case.metrics;
    for (system, results) in outcome
        .results
        .iter()
        .filter(|(system, _)| system.class() == class)
    {
        let cells: String = (0..metrics.len())
            .map(|index| {
                format!(
                    "  {:>28}",
                    outcome.spread(*system, index).map_or("-".into(), cell)
                )
            })
            .collect();
        let _ = writeln!(text, "  {:13}{cells}", system.name());
        let failures: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .collect();
        if let Some(first) = failures.first() {
            let _ = writeln!(
                text,
                "    failed {} of {}: {first}",
                failures.len(),
                results.len()
            );
        }
    }
    let comparisons = outcome.comparisons();
    let comparisons: Vec<_> = comparisons
        .iter()
        .filter(|c| c.ours.class() == class)
        .collect();
    if comparisons.is_empty() {
        return;
    }
    let peers = comparisons.iter().map(|comparison| {
        let (peer, _) = comparison.best_peer?;
        Some(format!("{:.2} {}", comparison.ratio()?, peer.name()))
    });
    ratios(text, "best peer", peers);
    if class == Class::Across {
        let locals = comparisons.iter().map(|comparison| comparison.of_local());
        let cells = locals.map(|ratio| ratio.map(|ratio| format!("{ratio:.2}")));
        ratios(text, LOCAL.name(), cells);
    }
    for reference in [System::Relay, System::Multiplexer, System::Loopback] {
        let references = comparisons.iter().enumerate().map(|(index, comparison)| {
            let median = outcome.spread(reference, index)?.median;
            (median > 0.0).then(|| format!("{:.2}", comparison.median / median))
        });
        ratios(text, reference.name(), references);
    }
}

/// A line of ratios, unless there is none to tell.
fn ratios(text: &mut String, divisor: &str, ratios: impl Iterator<Item = Option<String>>) {
    let ratios: Vec<_> = ratios.collect();
    if ratios.iter().any(Option::is_some) {
        let cell = |ratio: Option<String>| format!("  {:>28}", ratio.unwrap_or("-".into()));
        let cells: String = ratios.into_iter().map(cell).collect();
        let _ = writeln!(text, "  / {divisor:11}{cells}");
    }
}

fn cell(spread: Spread) -> String {
    let Spread {
        median,
        least,
        most,
    } = spread;
    if least == most {
        return figure(median);
    }
    format!("{} ({} .. {})", figure(median), figure(least), figure(most))
}

/// Three significant digits, more for large whole numbers.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// The list of all targets with what was reached.
pub(crate) fn targets(outcomes: &[Outcome]) {
    if outcomes
        .iter()
        .all(|outcome| outcome.comparisons().is_empty())
    {
        return;
    }
    println!("Targets (ratios are ours / best peer of the same class)");
    let (mut met, mut all) = (0, 0);
    for outcome in outcomes {
        for comparison in outcome.comparisons() {
            let Some(reached) = comparison.met() else {
                continue;
            };
            all += 1;
            met += usize::from(reached);
            let bound = match comparison.metric.better {
                Better::Higher => "at least",
                Better::Lower => "at most",
            };
            let ratio = comparison.ratio().unwrap_or_default();
            let text = match comparison.target {
                Target::OfBestPeer(target) => format!("ratio {ratio:.2}, {bound} {target:.2}"),
                Target::OfOurLocalPath(target) => {
                    let ratio = comparison.of_local().unwrap_or_default();
                    format!("ratio {ratio:.2} to {}, {bound} {target:.2}", LOCAL.name())
                }
                Target::Value(target) => {
                    format!("{}, {bound} {}", figure(comparison.median), figure(target))
                }
                Target::None => continue,
            };
            println!(
                "  {:6} {:14} {:9} {:14} {text}",
                if reached { "met" } else { "MISSED" },
                outcome.case.name,
                comparison.ours.name(),
                comparison.metric.name,
            );
        }
    }
    println!("{met} of {all} met");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 9.0]);
        assert_eq!(
            spread,
            Some(Spread {
                median: 3.0,
                least: 1.0,
                most: 9.0
            })
        );
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(
            [1234.5, 12.34, 1.234, 0.1234].map(figure),
            ["1234", "12.3", "1.23", "0.123"]
        );
    }
}
