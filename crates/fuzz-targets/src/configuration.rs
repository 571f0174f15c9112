//! Files and environments of hub and agent.

use std::cell::LazyCell;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use nowconnect_agent::config::AgentConfig;
use nowconnect_hub::config::HubConfig;
use nowconnect_settings::{Env, Loaded, Problems, Source};

/// What stands for a secret.
const MASK: &str = "***";

/// Any bytes as a hub's file.
pub fn hub_file(data: &[u8]) {
    check(&file(data), Env::default(), HubConfig::inspect);
}

/// Any bytes as an agent's file.
pub fn agent_file(data: &[u8]) {
    check(&file(data), Env::default(), AgentConfig::inspect);
}

/// Any lines as the environment of a hub, over a small file.
pub fn hub_environment(data: &[u8]) {
    let base = "listeners: [{ name: l1, bind: '127.0.0.1:389', connector: ldap }]\n";
    check(
        &file(base.as_bytes()),
        environment(data),
        HubConfig::inspect,
    );
}

/// Any lines as the environment of an agent without a file.
pub fn agent_environment(data: &[u8]) {
    let source = Source {
        file: None,
        env: environment(data),
    };
    judge(&source, AgentConfig::inspect);
}

/// `NAME=value` in every line.
fn environment(data: &[u8]) -> Env {
    let text = String::from_utf8_lossy(data);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    // A relative file would be looked for where the fuzzer runs.
    let kept = pairs.filter(|(name, _)| *name != "SERVICE_CONFIG_DIR");
    kept.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Writes the configuration file that is read next.
fn file(text: &[u8]) -> PathBuf {
    thread_local! {
        static PLACE: LazyCell<tempfile::TempDir> =
            const { LazyCell::new(|| tempfile::tempdir().expect("a directory")) };
    }
    let path = PLACE.with(|place| place.path().join("config.yaml"));
    std::fs::write(&path, text).expect("written");
    path
}

type Read<T> = fn(&Source) -> Result<Loaded<T>, Problems>;

/// A file that is taken is shown as one that is taken for the same, unless something secret is in it.
fn check<T: PartialEq + std::fmt::Debug>(path: &Path, env: Env, read: Read<T>) {
    let source = Source {
        file: Some(path.to_owned()),
        env,
    };
    let Some(loaded) = judge(&source, read) else {
        return;
    };
    let shown = loaded.effective.to_string();
    if shown.contains(MASK) {
        return;
    }
    let again = Source {
        file: Some(file(shown.as_bytes())),
        env: Env::default(),
    };
    let again = read(&again).unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
    assert_eq!(again.config, loaded.config, "{shown}");
}

/// Reads a configuration; everything that is said about a bad one is said at a place, on one line.
fn judge<T>(source: &Source, read: Read<T>) -> Option<Loaded<T>> {
    match read(source) {
        Ok(loaded) => {
            check_problems(&loaded.warnings);
            Some(loaded)
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            check_problems(&problems.0);
            None
        }
    }
}

fn check_problems(problems: &[impl Display]) {
    assert!(problems.len() <= 1000, "{}", problems.len());
    for problem in problems {
        let shown = problem.to_string();
        assert!(!shown.contains('\n'), "{shown:?}");
    }
}
