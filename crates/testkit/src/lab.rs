//! Hubs and agents as real processes, configured by real files, in a directory of their own.

mod agent;
mod cluster;
mod hub;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer as Ca, KeyPair};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::process::Command;

pub use self::agent::{Agent, AgentPlan};
pub use self::cluster::{Pair, finish, peers};
pub use self::hub::{Hub, HubPlan};
use crate::fault_proxy::FaultProxy;
use crate::issuer::Issuer;
use crate::program::{self, Finished};

/// The place of one test: directory, token issuer, and the binary under test.
///
/// The directory goes with the lab; `NC_TEST_KEEP=1` keeps it, configuration and logs included.
#[derive(Debug)]
pub struct Lab {
    binary: PathBuf,
    dir: TempDir,
    issuer: Issuer,
}

impl Lab {
    /// A lab for the binary at this path.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(binary: impl Into<PathBuf>) -> Result<Self> {
        let mut dir = TempDir::with_prefix("nowconnect-test-")?;
        if std::env::var_os("NC_TEST_KEEP").is_some() {
            dir.disable_cleanup(true);
        }
        let issuer = Issuer::new(dir.path())?;
        Ok(Self {
            binary: binary.into(),
            dir,
            issuer,
        })
    }

    /// The directory of this lab.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the directory of this lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Who signs this lab's tokens.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// A hub yet to be started.
    pub fn hub(&self, name: &str) -> HubPlan<'_> {
        HubPlan::new(self, name)
    }

    /// An agent yet to be started.
    pub fn agent(&self, id: &str) -> AgentPlan<'_> {
        AgentPlan::new(self, id)
    }

    /// A hub and an agent that is connected to it, with a listener and a target per connector.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn site(&self, connectors: &[(&str, SocketAddr)]) -> Result<(Hub, Agent)> {
        let hub = self.hub_for(connectors).start().await?;
        let agent = self.attach(&hub, connectors).await?;
        Ok((hub, agent))
    }

    /// `site-1` with a target per connector, connected to `hub`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn attach(&self, hub: &Hub, connectors: &[(&str, SocketAddr)]) -> Result<Agent> {
        self.agent_for(connectors).to(hub).start().await
    }

    /// [`Lab::site`] with a fault proxy between agent and hub.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn faulty_site(
        &self,
        connectors: &[(&str, SocketAddr)],
    ) -> Result<(Hub, FaultProxy, Agent)> {
        let hub = self.hub_for(connectors).start().await?;
        let proxy = FaultProxy::start(hub.tunnel_addr()?).await?;
        let agent = self.agent_for(connectors).via(proxy.addr()).start().await?;
        Ok((hub, proxy, agent))
    }

    /// `hub-a` with a listener per connector, yet to be started.
    pub fn hub_for(&self, connectors: &[(&str, SocketAddr)]) -> HubPlan<'_> {
        connectors
            .iter()
            .fold(self.hub("hub-a"), |hub, (name, _)| hub.listener(name))
    }

    /// `site-1` with a target per connector, yet to be started.
    pub fn agent_for(&self, connectors: &[(&str, SocketAddr)]) -> AgentPlan<'_> {
        connectors
            .iter()
            .fold(self.agent("site-1"), |agent, (name, to)| {
                agent.target(name, *to)
            })
    }

    /// The binary, with none of this process's configuration in its environment.
    pub fn command(&self, args: &[&str]) -> Command {
        self.launched(&[], args)
    }

    /// The same, with the words of a program before it that starts it.
    pub fn launched(&self, launcher: &[&str], args: &[&str]) -> Command {
        let mut command = match launcher {
            [program, words @ ..] => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
            [] => Command::new(&self.binary),
        };
        command.args(args).current_dir(self.dir.path()).env_clear();
        for kept in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        if !program::is_root() {
            // Tests count the descriptors of the processes.
            command.env("NOWCONNECT_ALLOW_DEBUGGING", "1");
        }
        command
    }

    /// Runs the binary to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn run(&self, args: &[&str]) -> Result<Finished> {
        program::finish(&mut self.command(args)).await
    }

    /// Writes a file into the directory; returns its path as text.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        program::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// A CA (`ca.pem`) and a certificate of it (`server.crt`, `server.key`) for 127.0.0.1,
    /// `localhost` and 192.0.2.1, an address where nobody is (RFC 5737).
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn certificates(&self) -> Result<()> {
        write_certificates(self.dir.path())
    }
}

/// Writes `ca.pem`, `server.crt` and `server.key` into `dir`.
pub(crate) fn write_certificates(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "test CA");
    let ca_key = KeyPair::generate()?;
    let ca_cert = params.self_signed(&ca_key)?;
    let ca = Ca::new(params, ca_key);

    let names = ["localhost", "127.0.0.1", "192.0.2.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "localhost");
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &ca)?;
    program::write(&dir.join("ca.pem"), &ca_cert.pem())?;
    program::write(&dir.join("server.crt"), &cert.pem())?;
    program::write(&dir.join("server.key"), &key.serialize_pem())
}

/// Sets `a.b.c` in a tree of objects, making those that are missing.
fn set(tree: &mut Value, path: &str, value: Value) {
    let mut at = tree;
    for key in path.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[key];
    }
    *at = value;
}

/// Writes a configuration. JSON is YAML, so the product reads what `serde_json` writes.
fn write_config(file: &Path, config: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(config).context("configuration")?;
    program::write(file, &text)
}
