//! An agent process.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{Hub, Lab, set, write_config};
use crate::metrics::Scrape;
use crate::process::Process;
use crate::wait::until;
use crate::{http, ports, program};

/// An agent's configuration while a test still writes it.
#[derive(Debug)]
pub struct AgentPlan<'a> {
    lab: &'a Lab,
    id: String,
    instance: String,
    config: Value,
    env: Vec<(String, String)>,
    token: Option<String>,
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    respawn: Command,
    dir: PathBuf,
    instance: String,
    token_file: PathBuf,
    health: SocketAddr,
}

impl<'a> AgentPlan<'a> {
    pub(super) fn new(lab: &'a Lab, id: &str) -> Self {
        let config = json!({
            "tunnel": { "agent_id": id, "exported_connectors": [] },
            "targets": {},
            "observability": { "log_format": "json", "log_level": "DEBUG" },
        });
        Self {
            lab,
            id: id.to_owned(),
            instance: id.to_owned(),
            config,
            env: vec![],
            token: None,
        }
    }

    /// Names files and log, for a second process with the same agent id.
    #[must_use]
    pub fn instance(mut self, name: &str) -> Self {
        name.clone_into(&mut self.instance);
        self
    }

    /// Connects straight to a hub.
    #[must_use]
    pub fn to(self, hub: &Hub) -> Self {
        match hub.tunnel_addr() {
            Ok(addr) => self.url(&format!("ws://{addr}/tunnel")),
            Err(_) => self,
        }
    }

    /// Connects to an address that leads to a hub, such as a fault proxy's.
    #[must_use]
    pub fn via(self, addr: SocketAddr) -> Self {
        self.url(&format!("ws://{addr}/tunnel"))
    }

    /// Connects to this URL.
    #[must_use]
    pub fn url(self, url: &str) -> Self {
        self.set("tunnel.url", url)
    }

    /// Exports a connector with its target.
    #[must_use]
    pub fn target(mut self, connector: &str, addr: SocketAddr) -> Self {
        if let Some(list) = self.config["tunnel"]["exported_connectors"].as_array_mut() {
            list.push(connector.into());
        }
        self.config["targets"][connector] =
            json!({ "host": addr.ip().to_string(), "port": addr.port() });
        self
    }

    /// Sets a key by its path, `limits.connect_timeout_ms`.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, path, value.into());
        self
    }

    /// Sets an environment variable of the process.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Uses this token instead of a good one.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Writes configuration and token and starts the process, without waiting for anything.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(mut self) -> Result<Agent> {
        let dir = self.lab.dir().to_owned();
        let token_file = dir.join(format!("{}.jwt", self.instance));
        let token = match self.token {
            Some(token) => token,
            None => self.lab.issuer().token(&self.id)?,
        };
        program::write(&token_file, &token)?;
        let health = ports::local(ports::reserve()?);
        let token_path = token_file.display().to_string();
        set(
            &mut self.config,
            "tunnel.auth.token_file",
            token_path.into(),
        );
        let file = dir.join(format!("{}.yaml", self.instance));
        write_config(&file, &self.config)?;
        let mut command = self.lab.command(&["agent", "--config"]);
        command
            .arg(&file)
            .env("NC_HEALTH_HOST", health.ip().to_string())
            .env("NC_HEALTH_PORT", health.port().to_string())
            .envs(self.env);
        let process = Process::spawn(&self.instance, &mut command, &dir)?;
        Ok(Agent {
            process,
            respawn: command,
            dir,
            instance: self.instance,
            token_file,
            health,
        })
    }

    /// Starts the process and waits until a hub has acknowledged it.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn start(self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.wait_ready().await?;
        Ok(agent)
    }
}

impl Agent {
    /// Waits until `/readyz` answers 200: a tunnel is up.
    ///
    /// # Errors
    /// When the process ends or does not get there.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let health = self.health;
        let ready = until("the agent to be ready", async || {
            let answer = http::get(health, "/readyz").await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        });
        self.process.while_alive(ready).await
    }

    /// Where the agent answers about its health.
    pub fn health_addr(&self) -> SocketAddr {
        self.health
    }

    /// Scrapes `/metrics`.
    ///
    /// # Errors
    /// When it does not answer in the text format.
    pub async fn metrics(&self) -> Result<Scrape> {
        let answer = http::get(self.health, "/metrics").await?;
        ensure!(answer.status == 200, "{answer:?}");
        Scrape::parse(&answer.body)
    }

    /// Replaces the token file.
    ///
    /// # Errors
    /// Names the file.
    pub fn replace_token(&self, token: &str) -> Result<()> {
        program::write(&self.token_file, token)
    }

    /// The token file.
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// Kills the process and starts it again with the same files, without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn respawn(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.process = Process::spawn(&self.instance, &mut self.respawn, &self.dir)?;
        Ok(())
    }

    /// [`Agent::respawn`], and waits until a hub has acknowledged it.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.respawn().await?;
        self.wait_ready().await
    }

    /// The process, to signal it or to wait for its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Deref for Agent {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
