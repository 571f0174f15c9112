//! The documented configuration against the one that is read.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeMap;

use nowconnect_agent::config::AgentConfig;
use nowconnect_hub::config::HubConfig;
use nowconnect_settings::{Alias, KeySpec, TRACES_ALIASES};

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

/// What the document or the schema says of a key: allowed, default, environment variable.
type Said = [String; 3];

/// The rows of the tables below a heading, by key.
fn documented(heading: &str) -> BTreeMap<String, Said> {
    let (_, below) = DOCUMENT.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = below.split("\n## ").next().unwrap();
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [key, allowed, default, env, meaning] = cells[..] else {
            panic!("{line}")
        };
        assert!(!meaning.is_empty(), "{line}");
        let said = [allowed, default, env].map(|cell| cell.replace('`', ""));
        let before = rows.insert(key.replace('`', ""), said);
        assert!(before.is_none(), "{key} is documented twice");
        if meaning.contains("*secret*") {
            let name = key.trim_matches('`').rsplit('.').next().unwrap();
            assert!(meaning.contains(&format!("`{name}_file`")), "{line}");
        }
    }
    rows
}

fn read(keys: Vec<KeySpec>, aliases: &[Alias]) -> BTreeMap<String, Said> {
    let said = |spec: KeySpec| {
        let mut aliases = aliases.iter().chain(&TRACES_ALIASES);
        let alias = aliases.find(|alias| alias.key == spec.key);
        let env = alias.map(|alias| alias.var.to_owned()).unwrap_or_default();
        let default = spec.default.unwrap_or_else(|| "required".to_owned());
        (spec.key, [spec.allowed.replace('`', ""), default, env])
    };
    keys.into_iter().map(said).collect()
}

#[test]
fn documentation_and_hub_agree() {
    let read = read(HubConfig::keys(), nowconnect_hub::config::ALIASES);
    assert_eq!(documented("Hub"), read);
}

#[test]
fn documentation_and_agent_agree() {
    let read = read(AgentConfig::keys(), nowconnect_agent::config::ALIASES);
    assert_eq!(documented("Agent"), read);
}

#[test]
fn secrets_are_documented_as_such() {
    for spec in HubConfig::keys().into_iter().chain(AgentConfig::keys()) {
        let row = DOCUMENT
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", spec.key)));
        assert_eq!(
            row.unwrap().contains("*secret*"),
            spec.secret,
            "{}",
            spec.key
        );
    }
}

/// Every key that keeps its running value is in the paragraph that says so.
#[test]
fn what_needs_a_restart_is_documented() {
    let (_, below) = DOCUMENT.split_once("\n## Reload\n").unwrap();
    let reload = below.split("\n## ").next().unwrap();
    for key in HubConfig::fixed_keys().chain(AgentConfig::fixed_keys()) {
        assert!(reload.contains(&format!("`{key}`")), "{key}");
    }
}
