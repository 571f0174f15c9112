//! A process that lives as long as its handle.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, Result, anyhow};
use tokio::process::{Child, Command};

use crate::log::Log;
use crate::program;
use crate::wait::within;

/// A child process with its output in a [`Log`]; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    log: Log,
}

/// The signals that tests send.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// Reload.
    Hup,
    /// Stop in good order.
    Term,
    /// Stop now.
    Kill,
    /// Freeze.
    Stop,
    /// Thaw.
    Cont,
}

impl Process {
    /// Starts `command`; its output goes to `dir/NAME.log` as well.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let log = Log::new(name, &dir.join(format!("{name}.log")))?;
        let mut child = program::spawn(command)?;
        let pid = child.id().context("ended at once")?;
        if let Some(output) = child.stdout.take() {
            log.follow(std::fs::File::from(output.into_owned_fd()?));
        }
        if let Some(output) = child.stderr.take() {
            log.follow(std::fs::File::from(output.into_owned_fd()?));
        }
        Ok(Self { child, pid, log })
    }

    /// What it printed.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        // The shell's own `kill`: signals need unsafe code or a crate otherwise.
        let signal = format!("{signal:?}").to_uppercase();
        let line = format!("kill -{signal} {}", self.pid);
        program::succeed(Command::new("sh").args(["-c", &line]))
            .await
            .map(drop)
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn wait_exit(&mut self) -> Result<ExitStatus> {
        match within("the process to end", self.child.wait()).await {
            Ok(status) => {
                self.log.wait_end().await;
                Ok(status?)
            }
            Err(error) => Err(error.context(self.log.tail())),
        }
    }

    /// Fails when the process has ended.
    ///
    /// # Errors
    /// With its status and the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(ended(status).context(self.log.tail())),
        }
    }

    /// Runs `work`, unless the process ends before it does.
    ///
    /// # Errors
    /// When the process ends, or `work` fails: with the end of the log.
    pub async fn while_alive<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let done = tokio::select! {
            biased;
            status = self.child.wait() => {
                self.log.wait_end().await;
                Err(ended(status?))
            }
            done = work => done,
        };
        done.with_context(|| format!("its log ends:\n{}", self.log.tail()))
    }

    /// Kills it without warning and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill")
    }

    /// Resident memory of its own, in bytes. Pages of files do not count: that code runs for the
    /// first time is no growth.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = program::read(Path::new(&format!("/proc/{}/status", self.pid)))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line
            .and_then(|line| line.trim().strip_suffix("kB"))
            .context("no RssAnon")?;
        Ok(kib.trim().parse::<u64>()? * 1024)
    }

    /// Number of open file descriptors.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }

    /// Processor time used so far, in clock ticks of 10 ms.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let stat = program::read(Path::new(&format!("/proc/{}/stat", self.pid)))?;
        let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
        let ticks = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>());
        ticks.sum::<Result<u64, _>>().context("no ticks")
    }
}

fn ended(status: ExitStatus) -> anyhow::Error {
    anyhow!(
        "ended with code {:?}, signal {:?}",
        status.code(),
        status.signal()
    )
}
