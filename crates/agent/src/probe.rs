//! Tries the way to a hub as the agent goes it, and turns back before saying HELLO: whatever tunnels
//! the agent has stay as they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_link::dial::{DialError, Dialer, Proxy, WsUrl};
use nowconnect_link::stream::Stream;
use nowconnect_link::tls::{TlsError, Witness, Written, written};
use nowconnect_link::upgrade::UpgradeError;
use tokio::time::timeout;

use crate::config::AgentConfig;
use crate::credential::Credential;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::proof::ProofKey;
use crate::token::{self, TokenError};
use crate::tunnel::{HANDSHAKE, ask};
use crate::uplink::{Uplink, UplinkError};

/// The way out of one configuration.
#[derive(Debug)]
pub struct Probe<'a> {
    config: &'a AgentConfig,
    dialer: Dialer,
}

/// A hub that took the token.
#[derive(Debug)]
pub struct Welcome {
    /// The subprotocol it chose; `None`: version 1.
    pub protocol: Option<&'static str>,
    /// It asked for a proof made with a nonce first.
    pub with_nonce: bool,
    /// From the name to the answer.
    pub took: Duration,
}

impl<'a> Probe<'a> {
    /// Reads the CAs, our own certificate and the proxies. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`UplinkError`].
    pub fn new(config: &'a AgentConfig) -> Result<Self, UplinkError> {
        let dialer = Uplink::new(Metrics::new()).dialer(config)?;
        Ok(Self { config, dialer })
    }

    /// The proxy on the way to `url`, if there is one.
    #[must_use]
    pub fn proxy_for(&self, url: &WsUrl) -> Option<&Proxy> {
        self.dialer.proxies.proxy_for(url)
    }

    /// Connects, TLS included, as for a tunnel.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, url: &WsUrl) -> Result<Stream, DialError> {
        self.dialer.dial(url).await
    }

    /// The certificates that are shown on the way to `url`, leaf first, trusted or not.
    ///
    /// # Errors
    /// A certificate cannot be read.
    pub async fn shown(&self, url: &WsUrl) -> Result<Vec<Written>, TlsError> {
        let witness = Witness::refusing();
        let dialer = Dialer {
            tls: Some(Arc::new(witness.config(None)?)),
            proxies: self.dialer.proxies.clone(),
            timeout: self.dialer.timeout,
            tcp: self.dialer.tcp,
        };
        // It never succeeds, and what failed is told by the dial that may.
        drop(dialer.dial(url).await);
        witness.chain().iter().map(written).collect()
    }

    /// Asks for the upgrade with the token, and goes away.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn knock(&self, url: &WsUrl) -> Result<Welcome, Failure> {
        let began = Instant::now();
        let credential = Credential::read(&self.config.tunnel).await?;
        let mut nonce = None;
        loop {
            let stream = self.dialer.dial(url).await?;
            let asked = ask(stream, url, &credential, nonce.as_deref(), self.config);
            match timeout(HANDSHAKE, asked)
                .await
                .map_err(|_| Failure::Timeout(HANDSHAKE))?
            {
                Err(Failure::Upgrade(UpgradeError::Refused {
                    nonce: Some(given), ..
                })) if nonce.is_none() && credential.has_key() => {
                    nonce = Some(given);
                }
                upgraded => {
                    return Ok(Welcome {
                        protocol: upgraded?.protocol,
                        with_nonce: nonce.is_some(),
                        took: began.elapsed(),
                    });
                }
            }
        }
    }
}

/// The token as it would be shown.
///
/// # Errors
/// See [`TokenError`].
pub async fn token(config: &AgentConfig) -> Result<String, TokenError> {
    let read = token::read(&config.tunnel.token_file).await?;
    Ok(read.token.clone())
}

/// The thumbprint of the proof key; `None` without one.
///
/// # Errors
/// The key cannot be used.
pub async fn thumbprint(config: &AgentConfig) -> Result<Option<String>, Failure> {
    match &config.tunnel.dpop_key_file {
        Some(path) => Ok(Some(ProofKey::read(path).await?.thumbprint().to_owned())),
        None => Ok(None),
    }
}
