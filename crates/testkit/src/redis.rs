//! Real Redis servers: alone, with a replica, with TLS, watched by Sentinels, as a Cluster.

mod clock;
mod cluster;
mod sentinel;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::{Process, Signal};
use crate::wait::until;
use crate::{lab, ports, program};

pub use cluster::Cluster;
pub use sentinel::Sentinels;

const PACKAGE: &str = "redis-server";

/// A running `redis-server` that keeps nothing on disk; killed when dropped.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    plan: RedisPlan,
    dir: TempDir,
    port: u16,
}

/// A server yet to be started.
#[derive(Debug, Clone, Default)]
pub struct RedisPlan {
    args: Vec<String>,
    tls: bool,
    login: Option<(String, String)>,
    own_clock: bool,
}

impl RedisPlan {
    /// With an option of `redis.conf`.
    pub fn option(mut self, name: &str, values: &[&str]) -> Self {
        self.args.push(format!("--{name}"));
        self.args
            .extend(values.iter().map(|value| (*value).to_owned()));
        self
    }

    /// As a replica of `master`.
    pub fn replica_of(self, master: SocketAddr) -> Self {
        let (host, port) = (master.ip().to_string(), master.port().to_string());
        self.option("replicaof", &[&host, &port])
    }

    /// With TLS and nothing else, by a certificate for 127.0.0.1.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// For this user alone, with the rights that `docs/ha.md` gives.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.login = Some((name.to_owned(), password.to_owned()));
        let secret = format!(">{password}");
        let rights = include_str!("../../../docs/ha.md")
            .split_once("on >PASSWORD ")
            .and_then(|(_, from)| from.split_once("```"))
            .map_or("", |(rights, _)| rights);
        let rules: Vec<_> = [name, "on", &secret]
            .into_iter()
            .chain(rights.split_whitespace())
            .collect();
        self.option("user", &rules)
            .option("user", &["default", "off"])
    }

    /// With a clock that [`Redis::shift_clock`] sets.
    pub fn own_clock(mut self) -> Self {
        self.own_clock = true;
        self
    }

    /// Starts it on a port of its own and waits until it answers.
    ///
    /// # Errors
    /// When Redis is not installed or does not start.
    pub async fn start(self) -> Result<Redis> {
        let dir = TempDir::with_prefix("nowconnect-redis-")?;
        if self.tls {
            lab::write_certificates(dir.path())?;
        }
        let port = ports::reserve()?;
        let process = self.spawn(&dir, port)?;
        let mut redis = Redis {
            process,
            plan: self,
            dir,
            port,
        };
        redis.wait_up().await?;
        Ok(redis)
    }

    fn spawn(&self, dir: &TempDir, port: u16) -> Result<Process> {
        let mut command = Command::new(program::find("redis-server", PACKAGE)?);
        let number = port.to_string();
        let (plain, tls) = if self.tls {
            ("0", number.as_str())
        } else {
            (number.as_str(), "0")
        };
        command
            .args(["--port", plain, "--bind", "127.0.0.1"])
            .arg("--dir")
            .arg(dir.path())
            .args(["--save", "", "--appendonly", "no"])
            .args(["--enable-debug-command", "yes"])
            .args(["--repl-diskless-sync-delay", "0"]);
        if self.tls {
            command.args(["--tls-port", tls, "--tls-auth-clients", "no"]);
            for (option, file) in [
                ("--tls-cert-file", "server.crt"),
                ("--tls-key-file", "server.key"),
                ("--tls-ca-cert-file", "ca.pem"),
            ] {
                command.arg(option).arg(dir.path().join(file));
            }
        }
        command.args(&self.args);
        if self.own_clock {
            clock::give(&mut command, dir.path())?;
        }
        Process::spawn("redis", &mut command, dir.path())
    }
}

impl Redis {
    /// A server that is yet to be started.
    pub fn plan() -> RedisPlan {
        RedisPlan::default()
    }

    /// Starts a server without anything special.
    ///
    /// # Errors
    /// When Redis is not installed or does not start.
    pub async fn start() -> Result<Self> {
        Self::plan().start().await
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        ports::local(self.port)
    }

    /// Its URL, with user and password.
    pub fn url(&self) -> String {
        let scheme = if self.plan.tls { "rediss" } else { "redis" };
        let login = self.plan.login.as_ref();
        let login = login.map(|(user, password)| format!("{user}:{password}@"));
        format!("{scheme}://{}{}", login.unwrap_or_default(), self.addr())
    }

    /// The CA of its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Runs a command; returns what `redis-cli` prints.
    ///
    /// # Errors
    /// When it fails, or the server answers with an error.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program::find("redis-cli", "redis-tools")?);
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-e"]);
        if let Some((user, password)) = &self.plan.login {
            command.args(["--no-auth-warning", "--user", user, "--pass", password]);
        }
        if self.plan.tls {
            command.arg("--tls").arg("--cacert").arg(self.ca_file());
        }
        let answer = program::succeed(command.args(args)).await?;
        ensure!(!answer.starts_with("ERR "), "{args:?}: {answer}");
        Ok(answer.trim_end().to_owned())
    }

    /// As if it had kept proofs of possession for long: hubs believe what it says of them only then.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn seem_old(&self) -> Result<()> {
        for share in 0..16 {
            let key = format!("nowconnect:{{proofs:{share}}}");
            self.run(&["ZADD", &key, "-1", "#since"]).await?;
        }
        Ok(())
    }

    /// Makes its clock jump to where it is so many seconds before or after ours.
    ///
    /// # Errors
    /// When it has no clock of its own, or shows another time.
    pub async fn shift_clock(&self, seconds: i64) -> Result<()> {
        ensure!(self.plan.own_clock, "its clock is everybody's");
        clock::set(self.dir.path(), seconds)?;
        let shown: i64 = self
            .run(&["TIME"])
            .await?
            .lines()
            .next()
            .unwrap_or("")
            .parse()?;
        let ours = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let off = shown - i64::try_from(ours)?;
        ensure!((off - seconds).abs() <= 2, "its clock is {off} s off");
        Ok(())
    }

    /// Sends it a signal: [`Signal::Stop`] freezes it, [`Signal::Cont`] lets it go on.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal).await
    }

    /// Kills it; its data is lost.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it again where it was, empty.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = self.plan.spawn(&self.dir, self.port)?;
        self.wait_up().await
    }

    /// Waits until it has all data of the master that it replicates.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_in_sync(&self) -> Result<()> {
        until("the replica to be in sync", async || {
            let info = self.run(&["INFO", "replication"]).await?;
            ensure!(info.contains("master_link_status:up"), "{info}");
            ensure!(info.contains("master_sync_in_progress:0"), "{info}");
            Ok(())
        })
        .await
    }

    async fn wait_up(&mut self) -> Result<()> {
        until("redis-server to answer", async || {
            self.process.check_alive()?;
            match self.run(&["PING"]).await?.as_str() {
                "PONG" => Ok(()),
                other => bail!("{other}"),
            }
        })
        .await
        .with_context(|| self.process.log().tail())
    }
}
