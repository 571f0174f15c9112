//! The Prometheus rules and the Grafana dashboard, judged by promtool and by what the hub and the agent are documented to show.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::program;
use serde_json::{Value, json};
use tokio::process::Command;

fn monitoring(file: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/monitoring");
    PathBuf::from(root).join(file)
}

async fn promtool(words: &[&str], file: PathBuf) -> Result<String> {
    let mut command = Command::new(program::find("promtool", "prometheus")?);
    command.args(words).arg(&file);
    program::succeed(&mut command)
        .await
        .with_context(|| format!("promtool {words:?} {}", file.display()))
}

#[tokio::test]
async fn prometheus_accepts_the_rules_and_every_alert_fires_when_it_should() -> Result<()> {
    promtool(&["check", "config"], monitoring("prometheus.yml")).await?;
    promtool(&["test", "rules"], monitoring("rules_test.yml")).await?;
    let rules = program::read(&monitoring("rules.yml"))?;
    let tests = program::read(&monitoring("rules_test.yml"))?;
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let fires = format!("alertname=\"{alert}\"");
        ensure!(tests.contains(&fires), "no test makes {alert} fire");
    }
    Ok(())
}

/// The panels of the dashboard that ask something.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels
        .flat_map(|panel| {
            let targets = panel["targets"].as_array().into_iter().flatten();
            targets.map(|target| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&panel["title"]), text(&target["expr"]))
            })
        })
        .collect()
}

fn dashboard() -> Result<Value> {
    let text = program::read(&monitoring("dashboard.json"))?;
    serde_json::from_str(&text).context("dashboard.json")
}

#[tokio::test]
async fn prometheus_understands_every_question_of_the_dashboard() -> Result<()> {
    let dashboard = dashboard()?;
    let ids: BTreeSet<_> = dashboard["panels"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|panel| panel["id"].as_u64())
        .collect();
    ensure!(
        Some(ids.len()) == dashboard["panels"].as_array().map(Vec::len),
        "ids repeat"
    );
    let rules: Vec<_> = questions(&dashboard)
        .into_iter()
        .map(|(_, expr)| {
            let expr = expr
                .replace("$__rate_interval", "5m")
                .replace("$hub", ".+")
                .replace("$connector", ".+");
            json!({ "record": "question", "expr": expr })
        })
        .collect();
    ensure!(rules.len() > 30, "{} questions", rules.len());
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("dashboard.yml");
    // JSON is YAML.
    program::write(&file, &groups.to_string())?;
    promtool(&["check", "rules", "--lint=none"], file).await?;
    Ok(())
}

/// The names of metrics in a text; those of recording rules have colons.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| word.starts_with("nowconnect_") && !word.contains(':'))
        .collect()
}

/// The documented ones, which other tests compare with the code.
#[test]
fn every_metric_that_rules_and_dashboard_name_is_there() -> Result<()> {
    let documents = ["metrics.md", "agent.md"].map(|name| monitoring("../../docs").join(name));
    let documents = documents
        .iter()
        .map(|file| program::read(file))
        .collect::<Result<String>>()?;
    let documented = names(&documents);
    for file in ["rules.yml", "dashboard.json"] {
        let text = program::read(&monitoring(file))?;
        let unknown: Vec<_> = names(&text)
            .into_iter()
            .filter(|name| {
                let parts = ["", "_bucket", "_sum", "_count"];
                let mut families = parts.iter().filter_map(|part| name.strip_suffix(part));
                !families.any(|family| documented.contains(family))
            })
            .collect();
        ensure!(
            unknown.is_empty(),
            "{file} names metrics that are not there: {unknown:?}"
        );
    }
    Ok(())
}
