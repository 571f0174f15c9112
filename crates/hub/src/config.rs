//! The hub's configuration, validated: whoever holds a [`HubConfig`] needs no further checks.
//!
//! Optional text keys left empty mean "not set"; durations are [`Duration`]s whatever unit the key
//! has, and `None` where a key's zero means "never".

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use nowconnect_settings::{
    Document, KeySpec, Loaded, LogFormat, LogLevel, Problems, Secret, Source, TRACES_ALIASES,
    TracesConfig, choices, describe, mask_url,
};

mod diff;
mod fit;
mod probes;
mod read;
pub(crate) mod redis_url;

pub use diff::Change;
pub use probes::{ProbeConfig, ProbeKind};
pub use read::ALIASES;

/// Variables with our prefix that are read elsewhere.
const OTHER_VARS: &[&str] = &["NOWCONNECT_WORKER_THREADS", "NOWCONNECT_ALLOW_DEBUGGING"];

/// Everything a hub is told.
#[derive(Clone, Debug, PartialEq)]
pub struct HubConfig {
    /// TCP ports and the connectors they lead to; names and binds are unique.
    pub listeners: Vec<ListenerConfig>,
    /// The HTTP surface for agents and peers.
    pub tunnel: TunnelConfig,
    /// Bounds on flows.
    pub limits: LimitsConfig,
    /// Who may connect.
    pub security: SecurityConfig,
    /// Logs, metrics and traces.
    pub observability: ObservabilityConfig,
    /// Policy decision point; `None` = off.
    pub pdp: Option<PdpConfig>,
    /// The admin API.
    pub admin: AdminConfig,
    /// The audit trail.
    pub audit: AuditConfig,
    /// Probes of targets, by connector; empty = off.
    pub probes: BTreeMap<String, ProbeConfig>,
    /// High availability.
    pub ha: HaConfig,
}

impl HubConfig {
    /// Reads and checks a configuration; warnings are in the result.
    ///
    /// # Errors
    /// Every problem in the file and the environment; when there are none, every file named that is
    /// not there, and every secret that everybody can change. Those of the mesh are warnings while
    /// high availability is off.
    pub fn load(source: &Source) -> Result<Loaded<Self>, Problems> {
        let loaded = Self::inspect(source)?;
        let is_off = loaded.config.ha.mode == HaMode::Off;
        loaded.with_files(|problem| is_off && problem.key.starts_with("ha.mesh.tls."))
    }

    /// The same for a file that may be meant for another machine: the files it names are not looked
    /// for ([`Loaded::missing_files`] does that).
    ///
    /// # Errors
    /// Every problem in the file and the environment.
    pub fn inspect(source: &Source) -> Result<Loaded<Self>, Problems> {
        let mut document = Document::read(source, &[ALIASES, &TRACES_ALIASES].concat())?;
        document.warn_unknown("NOWCONNECT_", OTHER_VARS);
        document.decode(read::read)
    }

    /// Every key, for documentation.
    pub fn keys() -> Vec<KeySpec> {
        describe(read::read)
    }
}

/// One TCP port of the hub.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerConfig {
    /// Name for logs and `status`.
    pub name: String,
    /// Address to listen on.
    pub bind: SocketAddr,
    /// The connector that its connections go to.
    pub connector: String,
    /// Client networks let in, besides `security.allow_cidrs`; empty = everyone.
    pub allow_cidrs: Vec<IpNet>,
    /// Connections at one time; `None` = no limit of its own.
    pub max_conn: Option<usize>,
    /// Connections let in per second; `None` = no limit of its own.
    pub max_opens_per_sec: Option<NonZeroU32>,
    /// Idle time after which a flow is closed: its own or `limits.idle_timeout_ms`; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// PROXY protocol header expected from trusted balancers.
    pub proxy_protocol: ProxyProtocol,
}

choices! {
    /// Which PROXY protocol header a listener reads.
    pub enum ProxyProtocol {
        /// None: the peer address is the client.
        Off = "off",
        /// Version 1 (text).
        V1 = "v1",
        /// Version 2 (binary).
        V2 = "v2",
        /// Either version.
        Any = "any",
    }
}

/// `tunnel`: where agents and peers connect.
#[derive(Clone, Debug, PartialEq)]
pub struct TunnelConfig {
    /// Listening address of `/tunnel`, `/mesh`, `/healthz`, `/readyz`, `/metrics`.
    pub bind: SocketAddr,
    /// Payload bytes in one data frame.
    pub max_ws_payload: usize,
    /// Time between pings on a quiet link.
    pub ping_interval: Duration,
    /// Time without an answer after which the link is dead.
    pub ping_timeout: Duration,
    /// TLS in the hub itself; `None` = plain, an ingress ends TLS.
    pub tls: Option<ServerTls>,
    /// Ingresses whose forwarded headers (and PROXY headers) are believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// Certificate of a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
    /// CA bundle that client certificates must chain to; `None` = clients are not asked.
    pub client_ca: Option<PathBuf>,
}

/// `limits`: bounds on flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Idle time after which a flow is closed; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// Frames queued per flow towards a version 1 agent.
    pub queue_depth_per_cid: usize,
    /// Flows at one time.
    pub max_conn_total: usize,
    /// Flows at one time per client address; `None` = no limit.
    pub max_conn_per_client: Option<usize>,
    /// Flows opened per second; `None` = no limit.
    pub max_opens_per_sec: Option<NonZeroU32>,
    /// Flows opened per second and client address; `None` = no limit.
    pub max_opens_per_sec_per_client: Option<NonZeroU32>,
    /// Tokens of agents judged per second; `None` = no limit.
    pub max_handshakes_per_sec: Option<NonZeroU32>,
    /// Bytes that all flows together may make this process hold.
    pub memory_budget: usize,
    /// How long a flow without a path is kept.
    pub resume_grace: Duration,
    /// How long flows get to end when the hub drains.
    pub drain_timeout: Duration,
}

