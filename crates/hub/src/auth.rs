//! Who may open a tunnel: agent JWTs, the keys they are checked with, and development keys.
//!
//! [`Verifier`] is the only door: it takes the text of a bearer token and the time, and returns an
//! [`Identity`] or a [`Rejection`] whose [`Reason`] code is the same in the HTTP answer, in the
//! `jwt_rejected` log line and in the `reason` label of `nowconnect_auth_failures_total`.

pub mod dpop;
pub(crate) mod fetch;
pub mod jwks;
pub mod jwt;
pub mod key;
pub mod mint;
pub mod reason;

use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};

pub use jwks::{Keys, Timing};
pub use jwt::{Identity, Rules};
pub use reason::{Reason, Rejection};

use crate::token_id::is_token_id;

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
    /// Waits at most one key fetch (see [`Timing`]), and only when the token names an unknown key. A
    /// token without a `jti` that is fit for records is named by the beginning of its SHA-256.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, Rejection> {
        let parsed = jwt::Unverified::parse(token)?;
        let key = self.keys.find(parsed.key_id(), parsed.algorithm()).await?;
        let mut identity = parsed.verify(&key, &self.rules, now)?;
        let fit = identity.token_id.take().filter(|id| is_token_id(id));
        identity.token_id = Some(fit.unwrap_or_else(|| fingerprint(token)));
        Ok(identity)
    }
}

/// The name of a token that has none: enough of its SHA-256 to tell it from others, and nothing that
/// could be shown in its place.
fn fingerprint(token: &str) -> Arc<str> {
    use std::fmt::Write as _;
    let digest = digest(&SHA256, token.as_bytes());
    let mut name = "sha256:".to_owned();
    for byte in &digest.as_ref()[..8] {
        let _ = write!(name, "{byte:02x}");
    }
    name.into()
}

/// How a token is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// RFC 6750: by whoever has it.
    Bearer,
    /// RFC 9449: with a proof that it is shown by whom it is for.
    Dpop,
}

/// Takes the token out of the one `Authorization` header of a request (RFC 6750 section 2.1, RFC 9449
/// section 7.1).
///
/// # Errors
/// [`Reason::MissingToken`] without the header or with another scheme, [`Reason::Malformed`] when
/// the header is repeated or not ASCII.
pub fn authorization(headers: &http::HeaderMap) -> Result<(Scheme, &str), Rejection> {
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
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let scheme = match scheme {
        scheme if scheme.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
        scheme if scheme.eq_ignore_ascii_case("dpop") => Scheme::Dpop,
        _ => {
            let detail = "the Authorization scheme is neither Bearer nor DPoP";
            return Err(Rejection::new(Reason::MissingToken, detail));
        }
    };
    match token.trim() {
        "" => Err(Reason::MissingToken.into()),
        token => Ok((scheme, token)),
    }
}

/// The one `DPoP` header of a request, if there is any.
///
/// # Errors
/// [`Reason::DpopMalformed`] when it is repeated, or not ASCII.
pub fn proof(headers: &http::HeaderMap) -> Result<Option<&str>, Rejection> {
    let mut values = headers.get_all("dpop").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let refuse = |detail| Err(Rejection::new(Reason::DpopMalformed, detail));
    match (value.to_str(), values.next()) {
        (Ok(text), None) => Ok(Some(text.trim())),
        (_, Some(_)) => refuse("more than one DPoP header"),
        (Err(_), None) => refuse("the DPoP header is not ASCII"),
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
    fn tokens_are_named_by_what_is_no_token() {
        let name = fingerprint("a.b.c");
        assert_eq!(name.len(), "sha256:".len() + 16);
        assert!(is_token_id(&name) && name != fingerprint("a.b.d"));
        for unfit in ["", "a b", "\n", "\u{e4}", &"x".repeat(65)] {
            assert!(!is_token_id(unfit), "{unfit}");
        }
    }

    #[test]
    fn exactly_one_token_is_taken() {
        let taken = |values: &[&'static str]| {
            let headers = headers(values);
            authorization(&headers).map(|(scheme, token)| (scheme, token.to_owned()))
        };
        let token = || "a.b.c".to_owned();
        assert_eq!(taken(&["Bearer a.b.c"]), Ok((Scheme::Bearer, token())));
        assert_eq!(taken(&["bEARER  a.b.c "]), Ok((Scheme::Bearer, token())));
        assert_eq!(taken(&["dpop a.b.c"]), Ok((Scheme::Dpop, token())));
        for (values, reason) in [
            (&[][..], Reason::MissingToken),
            (&["Bearer"], Reason::MissingToken),
            (&["DPoP  "], Reason::MissingToken),
            (&["Basic dXNlcjpwdw=="], Reason::MissingToken),
            (&["Bearer a.b.c", "Bearer d.e.f"], Reason::Malformed),
            (&["Bearer a.b.c", "DPoP a.b.c"], Reason::Malformed),
        ] {
            assert_eq!(taken(values).unwrap_err().reason, reason, "{values:?}");
        }
    }

    #[test]
    fn at_most_one_proof_is_taken() {
        let headers = |values: &[&'static str]| -> HeaderMap {
            let value = |v: &&'static str| ("dpop", HeaderValue::from_static(v));
            let named = values.iter().map(value);
            named
                .map(|(name, value)| (name.parse().unwrap(), value))
                .collect()
        };
        assert_eq!(proof(&headers(&[])), Ok(None));
        assert_eq!(proof(&headers(&[" a.b.c"])), Ok(Some("a.b.c")));
        let twice = proof(&headers(&["a.b.c", "a.b.c"])).unwrap_err();
        assert_eq!(twice.reason, Reason::DpopMalformed);
    }
}
