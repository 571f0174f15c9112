//! What goes wrong while dialing, whose fault it may be, and what to do about it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::DialErrorKind;
use crate::reply::ReplyError;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve the name of {to}: {source}; check its spelling and this machine's DNS")]
    Dns {
        /// `host:port`, or the proxy.
        to: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// No address of the host took the connection.
    #[error("cannot connect to {to}: {}; {}", Failures(.failures, to), self.kind().hint())]
    Connect {
        /// `host:port`, or the proxy.
        to: String,
        /// The addresses that were tried, in the order in which they failed.
        failures: Vec<(SocketAddr, io::Error)>,
    },
    /// The socket's options could not be set.
    #[error("cannot set up the socket to {to}: {source}; {}", self.kind().hint())]
    Socket {
        /// `host:port`, or the proxy.
        to: String,
        /// What the system says.
        source: io::Error,
    },
    /// Time is up.
    #[error("{to}: no {stage} within {} ms; {}", .after.as_millis(), .stage.hint())]
    Timeout {
        /// `host:port`, or the proxy.
        to: String,
        /// What was under way.
        stage: Stage,
        /// For all stages together.
        after: Duration,
    },
    /// The proxy does not answer as a proxy does.
    #[error("the proxy {proxy} did not answer: {source}; check that it is an HTTP proxy")]
    Proxy {
        /// `host:port` of the proxy.
        proxy: String,
        /// What came instead.
        source: ReplyError,
    },
    /// The proxy says no.
    #[error(
        "the proxy {proxy} refused to connect to {to}: {status}{}; {}",
        in_brackets(.body), proxy_hint(*.status)
    )]
    ProxyRefused {
        /// `host:port` of the proxy.
        proxy: String,
        /// Where it should have connected to.
        to: String,
        /// Its HTTP status.
        status: StatusCode,
        /// Its explanation, shortened to one line.
        body: String,
    },
    /// The proxy wants other credentials.
    #[error("the proxy {proxy} wants authentication (407, it offers: {}); {}", .schemes.join(", "),
        auth_hint(.schemes, *.sent))]
    ProxyAuth {
        /// `host:port` of the proxy.
        proxy: String,
        /// The schemes that it offers.
        schemes: Vec<String>,
        /// Whether we sent a user and password.
        sent: bool,
    },
    /// No TLS, or not with somebody whom we trust.
    #[error("TLS with {to} failed: {source}; {}", tls_hint(.source))]
    Tls {
        /// `host:port`.
        to: String,
        /// From rustls or from the socket.
        source: io::Error,
    },
    /// A `wss://` URL, and no CA to trust.
    #[error("TLS with {to} is not possible: no trusted CA certificates were loaded")]
    NoTls {
        /// `host:port`.
        to: String,
    },
}

impl DialError {
    /// What it comes down to.
    #[must_use]
    pub fn kind(&self) -> DialErrorKind {
        match self {
            Self::Dns { .. } => DialErrorKind::Dns,
            Self::Connect { failures, .. } => failures
                .iter()
                .map(|(_, error)| DialErrorKind::of(error))
                .max()
                .unwrap_or(DialErrorKind::Unreachable),
            Self::Socket { source, .. } => DialErrorKind::of(source),
            Self::Timeout { .. } => DialErrorKind::Timeout,
            Self::Proxy { .. } | Self::ProxyRefused { .. } => DialErrorKind::Proxy,
            Self::ProxyAuth { .. } => DialErrorKind::ProxyAuth,
            Self::Tls { .. } | Self::NoTls { .. } => DialErrorKind::Tls,
        }
    }
}

/// The stages of dialing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Resolving the name.
    Dns,
    /// Connecting TCP.
    Connect,
    /// The proxy's answer to CONNECT.
    Proxy,
    /// The TLS handshake.
    Tls,
}

impl Stage {
    fn hint(self) -> &'static str {
        match self {
            Self::Dns => "check this machine's DNS servers",
            Self::Connect => "the host is down, or a firewall drops packets to it",
            Self::Proxy => "the proxy cannot reach the host either, or is overloaded",
            Self::Tls => "the port may not speak TLS, or something in between holds it up",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "address found",
            Self::Connect => "connection",
            Self::Proxy => "answer to CONNECT",
            Self::Tls => "TLS handshake",
        })
    }
}

