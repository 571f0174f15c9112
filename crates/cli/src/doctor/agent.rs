//! What an agent needs: its token, the way to each hub, its targets.

use std::time::Instant;

use nowconnect_agent::config::AgentConfig;
use nowconnect_agent::failure::Failure;
use nowconnect_agent::probe::{self, Probe};
use nowconnect_link::dial::{DialError, TcpOptions, WsUrl, dial_tcp};
use nowconnect_link::tls::CertificateFault;
use nowconnect_settings::Source;

use super::report::{Report, count};
use super::{chain, claims, configuration, web};

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
    let token = token(config, report).await;
    match Probe::new(config) {
        Ok(probe) => {
            for url in &config.tunnel.urls {
                match WsUrl::try_from(url.clone()) {
                    Ok(url) => hub(&probe, &url, &token, config, report).await,
                    Err(error) => report.error("hub", error),
                }
            }
        }
        Err(error) => report.error("way out", error),
    }
    targets(config, report).await;
    true
}

/// Tells of the token, and returns it; without one it is empty.
async fn token(config: &AgentConfig, report: &mut Report) -> String {
    let thumbprint = match probe::thumbprint(config).await {
        Ok(thumbprint) => thumbprint,
        Err(error) => {
            report.error("dpop", error);
            None
        }
    };
    match probe::token(config).await {
        Ok(token) => {
            claims::examine(&token, thumbprint.as_deref(), config, report);
            token
        }
        Err(error) => {
            report.error("token", error);
            String::new()
        }
    }
}

async fn hub(
    probe: &Probe<'_>,
    url: &WsUrl,
    token: &str,
    config: &AgentConfig,
    report: &mut Report,
) {
    report.ok("hub", url.uri());
    if !url.is_tls() && !url.is_loopback() {
        report.warning(
            "hub",
            "ws:// shows the token to everybody on the way",
            "use wss://",
        );
    }
    if !way(probe, url, config, report).await {
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
        let shown = probe.shown(url).await.unwrap_or_default();
        chain::told("tls", "its", &shown, report);
    }
    if let Some(there) = web::clock(stream, url, "the hub", report).await {
        claims::at_the_hub(token, there, report);
    }
    upgrade(probe, url, report).await;
}

/// Tells of the first machine on the way to a hub; `false` when its name has no address.
async fn way(probe: &Probe<'_>, url: &WsUrl, config: &AgentConfig, report: &mut Report) -> bool {
    if let Some(proxy) = probe.proxy_for(url) {
        report.ok("proxy", format!("through {proxy}"));
        return web::resolve(proxy.host(), proxy.port(), report).await;
    }
    let proxy = &config.proxy;
    let set = proxy.https_proxy.is_some() || proxy.http_proxy.is_some();
    let directly = match (set, url.is_loopback()) {
        (false, _) => "none is configured: directly",
        (true, true) => "this machine itself is reached directly",
        (true, false) => "directly: NO_PROXY lists this host, or the proxy is for the other scheme",
    };
    report.ok("proxy", directly);
    web::resolve(url.host(), url.port(), report).await
}

/// Tells whether the hub lets the agent in.
async fn upgrade(probe: &Probe<'_>, url: &WsUrl, report: &mut Report) {
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
        DialError::Connect { to, .. } | DialError::Timeout { to, .. }
            if to.starts_with("the proxy") =>
        {
            "proxy"
        }
        _ => "connection",
    };
    let DialError::Tls { source, .. } = error else {
        return report.error(area, error);
    };
    let Some(fault) = CertificateFault::of_io(source) else {
        return report.error(area, error);
    };
    let shown = probe.shown(url).await.unwrap_or_default();
    if fault != CertificateFault::UnknownCa {
        let text = error.to_string();
        let next = text.rsplit_once("; ").map_or("", |(_, next)| next);
        return report.fault(area, chain::fault(fault, &shown, url.host()), next);
    }
    report.fault(
        area,
        chain::unknown_ca(&shown, config.proxy.ca_bundle.as_deref()),
        "if that is a proxy of yours that opens TLS, have it let this host through, or add its CA to \
         proxy.ca_bundle (NC_CA_BUNDLE); if it is the hub's own CA, add that; if it is neither, \
         somebody is in between",
    );
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
