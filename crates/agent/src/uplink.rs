//! The way out to the hubs: which CAs to trust, what to show, which proxies to use.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nowconnect_link::dial::{Dialer, Proxy, ProxyRules, ProxyUrlError, TcpOptions};
use nowconnect_link::tls::{ClientFiles, LiveClientConfig, Roots, TlsError};
use parking_lot::Mutex;

use crate::config::{AgentConfig, ProxyConfig};
use crate::metrics::Metrics;

/// From the name of a hub to the end of the TLS handshake, a proxy in between included.
const DIAL: Duration = Duration::from_secs(15);
/// How long a tunnel may be silent before the kernel probes it too.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The `use` of our CAs and certificate in logs and metrics.
const USE: &str = "hub";

/// Makes dialers; keeps the TLS configuration, and with it the sessions to resume, between them.
#[derive(Debug)]
pub(crate) struct Uplink {
    tls: Mutex<Option<Arc<LiveClientConfig>>>,
    metrics: Arc<Metrics>,
    /// Why the files were not taken when they were last looked at.
    problem: Mutex<Option<String>>,
}

/// Why the way out cannot be set up: a matter of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The CA certificates, or our own.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The proxies.
    #[error(transparent)]
    Proxy(#[from] ProxyUrlError),
}

impl Uplink {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            tls: Mutex::default(),
            metrics,
            problem: Mutex::default(),
        }
    }

    /// Puts the CAs and the certificate of `config` in force. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`UplinkError`]; nothing has changed then.
    pub(crate) fn check(&self, config: &AgentConfig) -> Result<(), UplinkError> {
        proxies(&config.proxy)?;
        if needs_tls(config) {
            self.follow(&files(config))?;
        }
        Ok(())
    }

    /// A dialer for the URLs of `config`, with the files as they are now; where these are of no use,
    /// what was good before. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`UplinkError`].
    pub(crate) fn dialer(&self, config: &AgentConfig) -> Result<Dialer, UplinkError> {
        let tls = if needs_tls(config) {
            Some(self.tls(&files(config))?.current())
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

    fn tls(&self, files: &ClientFiles) -> Result<Arc<LiveClientConfig>, TlsError> {
        let error = match self.follow(files) {
            Ok(live) => {
                *self.problem.lock() = None;
                return Ok(live);
            }
            Err(error) => error,
        };
        let Some(live) = self.tls.lock().clone() else {
            return Err(error);
        };
        let text = error.to_string();
        if self.problem.lock().replace(text.clone()).as_ref() != Some(&text) {
            self.metrics.cert_reloads.with([USE, "rejected"]).inc();
            tracing::warn!(
                event = "certificate_kept",
                r#use = USE,
                error = text,
                audit = true
            );
        }
        Ok(live)
    }

    fn follow(&self, files: &ClientFiles) -> Result<Arc<LiveClientConfig>, TlsError> {
        let mut tls = self.tls.lock();
        let Some(live) = &*tls else {
            let first = Arc::new(LiveClientConfig::load(files.clone())?);
            return Ok(Arc::clone(tls.insert(first)));
        };
        if live.replace(files.clone())? {
            self.metrics.cert_reloads.with([USE, "applied"]).inc();
            tracing::info!(event = "certificate_changed", r#use = USE, audit = true);
        }
        Ok(Arc::clone(live))
    }

    /// Lets scrapes tell when our certificate ends, and the first CA of the bundle.
    pub(crate) fn show_expiry(self: &Arc<Self>) {
        let uplink = Arc::downgrade(self);
        self.metrics.on_scrape(move |metrics| {
            let live = uplink
                .upgrade()
                .and_then(|uplink| uplink.tls.lock().clone());
            let ends = live.map(|live| (live.expires(), live.trust_expires()));
            let (own, ca) = ends.unwrap_or_default();
            for (r#use, end) in [("client", own), ("hub_ca", ca)] {
                match end {
                    Some(end) => {
                        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
                        metrics.cert_expiry.with([r#use]).set(left.as_secs_f64());
                    }
                    None => metrics.cert_expiry.remove([r#use]),
                }
            }
        });
    }
}

fn needs_tls(config: &AgentConfig) -> bool {
    let mut urls = config.tunnel.urls.iter();
    urls.any(|url| url.scheme_str() == Some("wss"))
}

fn files(config: &AgentConfig) -> ClientFiles {
    let bundle = config.proxy.ca_bundle.clone();
    ClientFiles {
        roots: bundle.map_or(Roots::System, Roots::Only),
        identity: config.tunnel.identity.clone(),
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