/// `security`: who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityConfig {
    /// Where the keys of agent tokens come from; `None` = every agent is refused.
    pub jwks: Option<JwksSource>,
    /// CA certificates, PEM, for a `https://` source; `None` = the system's.
    pub jwks_ca: Option<PathBuf>,
    /// Required `iss` claim; `None` = any.
    pub issuer: Option<String>,
    /// Required `aud` claim.
    pub audience: String,
    /// Client networks let in; empty = everyone.
    pub allow_cidrs: Vec<IpNet>,
    /// Whether a token must name the connectors that its agent may export.
    pub require_connector_scopes: bool,
    /// Sender-constrained tokens.
    pub fapi_mode: FapiMode,
    /// The `http(s)://` or `ws(s)://` URLs that proofs must be for; empty = the one of the request.
    pub dpop_htu: Vec<Uri>,
}

/// `security.jwks_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksSource {
    /// `http://` or `https://`, fetched and cached.
    Url(Uri),
    /// `file://`, watched.
    File(PathBuf),
}

impl fmt::Display for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(&mask_url(&url.to_string())),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// `security.fapi_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FapiMode {
    /// 0: bearer tokens.
    Off,
    /// 2: DPoP proofs on the upgrade (RFC 9449).
    Dpop,
}

/// `observability`: logs, metrics and traces.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservabilityConfig {
    /// Port of the second listener for metrics and health, on `tunnel.host`; `None` = off.
    pub metrics_port: Option<u16>,
    /// Least important level that is logged.
    pub log_level: LogLevel,
    /// Shape of a log line.
    pub log_format: LogFormat,
    /// Where spans go; `None` = nowhere.
    pub traces: Option<TracesConfig>,
}

/// `pdp`: an external decision on every open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PdpConfig {
    /// `http://` or `https://` address that is asked.
    pub url: Uri,
    /// CA certificates, PEM, for `https://`; `None` = the system's.
    pub ca_bundle: Option<PathBuf>,
    /// File with the bearer token that it is shown.
    pub token_file: Option<PathBuf>,
    /// Shape of question and answer.
    pub format: PdpFormat,
    /// How long an allow is remembered at most.
    pub cache_ttl: Duration,
    /// How long a decision may take, with the wait for a turn to ask.
    pub timeout: Duration,
    /// Whether no answer means allow.
    pub fail_open: bool,
}

choices! {
    /// Shape of the PDP's question and answer.
    pub enum PdpFormat {
        /// OpenID AuthZEN 1.0 evaluation.
        Authzen = "authzen",
        /// `{"subject","action","resource","context"}` answered by `{"allow"}`.
        Simple = "simple",
    }
}

/// `admin`: the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Listening address.
    pub bind: SocketAddr,
    /// File with the bearer token; `None` only on loopback.
    pub token_file: Option<PathBuf>,
}

/// `audit`: where audit records go besides the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// File of the records; `None` = only the log has them.
    pub file: Option<PathBuf>,
    /// Whether each record holds the hash of the one before.
    pub hash_chain: bool,
    /// Key of these hashes; `None` = anybody can compute them.
    pub key_file: Option<PathBuf>,
}

/// `ha`: several hubs as one.
#[derive(Clone, Debug, PartialEq)]
pub struct HaConfig {
    /// What HA does; `Off` also when `ha.enabled` is false.
    pub mode: HaMode,
    /// This hub's name among its peers; `hub` when HA is not configured.
    pub replica_id: String,
    /// Registry of agents; `None` = in this process. Holds the password, so it is secret as a whole.
    pub redis_url: Option<Secret>,
    /// CA certificates (PEM) that Redis servers must chain to; `None` = the system's.
    pub redis_ca: Option<PathBuf>,
    /// Links between hubs.
    pub mesh: MeshConfig,
}

choices! {
    /// What HA does.
    pub enum HaMode {
        /// No HA code runs.
        Off = "off",
        /// Cross-hub decisions are made and recorded, traffic stays local.
        Shadow = "shadow",
        /// Cross-hub delivery.
        Active = "active",
    }
}

/// `ha.mesh`: links between hubs.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// Separate listening address of `/mesh`; `None` = on `tunnel`.
    pub listen: Option<SocketAddr>,
    /// `ws://` or `wss://` addresses of the other hubs' `/mesh`, each once.
    pub peers: Vec<Uri>,
    /// Whether a peer must prove a certificate of the mesh CA.
    pub require_mtls: bool,
    /// Certificates; always there when `require_mtls` is set and HA runs with peers.
    pub tls: Option<MeshTls>,
    /// Frames queued per link.
    pub send_queue_depth: usize,
    /// Bytes queued or unacknowledged per link.
    pub per_link_max_inflight_bytes: usize,
    /// Longest pause between attempts to connect.
    pub connect_backoff_max: Duration,
}

/// `ha.mesh.tls`: the mesh CA and this hub's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshTls {
    /// CA certificates of the mesh, PEM.
    pub ca_bundle: PathBuf,
    /// This hub's certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
}
