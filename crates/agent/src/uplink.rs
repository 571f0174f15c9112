//! The way out to the hubs: which CAs to trust, which proxies to use.

use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::dial::{Dialer, Proxy, ProxyRules, ProxyUrlError, TcpOptions};
use nowconnect_link::tls::{ClientFiles, LiveClientConfig, Roots, TlsError};
use parking_lot::Mutex;

use crate::config::{AgentConfig, ProxyConfig};

/// From the name of a hub to the end of the TLS handshake, a proxy in between included.
const DIAL: Duration = Duration::from_secs(15);
/// How long a tunnel may be silent before the kernel probes it too.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Makes dialers; keeps the TLS configuration, and with it the sessions to resume, between them.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    tls: Mutex<Option<Arc<LiveClientConfig>>>,
}

/// Why the way out cannot be set up: a matter of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The CA certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The proxies.
    #[error(transparent)]
    Proxy(#[from] ProxyUrlError),
}

impl Uplink {
    /// A dialer for the URLs of `config`, with the CA bundle as it is now. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`UplinkError`].
    pub(crate) fn dialer(&self, config: &AgentConfig) -> Result<Dialer, UplinkError> {
        let needs_tls = config
            .tunnel
            .urls
            .iter()
            .any(|url| url.scheme_str() == Some("wss"));
        let tls = if needs_tls {
            Some(self.tls(&config.proxy)?.current())
        } else {
            None
        };
        let dead_after = config.tunnel.ping_interval + config.tunnel.ping_timeout;
        Ok(Dialer {
            tls,
            proxies: proxies(&config.proxy)?,
            timeout: DIAL,
            tcp: TcpOptions {
                keepalive: Some(KEEPALIVE),
                user_timeout: Some(dead_after),
            },
        })
    }

    fn tls(&self, proxy: &ProxyConfig) -> Result<Arc<LiveClientConfig>, TlsError> {
        let roots = proxy.ca_bundle.clone().map_or(Roots::System, Roots::Only);
        let files = ClientFiles {
            roots,
            identity: None,
        };
        let mut tls = self.tls.lock();
        if let Some(live) = &*tls {
            live.replace(files)?;
            return Ok(Arc::clone(live));
        }
        Ok(Arc::clone(
            tls.insert(Arc::new(LiveClientConfig::load(files)?)),
        ))
    }
}

fn proxies(config: &ProxyConfig) -> Result<ProxyRules, ProxyUrlError> {
    let parse = |place, url: &Option<nowconnect_settings::Secret>| {
        url.as_ref()
            .map(|url| Proxy::parse(place, url.expose()))
            .transpose()
    };
    Ok(ProxyRules::new(
        parse("proxy.https_proxy", &config.https_proxy)?,
        parse("HTTP_PROXY", &config.http_proxy)?,
        config.no_proxy.as_deref().unwrap_or_default(),
    ))
}
