//! What the machine lets a hub have.

use nowconnect_hub::config::HubConfig;

use super::report::Report;
use crate::platform::most_open_files;

/// Descriptors besides those of clients: tunnels, links, Redis, files.
const OTHERS: u64 = 256;

pub(super) fn examine(config: &HubConfig, report: &mut Report) {
    let clients = config.limits.max_conn_total as u64;
    let wanted = clients + OTHERS;
    match most_open_files() {
        Some(most) if most < wanted => report.warning(
            "open files",
            format!("at most {most}; limits.max_conn_total allows {clients} connections"),
            format!("raise the hard limit to {wanted} (LimitNOFILE, ulimit -Hn), or lower the key"),
        ),
        Some(most) => report.ok(
            "open files",
            format!("up to {most}, enough for {clients} clients"),
        ),
        None => report.ok("open files", "no limit"),
    }
    let budget = config.limits.memory_budget as u64;
    match [cgroup(), available()].into_iter().flatten().min() {
        Some(have) if have < budget => report.warning(
            "memory",
            format!(
                "{} MiB to be had; limits.memory_budget_mb is {}",
                have >> 20,
                budget >> 20
            ),
            "lower limits.memory_budget_mb, or give the hub more",
        ),
        Some(have) => report.ok(
            "memory",
            format!(
                "{} MiB to be had, budget for flows {} MiB",
                have >> 20,
                budget >> 20
            ),
        ),
        None => {}
    }
}

/// The limit of this process's control group (version 2), where a container sees it.
fn cgroup() -> Option<u64> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    text.trim().parse().ok()
}

fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
