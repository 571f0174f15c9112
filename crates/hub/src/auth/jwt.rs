//! One compact JWS (RFC 7515) holding an agent's claims (RFC 7519), judged by every rule we have.
//!
//! The signature is checked by the crypto library; everything else is done here, because the library's
//! own defaults leave `nbf`, `iss`, `crit` and key pinning to the caller (see also RFC 8725).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::key::{VerifyKey, allowed_algorithm};
use super::reason::{Reason, Rejection};
use crate::strict_json::object;

/// Bytes of the longest token that is looked at.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far the issuer's clock may differ from ours.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// Characters of the longest `agent_id`.
pub const MAX_AGENT_ID_CHARS: usize = 64;
/// The last second of the year 9999: a later date is no date (often milliseconds taken for seconds).
const MAX_NUMERIC_DATE: u64 = 253_402_300_799;

/// What this hub demands of every token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The token's `aud` must be or contain this. An empty audience matches no token.
    pub audience: String,
    /// When set, the token's `iss` must equal this.
    pub issuer: Option<String>,
}

impl Rules {
    /// Whether a token that passed under other rules passes under these.
    pub fn suit(&self, identity: &Identity) -> bool {
        self.name_audience(&identity.audience) && self.name_issuer(identity.issuer.as_deref())
    }

    fn name_audience(&self, audience: &[String]) -> bool {
        !self.audience.is_empty() && audience.contains(&self.audience)
    }

    fn name_issuer(&self, issuer: Option<&str>) -> bool {
        self.issuer.is_none() || self.issuer.as_deref() == issuer
    }
}

/// An agent whose token passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Claim `agent_id`: 1 to 64 characters of `[A-Za-z0-9._-]`.
    pub agent_id: String,
    /// Claim `exp`, to the second, without leeway.
    pub expires_at: SystemTime,
    /// Connectors the token grants: claim `connectors`, else the words of `scp` and `scope`;
    /// `None` when it carries none of these claims.
    pub scopes: Option<Vec<String>>,
    /// What the token is called in records: claim `jti`, and see [`super::Verifier::verify`].
    pub token_id: Option<Arc<str>>,
    /// Claim `iss`.
    pub issuer: Option<String>,
    /// Claim `aud`.
    pub audience: Vec<String>,
    /// The RFC 7638 thumbprint of the key that signed it, see [`super::Keys::upholds`].
    pub key_id: String,
    /// Claim `cnf.jkt`: the thumbprint of the key that a DPoP proof must use (RFC 9449 section 6.1).
    pub proof_key: Option<String>,
    /// Whether a proof by that key was shown with the token.
    pub proven: bool,
}

impl Identity {
    /// Whether the token's own scopes name `connector`. A token without scopes grants nothing.
    pub fn grants(&self, connector: &str) -> bool {
        self.scopes
            .as_ref()
            .is_some_and(|scopes| scopes.iter().any(|s| s == connector))
    }

    /// How long the token lasts at wall-clock time `now`, leeway included; zero when it is over.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        (self.expires_at + LEEWAY)
            .duration_since(now)
            .unwrap_or_default()
    }

    /// The token is over, whatever it says itself.
    pub fn revoke(&mut self) {
        self.expires_at = UNIX_EPOCH;
    }

    /// Whether [`revoke`](Self::revoke) has ended it: no token that passed has expired in 1970.
    pub fn is_revoked(&self) -> bool {
        self.expires_at == UNIX_EPOCH
    }
}

/// Whether `id` may name an agent.
pub fn is_agent_id(id: &str) -> bool {
    (1..=MAX_AGENT_ID_CHARS).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The JOSE header: only what decides something.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "not_null")]
    kid: Option<String>,
    #[serde(default)]
    crit: Presence,
    #[serde(default)]
    jku: Presence,
    #[serde(default)]
    jwk: Presence,
    #[serde(default)]
    x5u: Presence,
}

/// Whether a member exists, whatever its value.
#[derive(Default)]
pub(super) struct Presence(pub(super) bool);

impl<'de> Deserialize<'de> for Presence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Presence(true))
    }
}

/// The claims that decide something. A repeated member is an error, not a choice; so is `null` where
/// the claim may be absent.
#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    aud: Option<OneOrMany>,
    exp: Option<NumericDate>,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<NumericDate>,
    #[serde(default, deserialize_with = "not_null")]
    jti: Option<String>,
    agent_id: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    connectors: Option<Vec<String>>,
    #[serde(default, deserialize_with = "not_null")]
    scp: Option<OneOrMany>,
    #[serde(default, deserialize_with = "not_null")]
    scope: Option<OneOrMany>,
    #[serde(default, deserialize_with = "not_null")]
    cnf: Option<Confirmation>,
}

#[derive(Deserialize)]
struct Confirmation {
    #[serde(default, deserialize_with = "not_null")]
    jkt: Option<String>,
}

/// For what may be absent: `null` must not read as "no limit".
pub(super) fn not_null<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(d).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }

    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// Seconds since the epoch, cut to whole ones (RFC 7519 section 2). Never text: a string that is
/// taken for "no date" is how checks get skipped (CVE-2026-25537).
pub(super) struct NumericDate(u64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        if seconds.is_finite() && (0.0..=MAX_NUMERIC_DATE as f64).contains(&seconds) {
            Ok(NumericDate(seconds as u64))
        } else {
            Err(D::Error::custom(
                "a date must lie between 1970 and 9999, in seconds",
            ))
        }
    }
}