/// What became of each address; the address itself is left out where it is what was dialed.
struct Failures<'a>(&'a [(SocketAddr, io::Error)], &'a str);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // "the proxy 192.0.2.1:3128" says it too.
        let said = self.1.rsplit(' ').next().unwrap_or_default();
        if let [(addr, error)] = self.0
            && addr.to_string() == said
        {
            return write!(f, "{error}");
        }
        for (at, (addr, error)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{addr}: {error}")?;
        }
        Ok(())
    }
}

fn in_brackets(body: &str) -> String {
    if body.is_empty() {
        String::new()
    } else {
        format!(" ({body})")
    }
}

fn proxy_hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 | 404 | 405 | 501 => {
            "that is no proxy for CONNECT, or not its port: check the proxy's URL"
        }
        502..=504 => {
            "the proxy cannot reach the host itself: check the host's name, which the proxy \
             resolves, and ask its operator"
        }
        _ => {
            "ask its operator to allow this host and port, or list the host in NO_PROXY if it can be \
             reached directly"
        }
    }
}

fn auth_hint(schemes: &[String], sent: bool) -> &'static str {
    let has_basic = schemes
        .iter()
        .any(|scheme| scheme.eq_ignore_ascii_case("basic"));
    match (has_basic, sent) {
        (true, true) => "the user and password in the proxy's URL are not accepted",
        (true, false) => "put them into the proxy's URL: http://user:password@host:port",
        (false, _) => "only Basic is supported: have the proxy offer it or let this host through",
    }
}

fn tls_hint(error: &io::Error) -> &'static str {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>());
    match inner {
        Some(TlsError::InvalidCertificate(certificate)) => match certificate {
            // A bad signature is a known name with another key: also a CA that we do not know.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "no CA that is trusted here has signed its certificate: if the server, or a proxy \
                 that inspects TLS, uses a private CA, add that CA to the CA bundle"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired: renew it, or correct this machine's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "correct this machine's clock"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a host name that the certificate is for"
            }
            _ => "the server needs another certificate",
        },
        Some(TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA,
        )) => "the server wants a client certificate that it trusts",
        Some(TlsError::AlertReceived(_)) => "the server refused, see its log",
        Some(TlsError::InvalidMessage(_)) => "that port does not speak TLS: check port and scheme",
        Some(_) => "see the server's log",
        None => "the connection was cut: a firewall or proxy may not let TLS through",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_told_twice() {
        let told = |to: &str, count| {
            let failure = || {
                let refused = io::Error::from_raw_os_error(111);
                ("192.0.2.1:80".parse().unwrap(), refused)
            };
            let failures = (0..count).map(|_| failure()).collect();
            let to = to.to_owned();
            DialError::Connect { to, failures }.to_string()
        };
        for to in ["192.0.2.1:80", "the proxy 192.0.2.1:80"] {
            let text = told(to, 1);
            assert!(
                text.starts_with(&format!("cannot connect to {to}: Connection refused")),
                "{text}"
            );
        }
        assert!(told("example.com:80", 1).contains("example.com:80: 192.0.2.1:80: Conn"));
        assert_eq!(told("192.0.2.1:80", 2).matches("192.0.2.1:80").count(), 3);
    }

    #[test]
    fn the_most_telling_failure_counts() {
        let failure = |code| {
            (
                "[::1]:1".parse().unwrap(),
                io::Error::from_raw_os_error(code),
            )
        };
        // A host without IPv6 says EADDRNOTAVAIL for ::1; what counts is the answer over IPv4.
        let failures = vec![failure(99), failure(111), failure(101)];
        let error = DialError::Connect {
            to: "localhost:1".into(),
            failures,
        };
        assert_eq!(error.kind(), DialErrorKind::Refused);
        assert!(
            error.to_string().contains("nothing listens there"),
            "{error}"
        );
    }
}
