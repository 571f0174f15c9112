//! The agent's configuration, validated: whoever holds an [`AgentConfig`] needs no further checks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use nowconnect_link::tls::Identity;
use nowconnect_settings::{
    Document, Fixed, KeySpec, Loaded, LogFormat, LogLevel, Problems, Secret, Source,
    TRACES_ALIASES, TracesConfig, choices, describe, fixed,
};

mod read;

pub use read::ALIASES;

/// Everything an agent is told.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// Links to hubs.
    pub tunnel: TunnelConfig,
    /// Where each connector leads; holds a target for every exported connector.
    pub targets: BTreeMap<String, Target>,
    /// Bounds on flows.
    pub limits: LimitsConfig,
    /// Logs, metrics and traces.
    pub observability: ObservabilityConfig,
    /// The way out.
    pub proxy: ProxyConfig,
    /// Listening address of health and metrics; `None` = off (port 0).
    pub health: Option<SocketAddr>,
}

const FIXED: &[Fixed<AgentConfig>] = &[
    // Every tunnel of a process must carry the same name.
    fixed!("tunnel.agent_id", tunnel.agent_id),
    fixed!("health", health),
    fixed!("observability.metrics_port", observability.metrics_port),
    fixed!("observability.log_format", observability.log_format),
    // `observability.otlp_endpoint` and `observability.traces`.
    fixed!("observability.traces", observability.traces),
    fixed!("limits.memory_budget_mb", limits.memory_budget),
];

impl AgentConfig {
    /// Reads and checks a configuration; warnings are in the result.
    ///
    /// # Errors
    /// Every problem in the file and the environment; when there are none, every file named that is
    /// not there, such as the token's, and every secret that everybody can change.
    pub fn load(source: &Source) -> Result<Loaded<Self>, Problems> {
        Self::inspect(source)?.with_files(|_| false)
    }

    /// The same for a file that may be meant for another machine: the files it names are not looked
    /// for ([`Loaded::missing_files`] does that).
    ///
    /// # Errors
    /// Every problem in the file and the environment.
    pub fn inspect(source: &Source) -> Result<Loaded<Self>, Problems> {
        let mut document = Document::read(source, &[ALIASES, &TRACES_ALIASES].concat())?;
        read::targets_from_env(&mut document, &source.env);
        document.warn_unknown("NC_", read::OTHER_VARS);
        document.decode(read::read)
    }

    /// Keys that keep their running value until the process is started again.
    pub fn fixed_keys() -> impl Iterator<Item = &'static str> {
        FIXED.iter().map(|fixed| fixed.key)
    }

    /// Takes the values of those keys from the `running` configuration; names those that differ.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        Fixed::keep_running(FIXED, running, self)
    }

    /// Every key, for documentation.
    pub fn keys() -> Vec<KeySpec> {
        describe(read::read)
    }
}

/// `tunnel`: links to hubs.
#[derive(Clone, Debug, PartialEq)]
pub struct TunnelConfig {
    /// `ws://` or `wss://` addresses of hubs' `/tunnel`, at least one, each once.
    pub urls: Vec<Uri>,
    /// To how many of them there is a tunnel.
    pub mode: TunnelMode,
    /// This agent's name; must equal the token's `agent_id` claim.
    pub agent_id: String,
    /// Connectors offered to the hub, each once.
    pub exported_connectors: Vec<String>,
    /// File with the JWT, read at every connect.
    pub token_file: PathBuf,
    /// What is shown to hubs, or ingresses, that ask for a certificate.
    pub identity: Option<Identity>,
    /// File with the private key that proves that the token is ours (DPoP); `None` = bearer tokens.
    pub dpop_key_file: Option<PathBuf>,
    /// Version of the tunnel protocol that is offered.
    pub protocol: Protocol,
    /// Time between pings on a quiet link.
    pub ping_interval: Duration,
    /// Time without an answer after which the link is dead.
    pub ping_timeout: Duration,
    /// Payload bytes in one data frame.
    pub max_ws_payload: usize,
}

choices! {
    /// `tunnel.mode`.
    pub enum TunnelMode {
        /// A tunnel to every hub.
        All = "all",
        /// One tunnel, to whichever hub answers first.
        First = "first",
    }
}

/// `tunnel.protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 1: JSON text frames, for old hubs.
    V1,
    /// 2: binary frames.
    V2,
}

/// Where a connector leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Header that tells it who the client is.
    pub proxy_protocol: ProxyProtocol,
}

choices! {
    /// `targets.<name>.proxy_protocol`.
    pub enum ProxyProtocol {
        /// None: the target sees the agent.
        Off = "off",
        /// Version 1 (text).
        V1 = "v1",
        /// Version 2 (binary).
        V2 = "v2",
    }
}

/// `limits`: bounds on flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Idle time after which a flow is closed; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// How long a target is dialed.
    pub connect_timeout: Duration,
    /// Dials of one target that may begin in a second; `None` = no limit.
    pub max_dials_per_sec: Option<NonZeroU32>,
    /// Frames queued per flow in protocol version 1.
    pub queue_depth_per_cid: usize,
    /// Flows at one time.
    pub max_inflight_cids: usize,
    /// Bytes that all flows together may make this process hold.
    pub memory_budget: usize,
    /// How long a flow without a path is kept.
    pub resume_grace: Duration,
}

/// `observability`: logs, metrics and traces.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservabilityConfig {
    /// Port of a second listener for metrics, on the health host; `None` = health port only.
    pub metrics_port: Option<u16>,
    /// Least important level that is logged.
    pub log_level: LogLevel,
    /// Shape of a log line.
    pub log_format: LogFormat,
    /// Where spans go; `None` = nowhere.
    pub traces: Option<TracesConfig>,
}

/// `proxy`: the way out to the hubs.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// HTTP proxy for `wss://`, `http://user:password@host:port`; secret as a whole.
    pub https_proxy: Option<Secret>,
    /// The same for `ws://`.
    pub http_proxy: Option<Secret>,
    /// Hosts reached without the proxy, in the usual `NO_PROXY` syntax.
    pub no_proxy: Option<String>,
    /// CA certificates that hubs must chain to, PEM, in place of the system's; `None` = the system's.
    pub ca_bundle: Option<PathBuf>,
}
