//! A master, a replica, and three Sentinels that watch them.

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use super::{PACKAGE, Redis};
use crate::process::Process;
use crate::wait::until;
use crate::{ports, program};

/// Servers with automatic failover.
#[derive(Debug)]
pub struct Sentinels {
    /// The first master.
    pub master: Redis,
    /// The one that takes over.
    pub replica: Redis,
    ports: Vec<u16>,
    processes: Vec<Process>,
    _dirs: Vec<TempDir>,
}

impl Sentinels {
    /// Starts all five and waits until they know each other.
    ///
    /// # Errors
    /// When Redis is not installed or they do not find together.
    pub async fn start() -> Result<Self> {
        let master = Redis::start().await?;
        let replica = Redis::plan().replica_of(master.addr()).start().await?;
        replica.wait_in_sync().await?;
        let mut sentinels = Self {
            master,
            replica,
            ports: Vec::new(),
            processes: Vec::new(),
            _dirs: Vec::new(),
        };
        for _ in 0..3 {
            sentinels.add()?;
        }
        until("the Sentinels to know each other", async || {
            for port in &sentinels.ports {
                let known = ask(*port, &["SENTINEL", "MASTER", "mymaster"]).await?;
                let words: Vec<_> = known.lines().collect();
                let value = |key| words.iter().position(|word| *word == key);
                let value = |key| value(key).and_then(|at| words.get(at + 1)).copied();
                ensure!(value("num-other-sentinels") == Some("2"), "{known}");
                ensure!(value("num-slaves") == Some("1"), "{known}");
                ensure!(value("flags") == Some("master"), "{known}");
            }
            Ok(())
        })
        .await?;
        Ok(sentinels)
    }

    /// The URL of the registry.
    pub fn url(&self) -> String {
        let nodes = self
            .ports
            .iter()
            .map(|port| ports::local(*port).to_string());
        let nodes: Vec<_> = nodes.collect();
        format!("redis+sentinel://{}/mymaster", nodes.join(","))
    }

    /// Lets the Sentinels make the replica the master while the old one lives.
    ///
    /// # Errors
    /// When they refuse.
    pub async fn fail_over(&self) -> Result<()> {
        let command = ["SENTINEL", "FAILOVER", "mymaster"];
        until("the Sentinels to agree to a failover", async || {
            ask(self.ports[0], &command).await
        })
        .await
        .map(drop)
    }

    /// Waits until the replica has taken over.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_switched(&self) -> Result<()> {
        until("the replica to be master", async || {
            let info = self.replica.run(&["INFO", "replication"]).await?;
            ensure!(info.contains("role:master"), "{info}");
            Ok(())
        })
        .await
    }

    fn add(&mut self) -> Result<()> {
        let (dir, port) = (
            TempDir::with_prefix("nowconnect-sentinel-")?,
            ports::reserve()?,
        );
        let master = self.master.addr();
        let config = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\n\
             bind 127.0.0.1\n\
             dir {}\n\
             sentinel monitor mymaster {} {} 2\n\
             sentinel down-after-milliseconds mymaster 1000\n\
             sentinel failover-timeout mymaster 5000\n",
            dir.path().display(),
            master.ip(),
            master.port(),
        );
        program::write(&config, &text)?;
        let mut command = Command::new(program::find("redis-server", PACKAGE)?);
        command.arg(&config).arg("--sentinel");
        let process = Process::spawn("sentinel", &mut command, dir.path())?;
        self.ports.push(port);
        self.processes.push(process);
        self._dirs.push(dir);
        Ok(())
    }
}

async fn ask(port: u16, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program::find("redis-cli", "redis-tools")?);
    command.args(["-p", &port.to_string(), "-e"]).args(args);
    program::succeed(&mut command).await
}
