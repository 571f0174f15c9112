//! What a proof is for: a URL in the one form in which equal ones are the same text.

use std::fmt;
use std::net::Ipv6Addr;

/// An `http(s)` URL without query and fragment, normalised by syntax and scheme (RFC 9449 section 4.3,
/// RFC 3986 sections 6.2.2 and 6.2.3). `ws` and `wss` count as `http` and `https`, whose requests open
/// WebSockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(String);

impl Target {
    /// Reads an absolute URL; `None` when it is none of these, or names a user.
    pub fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => ("http", 80),
            "https" | "wss" => ("https", 443),
            _ => return None,
        };
        let rest = rest.split(['?', '#']).next()?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = host_and_port(authority)?;
        let port = match port {
            Some(port) if port != default_port => format!(":{port}"),
            _ => String::new(),
        };
        let path = without_dots(&decoded(path)?);
        Some(Self(format!("{scheme}://{host}{port}{path}")))
    }

    /// The normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (name, port) = authority.split_at(end);
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            if name.is_empty() || !name.bytes().all(legal) {
                return None;
            }
            (name.to_ascii_lowercase(), port)
        }
    };
    let port = match port {
        "" | ":" => None,
        port => {
            let digits = port.strip_prefix(':')?;
            let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
            Some(digits.parse().ok().filter(|_| all_digits)?)
        }
    };
    Some((host, port))
}

/// Decodes what needs no encoding, and writes the rest with upper-case digits.
fn decoded(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let code = digit(bytes.next())? * 16 + digit(bytes.next())?;
                match char::from_u32(code) {
                    Some(c) if c.is_ascii_alphanumeric() || "-._~".contains(c) => out.push(c),
                    _ => out.push_str(&format!("%{code:02X}")),
                }
            }
            b'!'..=b'~' if !b"\"<>\\^`{|}".contains(&byte) => out.push(char::from(byte)),
            _ => return None,
        }
    }
    Some(out)
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
        if is_last && matches!(segment, "." | "..") {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_urls_have_one_form() {
        for (url, form) in [
            (
                "https://api.example.com/tunnel",
                "https://api.example.com/tunnel",
            ),
            (
                "wss://API.Example.COM:443/tunnel",
                "https://api.example.com/tunnel",
            ),
            ("ws://hub:80", "http://hub/"),
            ("http://hub:/", "http://hub/"),
            ("HTTP://hub:8765/tunnel?x=1#y", "http://hub:8765/tunnel"),
            ("https://hub?x", "https://hub/"),
            ("https://hub/a/./b/../%74unnel", "https://hub/a/tunnel"),
            ("https://hub/a/..", "https://hub/"),
            ("https://hub/../../tunnel/.", "https://hub/tunnel/"),
            (
                "https://hub/%7etunnel%2f%c3%a4",
                "https://hub/~tunnel%2F%C3%A4",
            ),
            ("https://[2001:DB8:0:0::1]:443/t", "https://[2001:db8::1]/t"),
            ("http://127.0.0.1:08765/t", "http://127.0.0.1:8765/t"),
        ] {
            assert_eq!(
                Target::parse(url).as_ref().map(Target::as_str),
                Some(form),
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_no_such_url_is_refused() {
        for url in [
            "",
            "api.example.com/tunnel",
            "/tunnel",
            "ftp://hub/tunnel",
            "https://",
            "https:///tunnel",
            "https://user@hub/tunnel",
            "https://hub:99999/",
            "https://hub:+80/",
            "https://hub:8a/",
            "https://h ub/",
            "https://hub/%zz",
            "https://hub/%4",
            "https://hub/a b",
            "https://hub/ä",
            "https://[::1/",
            "https://[::g]/",
            "https://[::1]x/",
        ] {
            assert_eq!(Target::parse(url), None, "{url}");
        }
    }

    #[test]
    fn different_urls_differ() {
        let same = |a, b| Target::parse(a) == Target::parse(b);
        assert!(!same("https://hub/tunnel", "http://hub/tunnel"));
        assert!(!same("https://hub/tunnel", "https://hub/tunnel/"));
        assert!(!same("https://hub/tunnel", "https://hub/Tunnel"));
        assert!(!same("https://hub/tunnel", "https://hub.evil/tunnel"));
        assert!(!same("https://hub/a/b", "https://hub/a%2Fb"));
    }
}
