//! Rules about the shape of the source that no compiler checks.
//!
//! Inside a crate, a module uses only the modules that stand before it in these lists: whoever reads
//! from the top never meets what has not been introduced.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The hub: what it is told, what it counts, who is let in, where flows go, what holds it together.
const HUB: &[&str] = &[
    "config",
    "metrics",
    "strict_json",
    "token_id",
    "registry",
    "forwarded",
    "token_file",
    "auth",
    "flow_trace",
    "policy",
    "pdp",
    "mesh",
    "probe",
    "tunnels",
    "probes",
    "router",
    "forward",
    "listener",
    "server",
    "admin",
    "hub",
    "fuzzing",
];

#[test]
fn modules_of_the_hub_use_only_those_before_them() -> Result<()> {
    check("hub", HUB)
}

/// A task that nobody owns can be neither stopped nor waited for. Tests may.
#[test]
fn the_product_starts_tasks_only_through_their_owner() -> Result<()> {
    let mut wrong = Vec::new();
    for krate in ["proto", "link", "settings", "hub", "agent", "cli"] {
        for file in sources(&src_of(krate))? {
            let text = fs::read_to_string(&file)?;
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            let bare =
                |line: &&str| line.contains("tokio::spawn(") || line.contains("task::spawn(");
            wrong.extend(
                product
                    .lines()
                    .filter(bare)
                    .map(|l| format!("{}: {l}", file.display())),
            );
        }
    }
    ensure!(
        wrong.is_empty(),
        "use `link::tasks::Tasks` or a `JoinSet`:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

fn src_of(krate: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(krate)
        .join("src")
}

fn check(krate: &str, order: &[&str]) -> Result<()> {
    let src = src_of(krate);
    let place = |module: &str| order.iter().position(|other| *other == module);
    let mut wrong = Vec::new();
    for file in sources(&src)? {
        let inside = file.strip_prefix(&src)?;
        let first = inside.components().next().context("no module")?;
        let module = Path::new(&first).with_extension("").display().to_string();
        if module == "lib" {
            continue;
        }
        let own = place(&module);
        ensure!(
            own.is_some(),
            "{krate} has a module {module}: give it a place in this test"
        );
        for (line, used) in uses(&fs::read_to_string(&file)?) {
            if place(&used).is_none_or(|used| Some(used) > own) {
                wrong.push(format!("{}:{line}: {module} uses {used}", inside.display()));
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "against the order {order:?}:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The modules named after `crate::`, with their line numbers; comments do not count.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for (at, prefix) in line.match_indices("crate::") {
            let rest = &line[at + prefix.len()..];
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            // `use crate::{a, b}` would hide what is used; the style is one line per module.
            let name = if name.is_empty() {
                rest.to_owned()
            } else {
                name
            };
            if !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                found.push((index + 1, name));
            }
        }
    }
    found
}
