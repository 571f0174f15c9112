//! The schema of the hub's file: every key with its type, default and bounds.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use nowconnect_settings::{Alias, LogFormat, LogLevel, NAME, Secret, Table, is_name, read_traces};

use super::fit::{self, Sockets};
use super::probes::probes;
use super::{
    AdminConfig, AuditConfig, FapiMode, HaConfig, HaMode, HubConfig, JwksSource, LimitsConfig,
    ListenerConfig, MeshConfig, MeshTls, ObservabilityConfig, PdpConfig, PdpFormat, ProxyProtocol,
    SecurityConfig, ServerTls, TunnelConfig,
};

/// Environment variables with names of their own, besides those of OpenTelemetry
/// ([`nowconnect_settings::TRACES_ALIASES`]).
pub const ALIASES: &[Alias] = &[
    Alias::new("LOG_LEVEL", "observability.log_level"),
    Alias::new("NOWCONNECT_JWKS_URL", "security.jwks_url"),
    Alias::new("NOWCONNECT_AUDIENCE", "security.audience"),
    Alias::new(
        "NOWCONNECT_REQUIRE_CONNECTOR_SCOPES",
        "security.require_connector_scopes",
    ),
    Alias::new("NOWCONNECT_FAPI_MODE", "security.fapi_mode"),
    Alias::new("NOWCONNECT_PDP_URL", "pdp.url"),
    Alias::new("NOWCONNECT_PDP_CACHE_TTL_SEC", "pdp.cache_ttl_sec"),
    Alias::new("NOWCONNECT_PDP_TIMEOUT_MS", "pdp.timeout_ms"),
    Alias::new("NOWCONNECT_PDP_FAIL_OPEN", "pdp.fail_open"),
];

const MIB: usize = 1024 * 1024;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Flows, or frames in a queue: far beyond what one process can do, low enough to multiply.
const MANY: usize = 1_000_000;

/// Reads the whole file; `None` only after a problem was reported.
pub(crate) fn read(t: &mut Table<'_>) -> Option<HubConfig> {
    let mut sockets = Sockets::default();
    let listeners = listeners(t, &mut sockets);
    let tunnel = t.section("tunnel", |t| tunnel(t, &mut sockets));
    let limits = t.section("limits", limits);
    let security = t.section("security", security);
    let host = tunnel.bind.ip();
    let observability = t.section("observability", |t| observability(t, host, &mut sockets));
    let pdp = t.section("pdp", pdp);
    let admin = t.section("admin", |t| admin(t, &mut sockets));
    let audit = t.section("audit", audit);
    let connectors = listeners.iter().map(|(_, one)| one.connector.clone());
    let probes = probes(t, &connectors.collect::<Vec<_>>());
    let ha = ha(t, &mut sockets);
    let inherit = |(idle_timeout, listener): (Option<u64>, _)| ListenerConfig {
        idle_timeout: idle_timeout.map_or(limits.idle_timeout, millis_or_never),
        ..listener
    };
    let config = HubConfig {
        listeners: listeners.into_iter().map(inherit).collect(),
        tunnel,
        limits,
        security,
        observability,
        pdp,
        admin,
        audit,
        probes,
        ha,
    };
    sockets.report_clashes(t);
    fit::check(t, &config);
    Some(config)
}

/// Listeners, each with the `idle_timeout_ms` of its own that it may have.
fn listeners(t: &mut Table<'_>, sockets: &mut Sockets) -> Vec<(Option<u64>, ListenerConfig)> {
    let mut names = HashSet::new();
    t.sections("listeners", |t| {
        let name = required_name(t, "name");
        let bind = t.field::<SocketAddr>("bind").required();
        let connector = required_name(t, "connector");
        let allow_cidrs = t.field("allow_cidrs").list();
        let max_conn = at_most(t, "max_conn");
        let max_opens_per_sec = per_second(t, "max_opens_per_sec", 0);
        let idle_timeout = t.field("idle_timeout_ms").range(0..=7 * DAY_MS).optional();
        let proxy_protocol = t.field("proxy_protocol").or(ProxyProtocol::Off);
        if let Some(bind) = bind {
            sockets.take(t.path("bind"), bind);
        }
        if let Some(name) = name.as_ref().filter(|name| names.contains(*name)) {
            let message = format!("another listener is called {name}");
            t.problem("name", message, "rename one");
        }
        names.extend(name.clone());
        let listener = ListenerConfig {
            name: name?,
            bind: bind?,
            connector: connector?,
            allow_cidrs,
            max_conn,
            max_opens_per_sec,
            idle_timeout: None,
            proxy_protocol,
        };
        Some((idle_timeout, listener))
    })
}

fn tunnel(t: &mut Table<'_>, sockets: &mut Sockets) -> TunnelConfig {
    let host = t.field("host").or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let bind = SocketAddr::new(host, t.field("port").range(0..=u16::MAX).or(8765));
    sockets.take(t.path("port"), bind);
    TunnelConfig {
        bind,
        max_ws_payload: t.field("max_ws_payload").range(1024..=MIB / 4).or(65536),
        ping_interval: t.seconds("ping_interval_sec", 1..=3600, 5),
        ping_timeout: t.seconds("ping_timeout_sec", 1..=3600, 10),
        tls: t.section("tls", server_tls),
        trusted_proxies: t.field("trusted_proxies").list(),
    }
}

