//! Child processes that never outlive the run, and what the kernel says they used.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Context, Failure, Result};

/// Units of the times in /proc/PID/stat: USER_HZ, 100 on every architecture that matters here.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running child with its log. Dropping it kills it and everything it forked.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `directory`. The kernel kills the child should this
    /// process die first. To be called from the main thread: that signal follows the thread.
    pub(crate) fn start(name: &str, command: &Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).context(log.display())?;
        let mut guarded = Command::new("setpriv");
        guarded
            .args(["--pdeathsig", "KILL"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(key, value),
                None => guarded.env_remove(key),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            guarded.current_dir(directory);
        }
        let errors = output.try_clone().context(log.display())?;
        let child = guarded
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .context(format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Fails with the end of the log when the process has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait().context(&self.name)? else {
            return Ok(());
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
        Err(Failure::new(format!(
            "{} ended ({status}):\n  {tail}",
            self.name
        )))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let forked = Snapshot::take().map(|all| all.descendants(self.child.id()));
        self.child.kill().ok();
        self.child.wait().ok();
        for process in forked.unwrap_or_default().into_iter().skip(1) {
            process.kill();
        }
    }
}

/// Identifies a process for good: a number may be used again, with another start time.
#[derive(Clone, Copy, Debug)]
struct Identity {
    pid: u32,
    started: u64,
}

impl Identity {
    fn kill(self) {
        let same = || Stat::read(self.pid).is_some_and(|stat| stat.started == self.started);
        if same() {
            Command::new("kill")
                .args(["-KILL", &self.pid.to_string()])
                .status()
                .ok();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while same() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Stat {
    parent: u32,
    started: u64,
    /// User and system time, that of reaped children included.
    ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold spaces; the fields behind it start with number 3, `state`.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: field(4)? as u32,
            started: field(22)?,
            ticks: field(14)? + field(15)? + field(16)? + field(17)?,
        })
    }
}

/// All processes of the machine at one moment.
struct Snapshot(HashMap<u32, Stat>);

impl Snapshot {
    fn take() -> Result<Self> {
        let pids = fs::read_dir("/proc")
            .context("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(Self(
            pids.filter_map(|pid| Some((pid, Stat::read(pid)?)))
                .collect(),
        ))
    }

    /// `root` first, then all that it forked, directly or not.
    fn descendants(&self, root: u32) -> Vec<Identity> {
        let identity = |pid: &u32| {
            Some(Identity {
                pid: *pid,
                started: self.0.get(pid)?.started,
            })
        };
        let mut found: Vec<Identity> = identity(&root).into_iter().collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|process| process.pid) {
            let children = self.0.iter().filter(|(_, stat)| stat.parent == parent);
            found.extend(children.filter_map(|(pid, _)| identity(pid)));
            next += 1;
        }
        found
    }

    fn cpu_seconds(&self, roots: &[u32]) -> f64 {
        let all = roots.iter().flat_map(|root| self.descendants(*root));
        let ticks: u64 = all
            .filter_map(|process| Some(self.0.get(&process.pid)?.ticks))
            .sum();
        ticks as f64 / TICKS_PER_SECOND
    }
}

fn roots(processes: &[Process]) -> Vec<u32> {
    processes.iter().map(|process| process.child.id()).collect()
}

/// CPU time so far of a system's processes, of everything this run started, and of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTimes {
    system: f64,
    run: f64,
    machine: f64,
    at: Instant,
}

/// What was used between two [`CpuTimes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuUse {
    /// Seconds of CPU of all the system's processes together.
    pub(crate) system: f64,
    /// Cores kept busy, on average, by processes that are no part of the run.
    pub(crate) foreign_cores: f64,
}

impl CpuTimes {
    pub(crate) fn take(system: &[Process]) -> Result<Self> {
        let snapshot = Snapshot::take()?;
        Ok(Self {
            system: snapshot.cpu_seconds(&roots(system)),
            run: snapshot.cpu_seconds(&[std::process::id()]),
            machine: machine_busy_seconds()?,
            at: Instant::now(),
        })
    }

    pub(crate) fn until(self, later: Self) -> CpuUse {
        let elapsed = (later.at - self.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let foreign = (later.machine - self.machine) - (later.run - self.run);
        CpuUse {
            system: later.system - self.system,
            foreign_cores: (foreign / elapsed).max(0.0),
        }
    }
}

/// Busy time of all cores together: user, nice, system, irq, softirq and steal of /proc/stat.
fn machine_busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let times = line
        .split_ascii_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0_u64));
    let busy: u64 = times
        .take(8)
        .enumerate()
        .filter(|(index, _)| ![3, 4].contains(index)) // idle and iowait
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(busy as f64 / TICKS_PER_SECOND)
}

/// Resident memory in KiB of all `processes` and what they forked.
pub(crate) fn resident_kib(processes: &[Process]) -> Result<u64> {
    let snapshot = Snapshot::take()?;
    let all = roots(processes)
        .into_iter()
        .flat_map(|root| snapshot.descendants(root));
    Ok(all.filter_map(|process| resident_of(process.pid)).sum())
}

fn resident_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
