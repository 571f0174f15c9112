//! The opening handshake of a WebSocket (RFC 6455 section 4), both sides.
//!
//! The client side writes its request by hand over any stream, because the stream is ours before
//! and after. The server side judges a request that hyper has parsed.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha1::{Digest, Sha1};

mod client;
mod server;

pub use client::{ClientRequest, UpgradeError, connect};
pub use server::{Offer, Pending, PendingError, Refusal, has_body};

pub use crate::reply::ReplyError;

/// What the key is hashed with (RFC 6455 section 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A connection that now speaks WebSocket.
#[derive(Debug)]
pub struct Upgraded<S> {
    /// The stream below.
    pub io: S,
    /// Bytes of the peer's first frames that were read along with the handshake.
    pub leftover: BytesMut,
    /// The subprotocol that both sides agreed on.
    pub protocol: Option<&'static str>,
}

/// A token as header value, shown by whoever has it (RFC 6750) or along with a proof that it is ours
/// (RFC 9449). `Debug` hides it; there is no `Display`.
#[derive(Clone)]
pub struct Bearer(HeaderValue);

impl Bearer {
    /// Wraps a token; white space around it (a file's last newline) is dropped.
    ///
    /// # Errors
    /// The token is empty or has characters that no token has. The error does not show it.
    pub fn new(token: &str) -> Result<Self, BadToken> {
        Self::of("Bearer", token)
    }

    /// The same for a token that goes with a DPoP proof, which is a header of its own.
    ///
    /// # Errors
    /// As for [`Bearer::new`].
    pub fn with_proof(token: &str) -> Result<Self, BadToken> {
        Self::of("DPoP", token)
    }

    fn of(scheme: &str, token: &str) -> Result<Self, BadToken> {
        let token = token.trim();
        // b64token of RFC 6750 section 2.1.
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if token.is_empty() || !token.bytes().all(is_legal) {
            return Err(BadToken);
        }
        let mut value =
            HeaderValue::from_str(&format!("{scheme} {token}")).map_err(|_| BadToken)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    fn token(&self) -> &str {
        self.0
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .map_or("", |(_, token)| token)
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(hidden)")
    }
}

/// Not a bearer token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is empty or has characters that a bearer token cannot have")]
pub struct BadToken;

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
fn accept_key(key: &[u8]) -> String {
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update(ACCEPT_GUID)
        .finalize();
    BASE64_STANDARD.encode(digest)
}

/// The elements of a comma-separated list header, over all its lines.
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn list_has(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    list(headers, name).any(|item| item.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_of_the_rfc() {
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn tokens_are_trimmed_checked_and_hidden() {
        let bearer = Bearer::new("abc.def-1_2~3+4/5==\n").unwrap();
        assert_eq!(bearer.token(), "abc.def-1_2~3+4/5==");
        assert_eq!(Bearer::with_proof("to.ken").unwrap().0, "DPoP to.ken");
        assert!(!format!("{bearer:?} {:?}", bearer.0).contains("abc"));
        for bad in ["", "  \n", "two words", "line\nbreak", "käse"] {
            assert_eq!(Bearer::new(bad).unwrap_err(), BadToken, "{bad:?}");
        }
    }
}
