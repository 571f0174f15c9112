//! A real browser without a window, driven over WebDriver.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::process::Process;
use crate::wait::{until, within};
use crate::{ports, program};

/// Chromium with an empty profile; it ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Process,
    addr: SocketAddr,
    session: String,
    _dir: TempDir,
}

const FLAGS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

impl Browser {
    /// Starts driver and browser.
    ///
    /// # Errors
    /// When they are not installed or do not come up.
    pub async fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("nowconnect-browser-")?;
        let addr = ports::local(ports::reserve()?);
        program::find("chromium", "chromium")?;
        let mut command = Command::new(program::find("chromedriver", "chromium-driver")?);
        command.arg(format!("--port={}", addr.port()));
        let mut driver = Process::spawn("chromedriver", &mut command, dir.path())?;
        let up = until("chromedriver to listen", async || {
            call(addr, "GET", "/status", "").await.map(drop)
        });
        driver.while_alive(up).await?;
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        let flags: Vec<_> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let mut browser = Self {
            driver,
            addr,
            session: String::new(),
            _dir: dir,
        };
        let told = browser.post("", &wanted).await?;
        let id = told["sessionId"].as_str();
        browser.session = format!("/{}", id.context("a session")?);
        // What its own first page asks for is of no interest.
        browser.open("about:blank").await?;
        browser.log("performance").await?;
        Ok(browser)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let path = format!("/session{}{path}", self.session);
        let called = call(self.addr, "POST", &path, &body.to_string()).await;
        called.with_context(|| self.driver.log().tail())
    }

    /// Loads a page and waits until it has loaded.
    ///
    /// # Errors
    /// When it does not load.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("/url", &json!({ "url": url })).await.map(drop)
    }

    /// Runs the body of a function in the page; a promise is waited for.
    ///
    /// # Errors
    /// When it throws.
    pub async fn run(&self, script: &str) -> Result<Value> {
        let call = json!({ "script": script, "args": [] });
        self.post("/execute/sync", &call).await
    }

    /// Runs `script` in every page that is loaded from now on, before its own scripts.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn prepare(&self, script: &str) -> Result<()> {
        let script = json!({ "source": script });
        let command = "Page.addScriptToEvaluateOnNewDocument";
        self.command(command, script).await.map(drop)
    }

    /// A command of the Chrome DevTools protocol.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn command(&self, name: &str, params: Value) -> Result<Value> {
        let call = json!({ "cmd": name, "params": params });
        self.post("/goog/cdp/execute", &call).await
    }

    /// What the page looks like, as PNG: what is in the window, or all of it.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn screenshot(&self, whole: bool) -> Result<Vec<u8>> {
        let mut params = json!({ "captureBeyondViewport": whole });
        if whole {
            let size = self.command("Page.getLayoutMetrics", json!({})).await?;
            let size = &size["cssContentSize"];
            params["clip"] = json!({
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1,
            });
        }
        let shot = self.command("Page.captureScreenshot", params).await?;
        Ok(STANDARD.decode(shot["data"].as_str().context("a picture")?)?)
    }

    /// Types into the element that has the focus.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn type_in(&self, text: &str) -> Result<()> {
        let keys = text.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        });
        let keys: Vec<_> = keys.collect();
        let call = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": keys }] });
        self.post("/actions", &call).await.map(drop)
    }

    /// Waits until the body of a function in the page returns something true.
    ///
    /// # Errors
    /// At the deadline, with what it returned last.
    pub async fn wait(&self, what: &str, script: &str) -> Result<Value> {
        until(what, async || {
            let value = self.run(script).await?;
            let is_there = !matches!(&value, Value::Null | Value::Bool(false));
            ensure!(is_there, "{value}");
            Ok(value)
        })
        .await
    }

    /// Errors and violations of policy in the console since this was last asked.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn complaints(&self) -> Result<Vec<String>> {
        let entries = self.log("browser").await?;
        let texts = entries
            .iter()
            .filter_map(|entry| entry["message"].as_str().map(str::to_owned));
        Ok(texts.collect())
    }

    /// The URL of every request since this was last asked.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn requests(&self) -> Result<Vec<String>> {
        let mut urls = Vec::new();
        for entry in self.log("performance").await? {
            let text = entry["message"].as_str().unwrap_or_default();
            let message: Value = serde_json::from_str(text)?;
            let message = &message["message"];
            if message["method"] == "Network.requestWillBeSent" {
                let url = message["params"]["request"]["url"].as_str();
                urls.push(url.unwrap_or_default().to_owned());
            }
        }
        Ok(urls)
    }

    async fn log(&self, kind: &str) -> Result<Vec<Value>> {
        let told = self.post("/se/log", &json!({ "type": kind })).await?;
        Ok(told.as_array().cloned().unwrap_or_default())
    }
}

/// Asks the driver, which leaves the connection open after its answer.
async fn call(addr: SocketAddr, method: &str, path: &str, body: &str) -> Result<Value> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let work = async {
        let mut stream = BufReader::new(TcpStream::connect(addr).await?);
        stream.write_all(request.as_bytes()).await?;
        let (mut length, mut head) = (0, String::new());
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            ensure!(
                stream.read_line(&mut head).await? > 0,
                "half an answer: {head}"
            );
            let field = head[start..].trim_end().split_once(':');
            if let Some((_, value)) =
                field.filter(|field| field.0.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        ensure!(
            head.starts_with("HTTP/1.1 200"),
            "{head}{}",
            String::from_utf8_lossy(&body)
        );
        let mut told: Value = serde_json::from_slice(&body)?;
        Ok(told["value"].take())
    };
    let told = within(path, work).await?;
    told.with_context(|| format!("{method} {path}"))
}

impl Drop for Browser {
    /// The driver ends the browser when its session ends; killing the driver would leave it behind.
    fn drop(&mut self) {
        let patience = Duration::from_secs(5);
        let Ok(mut driver) = std::net::TcpStream::connect_timeout(&self.addr, patience) else {
            return;
        };
        let _ = driver.set_read_timeout(Some(patience));
        let path = format!("/session{}", self.session);
        let host = self.addr;
        let _ = write!(
            driver,
            "DELETE {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        let _ = driver.read(&mut [0; 64]);
    }
}
