//! Objectives of a run: `p99=200,errors=0`.

use std::str::FromStr;

use serde_json::Value;

/// Bounds that all have to hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slo(Vec<Objective>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Objective {
    what: What,
    bound: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    /// A figure of `latency_ms`, at most, with its name on the command line.
    Latency(&'static str, &'static str),
    Errors,
    ErrorPercent,
    /// Requests per second, at least.
    Rps,
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(objective)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn objective(text: &str) -> Result<Objective, String> {
    let wrong = || format!("'{text}' is no objective: write for example p99=200,errors=0");
    let (name, bound) = text.trim().split_once('=').ok_or_else(wrong)?;
    let (number, percent) = match bound.strip_suffix('%') {
        Some(number) => (number, true),
        None => (bound.strip_suffix("ms").unwrap_or(bound), false),
    };
    let bound: f64 = number.parse().map_err(|_| wrong())?;
    let what = match (name, percent) {
        ("p50", false) => What::Latency("p50", "p50_ms"),
        ("p90", false) => What::Latency("p90", "p90_ms"),
        ("p99", false) => What::Latency("p99", "p99_ms"),
        ("max", false) => What::Latency("max", "max_ms"),
        ("avg", false) => What::Latency("avg", "avg_ms"),
        ("errors", false) => What::Errors,
        ("errors", true) => What::ErrorPercent,
        ("rps", false) => What::Rps,
        _ => return Err(wrong()),
    };
    match bound.is_finite() && bound >= 0.0 {
        true => Ok(Objective { what, bound }),
        false => Err(wrong()),
    }
}

impl Slo {
    /// The objectives that a report misses, in words. Requests that were never sent are errors, and
    /// without one that succeeded every latency is missed.
    pub(super) fn missed(&self, report: &Value) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|objective| objective.miss(report))
            .collect()
    }
}

impl Objective {
    fn miss(&self, report: &Value) -> Option<String> {
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let bound = self.bound;
        let errors = number(&report["errors_total"]) + number(&report["not_started"]);
        let nothing = report["latency_ms"]["count"] == 0;
        match self.what {
            What::Latency(name, _) if nothing => Some(format!("{name} (no request succeeded)")),
            What::Latency(name, key) => {
                let found = number(&report["latency_ms"][key]);
                (found > bound).then(|| format!("{name} {found} ms > {bound} ms"))
            }
            What::Errors => (errors > bound).then(|| format!("errors {errors} > {bound}")),
            What::ErrorPercent => {
                let all = number(&report["requests_total"]) + number(&report["not_started"]);
                let percent = (100.0 * errors / all.max(1.0) * 1000.0).round() / 1000.0;
                (percent > bound).then(|| format!("errors {percent} % > {bound} %"))
            }
            What::Rps => {
                let found = number(&report["achieved_rps"]);
                (found < bound).then(|| format!("rps {found} < {bound}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objectives_are_read_and_judged() {
        let report = json!({
            "latency_ms": { "count": 98, "p50_ms": 10.0, "p99_ms": 201.0 },
            "requests_total": 100, "errors_total": 2, "not_started": 0, "achieved_rps": 9.8,
        });
        let missed = |text: &str| Slo::from_str(text).unwrap().missed(&report).len();
        assert_eq!(missed("p50=10,p99=201,errors=2,errors=2%,rps=9"), 0);
        assert_eq!(missed("p50=9.9,p99=200ms,errors=0,errors=1.9%,rps=10"), 5);
        let nothing = json!({ "latency_ms": { "count": 0, "p99_ms": 0.0 } });
        assert_eq!(Slo::from_str("p99=1").unwrap().missed(&nothing).len(), 1);
        for text in [
            "", "p99", "p98=1", "p99=x", "p99=-1", "p99=5%", "p99=nan", "p99=1,",
        ] {
            assert!(Slo::from_str(text).is_err(), "{text}");
        }
    }
}
