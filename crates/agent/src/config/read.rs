//! The schema of the agent's file: every key with its type, default and bounds, and what fits
//! together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use http::Uri;
use nowconnect_link::tls::Identity;
use nowconnect_settings::{
    Alias, Document, Env, LogFormat, LogLevel, NAME, Secret, Shown, Table, Value, closest, is_name,
    loosely, read_traces,
};

use super::{
    AgentConfig, LimitsConfig, ObservabilityConfig, Protocol, ProxyConfig, ProxyProtocol, Target,
    TunnelConfig, TunnelMode,
};

/// Environment variables with names of their own, besides `NC_TARGET_<name>_HOST` and `_PORT` and those
/// of OpenTelemetry ([`nowconnect_settings::TRACES_ALIASES`]).
pub const ALIASES: &[Alias] = &[
    Alias::new("NC_AGENT_URL", "tunnel.url"),
    Alias::new("NC_TUNNEL_MODE", "tunnel.mode"),
    Alias::new("NC_AGENT_ID", "tunnel.agent_id"),
    Alias::new("NC_CONNECTORS", "tunnel.exported_connectors"),
    Alias::new("NC_TOKEN_FILE", "tunnel.auth.token_file"),
    Alias::new("NC_CLIENT_CERT", "tunnel.tls.cert_file"),
    Alias::new("NC_CLIENT_KEY", "tunnel.tls.key_file"),
    Alias::new("NC_DPOP_KEY_FILE", "tunnel.auth.dpop_key_file"),
    Alias::new("NC_PROTOCOL", "tunnel.protocol"),
    Alias::new("NC_LOG_LEVEL", "observability.log_level"),
    Alias::new("NC_LOG_FORMAT", "observability.log_format"),
    Alias::new("NC_TRUST_ENV", "proxy.trust_env"),
    Alias::new("NC_CA_BUNDLE", "proxy.ca_bundle"),
    Alias::new("NC_HEALTH_HOST", "health.host"),
    Alias::new("NC_HEALTH_PORT", "health.port"),
];

/// Variables with our prefix that are read elsewhere: the file's name, targets, other commands.
pub(crate) const OTHER_VARS: &[&str] = &[
    "NC_CONFIG",
    TARGET,
    "NC_HEALTH_URL",
    "NC_ADMIN_URL",
    "NC_ADMIN_TOKEN_FILE",
    "NC_HOST",
    "NC_PORT",
    "NC_SSL",
];
const TARGET: &str = "NC_TARGET_";

const MIB: usize = 1024 * 1024;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Flows, or frames in a queue: far beyond what one process can do, low enough to multiply.
const MANY: usize = 1_000_000;
/// A flow that moves needs at least a small frame each way; less would starve it.
const MIN_FLOW_MEMORY: usize = 8 * 1024;
/// Connectors of one agent, as the hub accepts them.
const MAX_CONNECTORS: usize = 256;

/// Keys of a target, as they end the names of variables.
const TARGET_KEYS: [&str; 3] = ["HOST", "PORT", "PROXY_PROTOCOL"];

/// Sets targets from `NC_TARGET_<name>_HOST` and so on. A name is matched to the
/// exported connectors loosely, because names of variables cannot have a `-` or `.` everywhere.
pub(crate) fn targets_from_env(document: &mut Document, env: &Env) {
    let exported = document.texts("tunnel", "exported_connectors");
    for (var, text) in env.iter() {
        let Some(rest) = var.strip_prefix(TARGET) else {
            continue;
        };
        let known = TARGET_KEYS
            .iter()
            .find_map(|key| Some((rest.strip_suffix(key)?.strip_suffix('_')?, *key)));
        let parts = known.or_else(|| rest.rsplit_once('_'));
        let Some((name, key)) = parts.filter(|(name, _)| !name.is_empty()) else {
            let hint = "write NC_TARGET_<connector>_HOST or NC_TARGET_<connector>_PORT";
            document.reject(var, "names no connector", hint);
            continue;
        };
        let exact = exported.iter().find(|connector| *connector == name);
        let near = || exported.iter().find(|connector| loosely(connector, name));
        let name = exact.or_else(near).map_or(name, String::as_str);
        document.set(&["targets", name, &key.to_lowercase()], var, text);
    }
}

/// Reads the whole file; `None` only after a problem was reported.
pub(crate) fn read(t: &mut Table<'_>) -> Option<AgentConfig> {
    let mut exported = Vec::new();
    let tunnel = t.section("tunnel", |t| tunnel(t, &mut exported));
    let mut named = Vec::new();
    let targets = t.named("targets", |name, t| {
        named.push(name.to_owned());
        target(name, t)
    });
    let limits = t.section("limits", limits);
    let observability = t.section("observability", observability);
    let proxy = t.section("proxy", proxy);
    let health = t.section("health", |t| {
        let host = t.field("host").or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let port = t.field("port").range(0..=u16::MAX).or(8090);
        (port > 0).then_some(SocketAddr::new(host, port))
    });
    if health.is_some_and(|health| Some(health.port()) == observability.metrics_port) {
        let hint = "choose another, or 0: the health port serves /metrics too";
        t.problem(
            "observability.metrics_port",
            "is taken by health.port",
            hint,
        );
    }
    check_targets(t, &exported, &named);
    Some(AgentConfig {
        tunnel: tunnel?,
        targets,
        limits,
        observability,
        proxy,
        health,
    })
}

