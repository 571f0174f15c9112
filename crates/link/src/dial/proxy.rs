//! Which servers are reached through an HTTP proxy, and with which credentials.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use ipnet::IpNet;

use super::WsUrl;
use super::url::authority;

/// An HTTP proxy. `Display` and `Debug` show its address, never its credentials.
#[derive(Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

/// Why text is no proxy. Does not show it, it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}; expected http://[user:password@]host:port")]
pub struct ProxyUrlError {
    place: String,
    problem: &'static str,
}

impl Proxy {
    /// Parses `http://[user:password@]host[:port]`; the scheme may be left out, user and password
    /// may be percent-encoded. `place` names in errors where the text comes from.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(place: &str, text: &str) -> Result<Self, ProxyUrlError> {
        let error = |problem| ProxyUrlError {
            place: place.to_owned(),
            problem,
        };
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err(error("TLS to the proxy itself is not supported"));
            }
            Some(_) => return Err(error("only HTTP proxies are supported")),
            None => text,
        };
        // The last @, because passwords with a bare one are common.
        let (userinfo, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (Some(userinfo), rest),
            None => (None, rest),
        };
        let address = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = split_port(address);
        let port = match port {
            None => 80,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(error("the port is not a number from 1 to 65535")),
                Ok(port) => port,
            },
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) {
            return Err(error("the host is missing or not a name"));
        }
        let authorization = userinfo.map(basic).transpose().map_err(error)?;
        Ok(Self {
            host: host.to_owned(),
            port,
            authorization,
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// `Proxy-Authorization`, if the URL had a user.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Basic credentials (RFC 7617) from the part of a URL before the `@`.
fn basic(userinfo: &str) -> Result<HeaderValue, &'static str> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let mut credentials = percent_decoded(user);
    credentials.push(b':');
    credentials.extend(percent_decoded(password));
    let value = format!("Basic {}", BASE64_STANDARD.encode(credentials));
    let mut value = HeaderValue::try_from(value).map_err(|_| "user and password are too long")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Decodes `%40` and the like; a percent sign that begins nothing stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|&digit| (digit as char).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    decoded
}

/// Splits `host:port`, `[v6]:port`, `[v6]`, and leaves a bare IPv6 address whole.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

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

    fn parsed(text: &str) -> Result<(String, Option<String>), String> {
        let proxy = Proxy::parse("HTTPS_PROXY", text).map_err(|error| error.to_string())?;
        let basic = proxy
            .authorization()
            .map(|value| value.to_str().unwrap().to_owned());
        assert!(!format!("{proxy:?} {basic:?}").contains("Basic") || basic.is_some());
        Ok((proxy.to_string(), basic))
    }

    #[test]
    fn proxies_in_all_their_spellings() {
        let basic = |text: &str| Some(format!("Basic {}", BASE64_STANDARD.encode(text)));
        for (text, address, authorization) in [
            ("http://proxy:3128", "proxy:3128", None),
            ("HTTP://proxy.corp/", "proxy.corp:80", None),
            ("proxy:3128", "proxy:3128", None),
            ("10.0.0.1:8080", "10.0.0.1:8080", None),
            ("http://[fd00::1]:3128/", "[fd00::1]:3128", None),
            ("http://me:pass@proxy:1", "proxy:1", basic("me:pass")),
            ("http://me@proxy:1", "proxy:1", basic("me:")),
            (
                "http://CORP%5Cme:p%40s%3as@proxy:1",
                "proxy:1",
                basic("CORP\\me:p@s:s"),
            ),
            (
                "http://me:p@ss/w#rd%@proxy:1",
                "proxy:1",
                basic("me:p@ss/w#rd%"),
            ),
        ] {
            assert_eq!(
                parsed(text),
                Ok((address.to_owned(), authorization)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_proxy_is_said_without_the_password() {
        for (text, expected) in [
            ("https://me:hush@proxy:1", "TLS to the proxy"),
            ("socks5://me:hush@proxy:1", "only HTTP proxies"),
            ("http://me:hush@proxy:99999", "from 1 to 65535"),
            ("http://me:hush@proxy:0", "from 1 to 65535"),
            ("http://me:hush@", "the host is missing"),
            ("http://me:hush@pro xy:1", "not a name"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(
                error.starts_with("HTTPS_PROXY: ") && error.contains(expected),
                "{error}"
            );
            assert!(!error.contains("hush"), "{error}");
        }
        let proxy = Proxy::parse("x", "http://me:hush@proxy:1").unwrap();
        assert_eq!(format!("{proxy:?} {proxy}"), "Proxy(proxy:1) proxy:1");
        assert!(!format!("{:?}", proxy.authorization()).contains("Basic"));
    }

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
