//! A hub process.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{Lab, set, write_config};
use crate::metrics::Scrape;
use crate::process::{Process, Signal};
use crate::transfer::read_to_end;
use crate::wait::{until, within};
use crate::{http, ports};

/// A hub's configuration while a test still writes it.
#[derive(Debug)]
pub struct HubPlan<'a> {
    lab: &'a Lab,
    name: String,
    config: Value,
    listeners: BTreeMap<String, u16>,
    env: Vec<(String, String)>,
    launcher: Vec<String>,
    names_file_in_env: bool,
    problem: Option<anyhow::Error>,
}

/// A running hub; killed when dropped.
#[derive(Debug)]
pub struct Hub {
    process: Process,
    respawn: Command,
    dir: PathBuf,
    name: String,
    file: PathBuf,
    config: Value,
    listeners: BTreeMap<String, u16>,
}

impl<'a> HubPlan<'a> {
    pub(super) fn new(lab: &'a Lab, name: &str) -> Self {
        let mut plan = Self {
            lab,
            name: name.to_owned(),
            config: json!({ "listeners": [] }),
            listeners: BTreeMap::new(),
            env: Vec::new(),
            launcher: Vec::new(),
            names_file_in_env: false,
            problem: None,
        };
        let ports: Vec<u16> = (0..3).map(|_| plan.port()).collect();
        plan.set("tunnel.host", "127.0.0.1")
            .set("tunnel.port", ports[0])
            .set("observability.metrics_port", ports[1])
            .set("admin.bind", format!("127.0.0.1:{}", ports[2]))
            .set("ha.enabled", false)
            .set("ha.mode", "off")
            .set("security.jwks_url", lab.issuer().jwks_url())
    }

    fn port(&mut self) -> u16 {
        ports::reserve().unwrap_or_else(|error| {
            self.problem = Some(error);
            0
        })
    }

    /// Where it is planned.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// Sets a key by its path, `limits.max_conn_total`.
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

    /// Lets another program start the process: these words stand before it.
    #[must_use]
    pub fn launched_by(mut self, launcher: Vec<String>) -> Self {
        self.launcher = launcher;
        self
    }

    /// Names the file to the process by `NC_CONFIG` and not by `--config`.
    #[must_use]
    pub fn file_in_env(mut self) -> Self {
        self.names_file_in_env = true;
        self
    }

    /// Adds a listener on a free port, named like the connector.
    #[must_use]
    pub fn listener(self, connector: &str) -> Self {
        self.listener_with(connector, connector, json!({}))
    }

    /// Adds a listener with further keys.
    #[must_use]
    pub fn listener_with(mut self, name: &str, connector: &str, more: Value) -> Self {
        let port = self.port();
        self.listeners.insert(name.to_owned(), port);
        let list = &mut self.config["listeners"];
        push_listener(list, name, connector, port, more);
        self
    }

    /// Writes the file and starts the process, without waiting for anything.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(self) -> Result<Hub> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let dir = self.lab.dir().to_owned();
        let file = dir.join(format!("{}.yaml", self.name));
        write_config(&file, &self.config)?;
        let launcher: Vec<&str> = self.launcher.iter().map(String::as_str).collect();
        let mut command = self.lab.launched(&launcher, &["hub"]);
        match self.names_file_in_env {
            true => command.env("NC_CONFIG", &file),
            false => command.arg("--config").arg(&file),
        };
        command.envs(self.env);
        let process = Process::spawn(&self.name, &mut command, &dir)?;
        Ok(Hub {
            process,
            respawn: command,
            dir,
            name: self.name,
            file,
            config: self.config,
            listeners: self.listeners,
        })
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(self) -> Result<Hub> {
        let mut hub = self.spawn()?;
        hub.wait_ready().await?;
        Ok(hub)
    }
}

fn push_listener(list: &mut Value, name: &str, connector: &str, port: u16, more: Value) {
    let mut listener = json!({
        "name": name, "bind": format!("127.0.0.1:{port}"), "connector": connector,
    });
    if let (Value::Object(listener), Value::Object(more)) = (&mut listener, more) {
        listener.extend(more);
    }
    if let Some(list) = list.as_array_mut() {
        list.push(listener);
    }
}