fn tunnel(t: &mut Table<'_>, exported: &mut Vec<String>) -> Option<TunnelConfig> {
    let urls = urls(t);
    let mode = t.field("mode").or(TunnelMode::All);
    let agent_id = t
        .field("agent_id")
        .check(NAME, |id: &String| is_name(id))
        .required();
    let over_tls = |urls: &Vec<Uri>| urls.iter().any(|url| url.scheme_str() == Some("wss"));
    *exported = exported_connectors(t);
    let (token_file, dpop_key_file) = t.section("auth", |t| {
        let token_file = t.field("token_file").private().required_file();
        (token_file, t.field("dpop_key_file").private().file())
    });
    let identity = t.section("tls", identity);
    if identity.is_some() && urls.as_ref().is_some_and(|urls| !over_tls(urls)) {
        t.warning("tls", "has no effect: no URL is wss://", "");
    }
    let protocol = t.field("protocol").or(Protocol::V2);
    let ping_interval = t.seconds("ping_interval_sec", 1..=3600, 5);
    let ping_timeout = t.seconds("ping_timeout_sec", 1..=3600, 10);
    let max_ws_payload = t.field("max_ws_payload").range(1024..=MIB / 4).or(65536);
    Some(TunnelConfig {
        urls: urls?,
        mode,
        agent_id: agent_id?,
        exported_connectors: exported.clone(),
        token_file: token_file?,
        identity,
        dpop_key_file,
        protocol,
        ping_interval,
        ping_timeout,
        max_ws_payload,
    })
}

/// `cert_file` and `key_file`: what the agent shows of itself.
fn identity(t: &mut Table<'_>) -> Option<Identity> {
    let (cert_file, key_file) = t.key_pair()?;
    Some(Identity {
        cert_file,
        key_file,
    })
}

/// `url` or `urls`; the environment's word counts more than the file's.
fn urls(t: &mut Table<'_>) -> Option<Vec<Uri>> {
    let [url, list] = ["url", "urls"].map(|key| {
        let field = t
            .field(key)
            .check("wss://HOST/tunnel, or ws:// without TLS", is_ws);
        field.commas().up_to(64).list()
    });
    let from_env = ["url", "urls"].map(|key| t.set_by(key).is_some());
    let (key, urls) = match (url.is_empty(), list.is_empty(), from_env) {
        (_, true, _) => ("url", url),
        (true, _, _) => ("urls", list),
        (_, _, [true, false]) => {
            t.overruled("urls");
            ("url", url)
        }
        (_, _, [false, true]) => {
            t.overruled("url");
            ("urls", list)
        }
        _ => {
            t.problem("urls", "url is set as well", "keep one of the two");
            ("urls", list)
        }
    };
    for (i, url) in urls.iter().enumerate() {
        if urls[..i].contains(url) {
            t.problem(key, format!("{url} is listed twice"), "remove one");
        }
        if url.path() == "/" {
            t.warning(key, format!("{url} has no path"), "hubs serve /tunnel");
        }
        if url.scheme_str() == Some("ws") && !is_local(url) {
            let message = format!("{url} is not encrypted: token and traffic can be read");
            t.warning(key, message, "use wss://");
        }
    }
    if urls.is_empty() && !t.has_problem("urls") {
        t.missing("url");
    }
    (!urls.is_empty()).then_some(urls)
}

fn exported_connectors(t: &mut Table<'_>) -> Vec<String> {
    let key = "exported_connectors";
    let field = t.field(key).check(NAME, |name: &String| is_name(name));
    let mut names: Vec<String> = Vec::new();
    for name in field.up_to(MAX_CONNECTORS).required_list() {
        match names.contains(&name) {
            true => t.problem(key, format!("`{name}` is listed twice"), "remove one"),
            false => names.push(name),
        }
    }
    names
}

fn target(name: &str, t: &mut Table<'_>) -> Option<Target> {
    let host = t.field("host").check(
        "a host name or IP address, without scheme and port",
        |h: &String| is_host(h),
    );
    let host = host.required();
    if host.as_deref().is_some_and(is_link_local) {
        let message = "a link-local address, where clouds serve the credentials of the machine";
        t.warning("host", message, "no service for clients is there");
    }
    let port = t.field("port").range(1..=u16::MAX).required();
    let proxy_protocol = t.field("proxy_protocol").or(ProxyProtocol::Off);
    if !name.is_empty() && !is_name(name) {
        t.problem("", "not a name for a connector", NAME);
    }
    Some(Target {
        host: host?,
        port: port?,
        proxy_protocol,
    })
}

