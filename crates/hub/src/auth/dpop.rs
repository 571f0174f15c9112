//! DPoP proofs (RFC 9449): whoever shows a token proves to hold the private key that the token names.
//!
//! A proof is a JWT of its own, made afresh for one request and signed with that key. [`Proof::check`]
//! judges everything that the proof itself says; whether it was shown before is for [`Seen`], and for
//! the registry where hubs share one.

pub mod nonce;
pub mod replay;
pub mod target;

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use super::jwt::{NumericDate, Presence, decode, not_null};
use super::key::{VerifyKey, allowed_algorithm};
use super::reason::{Reason, Rejection};
use crate::strict_json::object;

pub use nonce::Nonces;
pub use replay::{Noted, Seen};
pub use target::Target;

/// Bytes of the longest proof that is looked at: one of an RSA key of 8192 bits fits.
pub const MAX_PROOF_BYTES: usize = 6 * 1024;
/// Bytes of the longest `jti`.
pub const MAX_JTI_BYTES: usize = 128;
/// How old a proof without a nonce may be.
pub const MAX_AGE: Duration = Duration::from_secs(60);
/// How far ahead of ours the clock of a proof's maker may be.
pub const MAX_AHEAD: Duration = Duration::from_secs(30);
/// How long a proof that was accepted is remembered: for longer than any could be accepted again, by
/// a hub whose clock is 30 s behind.
pub const MEMORY: Duration = Duration::from_secs(120);
/// The `alg`s of proofs, as a challenge lists them.
pub const ALGORITHMS: &str = "ES256 ES384 EdDSA RS256 RS384 RS512 PS256 PS384 PS512";
/// `htm` of a proof for the upgrade.
pub const UPGRADE: &str = "GET";
/// `htm` of a proof that goes with a TOKEN frame. No HTTP request can have it, so neither kind of
/// proof serves for the other.
pub const RENEWAL: &str = "TOKEN";

/// What a proof must be for.
#[derive(Debug)]
pub struct Occasion<'a> {
    /// The `htm` expected: [`UPGRADE`] or [`RENEWAL`].
    pub method: &'a str,
    /// The `htu`s expected; one of them must be met.
    pub targets: &'a [Target],
    /// The access token that is shown with the proof.
    pub token: &'a str,
    /// The token's `cnf.jkt`.
    pub key: &'a str,
    /// The wall clock.
    pub now: SystemTime,
}

/// A proof that is good as far as it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Names it among all proofs of all keys.
    pub id: ProofId,
    /// It carries a nonce of this process that still counts, so nobody else can have accepted it.
    pub has_nonce: bool,
}

/// The hash of a proof's key and `jti`: the same `jti` of another key is another proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProofId([u8; 32]);

impl ProofId {
    /// Of the proof `jti` by the key with this thumbprint.
    pub fn new(key: &str, jti: &str) -> Self {
        Self(sha256(format!("{key}.{jti}").as_bytes()))
    }
}

impl std::fmt::Display for ProofId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// `ath` of an access token (RFC 9449 section 4.2).
pub fn token_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(token.as_bytes()))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// The JOSE header; other parameters decide nothing.
#[derive(Deserialize)]
struct Header {
    typ: Option<String>,
    alg: Option<String>,
    jwk: Option<Value>,
    #[serde(default)]
    crit: Presence,
}

#[derive(Deserialize)]
struct Claims {
    jti: Option<String>,
    htm: Option<String>,
    htu: Option<String>,
    iat: Option<NumericDate>,
    ath: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    nonce: Option<String>,
}

