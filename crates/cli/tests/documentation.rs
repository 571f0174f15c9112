//! The documentation against the program and against itself: links, examples, log events, exit codes.
//!
//! `scripts/check-docs BINARY` runs this against a binary that exists already.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files below a directory whose names end in this.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files(&root().join("docs"), ".md");
    pages.extend(files(&root().join("deploy"), ".md"));
    pages.extend(["README.md", "SECURITY.md"].map(|name| root().join(name)));
    pages
}

/// A fenced block: the words behind the fence, its lines, and the number of the first.
struct Block {
    info: String,
    text: String,
    line: usize,
}

/// A page as prose and fenced blocks; what is indented with a fence is taken out of its indentation.
fn split(text: &str) -> (Vec<(usize, &str)>, Vec<Block>) {
    let (mut prose, mut blocks) = (Vec::new(), Vec::<Block>::new());
    let mut open: Option<usize> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().strip_prefix("```");
        match (open, fence) {
            (None, Some(info)) => {
                open = Some(line.len() - line.trim_start().len());
                let (info, text) = (info.trim().to_owned(), String::new());
                let line = number + 1;
                blocks.push(Block { info, text, line });
            }
            (None, None) => prose.push((number, line)),
            (Some(_), Some(_)) => open = None,
            (Some(indent), None) => {
                let block = blocks.last_mut().unwrap();
                block.text.push_str(line.get(indent..).unwrap_or_default());
                block.text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    (prose, blocks)
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap();
    let (prose, _) = split(&text);
    let headings = prose.iter().filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (number, line) in split(&text).0 {
            let targets = line
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next());
            for target in targets.filter(|t| !t.contains("://") && !t.starts_with("mailto:")) {
                count += 1;
                let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
                let file = match file {
                    "" => page.clone(),
                    file => page.parent().unwrap().join(file),
                };
                let leads =
                    file.exists() && (fragment.is_empty() || anchors(&file).contains(fragment));
                if !leads {
                    broken.push(format!("{}:{number}: {target}", page.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(count > 150, "{count} links");
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    for page in files(&docs, ".md") {
        let name = page.strip_prefix(&docs).unwrap().to_str().unwrap();
        let linked = summary.contains(&format!("]({name})"));
        assert!(
            linked || name == "SUMMARY.md",
            "{name} is not in SUMMARY.md"
        );
    }
}

/// What every agent needs; an example may leave it out.
const AGENT: [(&str, &str); 6] = [
    ("NC_AGENT_URL", "wss://hub.example.com/tunnel"),
    ("NC_AGENT_ID", "site-01"),
    ("NC_TOKEN_FILE", "/run/secrets/agent.jwt"),
    ("NC_CONNECTORS", "ldap"),
    ("NC_TARGET_ldap_HOST", "dc1.corp.local"),
    ("NC_TARGET_ldap_PORT", "389"),
];

fn check(file: &Path, kind: &str, env: &[(&str, &str)]) -> Result<(), String> {
    let output = Command::new(env!("CARGO_BIN_EXE_nowconnect"))
        .args(["check", "--kind", kind, "--config"])
        .arg(file)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(said)
    }
}

/// Every example of a configuration is read by the hub or the agent. `yaml other` is for other programs.
#[test]
fn examples_of_configurations_are_accepted() {
    let dir = std::env::temp_dir().join(format!("nowconnect-docs-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("example.yaml");
    let mut failed = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in split(&text).1 {
            if block.info == "yaml other" || !block.info.starts_with("yaml") {
                continue;
            }
            count += 1;
            fs::write(&file, &block.text).unwrap();
            let of_agent = ["targets:", "agent_id:", "proxy:\n", "health:", "/tunnel"];
            let (kind, env) = if of_agent.iter().any(|key| block.text.contains(key)) {
                ("agent", &AGENT[..])
            } else {
                ("hub", &[][..])
            };
            if let Err(said) = check(&file, kind, env) {
                failed.push(format!("{}:{}: {kind}: {said}", page.display(), block.line));
            }
        }
    }
    fs::remove_dir_all(&dir).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count > 5, "{count} examples");
}

/// Where an event is logged: its level (where the call itself names the event), and the call.
type Calls = BTreeMap<String, Vec<(Option<String>, String)>>;

/// The quoted words of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

fn logged() -> Calls {
    let mut calls = Calls::new();
    let sources = files(&root().join("crates"), ".rs");
    for source in sources
        .iter()
        .filter(|path| path.components().any(|c| c.as_os_str() == "src"))
    {
        let text = fs::read_to_string(source).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (at, _) in product.match_indices("event = \"") {
            let (before, after) = product.split_at(at);
            let Some(start) = before.rfind("!(") else {
                continue;
            };
            let level = before[..start].rsplit([':', ' ', '\n']).next().unwrap();
            let name = quoted(after).next().unwrap().to_owned();
            let levels = ["trace", "debug", "info", "warn", "error"];
            let level = levels.contains(&level).then(|| level.to_uppercase());
            // A macro of the file's own adds fields that stand elsewhere in it.
            let body = match level {
                Some(_) => after.split(';').next().unwrap().to_owned(),
                None => product.to_owned(),
            };
            calls.entry(name).or_default().push((level, body));
        }
        for (at, _) in product.match_indices("let event = match") {
            let arms = product[at..].split("};").next().unwrap();
            for name in quoted(arms) {
                let body = product[at..].to_owned();
                calls.entry(name.to_owned()).or_default().push((None, body));
            }
        }
    }
    calls
}

/// The cells of the rows of the tables below a heading.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, below) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = below.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = |row: &str| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    rows.map(cells).collect()
}

#[test]
fn every_log_event_is_in_the_reference_and_the_other_way_round() {
    let page = fs::read_to_string(root().join("docs/reference.md")).unwrap();
    let mut calls = logged();
    assert!(calls.len() > 90, "{} events", calls.len());
    for row in rows(&page, "Log events") {
        let [name, levels, fields, meaning] = &row[..] else {
            panic!("{row:?}")
        };
        let name = name.trim_matches('`');
        assert!(!meaning.is_empty(), "{name}");
        let found = calls.remove(name);
        let found = found.unwrap_or_else(|| panic!("{name} is documented, not logged"));
        let logged: BTreeSet<_> = found
            .iter()
            .filter_map(|(level, _)| level.clone())
            .collect();
        let said: BTreeSet<_> = levels.split(", ").map(str::to_owned).collect();
        assert!(
            logged.is_empty() || logged == said,
            "{name}: {levels}, logged at {logged:?}"
        );
        for field in fields.split('`').skip(1).step_by(2) {
            let there = found.iter().any(|(_, body)| body.contains(field));
            assert!(there, "{name} has no field {field}");
        }
    }
    assert!(
        calls.is_empty(),
        "not in docs/reference.md: {:?}",
        calls.keys()
    );
}

/// Every reason of the protocol has a row, and nothing else has.
#[test]
fn every_reason_is_in_the_reference() {
    let page = fs::read_to_string(root().join("docs/reference.md")).unwrap();
    let documented: BTreeSet<_> = rows(&page, "Reasons")
        .iter()
        .map(|row| row[0].trim_matches('`').to_owned())
        .collect();
    let source = fs::read_to_string(root().join("crates/proto/src/close.rs")).unwrap();
    let known: BTreeSet<_> = source
        .lines()
        .filter_map(|line| line.trim().strip_suffix("\";")?.split_once(", \""))
        .map(|(_, name)| name.to_owned())
        .collect();
    assert_eq!(documented, known);
}
