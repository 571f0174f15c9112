//! What the figures were taken on, and of which versions: without it they mean little.

use std::fs;
use std::process::Command;

use crate::failure::{Context, Result};
use crate::options::Options;
use crate::systems::{Binaries, System};
use crate::{sockets, tool};

/// Descriptors that a process needs besides its flows' sockets.
const SPARE_FILES: usize = 500;

/// Facts as name and value.
pub(crate) fn facts(
    options: &Options,
    binaries: &Binaries,
    systems: &[System],
) -> Vec<(&'static str, String)> {
    let uses = |family: fn(&System) -> bool| systems.iter().any(family);
    let mut facts = vec![
        (
            "date",
            ask(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
        ),
        ("cpu", cpu()),
        ("kernel", ask(Command::new("uname").arg("-sr"))),
        // Loopback's rates depend on it: BBR paces.
        (
            "congestion",
            read("/proc/sys/net/ipv4/tcp_congestion_control"),
        ),
        ("load", read("/proc/loadavg")),
        (
            "open files",
            open_files().map_or_else(|_| "unknown".into(), |limit| limit.to_string()),
        ),
    ];
    if uses(|system| system.is_ours()) {
        facts.push(("ours", ask(Command::new(&binaries.ours).arg("--version"))));
        // Of a binary that was given, nobody knows what it was built from.
        if options.ours.is_none() {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
            let mut git = Command::new("git");
            git.args(["-C", directory, "describe", "--always", "--dirty"]);
            facts.push(("revision", ask(&mut git)));
        }
    }
    if uses(|system| matches!(system, System::Rathole { .. } | System::RatholeRelayed)) {
        facts.push((
            "rathole",
            ask(Command::new(&binaries.rathole).arg("--version")),
        ));
    }
    if uses(|system| matches!(system, System::Wstunnel { .. })) {
        facts.push((
            "wstunnel",
            ask(Command::new(&binaries.wstunnel).arg("--version")),
        ));
    }
    if uses(|system| matches!(system, System::RatholeRelayed)) {
        let version = ask(Command::new("haproxy").arg("-v"));
        facts.push(("haproxy", version.lines().next().unwrap_or_default().into()));
    }
    if uses(|system| matches!(system, System::OpenSsh)) {
        facts.push((
            "openssh",
            ask(Command::new("sh").args(["-c", "ssh -V 2>&1"])),
        ));
    }
    facts
}

fn read(file: &str) -> String {
    fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// As many connections as a process can relay that holds two sockets for each, and as there are
/// ports for.
pub(crate) fn connections_allowed() -> Result<usize> {
    Ok((open_files()?.saturating_sub(SPARE_FILES) / 2).min(sockets::CONNECTIONS))
}

fn open_files() -> Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits").context("/proc/self/limits")?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_ascii_whitespace().next());
    soft.and_then(|soft| soft.parse().ok())
        .context("the limit of open files is unknown")
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = || text.lines().filter(|line| line.starts_with("model name"));
    let model = models()
        .next()
        .and_then(|line| line.split_once(": "))
        .map_or("?", |pair| pair.1);
    format!("{} x {model}", models().count())
}

/// The line that names a version, or else the first with a number in it.
fn ask(command: &mut Command) -> String {
    match tool::run(command) {
        Ok(text) => {
            let versions = text.lines().find(|line| line.contains("Version"));
            let numbers = || {
                text.lines()
                    .find(|line| line.contains(|c: char| c.is_ascii_digit()))
            };
            let words = versions
                .or_else(numbers)
                .unwrap_or("?")
                .split_ascii_whitespace();
            words.collect::<Vec<_>>().join(" ")
        }
        Err(failure) => failure.to_string(),
    }
}
