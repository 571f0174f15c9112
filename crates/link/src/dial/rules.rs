//! Which servers are reached through a proxy, and which without.

use std::net::IpAddr;

use ipnet::IpNet;

use super::proxy::split_port;
use super::{Proxy, ProxyUrlError, WsUrl};

/// Which servers are reached through which proxy.
#[derive(Debug, Clone, Default)]
pub struct ProxyRules {
    for_wss: Option<Proxy>,
    for_ws: Option<Proxy>,
    direct: Vec<Direct>,
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    All,
    Net(IpNet, Option<u16>),
    /// The domain and everything below it.
    Domain(String, Option<u16>),
}

impl ProxyRules {
    /// No proxy at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Rules from configuration: proxies for `wss://` and `ws://`, and whom to reach without.
    #[must_use]
    pub fn new(for_wss: Option<Proxy>, for_ws: Option<Proxy>, no_proxy: &str) -> Self {
        let entries = no_proxy.split(|c: char| c == ',' || c.is_whitespace());
        let direct = entries
            .filter(|entry| !entry.is_empty())
            .map(Direct::parse)
            .collect();
        Self {
            for_wss,
            for_ws,
            direct,
        }
    }

    /// Rules from `HTTPS_PROXY` (for `wss://`), `HTTP_PROXY` (for `ws://`), `ALL_PROXY` for where
    /// these are not set, and `NO_PROXY`; each in upper or lower case, upper first. Empty is unset.
    ///
    /// # Errors
    /// Names the variable whose value is no proxy.
    pub fn from_env() -> Result<Self, ProxyUrlError> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyUrlError> {
        let either = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            names.into_iter().find_map(|name| {
                let value = lookup(&name).filter(|value| !value.trim().is_empty())?;
                Some((name, value))
            })
        };
        let proxy = |name: &str| {
            let found = either(name).or_else(|| either("ALL_PROXY"));
            found
                .map(|(name, value)| Proxy::parse(&name, &value))
                .transpose()
        };
        let no_proxy = either("NO_PROXY")
            .map(|(_, value)| value)
            .unwrap_or_default();
        Ok(Self::new(
            proxy("HTTPS_PROXY")?,
            proxy("HTTP_PROXY")?,
            &no_proxy,
        ))
    }

    /// The proxy on the way to `url`. This machine itself is never reached through one.
    #[must_use]
    pub fn proxy_for(&self, url: &WsUrl) -> Option<&Proxy> {
        let proxy = if url.is_tls() {
            &self.for_wss
        } else {
            &self.for_ws
        }
        .as_ref()?;
        let is_direct = url.is_loopback() || self.direct.iter().any(|entry| entry.covers(url));
        (!is_direct).then_some(proxy)
    }
}

impl Direct {
    fn parse(entry: &str) -> Self {
        if entry == "*" {
            return Self::All;
        }
        if let Ok(net) = entry.parse::<IpNet>() {
            return Self::Net(net, None);
        }
        let (host, port) = match split_port(entry) {
            (host, Some(port)) => (host, port.parse().ok()),
            (host, None) => (host, None),
        };
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Self::Net(IpNet::from(ip), port);
        }
        let domain = host.trim_start_matches("*.").trim_matches('.');
        Self::Domain(domain.to_ascii_lowercase(), port)
    }

    fn covers(&self, url: &WsUrl) -> bool {
        let is_port = |port: &Option<u16>| port.is_none_or(|port| port == url.port());
        match self {
            Self::All => true,
            Self::Net(net, port) => {
                let ip = url.ip().map(|ip| ip.to_canonical());
                ip.is_some_and(|ip| net.contains(&ip)) && is_port(port)
            }
            Self::Domain(domain, port) => {
                let host = url.host().trim_end_matches('.');
                let is_below = host
                    .strip_suffix(domain.as_str())
                    .is_some_and(|below| below.is_empty() || below.ends_with('.'));
                !domain.is_empty() && is_below && is_port(port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_direct(no_proxy: &str, url: &str) -> bool {
        let proxy = Proxy::parse("x", "http://proxy:1").unwrap();
        let rules = ProxyRules::new(Some(proxy.clone()), Some(proxy), no_proxy);
        rules.proxy_for(&url.parse().unwrap()).is_none()
    }

    #[test]
    fn no_proxy_entries() {
        for (no_proxy, url, expected) in [
            ("", "wss://hub.example/", false),
            ("*", "wss://hub.example/", true),
            ("example", "wss://hub.example/", true),
            (".example", "wss://hub.example/", true),
            ("*.example", "wss://hub.example/", true),
            ("hub.example", "wss://HUB.Example/", true),
            ("b.example", "wss://hub.example/", false),
            ("hub.example:443", "wss://hub.example/", true),
            ("hub.example:8443", "wss://hub.example/", false),
            ("a, hub.example ,b", "wss://hub.example/", true),
            ("a hub.example", "wss://hub.example/", true),
            ("10.0.0.0/8", "wss://10.1.2.3/", true),
            ("10.0.0.0/8", "wss://11.1.2.3/", false),
            ("10.0.0.0/8", "wss://ten.example/", false),
            ("10.1.2.3", "wss://10.1.2.3/", true),
            ("10.1.2.3:443", "wss://10.1.2.3/", true),
            ("10.1.2.3:80", "wss://10.1.2.3/", false),
            ("10.0.0.0/8", "wss://[::ffff:10.1.2.3]/", true),
            ("fd00::/8", "wss://[fd00::1]/", true),
            ("[fd00::1]:443", "wss://[fd00::1]/", true),
            ("fd00::1", "wss://[fd00::1]/", true),
            (".", "wss://hub.example/", false),
            ("", "wss://localhost:1/", true),
            ("", "ws://127.0.0.1:1/", true),
        ] {
            assert_eq!(
                is_direct(no_proxy, url),
                expected,
                "NO_PROXY={no_proxy} {url}"
            );
        }
    }

    #[test]
    fn environment_variables() {
        let chosen = |vars: &[(&str, &str)], url: &str| {
            let lookup = |name: &str| {
                let found = vars.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let rules = ProxyRules::from_lookup(lookup).map_err(|error| error.to_string())?;
            Ok::<_, String>(rules.proxy_for(&url.parse().unwrap()).map(Proxy::to_string))
        };
        let (wss, ws) = ("wss://hub.example/", "ws://hub.example/");
        let to = |proxy: &str| Ok(Some(proxy.to_owned()));
        assert_eq!(chosen(&[], wss), Ok(None));
        assert_eq!(chosen(&[("HTTPS_PROXY", "http://a:1")], wss), to("a:1"));
        assert_eq!(chosen(&[("HTTPS_PROXY", "http://a:1")], ws), Ok(None));
        assert_eq!(chosen(&[("http_proxy", "http://b:1")], ws), to("b:1"));
        assert_eq!(
            chosen(&[("HTTPS_PROXY", " "), ("https_proxy", "c:1")], wss),
            to("c:1")
        );
        assert_eq!(chosen(&[("all_proxy", "d:1")], wss), to("d:1"));
        assert_eq!(
            chosen(&[("HTTPS_PROXY", "e:1"), ("no_proxy", "example")], wss),
            Ok(None)
        );
        let error = chosen(&[("https_proxy", "socks5://x")], wss).unwrap_err();
        assert!(error.starts_with("https_proxy: "), "{error}");
    }
}
