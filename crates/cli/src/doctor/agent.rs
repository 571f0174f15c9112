//! What an agent needs: its token, the way to each hub, its targets.

use std::time::Instant;

use nowconnect_agent::config::AgentConfig;
use nowconnect_agent::failure::Failure;
use nowconnect_agent::probe::{self, Probe};
use nowconnect_link::dial::{DialError, TcpOptions, WsUrl, dial_tcp};
use nowconnect_link::tls::{CertificateFault, Written};
use nowconnect_settings::Source;

use super::claims::{self, seconds_left, span};
use super::report::{Report, count};
use super::{configuration, web};

/// A certificate that ends sooner is about to be missed, in seconds.
const SOON: i64 = 14 * 86_400;

/// Looks at everything; `false` when the configuration cannot be used.
pub(super) async fn examine(source: &Source, report: &mut Report) -> bool {
    let loaded = configuration(
        AgentConfig::inspect(source),
        report,
        |config: &AgentConfig| {
            let (connectors, hubs) = (&config.tunnel.exported_connectors, &config.tunnel.urls);
            let connectors = count(connectors.len(), "connector");
            format!("{connectors}, {}", count(hubs.len(), "hub"))
        },
    );
    let Some(loaded) = loaded else { return false };
    let config = &loaded.config;
    token(config, report).await;
    match Probe::new(config) {
        Ok(probe) => {
            for url in &config.tunnel.urls {
                match WsUrl::try_from(url.clone()) {
                    Ok(url) => hub(&probe, &url, config, report).await,
                    Err(error) => report.error("hub", error),
                }
            }
        }
        Err(error) => report.error("way out", error),
    }
    targets(config, report).await;
    true
}

async fn token(config: &AgentConfig, report: &mut Report) {
    let thumbprint = match probe::thumbprint(config).await {
        Ok(thumbprint) => thumbprint,
        Err(error) => {
            report.error("dpop", error);
            None
        }
    };
    match probe::token(config).await {
        Ok(token) => claims::examine(&token, thumbprint.as_deref(), config, report),
        Err(error) => report.error("token", error),
    }
}

async fn hub(probe: &Probe<'_>, url: &WsUrl, config: &AgentConfig, report: &mut Report) {
    report.ok("hub", url.uri());
    if !url.is_tls() && !url.is_loopback() {
        report.warning(
            "hub",
            "ws:// shows the token to everybody on the way",
            "use wss://",
        );
    }
    let known = match probe.proxy_for(url) {
        Some(proxy) => {
            report.ok("proxy", format!("through {proxy}"));
            web::resolve(proxy.host(), proxy.port(), report).await
        }
        None => {
            let proxy = &config.proxy;
            let set = proxy.https_proxy.is_some() || proxy.http_proxy.is_some();
            report.ok(
                "proxy",
                match (set, url.is_loopback()) {
                    (false, _) => "none is configured: directly",
                    (true, true) => "this machine itself is reached directly",
                    (true, false) => {
                        "directly: NO_PROXY lists this host, or the proxy is for the other scheme"
                    }
                },
            );
            web::resolve(url.host(), url.port(), report).await
        }
    };
    if !known {
        return;
    }
    let began = Instant::now();
    let stream = match probe.dial(url).await {
        Ok(stream) => stream,
        Err(error) => return not_reached(probe, url, config, &error, report).await,
    };
    let what = if url.is_tls() { "TCP and TLS" } else { "TCP" };
    let took = began.elapsed().as_millis();
    report.ok("connection", format!("{what} in {took} ms"));
    if url.is_tls() {
        certificates(&probe.shown(url).await.unwrap_or_default(), config, report);
    }
    web::clock(stream, url, report).await;
    match probe.knock(url).await {
        Ok(welcome) => {
            let version = match welcome.protocol {
                Some(_) => "version 2",
                None => "version 1 (no resume, no flow control)",
            };
            let nonce = if welcome.with_nonce {
                ", with its nonce"
            } else {
                ""
            };
            let took = welcome.took.as_millis();
            report.ok(
                "upgrade",
                format!("the hub takes the token{nonce}; {version}; {took} ms"),
            );
        }
        // Told already.
        Err(Failure::Token(_) | Failure::Proof(_)) => {}
        Err(error) => report.error("upgrade", error),
    }
}

async fn not_reached(
    probe: &Probe<'_>,
    url: &WsUrl,
    config: &AgentConfig,
    error: &DialError,
    report: &mut Report,
) {
    let area = match error {
        DialError::Dns { .. } => "dns",
        DialError::Proxy { .. } | DialError::ProxyRefused { .. } | DialError::ProxyAuth { .. } => {
            "proxy"
        }
        DialError::Tls { .. } | DialError::NoTls { .. } => "tls",
        _ => "connection",
    };
    let fault = match error {
        DialError::Tls { source, .. } => CertificateFault::of_io(source),
        _ => None,
    };
    if fault != Some(CertificateFault::UnknownCa) {
        return report.error(area, error);
    }
    let shown = probe.shown(url).await.unwrap_or_default();
    let signer = shown
        .last()
        .map_or("somebody unknown", |top| top.issuer.as_str());
    let leaf = shown
        .first()
        .map_or_else(String::new, |leaf| format!(" for {}", leaf.subject));
    let bundle = match &config.proxy.ca_bundle {
        Some(bundle) => format!("{} does not vouch for", bundle.display()),
        None => "this machine does not trust".to_owned(),
    };
    report.fault(
        area,
        format!("the certificate{leaf} is signed by {signer}, whom {bundle}"),
        "if that is a proxy of yours that opens TLS, have it let this host through, or add its CA to \
         proxy.ca_bundle (NC_CA_BUNDLE); if it is the hub's own CA, add that; if it is neither, \
         somebody is in between",
    );
}

fn certificates(shown: &[Written], config: &AgentConfig, report: &mut Report) {
    let (Some(leaf), Some(top)) = (shown.first(), shown.last()) else {
        return;
    };
    let left = seconds_left(leaf.ends);
    let by = match &config.proxy.ca_bundle {
        Some(bundle) => format!("trusted by {}", bundle.display()),
        None => "trusted by this machine".to_owned(),
    };
    let ends = span(left);
    let fact = format!(
        "certificate for {}, signed by {}, {by}, ends in {ends}",
        leaf.names.join(", "),
        top.issuer,
    );
    match left < SOON {
        true => report.warning("tls", fact, "have the hub's certificate renewed"),
        false => report.ok("tls", fact),
    }
}

async fn targets(config: &AgentConfig, report: &mut Report) {
    for (name, target) in &config.targets {
        if !config.tunnel.exported_connectors.contains(name) {
            continue;
        }
        let (host, port) = (&target.host, target.port);
        let began = Instant::now();
        let limit = config.limits.connect_timeout;
        match dial_tcp(host, port, limit, TcpOptions::default()).await {
            Ok(_) => {
                let took = began.elapsed().as_millis();
                report.ok(
                    "target",
                    format!("{name}: {host}:{port} connected in {took} ms"),
                );
            }
            Err(error) => report.error("target", format!("{name}: {error}")),
        }
    }
}