impl Hub {
    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When the process ends or does not get there.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let addr = self.http_addr()?;
        let ready = until("the hub to be ready", async || {
            let answer = http::get(addr, "/readyz").await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        });
        self.process.while_alive(ready).await
    }

    fn config_port(&self, path: &str) -> Result<u16> {
        let port = self.config.pointer(path).and_then(Value::as_u64);
        Ok(u16::try_from(port.with_context(|| path.to_owned())?)?)
    }

    /// Where `/tunnel` is served.
    ///
    /// # Errors
    /// When the configuration has no such port.
    pub fn tunnel_addr(&self) -> Result<SocketAddr> {
        Ok(ports::local(self.config_port("/tunnel/port")?))
    }

    /// Where metrics and health are served, apart from the tunnel.
    ///
    /// # Errors
    /// When the configuration has no such port.
    pub fn http_addr(&self) -> Result<SocketAddr> {
        Ok(ports::local(
            self.config_port("/observability/metrics_port")?,
        ))
    }

    /// Where the admin API is served.
    ///
    /// # Errors
    /// When the configuration has none.
    pub fn admin_addr(&self) -> Result<SocketAddr> {
        let bind = self.config.pointer("/admin/bind").and_then(Value::as_str);
        Ok(bind.context("admin.bind")?.parse()?)
    }

    /// The address of a listener.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn listener_addr(&self, name: &str) -> Result<SocketAddr> {
        let port = self
            .listeners
            .get(name)
            .with_context(|| format!("no listener {name}"))?;
        Ok(ports::local(*port))
    }

    /// A client connection to a listener.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(&self, listener: &str) -> Result<TcpStream> {
        let addr = self.listener_addr(listener)?;
        let stream = within(listener, TcpStream::connect(addr)).await?;
        let stream = stream.with_context(|| format!("listener {listener} at {addr}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Waits until a client that connects has been turned away without a byte.
    ///
    /// # Errors
    /// When nobody listens, or the client is served.
    pub async fn turns_away(&self, listener: &str) -> Result<()> {
        let refused = within(listener, TcpStream::connect(self.listener_addr(listener)?)).await?;
        let bytes = match refused {
            Ok(mut client) => read_to_end(&mut client).await?.0,
            // The reset may be there before `connect` has returned.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        ensure!(bytes.is_empty(), "{} bytes came", bytes.len());
        Ok(())
    }

    /// Scrapes `/metrics`.
    ///
    /// # Errors
    /// When it does not answer in the text format.
    pub async fn metrics(&self) -> Result<Scrape> {
        let answer = http::get(self.http_addr()?, "/metrics").await?;
        ensure!(answer.status == 200, "{answer:?}");
        Scrape::parse(&answer.body)
    }

    /// One value of `/metrics`, summed over series; zero when there is none.
    ///
    /// # Errors
    /// When `/metrics` does not answer.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.metrics().await?.sum(name, labels))
    }

    /// Waits until a metric satisfies `accept`.
    ///
    /// # Errors
    /// At the deadline, with the last value.
    pub async fn wait_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        accept: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        until(name, async || {
            let value = self.metric(name, labels).await?;
            ensure!(accept(value), "{labels:?} is {value}");
            Ok(value)
        })
        .await
        .with_context(|| self.process.log().tail())
    }

    /// Waits until this many agents are connected.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_agents(&self, count: usize) -> Result<()> {
        let wanted = count as f64;
        self.wait_metric("nowconnect_agents_connected", &[], |value| value == wanted)
            .await?;
        Ok(())
    }

    /// Waits until no flow of `connector` is open.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_idle(&self, connector: &str) -> Result<()> {
        let name = "nowconnect_tcp_active_connections";
        self.wait_metric(name, &[("connector", connector)], |value| value == 0.0)
            .await?;
        Ok(())
    }

    /// The configuration as last written; write changes with [`Hub::rewrite`].
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Sets a key and writes the file; the process is not told.
    ///
    /// # Errors
    /// Names the file.
    pub fn rewrite(&mut self, path: &str, value: impl Into<Value>) -> Result<()> {
        set(&mut self.config, path, value.into());
        write_config(&self.file, &self.config)
    }

    /// Adds a listener on a free port and writes the file; the process is not told.
    ///
    /// # Errors
    /// Names the file.
    pub fn add_listener(&mut self, name: &str, connector: &str) -> Result<()> {
        let port = ports::reserve()?;
        self.listeners.insert(name.to_owned(), port);
        push_listener(
            &mut self.config["listeners"],
            name,
            connector,
            port,
            json!({}),
        );
        write_config(&self.file, &self.config)
    }

    /// Removes a listener and writes the file; the process is not told.
    ///
    /// # Errors
    /// Names the file.
    pub fn remove_listener(&mut self, name: &str) -> Result<()> {
        if let Some(list) = self.config["listeners"].as_array_mut() {
            list.retain(|listener| listener["name"] != name);
        }
        write_config(&self.file, &self.config)
    }

    /// Sends SIGHUP.
    ///
    /// # Errors
    /// When the process is gone.
    pub async fn reload(&self) -> Result<()> {
        self.process.signal(Signal::Hup).await
    }

    /// Kills the process and starts it again with the same files and ports.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        self.start_again().await
    }

    /// Starts it again after its end, with the same files and ports.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn start_again(&mut self) -> Result<()> {
        self.spawn_again()?;
        self.wait_ready().await
    }

    /// The same without waiting until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_again(&mut self) -> Result<()> {
        self.process = Process::spawn(&self.name, &mut self.respawn, &self.dir)?;
        Ok(())
    }

    /// The process, to signal it or to wait for its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Deref for Hub {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
