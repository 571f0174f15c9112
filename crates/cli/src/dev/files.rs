//! What an operator would write for a hub and an agent: configuration, keys and a token.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nowconnect_hub::auth::mint::{AgentToken, KeyKind, SigningKey, jwks};
use nowconnect_settings::LogLevel;
use serde_json::json;

use super::map::Map;
use crate::replace_file::{self, Existing, PUBLIC, SECRET};

const AGENT_ID: &str = "dev-agent";
/// How long each token lasts; it is renewed in band at half of that.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// Where the hub listens beside its listeners; 0 is any free port.
#[derive(Clone, Copy)]
pub(super) struct Ports {
    /// `/tunnel`, health and metrics.
    pub(super) tunnel: u16,
    /// The admin API.
    pub(super) admin: u16,
}

/// A directory with everything that hub and agent read.
pub(super) struct Files {
    dir: PathBuf,
    key: SigningKey,
    connectors: Vec<String>,
}

impl Files {
    /// Makes a key, publishes its public half and writes `cloud.yaml`.
    pub(super) fn write(
        dir: &Path,
        maps: &[Map],
        ports: Ports,
        level: LogLevel,
    ) -> anyhow::Result<Self> {
        let key = SigningKey::generate(KeyKind::Es256)?;
        let connectors = maps.iter().map(|map| map.name.clone()).collect();
        let files = Self {
            dir: dir.to_owned(),
            key,
            connectors,
        };
        let document = serde_json::to_string_pretty(&jwks([&files.key]))? + "\n";
        replace_file::write(
            &files.path("jwks.json"),
            &document,
            PUBLIC,
            Existing::Replace,
        )?;
        files.save("cloud.yaml", &files.hub(maps, ports, level))?;
        files.renew_token()?;
        Ok(files)
    }

    /// Writes `premise.yaml` for an agent of the hub at `hub`.
    pub(super) fn write_agent(&self, maps: &[Map], hub: SocketAddr) -> anyhow::Result<()> {
        self.save("premise.yaml", &self.agent(maps, hub))
    }

    /// The file `name`, which [`Files::write`] or [`Files::write_agent`] has written.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts a fresh token in place, over and over.
    pub(super) async fn keep_token_fresh(self) {
        loop {
            tokio::time::sleep(TOKEN_LIFETIME / 2).await;
            if let Err(error) = self.renew_token() {
                tracing::warn!(event = "dev_token_not_renewed", error = %format!("{error:#}"));
            }
        }
    }

    fn renew_token(&self) -> anyhow::Result<()> {
        let agent = AgentToken {
            agent_id: AGENT_ID.into(),
            audience: "nowconnect".into(),
            issuer: None,
            connectors: Some(self.connectors.clone()),
            proof_key: None,
            lifetime: TOKEN_LIFETIME,
        };
        let token = self.key.mint(&agent, SystemTime::now())?;
        replace_file::write(&self.path("agent.jwt"), &token, SECRET, Existing::Replace)
    }

    fn hub(&self, maps: &[Map], ports: Ports, level: LogLevel) -> serde_json::Value {
        let listener = |map: &Map| {
            let bind = SocketAddr::from(([127, 0, 0, 1], map.port));
            json!({"name": map.name, "bind": bind, "connector": map.name})
        };
        json!({
            "listeners": maps.iter().map(listener).collect::<Vec<_>>(),
            "tunnel": {"host": "127.0.0.1", "port": ports.tunnel},
            "admin": {"bind": SocketAddr::from(([127, 0, 0, 1], ports.admin))},
            "security": {
                "jwks_url": format!("file://{}", self.path("jwks.json").display()),
                "audience": "nowconnect",
                "require_connector_scopes": true,
            },
            "observability": {"metrics_port": 0, "log_level": level.as_str()},
            "limits": {"drain_timeout_sec": 2},
            "ha": {"enabled": false},
        })
    }

    fn agent(&self, maps: &[Map], hub: SocketAddr) -> serde_json::Value {
        let target = |map: &Map| {
            (
                map.name.clone(),
                json!({"host": map.host, "port": map.target_port}),
            )
        };
        json!({
            "tunnel": {
                "url": format!("ws://{hub}/tunnel"),
                "agent_id": AGENT_ID,
                "exported_connectors": self.connectors,
                "auth": {"token_file": self.path("agent.jwt")},
            },
            "targets": maps.iter().map(target).collect::<serde_json::Map<_, _>>(),
            "health": {"port": 0},
        })
    }

    /// JSON is YAML, and needs no quoting of ours.
    fn save(&self, name: &str, content: &serde_json::Value) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(content)? + "\n";
        replace_file::write(&self.path(name), &text, PUBLIC, Existing::Replace)
    }
}
