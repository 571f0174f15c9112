//! The kinds of failures to dial.

use std::fmt;
use std::io::{self, ErrorKind};

/// ENFILE, EMFILE and ENOBUFS of Linux.
#[cfg(not(windows))]
const EXHAUSTED: [i32; 3] = [23, 24, 105];
/// WSAEMFILE and WSAENOBUFS.
#[cfg(windows)]
const EXHAUSTED: [i32; 2] = [10024, 10055];

/// What a [`DialError`](super::DialError) comes down to, for metrics, refusals and retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DialErrorKind {
    // In the order of how much each says, least first: of several addresses the best is reported.
    /// No route, or a firewall that says so.
    Unreachable,
    /// This machine has no ports, file descriptors or memory left.
    LocalResource,
    /// No answer in time.
    Timeout,
    /// The peer broke the connection while it was set up.
    Reset,
    /// Nobody listens there.
    Refused,
    /// No such name.
    Dns,
    /// The proxy failed or refused.
    Proxy,
    /// The proxy wants other credentials.
    ProxyAuth,
    /// No TLS, or no trust.
    Tls,
}

impl DialErrorKind {
    /// A stable lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::LocalResource => "local_resource",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Dns => "dns",
            Self::Proxy => "proxy",
            Self::ProxyAuth => "proxy_auth",
            Self::Tls => "tls",
        }
    }

    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Refused => "nothing listens there: check host and port, and that it runs",
            Self::Reset => "it was cut off: check firewalls and the server's connection limits",
            Self::LocalResource => {
                "this machine has run out of ports, file descriptors or memory: raise its limits"
            }
            _ => "check the address, routes and firewalls",
        }
    }

    /// What an error of `connect` or of a socket means.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::Reset
            }
            ErrorKind::TimedOut => Self::Timeout,
            ErrorKind::AddrNotAvailable
            | ErrorKind::AddrInUse
            | ErrorKind::OutOfMemory
            | ErrorKind::QuotaExceeded
            | ErrorKind::WouldBlock => Self::LocalResource,
            // They have no kind of their own.
            _ if error
                .raw_os_error()
                .is_some_and(|code| EXHAUSTED.contains(&code)) =>
            {
                Self::LocalResource
            }
            _ => Self::Unreachable,
        }
    }
}

impl fmt::Display for DialErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_have_a_kind() {
        let kind = |code| DialErrorKind::of(&io::Error::from_raw_os_error(code)).as_str();
        assert_eq!(kind(111), "refused"); // ECONNREFUSED
        assert_eq!(kind(110), "timeout"); // ETIMEDOUT
        assert_eq!(kind(104), "reset"); // ECONNRESET
        for unreachable in [101, 113, 100, 13, 1] {
            assert_eq!(kind(unreachable), "unreachable"); // ENETUNREACH, EHOSTUNREACH, ...
        }
        for local in [99, 98, 24, 23, 105, 12, 11] {
            assert_eq!(kind(local), "local_resource", "{local}"); // EADDRNOTAVAIL, EMFILE, ...
        }
    }
}
