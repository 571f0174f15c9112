//! Who may open a tunnel: agent JWTs, the keys they are checked with, and development keys.
//!
//! [`Verifier`] is the only door: it takes the text of a bearer token and the time, and returns an
//! [`Identity`] or a [`Rejection`] whose [`Reason`] code is the same in the HTTP answer, in the
//! `jwt_rejected` log line and in the `reason` label of `nowconnect_auth_failures_total`.

pub(crate) mod fetch;
pub mod jwks;
pub mod jwt;
pub mod key;
pub mod mint;
pub mod reason;

use std::sync::Arc;
use std::time::SystemTime;

pub use jwks::{Keys, Timing};
pub use jwt::{Identity, Rules};
pub use reason::{Reason, Rejection};

/// Checks agent tokens against a key set and the hub's own rules.
///
/// Cheap to clone; a configuration reload makes a new one and may keep the same [`Keys`].
#[derive(Debug, Clone)]
pub struct Verifier {
    rules: Arc<Rules>,
    keys: Arc<Keys>,
}

impl Verifier {
    /// A verifier that demands `rules` of every token signed by one of `keys`.
    pub fn new(rules: Rules, keys: Arc<Keys>) -> Self {
        Self {
            rules: Arc::new(rules),
            keys,
        }
    }

    /// The key set in use, to hand on to the verifier that follows a reload.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Whether an agent that was let in may stay: rules and keys may have changed since.
    pub fn upholds(&self, identity: &Identity) -> bool {
        self.rules.suit(identity) && self.keys.upholds(&identity.key_id)
    }

    /// Judges the compact JWT `token` at wall-clock time `now`.
    ///
    /// Waits at most one key fetch (see [`Timing`]), and only when the token names an unknown key.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, Rejection> {
        let parsed = jwt::Unverified::parse(token)?;
        let key = self.keys.find(parsed.key_id(), parsed.algorithm()).await?;
        parsed.verify(&key, &self.rules, now)
    }
}

/// Takes the bearer token out of the one `Authorization` header of a request (RFC 6750 section 2.1).
///
/// # Errors
/// [`Reason::MissingToken`] without the header or with another scheme, [`Reason::Malformed`] when
/// the header is repeated or not ASCII.
pub fn bearer(headers: &http::HeaderMap) -> Result<&str, Rejection> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Reason::MissingToken)?;
    if values.next().is_some() {
        return Err(Rejection::new(
            Reason::Malformed,
            "more than one Authorization header",
        ));
    }
    let text = value
        .to_str()
        .map_err(|_| Rejection::new(Reason::Malformed, "the Authorization header is not ASCII"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            let token = token.trim();
            if token.is_empty() {
                Err(Reason::MissingToken.into())
            } else {
                Ok(token)
            }
        }
        _ => Err(Rejection::new(
            Reason::MissingToken,
            "the Authorization scheme is not Bearer",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};

    fn headers(values: &[&'static str]) -> HeaderMap {
        values
            .iter()
            .map(|v| (AUTHORIZATION, HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn bearer_takes_exactly_one_token() {
        assert_eq!(bearer(&headers(&["Bearer a.b.c"])).unwrap(), "a.b.c");
        assert_eq!(bearer(&headers(&["bEARER  a.b.c "])).unwrap(), "a.b.c");
        for (values, reason) in [
            (&[][..], Reason::MissingToken),
            (&["Bearer"], Reason::MissingToken),
            (&["Bearer  "], Reason::MissingToken),
            (&["Basic dXNlcjpwdw=="], Reason::MissingToken),
            (&["Bearer a.b.c", "Bearer d.e.f"], Reason::Malformed),
        ] {
            assert_eq!(
                bearer(&headers(values)).unwrap_err().reason,
                reason,
                "{values:?}"
            );
        }
    }
}