impl NumericDate {
    pub(super) fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }
}

/// A token whose header was read and found acceptable, and nothing more.
pub struct Unverified<'a> {
    algorithm: Algorithm,
    kid: Option<String>,
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Unverified<'a> {
    /// Splits a compact JWS and judges its header.
    ///
    /// # Errors
    /// `too_large`, `malformed`, `header_not_allowed`, `alg_not_allowed`.
    pub fn parse(token: &'a str) -> Result<Self, Rejection> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TooLarge.into());
        }
        let malformed = |detail: &str| Rejection::new(Reason::Malformed, detail);
        let (message, signature) = token
            .rsplit_once('.')
            .ok_or_else(|| malformed("it is not three parts"))?;
        let (header, payload) = message
            .split_once('.')
            .ok_or_else(|| malformed("it is not three parts"))?;
        if payload.contains('.') {
            return Err(malformed("it has more than three parts (is it encrypted?)"));
        }
        let header = decode(header).ok_or_else(|| malformed("its header is not base64url"))?;
        let header: Header = object(&header)
            .map_err(|_| malformed("its header is not a JOSE header with an alg"))?;
        for (present, name) in [
            (header.crit, "crit"),
            (header.jku, "jku"),
            (header.jwk, "jwk"),
            (header.x5u, "x5u"),
        ] {
            if present.0 {
                return Err(Rejection::new(
                    Reason::HeaderNotAllowed,
                    format!("it has `{name}`"),
                ));
            }
        }
        let algorithm = allowed_algorithm(&header.alg).ok_or(Reason::AlgNotAllowed)?;
        Ok(Self {
            algorithm,
            kid: header.kid,
            message,
            payload,
            signature,
        })
    }

    /// The `kid` it names.
    pub fn key_id(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The algorithm it claims.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Checks signature, then claims.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(
        self,
        key: &VerifyKey,
        rules: &Rules,
        now: SystemTime,
    ) -> Result<Identity, Rejection> {
        if !key.allows(self.algorithm) {
            return Err(Reason::AlgMismatch.into());
        }
        if !key.verify(self.algorithm, self.message.as_bytes(), self.signature) {
            return Err(Reason::BadSignature.into());
        }
        let payload = decode(self.payload)
            .ok_or_else(|| Rejection::new(Reason::Malformed, "its payload is not base64url"))?;
        judge(&payload, key, rules, now)
    }
}

pub(super) fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

/// The claims of a token with a good signature.
pub(crate) fn judge(
    payload: &[u8],
    key: &VerifyKey,
    rules: &Rules,
    now: SystemTime,
) -> Result<Identity, Rejection> {
    let claims: Claims = object(payload)
        .map_err(|e| Rejection::new(Reason::Malformed, format!("its claims: {e}")))?;
    let expires_at = claims.exp.ok_or(Reason::MissingExpiry)?.time();
    if now >= expires_at + LEEWAY {
        let ago = now.duration_since(expires_at).unwrap_or_default().as_secs();
        return Err(Rejection::new(
            Reason::Expired,
            format!("it expired {ago} s ago"),
        ));
    }
    if let Some(not_before) = claims.nbf.map(|date| date.time())
        && not_before > now + LEEWAY
    {
        let ahead = not_before.duration_since(now).unwrap_or_default().as_secs();
        return Err(Rejection::new(
            Reason::NotYetValid,
            format!("it starts in {ahead} s"),
        ));
    }
    let audience = claims.aud.map(OneOrMany::into_vec).unwrap_or_default();
    if !rules.name_audience(&audience) {
        let detail = format!("it is for {audience:?}, this hub is {:?}", rules.audience);
        return Err(Rejection::new(Reason::WrongAudience, detail));
    }
    if !rules.name_issuer(claims.iss.as_deref()) {
        let detail = format!("it is from {:?}, expected {:?}", claims.iss, rules.issuer);
        return Err(Rejection::new(Reason::WrongIssuer, detail));
    }
    let agent_id = claims.agent_id.ok_or(Reason::MissingAgentId)?;
    if !is_agent_id(&agent_id) {
        return Err(Reason::InvalidAgentId.into());
    }
    Ok(Identity {
        agent_id,
        expires_at,
        scopes: scopes(claims.connectors, claims.scp, claims.scope),
        token_id: claims.jti.map(Into::into),
        issuer: claims.iss,
        audience,
        key_id: key.id().to_owned(),
        proof_key: claims.cnf.and_then(|cnf| cnf.jkt),
        proven: false,
    })
}

/// `connectors` decides alone when it is there; `scp` and `scope` are words, apart or in a list.
fn scopes(
    connectors: Option<Vec<String>>,
    scp: Option<OneOrMany>,
    scope: Option<OneOrMany>,
) -> Option<Vec<String>> {
    if connectors.is_some() {
        return connectors;
    }
    if scp.is_none() && scope.is_none() {
        return None;
    }
    let claims = [scp, scope];
    let texts = claims.iter().flatten().flat_map(OneOrMany::as_slice);
    Some(
        texts
            .flat_map(|text| text.split_ascii_whitespace())
            .map(str::to_owned)
            .collect(),
    )
}