fn server_tls(t: &mut Table<'_>) -> Option<ServerTls> {
    let pair = t.key_pair();
    let client_ca = t.field("client_ca").file();
    match pair {
        Some((cert_file, key_file)) => Some(ServerTls {
            cert_file,
            key_file,
            client_ca,
        }),
        None if client_ca.is_some() => {
            let hint = "set cert_file and key_file too, or remove client_ca";
            t.problem(
                "client_ca",
                "asks for client certificates without TLS",
                hint,
            );
            None
        }
        None => None,
    }
}

fn limits(t: &mut Table<'_>) -> LimitsConfig {
    LimitsConfig {
        idle_timeout: millis_or_never(t.field("idle_timeout_ms").range(0..=7 * DAY_MS).or(900_000)),
        queue_depth_per_cid: t.field("queue_depth_per_cid").range(1..=MANY).or(100),
        max_conn_total: t.field("max_conn_total").range(1..=MANY).or(2000),
        max_conn_per_client: at_most(t, "max_conn_per_client"),
        max_opens_per_sec: per_second(t, "max_opens_per_sec", 0),
        max_opens_per_sec_per_client: per_second(t, "max_opens_per_sec_per_client", 0),
        max_handshakes_per_sec: per_second(t, "max_handshakes_per_sec", 200),
        memory_budget: t.field("memory_budget_mb").range(1..=MIB).or(256) * MIB,
        resume_grace: t.millis("resume_grace_ms", 0..=DAY_MS, 30_000),
        drain_timeout: t.seconds("drain_timeout_sec", 0..=86_400, 30),
    }
}

fn security(t: &mut Table<'_>) -> SecurityConfig {
    let jwks = t.field::<JwksSource>("jwks_url").optional();
    match &jwks {
        // It may appear later; until then no agent gets in, as with an IdP that is down.
        Some(JwksSource::File(path)) => t.names_file("jwks_url", path.clone(), false),
        Some(JwksSource::Url(url)) if url.scheme_str() == Some("http") && !fit::is_local(url) => {
            let hint = "use https://";
            t.warning(
                "jwks_url",
                "whoever is on the path can replace these keys",
                hint,
            );
        }
        Some(JwksSource::Url(_)) => {}
        None => t.warning("jwks_url", "not set, so every agent is refused", ""),
    }
    let jwks_ca = t.field("jwks_ca").file();
    let https = |url: &Uri| url.scheme_str() == Some("https");
    if jwks_ca.is_some() && !matches!(&jwks, Some(JwksSource::Url(url)) if https(url)) {
        t.warning("jwks_ca", "has no effect: jwks_url is not https://", "");
    }
    let fapi_mode = t.field("fapi_mode").or(FapiMode::Off);
    let dpop_htu = t
        .field("dpop_htu")
        .check("an http(s):// or ws(s):// URL", is_target)
        .up_to(64)
        .list();
    if fapi_mode == FapiMode::Dpop && dpop_htu.is_empty() {
        t.warning(
            "dpop_htu",
            "not set, so proofs are compared with the Host that the sender names",
            "list the URLs that agents dial, like https://api.example.com/tunnel",
        );
    }
    SecurityConfig {
        jwks,
        jwks_ca,
        issuer: t.field("issuer").optional(),
        audience: t.field("audience").or("nowconnect".to_owned()),
        allow_cidrs: t.field("allow_cidrs").list(),
        require_connector_scopes: t.field("require_connector_scopes").or(false),
        fapi_mode,
        dpop_htu,
    }
}

/// What a proof can be for: nothing in it may be lost when it is normalised.
fn is_target(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("http" | "https" | "ws" | "wss"))
        && url.query().is_none()
        && url.authority().is_some_and(|authority| {
            // A port beyond 65535 is none.
            let is_whole = authority.as_str() == authority.host() || authority.port().is_some();
            is_whole && !authority.as_str().contains('@')
        })
}

fn observability(t: &mut Table<'_>, host: IpAddr, sockets: &mut Sockets) -> ObservabilityConfig {
    let port = t.field("metrics_port").range(0..=u16::MAX).or(8000);
    if port > 0 {
        sockets.take(t.path("metrics_port"), SocketAddr::new(host, port));
    }
    ObservabilityConfig {
        metrics_port: (port > 0).then_some(port),
        log_level: t.field("log_level").or(LogLevel::Info),
        log_format: t.field("log_format").or(LogFormat::Json),
        traces: read_traces(t),
    }
}

fn pdp(t: &mut Table<'_>) -> Option<PdpConfig> {
    let url = http_url(t, "url");
    let format = t.field("format").or(PdpFormat::Authzen);
    let ca_bundle = t.field("ca_bundle").file();
    let token_file = t.field("token_file").private().file();
    let cache_ttl = t.seconds("cache_ttl_sec", 0..=86_400, 5);
    let timeout = t.millis("timeout_ms", 1..=60_000, 500);
    let fail_open = t.field("fail_open").or(false);
    let config = PdpConfig {
        url: url?,
        ca_bundle,
        token_file,
        format,
        cache_ttl,
        timeout,
        fail_open,
    };
    fit::check_pdp(t, &config);
    Some(config)
}

