//! What a run found: as JSON, as a few lines, and against objectives.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Map, Value, json};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

use super::load::Tally;
use super::slo::Slo;
use crate::cells::counted;
use crate::failure::Failure;
use crate::replace_file::{Existing, PUBLIC, write};

/// What becomes of a report
#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// Write the JSON report to this file too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Objectives, or exit code 1: p50, p90, p99, max, avg in milliseconds; errors as a number or
    /// in percent; rps at least. For example p99=200,errors=0
    #[arg(long, value_name = "LIST")]
    slo: Option<Slo>,
}

impl Output {
    /// What would fail only when everything has been measured.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let Some(file) = &self.out else { return Ok(()) };
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
        match dir.filter(|dir| !dir.is_dir()) {
            None => Ok(()),
            Some(dir) => {
                let (file, dir) = (file.display(), dir.display());
                Err(Failure::usage(anyhow!(
                    "--out {file}: there is no directory {dir}"
                )))
            }
        }
    }
}

/// What was run, known before it begins.
pub(super) struct Run {
    id: String,
    start: String,
    target: Value,
    workload: Value,
}

impl Run {
    /// Begins now.
    pub(super) fn begin(target: Value, workload: Value) -> anyhow::Result<Self> {
        let mut bytes = [0; 8];
        let random = SystemRandom::new().fill(&mut bytes);
        random.map_err(|_| anyhow!("the system has no random numbers"))?;
        let mut start = String::new();
        SystemTime.format_time(&mut Writer::new(&mut start))?;
        Ok(Self {
            id: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            start,
            target,
            workload,
        })
    }

    fn report(&self, tally: &Tally) -> Value {
        let times = &tally.times;
        let seconds = tally.elapsed.as_secs_f64();
        let mut report = json!({
            "run_id": self.id,
            "start_iso": self.start,
            "target": self.target,
            "workload": self.workload,
            "latency_ms": {
                "count": times.count(),
                "avg_ms": rounded(times.avg_ms()),
                "p50_ms": rounded(times.quantile_ms(0.5)),
                "p90_ms": rounded(times.quantile_ms(0.9)),
                "p99_ms": rounded(times.quantile_ms(0.99)),
                "max_ms": rounded(times.max_ms()),
            },
            "requests_total": tally.requests(),
            "errors_total": tally.errors_total,
            "errors": tally.errors,
            "not_started": tally.not_started,
            "duration_s": rounded(seconds),
            "achieved_rps": rounded(times.count() as f64 / seconds.max(1e-9)),
            "interrupted": tally.interrupted,
        });
        let brought = &tally.brought;
        let counts = [
            ("entries_total", brought.entries),
            ("bytes_sent", brought.sent),
            ("bytes_received", brought.received),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            report[name] = count.into();
        }
        report
    }

    /// Prints and writes the report and judges it.
    ///
    /// # Errors
    /// Nothing was measured, an objective was missed, or the report cannot be written.
    pub(super) fn end(
        &self,
        tally: &Tally,
        output: &Output,
        more: Map<String, Value>,
    ) -> Result<(), Failure> {
        let mut report = self.report(tally);
        let missed = output.slo.as_ref().map(|slo| slo.missed(&report));
        if let Some(missed) = &missed {
            report["slo"] = json!({ "met": missed.is_empty(), "missed": missed });
        }
        if let Value::Object(report) = &mut report {
            report.extend(more);
        }
        let text = format!("{report:#}\n");
        if let Some(path) = &output.out {
            save(path, &text)?;
        }
        eprint!("{}", lines(&report));
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        match missed {
            Some(missed) if !missed.is_empty() => {
                Err(anyhow!("objectives missed: {}", missed.join(", ")).into())
            }
            _ if tally.times.count() == 0 => Err(anyhow!("no request succeeded").into()),
            _ => Ok(()),
        }
    }
}

fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    // Devices and pipes (`--out /dev/stderr`) cannot be replaced.
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        }
        _ => write(path, text, PUBLIC, Existing::Replace),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The same for people.
fn lines(report: &Value) -> String {
    let latency = &report["latency_ms"];
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} in {} s ({}/s), {}",
        counted(&report["requests_total"], "request"),
        report["duration_s"],
        report["achieved_rps"],
        counted(&report["errors_total"], "error"),
    );
    let _ = writeln!(
        text,
        "latency ms: p50 {}  p90 {}  p99 {}  max {}  avg {}",
        latency["p50_ms"],
        latency["p90_ms"],
        latency["p99_ms"],
        latency["max_ms"],
        latency["avg_ms"],
    );
    if let Some(published) = report.get("published") {
        let _ = writeln!(
            text,
            "published:  p50 {}  p99 {} (the Python system, on its users' machine)",
            published["p50_ms"], published["p99_ms"],
        );
    }
    if report["not_started"] != 0 {
        let _ = writeln!(
            text,
            "warning: {} due and never sent: the rate is more than the target takes",
            counted(&report["not_started"], "request"),
        );
    }
    for (error, count) in report["errors"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "{count} x {error}");
    }
    if report["interrupted"] == true {
        let _ = writeln!(text, "interrupted: this is what there was until then");
    }
    text
}
