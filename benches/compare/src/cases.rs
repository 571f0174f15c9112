//! What is measured, in which unit, and what we hold ourselves to.

use std::time::Duration;

use crate::load::Load;
use crate::systems::{Class, System};

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What our figure shall reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// Our median divided by the best peer's, at least or at most this much.
    OfBestPeer(f64),
    /// Our median divided by that of our own path without a second hub, at most this much.
    OfOurLocalPath(f64),
    /// Our median itself.
    Value(f64),
    /// For information.
    None,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// Name and unit, as a column head.
    pub(crate) name: &'static str,
    pub(crate) better: Better,
    pub(crate) target: Target,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) load: Load,
    pub(crate) metrics: &'static [Metric],
    /// Round-trip time between the tunnel's ends, if not the machine's own.
    pub(crate) round_trip: Option<Duration>,
}

const fn metric(name: &'static str, better: Better, target: Target) -> Metric {
    Metric {
        name,
        better,
        target,
    }
}

const EVEN: Target = Target::OfBestPeer(1.0);

const BULK: [Metric; 2] = [
    metric("MB/s", Better::Higher, EVEN),
    metric("CPU s/GB", Better::Lower, EVEN),
];

const EXCHANGES: [Metric; 4] = [
    metric("per s", Better::Higher, EVEN),
    metric("p50 us", Better::Lower, EVEN),
    metric("p99 us", Better::Lower, EVEN),
    metric("CPU s/10k", Better::Lower, EVEN),
];

const CHURN: [Metric; 3] = [
    metric("conn/s", Better::Higher, EVEN),
    metric("p99 ms", Better::Lower, EVEN),
    metric("CPU s/10k", Better::Lower, EVEN),
];

const IDLE: [Metric; 3] = [
    metric("KiB/flow unused", Better::Lower, EVEN),
    metric("KiB/flow used", Better::Lower, EVEN),
    metric("KiB at start", Better::Lower, Target::None),
];

const BURST: [Metric; 2] = [
    metric("slowest ms", Better::Lower, Target::Value(100.0)),
    metric("median ms", Better::Lower, Target::None),
];

const HALF_CLOSE_TRIES: usize = 20;
const HALF_CLOSE: [Metric; 1] = [metric(
    "answered of 20",
    Better::Higher,
    Target::Value(HALF_CLOSE_TRIES as f64),
)];

const ROUND_TRIP: Duration = Duration::from_millis(50);

/// All cases, in the order of a run.
pub(crate) fn all(idle_connections: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, title: String, load, metrics| {
        cases.push(Case {
            name,
            title,
            load,
            metrics,
            round_trip: None,
        });
    };
    for (direction, up) in [("up", true), ("down", false)] {
        for flows in [1, 8, 16] {
            let name = format!("bulk-{direction}-{flows}");
            let way = if up {
                "client to target"
            } else {
                "target to client"
            };
            let title = format!("Bulk {way}, {flows} flow(s)");
            add(name, title, Load::Bulk { up, flows }, &BULK[..]);
        }
    }
    for connections in [1, 32] {
        let title = format!("Request 128 B, response 512 B, {connections} connection(s)");
        add(
            format!("requests-{connections}"),
            title,
            Load::Requests { connections },
            &EXCHANGES,
        );
    }
    let title = "Connect, echo 128 B, close; 32 at a time".into();
    add(
        "churn-32".into(),
        title,
        Load::Churn { workers: 32 },
        &CHURN,
    );
    let title = format!("Resident memory with {idle_connections} idle connections");
    add("idle".into(), title, Load::Idle, &IDLE);
    let title = "200 connections at once over a 50 ms path, first echo".into();
    add(
        "burst-200".into(),
        title,
        Load::Burst { connections: 200 },
        &BURST,
    );
    let title = "Half-close, then the answer".into();
    add(
        "half-close".into(),
        title,
        Load::HalfClose {
            tries: HALF_CLOSE_TRIES,
        },
        &HALF_CLOSE,
    );
    for connections in [1, 10] {
        let title = format!("LDAP search of 100 entries (slapd), {connections} connection(s)");
        add(
            format!("ldap-{connections}"),
            title,
            Load::Ldap { connections },
            &EXCHANGES,
        );
    }
    for case in &mut cases {
        if matches!(case.load, Load::Burst { .. }) {
            case.round_trip = Some(ROUND_TRIP);
        }
    }
    cases
}

/// Those of `items` that `chosen` names in full or by their first words: `bulk` and `bulk-up` both
/// choose `bulk-up-8`. All of them when nothing is chosen; the error names what fits none.
pub(crate) fn choose<T>(
    items: Vec<T>,
    chosen: &[String],
    name: impl Fn(&T) -> &str,
) -> Result<Vec<T>, String> {
    let fits = |choice: &str, name: &str| {
        name.strip_prefix(choice)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    for choice in chosen {
        if !items.iter().any(|item| fits(choice, name(item))) {
            let known: Vec<&str> = items.iter().map(name).collect();
            return Err(format!("'{choice}' is none of: {}", known.join(", ")));
        }
    }
    let wanted =
        |item: &T| chosen.is_empty() || chosen.iter().any(|choice| fits(choice, name(item)));
    Ok(items.into_iter().filter(wanted).collect())
}

/// What `metric` of `case` shall reach. A hub more between client and agent has targets of its own.
pub(crate) fn target(case: &Case, class: Class, metric: Metric) -> Target {
    if class != Class::Across {
        return metric.target;
    }
    match (case.load, metric.name) {
        (Load::Bulk { .. }, "MB/s") | (Load::Churn { .. }, "conn/s") => Target::OfBestPeer(1.3),
        (Load::Requests { connections: 32 }, "per s") => Target::OfBestPeer(1.2),
        (Load::Requests { .. }, "CPU s/10k") => Target::OfOurLocalPath(1.8),
        _ => Target::None,
    }
}

/// Whether `case` can be measured on `system` at all.
pub(crate) fn applies(case: &Case, system: System) -> bool {
    if system.class() == Class::Across {
        return matches!(
            case.load,
            Load::Bulk { .. } | Load::Requests { .. } | Load::Churn { .. }
        );
    }
    // Without a tunnel there is no process whose memory could be counted.
    !(case.load == Load::Idle && system == System::Loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(words: &[&str]) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let cases = choose(all(1), &words, |case| &case.name)?;
        Ok(cases.into_iter().map(|case| case.name).collect())
    }

    #[test]
    fn a_choice_is_a_name_or_its_first_words() {
        assert_eq!(chosen(&["bulk-up-1"]), Ok(vec!["bulk-up-1".into()]));
        assert_eq!(chosen(&["bulk-down"]).map(|names| names.len()), Ok(3));
        assert_eq!(chosen(&["bulk", "idle"]).map(|names| names.len()), Ok(7));
    }

    #[test]
    fn a_choice_that_fits_nothing_is_an_error() {
        assert!(chosen(&["bul"]).is_err());
    }
}