fn is_link_local(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse();
    address.is_ok_and(nowconnect_link::dial::is_link_local)
}

/// Compares the exported connectors with the names of targets.
fn check_targets(t: &mut Table<'_>, exported: &[String], targets: &[String]) {
    let spare = |name: &&String| !exported.contains(name);
    for name in exported.iter().filter(|name| !targets.contains(name)) {
        let spare = targets.iter().filter(spare).map(String::as_str);
        let hint = match closest(name, spare) {
            Some(near) => format!("there is a target `{near}`: did you mean that?"),
            None => {
                format!("add targets.{name}, or NC_TARGET_{name}_HOST and NC_TARGET_{name}_PORT")
            }
        };
        let message = format!("`{name}` has no target");
        t.problem("tunnel.exported_connectors", message, &hint);
    }
    for name in targets.iter().filter(spare) {
        let message = "not exported, so nobody can use it";
        let hint = "add it to tunnel.exported_connectors";
        t.warning(&format!("targets.{name}"), message, hint);
    }
}

fn limits(t: &mut Table<'_>) -> LimitsConfig {
    let idle_ms = t.field("idle_timeout_ms").range(0..=7 * DAY_MS).or(900_000);
    let limits = LimitsConfig {
        idle_timeout: (idle_ms > 0).then(|| Duration::from_millis(idle_ms)),
        connect_timeout: t.millis("connect_timeout_ms", 1..=600_000, 3000),
        max_dials_per_sec: NonZeroU32::new(
            t.field("max_dials_per_sec")
                .range(0..=MANY as u32)
                .or(10_000),
        ),
        queue_depth_per_cid: t.field("queue_depth_per_cid").range(1..=MANY).or(100),
        max_inflight_cids: t.field("max_inflight_cids").range(1..=MANY).or(2000),
        memory_budget: t.field("memory_budget_mb").range(1..=MIB).or(256) * MIB,
        resume_grace: t.millis("resume_grace_ms", 0..=DAY_MS, 30_000),
    };
    let least = limits.max_inflight_cids * MIN_FLOW_MEMORY;
    if limits.memory_budget < least {
        let message = format!(
            "too small for max_inflight_cids {}",
            limits.max_inflight_cids
        );
        let hint = format!("at 8 KiB a flow it takes {}", least.div_ceil(MIB));
        t.problem("memory_budget_mb", message, &hint);
    }
    limits
}

fn observability(t: &mut Table<'_>) -> ObservabilityConfig {
    let port = t.field("metrics_port").range(0..=u16::MAX).or(0);
    ObservabilityConfig {
        metrics_port: (port > 0).then_some(port),
        log_level: t.field("log_level").or(LogLevel::Info),
        log_format: t.field("log_format").or(LogFormat::Plain),
        traces: read_traces(t),
    }
}

fn proxy(t: &mut Table<'_>) -> ProxyConfig {
    // Lower case first: that is what curl and others do when both are set.
    let vars: [&'static [&'static str]; 3] = match t.field("trust_env").or(false) {
        true => [
            &["https_proxy", "HTTPS_PROXY"],
            &["http_proxy", "HTTP_PROXY"],
            &["no_proxy", "NO_PROXY"],
        ],
        false => [&[]; 3],
    };
    let url = |t: &mut Table<'_>, key, vars| {
        let field = t.field(key).secret().or_vars(vars);
        field
            .check("http://[user:password@]host:port", is_proxy_url)
            .optional()
    };
    ProxyConfig {
        https_proxy: url(t, "https_proxy", vars[0]),
        http_proxy: url(t, "http_proxy", vars[1]),
        no_proxy: t.field("no_proxy").or_vars(vars[2]).optional(),
        ca_bundle: t.field("ca_bundle").file(),
    }
}

fn is_ws(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("ws" | "wss"))
}

fn is_local(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A proxy URL as programs commonly accept it: the scheme may be left out.
fn is_proxy_url(url: &Secret) -> bool {
    let rest = match url.expose().split_once("://") {
        Some(("http" | "https", rest)) => rest,
        Some(_) => return false,
        None => url.expose(),
    };
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    host.trim_end_matches('/')
        .parse::<http::uri::Authority>()
        .is_ok_and(|authority| !authority.host().is_empty())
}

/// A host name (RFC 1123, with the underscore that Windows networks have) or an IP address.
fn is_host(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || name.len() <= 253 && name.split('.').all(label)
}

impl Value for Protocol {
    const KIND: &'static str = "1 or 2";
    const TEXT: bool = false;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "1" => Ok(Self::V1),
            "2" => Ok(Self::V2),
            _ => Err(String::new()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Plain(if *self == Self::V1 { "1" } else { "2" }.to_owned())
    }
}
