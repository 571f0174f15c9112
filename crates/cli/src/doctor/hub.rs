//! What a hub needs: ports, certificates, keys, Redis, peers, the decision point.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use nowconnect_hub::config::{HaMode, HubConfig};
use nowconnect_hub::probe;
use nowconnect_hub::registry::StoreConfig;
use nowconnect_link::dial::{TcpOptions, dial_tcp};
use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Files as _, Identity, Roots, ServerFiles, TlsError,
};
use nowconnect_settings::Source;

use super::report::{Report, count};
use super::{chain, configuration, decisions, keys, machine, peers, web};

/// Clocks that differ by more, in milliseconds, make epochs and proofs unreliable.
const SKEW_MS: u64 = 2_000;
const DIAL: Duration = Duration::from_secs(5);

/// Looks at everything; `false` when the configuration cannot be used.
pub(super) async fn examine(source: &Source, token: Option<&Path>, report: &mut Report) -> bool {
    let loaded = configuration(HubConfig::inspect(source), report, |config: &HubConfig| {
        let listeners = count(config.listeners.len(), "listener");
        let peers = count(config.ha.mesh.peers.len(), "peer");
        format!("{listeners}, {peers}, HA {}", config.ha.mode)
    });
    let Some(loaded) = loaded else { return false };
    let config = &loaded.config;
    ports(config, report).await;
    certificates(config, report);
    keys::examine(config, report).await;
    if let Some(token) = token {
        keys::judge(token, config, report).await;
    }
    if config.ha.mode != HaMode::Off {
        registry(config, report).await;
        peers::examine(config, report).await;
    }
    decisions::examine(config, report).await;
    machine::examine(config, report);
    true
}

/// A port that is taken by the hub that runs is as it should be.
async fn ports(config: &HubConfig, report: &mut Report) {
    let tunnel = config.tunnel.bind;
    let runs = is_hub(tunnel).await;
    if runs {
        report.ok("ports", format!("a hub runs here and answers on {tunnel}"));
    }
    let listeners = config.listeners.iter();
    let mut ports: Vec<(String, SocketAddr)> = listeners
        .map(|one| (format!("listener {}", one.name), one.bind))
        .collect();
    ports.push(("tunnel".into(), tunnel));
    ports.push(("admin".into(), config.admin.bind));
    ports.extend(
        config
            .ha
            .mesh
            .listen
            .map(|bind| ("ha.mesh.listen".into(), bind)),
    );
    let metrics = config.observability.metrics_port;
    ports.extend(metrics.map(|port| ("metrics".into(), SocketAddr::new(tunnel.ip(), port))));
    let mut free = Vec::new();
    for (name, bind) in ports {
        match TcpListener::bind(bind).map_err(|error| (error.kind(), error)) {
            Ok(_) => free.push(bind.to_string()),
            Err((ErrorKind::AddrInUse, _)) if runs => {}
            Err((ErrorKind::AddrInUse, _)) => report.fault(
                "ports",
                format!("{name}: another program has {bind}"),
                format!(
                    "find it with 'ss -ltnp sport = :{}', or use another port",
                    bind.port()
                ),
            ),
            Err((ErrorKind::PermissionDenied, _)) => report.fault(
                "ports",
                format!("{name}: this user may not use {bind}"),
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE",
            ),
            Err((_, error)) => report.fault(
                "ports",
                format!("{name}: {bind}: {error}"),
                "use an address of this machine, or 0.0.0.0",
            ),
        }
    }
    match (runs, free.is_empty()) {
        (true, true) => report.ok("ports", "all are held, by that hub as it seems"),
        (true, false) => report.warning(
            "ports",
            format!("the hub that runs does not hold {}", free.join(", ")),
            "reload it, or look for listener errors in its log",
        ),
        (false, false) => report.ok("ports", format!("free: {}", free.join(", "))),
        (false, true) => {}
    }
}

/// Whether whatever answers there, with TLS or without, is taken for a hub: it answers HTTP.
async fn is_hub(bind: SocketAddr) -> bool {
    let ip = match bind.ip() {
        ip if ip.is_unspecified() && bind.is_ipv4() => [127, 0, 0, 1].into(),
        ip if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let ip = ip.to_string();
    match dial_tcp(&ip, bind.port(), DIAL, TcpOptions::default()).await {
        Ok(socket) => web::answers_http(socket).await,
        Err(_) => false,
    }
}

fn certificates(config: &HubConfig, report: &mut Report) {
    if let Some(tls) = &config.tunnel.tls {
        let files = ServerFiles {
            identity: Identity {
                cert_file: tls.cert_file.clone(),
                key_file: tls.key_file.clone(),
            },
            client_auth: tls
                .client_ca
                .clone()
                .map_or(ClientAuth::Off, ClientAuth::Optional),
        };
        let loaded = files
            .load()
            .and_then(|material| files.build(&material).map(drop));
        certificate("tunnel.tls", &tls.cert_file, loaded, report);
    }
    let Some(tls) = &config.ha.mesh.tls else {
        return;
    };
    let files = ClientFiles {
        roots: Roots::Only(tls.ca_bundle.clone()),
        identity: Some(Identity {
            cert_file: tls.cert_file.clone(),
            key_file: tls.key_file.clone(),
        }),
    };
    let loaded = files
        .load()
        .and_then(|material| files.build(&material).map(drop));
    certificate("ha.mesh.tls", &tls.cert_file, loaded, report);
}

fn certificate(what: &str, file: &Path, loaded: Result<(), TlsError>, report: &mut Report) {
    const AREA: &str = "certificate";
    if let Err(error) = loaded {
        return report.error(AREA, format!("{what}: {error}"));
    }
    if let Some(chain) = chain::read(file) {
        chain::told(AREA, what, &chain, report);
    }
}

async fn registry(config: &HubConfig, report: &mut Report) {
    const AREA: &str = "redis";
    let Some(store) = StoreConfig::of(&config.ha) else {
        let next = "set ha.redis_url: without it hubs know nothing of each other's agents";
        return report.warning(AREA, "the registry is in this process alone", next);
    };
    let probed = probe::registry(&store).await;
    for (name, seen) in &probed.nodes {
        let node = match seen {
            Ok(node) => node,
            Err(error) => {
                let next = "check ha.redis_url: host, port, user and password, rediss:// for TLS";
                report.fault(AREA, error, next);
                continue;
            }
        };
        let version = node.version.as_deref().unwrap_or("of unknown version");
        let took = node.took.as_millis();
        report.ok(AREA, format!("{name}: {} {version}, {took} ms", node.role));
        match node.ahead_ms {
            Some(ahead) if ahead.unsigned_abs() > SKEW_MS => report.warning(
                "clock",
                format!(
                    "{name} is {} s away from this machine",
                    ahead.unsigned_abs() / 1000
                ),
                "set the clocks of both (NTP)",
            ),
            _ => {}
        }
    }
    match probed.usable {
        Ok(()) => report.ok(AREA, "a hub can subscribe, read, write and run scripts there"),
        // It says the same as the server did.
        Err(_) if probed.nodes.iter().all(|(_, seen)| seen.is_err()) && !probed.nodes.is_empty() => {}
        Err(error) => report.fault(
            AREA,
            format!("of no use to a hub: {error}"),
            "the ACL user needs the keys and the channel of docs/ha.md, and the server must be the master",
        ),
    }
}