fn admin(t: &mut Table<'_>, sockets: &mut Sockets) -> AdminConfig {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 8766));
    let bind = t.field("bind").or(loopback);
    sockets.take(t.path("bind"), bind);
    let token_file = t.field("token_file").private().file();
    if token_file.is_none() && !bind.ip().is_loopback() {
        let hint = "set admin.token_file, or bind to 127.0.0.1";
        t.problem(
            "token_file",
            "required because admin.bind is not loopback",
            hint,
        );
    }
    AdminConfig { bind, token_file }
}

fn audit(t: &mut Table<'_>) -> AuditConfig {
    let file = t.field::<PathBuf>("file").optional();
    let hash_chain = t.field("hash_chain").or(true);
    let key_file = t.field("key_file").private().file();
    if key_file.is_some() && !(hash_chain && file.is_some()) {
        let message = "has no effect: there is no chain to seal";
        t.warning("key_file", message, "set audit.file and audit.hash_chain");
    }
    AuditConfig {
        file,
        hash_chain,
        key_file,
    }
}

fn ha(root: &mut Table<'_>, sockets: &mut Sockets) -> HaConfig {
    let present = root.is_set("ha");
    root.section("ha", |t| {
        let enabled = t.field("enabled").or(present);
        let mode = t.field("mode").or(HaMode::Shadow);
        let mode = if enabled { mode } else { HaMode::Off };
        let replica_id = t.field("replica_id").check(NAME, |id: &String| is_name(id));
        let replica_id = replica_id.optional();
        if mode != HaMode::Off && replica_id.is_none() && !t.has_problem("replica_id") {
            let hint = "give every hub a name of its own, or set ha.mode: off";
            t.problem("replica_id", "required because HA is on", hint);
        }
        let redis_url = t.field("redis_url").secret();
        let redis_url = redis_url
            .check(fit::REDIS_URL, fit::is_redis_url)
            .optional();
        let redis_ca = t.field("redis_ca").file();
        let over_tls = |url: &Secret| url.expose().starts_with("rediss");
        if redis_ca.is_some() && !redis_url.as_ref().is_some_and(over_tls) {
            t.warning("redis_ca", "has no effect: redis_url is not rediss://", "");
        }
        HaConfig {
            mode,
            replica_id: replica_id.unwrap_or_else(|| "hub".to_owned()),
            redis_url,
            redis_ca,
            mesh: t.section("mesh", |t| mesh(t, mode != HaMode::Off, sockets)),
        }
    })
}

fn mesh(t: &mut Table<'_>, on: bool, sockets: &mut Sockets) -> MeshConfig {
    let listen = t.field::<SocketAddr>("listen").optional();
    if let Some(listen) = listen {
        sockets.take(t.path("listen"), listen);
    }
    let mesh = MeshConfig {
        listen,
        peers: t
            .field("peers")
            .check("ws:// or wss://", fit::is_ws)
            .up_to(127)
            .list(),
        require_mtls: t.field("require_mtls").or(true),
        tls: t.section("tls", mesh_tls),
        send_queue_depth: t.field("send_queue_depth").range(1..=MANY).or(1000),
        per_link_max_inflight_bytes: t
            .field("per_link_max_inflight_bytes")
            .range(64 * 1024..=1024 * MIB)
            .or(8 * MIB),
        connect_backoff_max: t.seconds("connect_backoff_max_sec", 1..=3600, 30),
    };
    if on {
        fit::check_mesh(t, &mesh);
    }
    mesh
}

fn mesh_tls(t: &mut Table<'_>) -> Option<MeshTls> {
    let ca_bundle = t.field("ca_bundle").file();
    let pair = t.key_pair();
    let (cert_file, key_file) = pair?;
    if ca_bundle.is_none() {
        let hint = "set it to the certificate of the CA that issued those of all hubs";
        t.problem("ca_bundle", "required beside cert_file", hint);
    }
    Some(MeshTls {
        ca_bundle: ca_bundle?,
        cert_file,
        key_file,
    })
}

fn required_name(t: &mut Table<'_>, key: &'static str) -> Option<String> {
    t.field(key)
        .check(NAME, |name: &String| is_name(name))
        .required()
}

fn http_url(t: &mut Table<'_>, key: &'static str) -> Option<Uri> {
    t.field(key)
        .check("http:// or https://", fit::is_http)
        .optional()
}

/// A time where 0 is never.
fn millis_or_never(millis: u64) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// A number of connections, where 0 is no limit.
fn at_most(t: &mut Table<'_>, key: &'static str) -> Option<usize> {
    let max = t.field(key).range(0..=MANY).or(0);
    (max > 0).then_some(max)
}

/// How often something may happen in a second, where 0 is no limit.
fn per_second(t: &mut Table<'_>, key: &'static str, default: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(t.field(key).range(0..=MANY as u32).or(default))
}
