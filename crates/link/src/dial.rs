//! From a URL to a connected stream: DNS, TCP, an HTTP proxy if there must be one, TLS.
//!
//! Nothing is remembered between attempts, so a name that moved is followed at the next one.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::stream::{BufferedIo, Stream, TLS_WRITES};

mod error;
mod kind;
mod proxy;
mod rules;
mod tcp;
pub(crate) mod tunnel;
mod url;

pub use error::{DialError, Stage};
pub use kind::DialErrorKind;
pub use proxy::{Proxy, ProxyUrlError};
pub use rules::ProxyRules;
pub use tcp::{TcpOptions, dial_tcp, is_link_local};
pub use url::{WsUrl, WsUrlError};

/// How to reach WebSocket servers.
#[derive(Debug)]
pub struct Dialer {
    /// Whom to trust, and what to present; `None` reaches only `ws://`.
    pub tls: Option<Arc<ClientConfig>>,
    /// Which servers are reached through a proxy.
    pub proxies: ProxyRules,
    /// For everything together, from the name to the end of the TLS handshake.
    pub timeout: Duration,
    /// Options of the socket.
    pub tcp: TcpOptions,
}

impl Dialer {
    /// Connects to the server of `url`; its certificate must be for the URL's host, whether or
    /// not a proxy is in between.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, url: &WsUrl) -> Result<Stream, DialError> {
        let deadline = Deadline::after(self.timeout);
        let (io, leftover) = match self.proxies.proxy_for(url) {
            Some(proxy) => {
                let to = format!("the proxy {proxy}");
                let io = tcp::connect(proxy.host(), proxy.port(), &to, deadline).await?;
                self.tune(&io, &to)?;
                deadline
                    .limit(Stage::Proxy, &to, tunnel::open(io, proxy, url))
                    .await??
            }
            None => {
                let to = url.authority();
                let io = tcp::connect(url.host(), url.port(), &to, deadline).await?;
                self.tune(&io, &to)?;
                (io, BytesMut::new())
            }
        };
        if !url.is_tls() {
            return Ok(Stream::Plain(BufferedIo::direct(io, leftover)));
        }
        let to = url.authority();
        let Some(tls) = &self.tls else {
            return Err(DialError::NoTls { to });
        };
        let connect = TlsConnector::from(Arc::clone(tls)).connect_with(
            url.server_name(),
            BufferedIo::new(io, leftover),
            |tls| {
                tls.set_buffer_limit(Some(TLS_WRITES));
            },
        );
        match deadline.limit(Stage::Tls, &to, connect).await? {
            Ok(tls) => Ok(Stream::Tls(Box::new(tls.into()))),
            Err(source) => Err(DialError::Tls { to, source }),
        }
    }

    fn tune(&self, io: &TcpStream, to: &str) -> Result<(), DialError> {
        self.tcp.apply(io).map_err(|source| DialError::Socket {
            to: to.to_owned(),
            source,
        })
    }
}

/// The end of an attempt's time, over all its stages.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    timeout: Duration,
    at: Instant,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self {
            timeout,
            at: Instant::now() + timeout,
        }
    }

    async fn limit<F: Future>(
        self,
        stage: Stage,
        to: &str,
        work: F,
    ) -> Result<F::Output, DialError> {
        timeout_at(self.at, work)
            .await
            .map_err(|_| DialError::Timeout {
                to: to.to_owned(),
                stage,
                after: self.timeout,
            })
    }
}
