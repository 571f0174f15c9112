//! Who may use the admin API.
//!
//! Loopback keeps other machines out, but not the browser of whoever sits at this one: any page may
//! make it send requests here. Such a request names its `Origin`, and after a rebinding of the
//! page's name to this address it names a `Host` that is no address; both are refused. With a token
//! configured nobody gets in without.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use http::header::{AUTHORIZATION, CONNECTION, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode};

use crate::server::{Answer, answer};
use crate::token_file;

pub use crate::token_file::TokenFileError as TokenError;

/// What a bearer token that opens the admin API is known by: its SHA-256. The comparison of two of
/// them tells nothing, not even a length.
pub struct Token([u8; SHA256_OUTPUT_LEN]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a token; white space around it does not count. Blocks on file I/O.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold one token.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let token = token_file::load("admin.token_file", path)?;
        Ok(Self::of(token.expose().as_bytes()))
    }

    fn of(token: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(bytes)
    }

    /// Compares in a time that does not depend on either.
    fn matches(&self, shown: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, &Self::of(shown).0).is_ok()
    }
}

/// Why somebody is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: &'static str,
    status: StatusCode,
    detail: &'static str,
}

impl Refused {
    const ORIGIN: Self = Self::forbidden("origin", "requests of web pages are not answered");
    const HOST: Self = Self::forbidden(
        "host",
        "name the hub by its IP address or as localhost, or use https",
    );
    pub(super) const TOKEN: Self = Self {
        code: "unauthorized",
        status: StatusCode::UNAUTHORIZED,
        detail: "show the token of admin.token_file: Authorization: Bearer ...",
    };
    pub(super) const ATTEMPTS: Self = Self {
        code: "too_many_attempts",
        status: StatusCode::TOO_MANY_REQUESTS,
        detail: "this address has shown too many wrong tokens; no token is looked at for a moment",
    };

    const fn forbidden(code: &'static str, detail: &'static str) -> Self {
        Self {
            code,
            status: StatusCode::FORBIDDEN,
            detail,
        }
    }

    pub(super) fn into_answer(self) -> Answer {
        let mut answer = answer::explained(self.status, self.code, self.detail);
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

/// Refuses what a browser sends on behalf of a page. Over TLS any host name will do: who connects
/// under a name has checked that the certificate is for it.
pub(super) fn check_origin<B>(request: &Request<B>, tls: bool) -> Result<(), Refused> {
    let headers = request.headers();
    if headers.contains_key(ORIGIN) {
        return Err(Refused::ORIGIN);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refused::HOST);
    };
    let host = Authority::try_from(host.as_bytes()).map_err(|_| Refused::HOST)?;
    // The absolute form of a request names the host once more, and takes precedence.
    let named = [Some(&host), request.uri().authority()];
    let safe = |authority: &Authority| tls || is_address(authority.host());
    match named.into_iter().flatten().all(safe) {
        true => Ok(()),
        false => Err(Refused::HOST),
    }
}

/// Whether no DNS server has a say in where `host` leads.
fn is_address(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost")
}

/// Refuses who does not show the token.
pub(super) fn check_token<B>(request: &Request<B>, token: &Token) -> Result<(), Refused> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Refused::TOKEN);
    };
    let (scheme, shown) = value.as_bytes().split_at(value.len().min(7));
    match scheme.eq_ignore_ascii_case(b"bearer ") && token.matches(shown.trim_ascii()) {
        true => Ok(()),
        false => Err(Refused::TOKEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a request")
    }

    #[test]
    fn pages_and_rebound_names_are_refused() {
        let judge = |uri, headers: &[_], tls| check_origin(&request(uri, headers), tls);
        for host in ["127.0.0.1:8766", "[::1]:8766", "10.1.2.3", "LocalHost:1"] {
            assert_eq!(judge("/", &[("host", host)], false), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:8766",
            "localhost.evil",
            "a@b c",
            "",
        ] {
            assert_eq!(
                judge("/", &[("host", host)], false),
                Err(Refused::HOST),
                "{host}"
            );
        }
        assert_eq!(judge("/", &[("host", "hub.example")], true), Ok(()));
        assert_eq!(judge("/", &[], false), Err(Refused::HOST));
        let own = ("host", "127.0.0.1");
        assert_eq!(judge("/", &[own, own], true), Err(Refused::HOST));
        assert_eq!(
            judge("http://evil.example/", &[own], false),
            Err(Refused::HOST)
        );
        for origin in ["null", "https://evil.example", "http://127.0.0.1"] {
            assert_eq!(
                judge("/", &[own, ("origin", origin)], true),
                Err(Refused::ORIGIN)
            );
        }
    }

    #[test]
    fn only_the_very_token_opens() {
        let token = Token::of(b"s3cret");
        let judge = |value| check_token(&request("/", &[("authorization", value)]), &token);
        assert_eq!(judge("Bearer s3cret"), Ok(()));
        assert_eq!(judge("bearer  s3cret"), Ok(()));
        for wrong in [
            "Bearer s3cre",
            "Bearer s3crets",
            "Bearer S3cret",
            "Bearer ",
            "s3cret",
            "",
        ] {
            assert_eq!(judge(wrong), Err(Refused::TOKEN), "{wrong}");
        }
        let none = check_token(&request("/", &[]), &token);
        assert_eq!(none, Err(Refused::TOKEN));
        let right = ("authorization", "Bearer s3cret");
        let twice = check_token(&request("/", &[right, right]), &token);
        assert_eq!(twice, Err(Refused::TOKEN));
    }

    #[test]
    fn a_token_file_holds_one_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let load = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Token::load(&path)
        };
        assert!(load(" abc\n").is_ok_and(|token| token.matches(b"abc")));
        for text in ["", "\n", "two words", "geheim\u{e4}", &"x".repeat(5000)] {
            assert!(load(text).is_err_and(|error| error.to_string().contains("token")));
        }
        assert!(Token::load(&dir.path().join("none")).is_err());
    }
}
