//! The address of a WebSocket server.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use rustls_pki_types::ServerName;

use crate::ws::Mask;

/// A checked `ws://` or `wss://` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WsUrl {
    uri: Uri,
    is_tls: bool,
    server_name: ServerName<'static>,
    /// In lower case, an IPv6 address without brackets.
    host: String,
    port: u16,
}

/// Why text is no URL of a WebSocket server. Does not show the URL, it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected wss://host[:port]/path")]
pub struct WsUrlError(&'static str);

impl WsUrl {
    /// The URL as it was given: its host and path go into the upgrade request.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether it is `wss://`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Name or address, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 80 or 443 when the URL has none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as messages and CONNECT want it.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The host's address when it is one, not a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether the host is this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.ip() {
            Some(ip) => ip.to_canonical().is_loopback(),
            None => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }

    /// How a client of this server masks its frames; see [`Mask`].
    #[must_use]
    pub fn mask(&self) -> Mask {
        if self.is_tls || self.is_loopback() {
            Mask::Zero
        } else {
            Mask::Random
        }
    }

    /// What the server's certificate must be for.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl TryFrom<Uri> for WsUrl {
    type Error = WsUrlError;

    fn try_from(uri: Uri) -> Result<Self, WsUrlError> {
        let is_tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            Some("https") => return Err(WsUrlError("the scheme is wss, not https")),
            Some("http") => return Err(WsUrlError("the scheme is ws, not http")),
            Some(_) => return Err(WsUrlError("the scheme must be wss or ws")),
            None => return Err(WsUrlError("the scheme is missing")),
        };
        let authority = uri.authority().ok_or(WsUrlError("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(WsUrlError("a user or password has no place in it"));
        }
        let bracketed = authority.host();
        let host = bracketed
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        let after_host = authority
            .as_str()
            .get(bracketed.len()..)
            .unwrap_or_default();
        let port = match authority.port_u16() {
            Some(0) => return Err(WsUrlError("port 0 cannot be connected to")),
            Some(port) => port,
            None if !after_host.is_empty() => {
                return Err(WsUrlError("the port is not a number up to 65535"));
            }
            None if is_tls => 443,
            None => 80,
        };
        let server_name = ServerName::try_from(host.clone())
            .map_err(|_| WsUrlError("the host is neither a name nor an address"))?;
        Ok(Self {
            is_tls,
            server_name,
            host,
            port,
            uri,
        })
    }
}

impl FromStr for WsUrl {
    type Err = WsUrlError;

    fn from_str(text: &str) -> Result<Self, WsUrlError> {
        let uri: Uri = text
            .trim()
            .parse()
            .map_err(|_| WsUrlError("this is not a URL"))?;
        Self::try_from(uri)
    }
}

impl fmt::Display for WsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_defaults() {
        let parts = |text: &str| {
            let url: WsUrl = text.parse().unwrap();
            (url.is_tls(), url.authority(), url.mask())
        };
        assert_eq!(
            parts("wss://Hub.Example/t"),
            (true, "hub.example:443".into(), Mask::Zero)
        );
        assert_eq!(
            parts("ws://hub.example/t"),
            (false, "hub.example:80".into(), Mask::Random)
        );
        assert_eq!(
            parts("ws://localhost:8765"),
            (false, "localhost:8765".into(), Mask::Zero)
        );
        assert_eq!(
            parts("wss://[fd00::1]:1/t"),
            (true, "[fd00::1]:1".into(), Mask::Zero)
        );
        assert_eq!(parts("ws://127.9.9.9/t?x=1").2, Mask::Zero);
        assert_eq!(parts("ws://[::1]/").2, Mask::Zero);
        assert_eq!(parts("ws://10.0.0.1/").2, Mask::Random);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<WsUrl>().unwrap_err().to_string();
        for (text, expected) in [
            ("https://hub/tunnel", "wss, not https"),
            ("http://hub/tunnel", "ws, not http"),
            ("ftp://hub/tunnel", "must be wss or ws"),
            ("hub:8765", "scheme is missing"),
            ("/tunnel", "scheme is missing"),
            ("", "not a URL"),
            ("wss:///tunnel", "not a URL"),
            ("wss://hub example/", "not a URL"),
            ("wss://me:hush@hub/tunnel", "no place"),
            ("wss://hub:0/", "port 0"),
            ("wss://hub:99999/", "not a number"),
            ("wss://hub:x/", "not a"),
            ("wss://-hub-/", "neither a name nor an address"),
        ] {
            let error = error(text);
            assert!(
                error.contains(expected) && !error.contains("hush"),
                "{text}: {error}"
            );
        }
    }
}
