//! The results as JSON, for keeping and for comparing runs.

use crate::options::Options;
use crate::report::Outcome;

/// Machine, options, and per case and system: every round's figures and their median.
pub(crate) fn document(
    facts: &[(&'static str, String)],
    options: &Options,
    outcomes: &[Outcome],
) -> String {
    let facts = facts
        .iter()
        .map(|(name, value)| (*name, string(value)))
        .collect::<Vec<_>>();
    let document = object(&[
        ("machine", object(&facts)),
        ("rounds", options.rounds.to_string()),
        ("seconds", number(options.period.as_secs_f64())),
        ("cases", array(outcomes.iter().map(case))),
    ]);
    document + "\n"
}

fn case(outcome: &Outcome) -> String {
    let results = outcome.results.iter().map(|(system, rounds)| {
        let metrics = outcome
            .case
            .metrics
            .iter()
            .enumerate()
            .map(|(index, metric)| {
                let samples = rounds.iter().flatten();
                let spread = outcome.spread(*system, index);
                object(&[
                    ("metric", string(metric.name)),
                    (
                        "median",
                        spread.map_or("null".into(), |spread| number(spread.median)),
                    ),
                    (
                        "rounds",
                        array(samples.map(|sample| number(sample.values[index]))),
                    ),
                ])
            });
        let foreign = rounds
            .iter()
            .flatten()
            .map(|sample| number(sample.foreign_cores));
        let failures = rounds.iter().filter_map(|round| round.as_ref().err());
        object(&[
            ("system", string(system.name())),
            ("metrics", array(metrics)),
            ("foreign_cores", array(foreign)),
            (
                "failures",
                array(failures.map(|failure| string(&failure.to_string()))),
            ),
        ])
    });
    let comparisons = outcome.comparisons();
    let comparisons = comparisons.iter().map(|comparison| {
        let peer = comparison.best_peer.map(|(peer, _)| string(peer.name()));
        let met = comparison.met().map(|met| met.to_string());
        object(&[
            ("system", string(comparison.ours.name())),
            ("metric", string(comparison.metric.name)),
            ("best_peer", peer.unwrap_or("null".into())),
            ("ratio", comparison.ratio().map_or("null".into(), number)),
            ("target_met", met.unwrap_or("null".into())),
        ])
    });
    object(&[
        ("case", string(&outcome.case.name)),
        ("title", string(&outcome.case.title)),
        ("results", array(results)),
        ("comparisons", array(comparisons)),
    ])
}

fn object(members: &[(&str, String)]) -> String {
    let members = members
        .iter()
        .map(|(name, value)| format!("{}:{value}", string(name)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// JSON has no infinities.
fn number(value: f64) -> String {
    if value.is_finite() {
        value.to_string()
    } else {
        "null".into()
    }
}

fn string(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => quoted += &format!("\\u{:04x}", control as u32),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_and_infinities_are_null() {
        assert_eq!(string("a\"\\\n"), "\"a\\\"\\\\\\u000a\"");
        assert_eq!(number(f64::INFINITY), "null");
    }
}
