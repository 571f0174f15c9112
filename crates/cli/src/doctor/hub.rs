//! What a hub needs: ports, certificates, keys, Redis, peers, the decision point.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use nowconnect_hub::config::{HaMode, HubConfig, JwksSource};
use nowconnect_hub::probe;
use nowconnect_hub::registry::StoreConfig;
use nowconnect_link::dial::{TcpOptions, WsUrl, dial_tcp};
use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Files as _, Identity, Roots, ServerFiles, TlsError, written,
};
use nowconnect_settings::Source;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::claims::{seconds_left, span};
use super::report::{Report, count};
use super::{configuration, machine, web};

/// A certificate that ends sooner is about to be missed, in seconds.
const SOON: i64 = 14 * 86_400;
/// Clocks that differ by more, in milliseconds, make epochs and proofs unreliable.
const SKEW_MS: u64 = 2_000;
const DIAL: Duration = Duration::from_secs(5);

/// Looks at everything; `false` when the configuration cannot be used.
pub(super) async fn examine(source: &Source, report: &mut Report) -> bool {
    let loaded = configuration(HubConfig::inspect(source), report, |config: &HubConfig| {
        let listeners = count(config.listeners.len(), "listener");
        let peers = count(config.ha.mesh.peers.len(), "peer");
        format!("{listeners}, {peers}, HA {}", config.ha.mode)
    });
    let Some(loaded) = loaded else { return false };
    let config = &loaded.config;
    ports(config, report).await;
    certificates(config, report);
    keys(config, report).await;
    if config.ha.mode != HaMode::Off {
        registry(config, report).await;
        mesh(config, report).await;
    }
    decision_point(config, report).await;
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
    let leaf = CertificateDer::from_pem_file(file).ok();
    let Some(leaf) = leaf.and_then(|leaf| written(&leaf).ok()) else {
        return;
    };
    let left = seconds_left(leaf.ends);
    let fact = format!(
        "{what}: for {}, signed by {}, ends in {}; the key matches",
        leaf.names.join(", "),
        leaf.issuer,
        span(left),
    );
    match left < SOON {
        true => report.warning(
            AREA,
            fact,
            "renew it; the hub takes the new files by itself",
        ),
        false => report.ok(AREA, fact),
    }
}

async fn keys(config: &HubConfig, report: &mut Report) {
    const AREA: &str = "token keys";
    let place = match &config.security.jwks {
        Some(JwksSource::Url(url)) => url.to_string(),
        Some(JwksSource::File(path)) => path.display().to_string(),
        None => {
            let next = "set security.jwks_url (NOWCONNECT_JWKS_URL)";
            return report.fault(AREA, "there are none: every agent is refused", next);
        }
    };
    match probe::keys(&config.security).await {
        Ok(status) => match status.problem {
            Some(problem) => report.fault(
                AREA,
                format!("{place}: {problem}"),
                "check security.jwks_url, the way there, and security.jwks_ca for a private CA",
            ),
            None => report.ok(
                AREA,
                format!("{place}: {}", count(status.keys, "usable key")),
            ),
        },
        Err(error) => report.error(AREA, format!("security.jwks_ca: {error}")),
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

async fn mesh(config: &HubConfig, report: &mut Report) {
    const AREA: &str = "peer";
    for url in &config.ha.mesh.peers {
        if let Ok(parsed) = WsUrl::try_from(url.clone())
            && !web::resolve(parsed.host(), parsed.port(), report).await
        {
            continue;
        }
        match probe::mesh(config, url).await {
            Ok(sealed) => {
                let how = match (sealed, config.ha.mesh.require_mtls) {
                    (true, _) => "both have proven who they are, inside the WebSocket",
                    (false, true) => "both have proven who they are",
                    (false, false) => {
                        "it answers; nobody has to prove anything (require_mtls: false)"
                    }
                };
                report.ok(AREA, format!("{url}: {how}"));
            }
            Err(error) if error.contains("certificate") => report.fault(
                AREA,
                format!("{url}: {error}"),
                "both hubs need certificates of one mesh CA in ha.mesh.tls, each for the host by \
                 which the other dials it (nowconnect certs issue)",
            ),
            Err(error) => report.error(AREA, format!("{url}: {error}")),
        }
    }
}

async fn decision_point(config: &HubConfig, report: &mut Report) {
    const AREA: &str = "pdp";
    let Some(pdp) = &config.pdp else { return };
    let usual = if pdp.url.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let (host, port) = (
        pdp.url.host().unwrap_or_default(),
        pdp.url.port_u16().unwrap_or(usual),
    );
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match dial_tcp(host, port, DIAL, TcpOptions::default()).await {
        Ok(_) => report.ok(
            AREA,
            format!(
                "{} can be reached; nowconnect policy explain asks it",
                pdp.url
            ),
        ),
        Err(error) => {
            report.error(AREA, error);
            let open = if pdp.fail_open { "let in" } else { "refused" };
            report.ok(
                AREA,
                format!("while it is away, clients are {open} (pdp.fail_open)"),
            );
        }
    }
}
