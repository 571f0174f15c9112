//! The hub's configuration from the outside: files, environment, problems.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nowconnect_hub::config::*;
use nowconnect_settings::{Env, Loaded, LogLevel, Problems, Source};

/// Loads `text` as a file, with an environment, without looking for the files it names.
fn inspect(text: &str, env: &[(&str, &str)]) -> Result<Loaded<HubConfig>, Problems> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cloud.yaml");
    std::fs::write(&file, text).unwrap();
    HubConfig::inspect(&Source::new(Some(file), env.iter().copied().collect()))
}

/// The problems of `text`, without the directory of the file.
fn problems(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    let problems = inspect(text, env).unwrap_err();
    let named = problems.0.into_iter().map(|mut problem| {
        problem.file = problem.file.map(|_| PathBuf::from("F"));
        problem.to_string()
    });
    named.collect()
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

#[test]
fn the_documented_example_loads() {
    let source = Source::new(Some(data("cloud.yaml")), Env::default());
    let loaded = HubConfig::inspect(&source).unwrap();
    println!("{}", loaded.effective);
    for w in &loaded.warnings {
        println!("{w}");
    }
    let hub = loaded.config;
    assert_eq!(hub.listeners[0].bind, "0.0.0.0:389".parse().unwrap());
    assert_eq!(hub.ha.mode, HaMode::Shadow);
    assert_eq!(hub.limits.idle_timeout, Some(Duration::from_secs(900)));
    assert_eq!(hub.observability.log_level, LogLevel::Info);
}

#[test]
fn show() {
    for p in problems(
        "listeners:\n  - { name: a, bind: '0.0.0.0:99999', conector: x }\ntunnel:\n  port: '1'\n  hots: x\n  ping_interval_sec: yes\n  ping_interval_sec: 3\nlimits: []\nsecurity: {allow_cidrs: [10.0.0.0/33, 10.0.0.1/8], fapi_mode: 1, jwks_url: 'ftp://x'}\nha: {mode: actve, redis_url: 'http://u:secret@h'}\nadmin: {bind: '0.0.0.0:8765'}\n",
        &[("NOWCONNECT__TUNNEL__PORTT", "1"), ("LOG_LEVEL", "loud")],
    ) {
        println!("{p}");
    }
}