impl Proof {
    /// Judges a proof by the rules of RFC 9449 section 4.3. The time counts only for one without a
    /// nonce: a nonce that this process gave a moment ago says more than the clock of a stranger.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(proof: &str, occasion: &Occasion<'_>, nonces: &Nonces) -> Result<Self, Rejection> {
        let (key, payload) = verified(proof)?;
        Self::judge(key.id(), &payload, occasion, nonces)
    }

    /// The claims of a proof whose signature is good, by the key with this thumbprint.
    pub(crate) fn judge(
        key: &str,
        payload: &[u8],
        occasion: &Occasion<'_>,
        nonces: &Nonces,
    ) -> Result<Self, Rejection> {
        let claims: Claims =
            object(payload).map_err(|error| malformed(format!("its claims: {error}")))?;
        let jti = required(claims.jti, "jti")?;
        if !(1..=MAX_JTI_BYTES).contains(&jti.len()) {
            return Err(malformed(format!(
                "its jti is not 1 to {MAX_JTI_BYTES} bytes"
            )));
        }
        let method = required(claims.htm, "htm")?;
        if method != occasion.method {
            let detail = format!("it is for {method:?}, not for {:?}", occasion.method);
            return Err(Rejection::new(Reason::DpopWrongMethod, detail));
        }
        check_target(&required(claims.htu, "htu")?, occasion.targets)?;
        if required(claims.ath, "ath")? != token_hash(occasion.token) {
            return Err(Reason::DpopWrongToken.into());
        }
        if key != occasion.key {
            let detail = format!("it is by {key}, the token is for {:?}", occasion.key);
            return Err(Rejection::new(Reason::DpopKeyMismatch, detail));
        }
        let issued = required(claims.iat, "iat")?.time();
        let has_nonce = match claims.nonce {
            Some(nonce) if nonces.accept(&nonce) => true,
            Some(_) => return Err(Reason::DpopBadNonce.into()),
            None => check_time(issued, occasion.now).map(|()| false)?,
        };
        Ok(Self {
            id: ProofId::new(key, &jti),
            has_nonce,
        })
    }
}

/// The key in a proof, once it has proven to be the one that signed, and the claims.
fn verified(proof: &str) -> Result<(VerifyKey, Vec<u8>), Rejection> {
    if proof.len() > MAX_PROOF_BYTES {
        return Err(malformed(format!("it is over {MAX_PROOF_BYTES} bytes")));
    }
    let mut parts = proof.split('.');
    let (Some(head), Some(body), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("it is not three parts"));
    };
    let header = decode(head).ok_or_else(|| malformed("its header is not base64url"))?;
    let header: Header = object(&header).map_err(|_| malformed("its header is no JOSE header"))?;
    if header.typ.as_deref() != Some("dpop+jwt") {
        return Err(malformed("its typ is not dpop+jwt"));
    }
    if header.crit.0 {
        return Err(malformed("it has `crit`"));
    }
    let algorithm = header.alg.as_deref().and_then(allowed_algorithm);
    let algorithm = algorithm.ok_or(Reason::DpopAlgNotAllowed)?;
    let bad_key = |detail: String| Rejection::new(Reason::DpopBadKey, detail);
    let jwk = header.jwk.ok_or_else(|| bad_key("it has no jwk".into()))?;
    let key = VerifyKey::from_json(jwk).map_err(bad_key)?;
    if !key.allows(algorithm) {
        let detail = "its alg does not go with its key";
        return Err(Rejection::new(Reason::DpopAlgNotAllowed, detail));
    }
    let message = &proof[..head.len() + 1 + body.len()];
    if !key.verify(algorithm, message.as_bytes(), signature) {
        return Err(Reason::DpopBadSignature.into());
    }
    let payload = decode(body).ok_or_else(|| malformed("its payload is not base64url"))?;
    Ok((key, payload))
}

fn check_target(htu: &str, targets: &[Target]) -> Result<(), Rejection> {
    let target = Target::parse(htu).ok_or_else(|| malformed("its htu is no http(s) URL"))?;
    if targets.contains(&target) {
        return Ok(());
    }
    let expected: Vec<_> = targets.iter().map(Target::as_str).collect();
    let detail = format!("it is for {target}, this is {}", expected.join(" or "));
    Err(Rejection::new(Reason::DpopWrongTarget, detail))
}

fn check_time(issued: SystemTime, now: SystemTime) -> Result<(), Rejection> {
    let off = |by: Duration, way: &str| {
        let detail = format!("it was made {} s {way} by this hub's clock", by.as_secs());
        Err(Rejection::new(Reason::DpopClock, detail))
    };
    match now.duration_since(issued) {
        Ok(age) if age > MAX_AGE => off(age, "ago"),
        Err(ahead) if ahead.duration() > MAX_AHEAD => off(ahead.duration(), "from now"),
        _ => Ok(()),
    }
}

fn required<T>(claim: Option<T>, name: &str) -> Result<T, Rejection> {
    claim.ok_or_else(|| malformed(format!("it has no {name}")))
}

fn malformed(detail: impl Into<String>) -> Rejection {
    Rejection::new(Reason::DpopMalformed, detail)
}
