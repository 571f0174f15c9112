//! The documented audit events against those in the code, both ways.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Fields by event.
type Events = BTreeMap<String, BTreeSet<String>>;

/// Names that every record has besides its fields.
const RESERVED: [&str; 4] = ["ts", "seq", "prev", "hash"];

fn documented() -> Events {
    let document = include_str!("../../../docs/audit.md");
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let mut events = Events::new();
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [names, fields, meaning] = cells[..] else {
            continue;
        };
        assert!(!meaning.is_empty(), "{row}");
        for name in in_backticks(names) {
            let fields = in_backticks(fields).collect();
            assert!(
                events.insert(name, fields).is_none(),
                "{row} is there twice"
            );
        }
    }
    events
}

fn in_backticks(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            found.push(product.to_owned());
        }
    }
}

/// The text between the parentheses that open at `from`.
fn within(text: &str, from: usize) -> &str {
    let mut depth = 0;
    for (at, letter) in text[from..].char_indices() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 1 => return &text[from + 1..from + at],
            ')' => depth -= 1,
            _ => {}
        }
    }
    panic!("unbalanced: {}", &text[from..]);
}

/// Arguments that commas of the outermost level part.
fn arguments(inner: &str) -> Vec<String> {
    let (mut depth, mut quoted) = (0, false);
    let mut all = vec![String::new()];
    for letter in inner.chars() {
        match letter {
            '"' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                all.push(String::new());
                continue;
            }
            _ => {}
        }
        all.last_mut().unwrap().push(letter);
    }
    all.iter().map(|one| one.trim().to_owned()).collect()
}

fn in_comment(text: &str, at: usize) -> bool {
    let line = text[..at].rsplit('\n').next().unwrap();
    line.trim_start().starts_with("//")
}

fn in_code() -> Events {
    let mut texts = Vec::new();
    for part in ["hub", "agent", "cli", "link"] {
        let dir = format!("{}/../{part}/src", env!("CARGO_MANIFEST_DIR"));
        sources(Path::new(&dir), &mut texts);
    }
    let mut events = Events::new();
    for text in &texts {
        let marks = text.match_indices("audit = true");
        for (at, _) in marks.filter(|(at, _)| !in_comment(text, *at)) {
            // An event of less importance would not get here.
            let calls = [
                "tracing::info!(",
                "tracing::warn!(",
                "tracing::error!(",
                "$log!(",
            ];
            let call = calls.iter().filter_map(|call| text[..at].rfind(call));
            let begin = call.max().unwrap();
            let bang = begin + text[begin..].find("!(").unwrap();
            let call = within(text, bang + 1);
            assert!(call.contains("audit = true"), "{call}");
            let arguments = arguments(call);
            let names = match arguments[0].split_once(" = ") {
                Some(("event", name)) => vec![name.trim_matches('"').to_owned()],
                // `let event = match .. { .. => "name", .. };`
                _ => {
                    assert_eq!(arguments[0], "event", "{call}");
                    let choice = text[..bang].rfind("let event = ").unwrap();
                    let choice = text[choice..bang].split(';').next().unwrap();
                    choice
                        .split('"')
                        .skip(1)
                        .step_by(2)
                        .map(str::to_owned)
                        .collect()
                }
            };
            let fields = arguments[1..].iter().filter(|one| !one.is_empty());
            let fields = fields.map(|field| field.split(" = ").next().unwrap());
            let fields = fields.map(|field| field.trim_start_matches(['%', '?']));
            let fields = fields.map(|field| field.trim_start_matches("r#"));
            let fields: BTreeSet<_> = fields
                .filter(|field| *field != "audit")
                .map(str::to_owned)
                .collect();
            for name in names {
                events
                    .entry(name)
                    .or_default()
                    .extend(fields.iter().cloned());
            }
        }
        // The trail's own records.
        for (at, _) in text.match_indices("note(\"audit_") {
            let name = text[at..].split('"').nth(1).unwrap();
            events.entry(name.to_owned()).or_default();
        }
    }
    events
}

#[test]
fn every_audit_event_is_documented_and_every_documented_one_exists() {
    let (documented, code) = (documented(), in_code());
    let names = |events: &Events| events.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&documented), names(&code));
    for (event, fields) in &code {
        assert!(
            RESERVED.iter().all(|name| !fields.contains(*name)),
            "{event}"
        );
        if !event.starts_with("audit_") {
            assert_eq!(&documented[event], fields, "{event}");
        }
    }
}
