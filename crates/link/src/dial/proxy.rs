//! The address of an HTTP proxy, and its credentials.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;

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

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
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
pub(super) fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
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
}
