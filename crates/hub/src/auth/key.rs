//! Public keys of a JWKS document (RFC 7517), each pinned to the algorithms it may verify.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use crate::strict_json::object;

/// Keys that one document may hold.
pub const MAX_KEYS: usize = 100;
/// Bytes of the longest `kid` that is kept.
pub const MAX_KID_BYTES: usize = 256;
/// The weakest RSA modulus accepted, in bits (RFC 7518 section 3.3).
const MIN_RSA_BITS: usize = 2048;
/// The largest RSA modulus accepted, in bits: what the crypto library verifies.
const MAX_RSA_BITS: usize = 8192;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The algorithm that a JOSE name stands for, if agents may use it. Never `none`, never HMAC.
pub fn allowed_algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

/// One public key.
#[derive(Debug)]
pub struct VerifyKey {
    id: String,
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl VerifyKey {
    /// Reads one member of `keys`, or the key of a proof.
    pub(super) fn from_json(value: Value) -> Result<Self, String> {
        // RFC 7518 sections 6.2.2, 6.3.2 and 6.4: whoever can read such a document can sign.
        if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]
            .iter()
            .any(|member| value.get(member).is_some())
        {
            return Err("it publishes private key material; replace this key".into());
        }
        let name = match value.get("alg") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err("`alg` is not text".into()),
        };
        let jwk: Jwk = serde_json::from_value(value).map_err(|e| brief("not a JWK", &e))?;
        if !matches!(
            jwk.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        ) {
            return Err("`use` is not `sig`".into());
        }
        if jwk
            .common
            .key_operations
            .as_ref()
            .is_some_and(|o| !o.contains(&KeyOperations::Verify))
        {
            return Err("`key_ops` does not hold `verify`".into());
        }
        let kid = jwk.common.key_id.clone();
        if kid.as_ref().is_some_and(|kid| kid.len() > MAX_KID_BYTES) {
            return Err(format!("its kid is longer than {MAX_KID_BYTES} bytes"));
        }

        let mut algorithms = algorithms_of(&jwk.algorithm)?.to_vec();
        if let Some(name) = name {
            let pinned = allowed_algorithm(&name).filter(|alg| algorithms.contains(alg));
            let pinned = pinned.ok_or("`alg` is not one that agents may use with such a key")?;
            algorithms = vec![pinned];
        }
        let key = DecodingKey::from_jwk(&jwk).map_err(|e| format!("unreadable key: {e}"))?;
        let id = jwk
            .thumbprint(ThumbprintHash::SHA256)
            .map_err(|e| e.to_string())?;
        Ok(Self {
            id,
            kid,
            algorithms,
            key,
        })
    }

    /// The RFC 7638 thumbprint: unlike the `kid`, it cannot stay when the key behind it changes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What tokens call it.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The algorithms that it may verify, by their JOSE names.
    pub fn algorithms(&self) -> impl Iterator<Item = String> {
        self.algorithms.iter().map(|one| format!("{one:?}"))
    }

    /// Whether a token could mean either of the two.
    fn is_called_like(&self, other: &Self) -> bool {
        self.kid == other.kid && (self.kid.is_some() || self.id == other.id)
    }

    /// Whether this key may verify signatures of `algorithm`.
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether `signature` (base64url) is this key's over `message`.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> bool {
        self.allows(algorithm)
            && jsonwebtoken::crypto::verify(signature, message, &self.key, algorithm)
                .unwrap_or(false)
    }
}

/// A parser's error may quote the document at length.
fn brief(what: &str, error: &serde_json::Error) -> String {
    format!(
        "{what}: {}",
        error.to_string().chars().take(120).collect::<String>()
    )
}

/// What stands where a JWKS document should, if it is one of the usual mistakes.
fn mistaken(document: &[u8], error: &serde_json::Error) -> String {
    if document.trim_ascii_start().starts_with(b"<") {
        return "this is HTML, a page for people".into();
    }
    #[derive(Deserialize)]
    struct Discovery {
        jwks_uri: String,
    }
    match object(document) {
        Ok(Discovery { jwks_uri }) => format!(
            "this is the provider's discovery document; its keys are at its jwks_uri, {}",
            jwks_uri
                .chars()
                .take(200)
                .collect::<String>()
                .escape_debug()
        ),
        Err(_) => brief("JSON", error),
    }
}

/// The algorithms that fit the type and size of a key.
fn algorithms_of(parameters: &AlgorithmParameters) -> Result<&'static [Algorithm], String> {
    let bytes = |text: &str| {
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| "a number is not base64url without padding")
    };
    match parameters {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = bytes(&rsa.n)?;
            let significant = modulus
                .iter()
                .position(|b| *b != 0)
                .unwrap_or(modulus.len());
            let bits = match &modulus[significant..] {
                [] => 0,
                [first, rest @ ..] => rest.len() * 8 + (8 - first.leading_zeros() as usize),
            };
            if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                return Err(format!(
                    "RSA keys need {MIN_RSA_BITS} to {MAX_RSA_BITS} bits; it has {bits}"
                ));
            }
            Ok(RSA)
        }
        AlgorithmParameters::EllipticCurve(ec) => {
            let (algorithms, size): (&[Algorithm], usize) = match ec.curve {
                EllipticCurve::P256 => (&[Algorithm::ES256], 32),
                EllipticCurve::P384 => (&[Algorithm::ES384], 48),
                _ => return Err("its curve is not P-256 or P-384".into()),
            };
            if bytes(&ec.x)?.len() != size || bytes(&ec.y)?.len() != size {
                return Err(format!("a coordinate is not {size} bytes long"));
            }
            Ok(algorithms)
        }
        AlgorithmParameters::OctetKeyPair(okp) => {
            if okp.curve != EllipticCurve::Ed25519 || bytes(&okp.x)?.len() != 32 {
                return Err("it is not an Ed25519 key of 32 bytes".into());
            }
            Ok(&[Algorithm::EdDSA])
        }
        _ => Err("its `kty` is not RSA, EC or OKP".into()),
    }
}

/// A key of the document that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its position in `keys`, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Why a document as a whole cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeySetError {
    /// Not JSON of the right shape.
    #[error("not a JWKS document: {0}")]
    NotJwks(String),
    /// More than [`MAX_KEYS`].
    #[error("{0} keys; at most {MAX_KEYS} are accepted")]
    TooMany(usize),
    /// Nothing in it can verify an agent.
    #[error("no usable key{}", .0.first().map(|s| format!("; keys[{}]: {}", s.index, s.why)).unwrap_or_default())]
    Empty(Vec<Skipped>),
}

/// The usable keys of one document; never empty.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Arc<VerifyKey>>,
}

impl KeySet {
    /// Reads a JWKS document; bad keys are left out and listed.
    ///
    /// # Errors
    /// See [`KeySetError`].
    pub fn parse(document: &[u8]) -> Result<(Self, Vec<Skipped>), KeySetError> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let Document { keys: members } =
            object(document).map_err(|e| KeySetError::NotJwks(mistaken(document, &e)))?;
        if members.len() > MAX_KEYS {
            return Err(KeySetError::TooMany(members.len()));
        }
        let mut keys: Vec<Arc<VerifyKey>> = Vec::with_capacity(members.len());
        let mut skipped = Vec::new();
        for (index, member) in members.into_iter().enumerate() {
            match VerifyKey::from_json(member) {
                // An ambiguous name must not let the order of a document choose the key.
                Ok(key) if keys.iter().any(|other| other.is_called_like(&key)) => {
                    skipped.push(Skipped {
                        index,
                        why: "an earlier key has the same kid".into(),
                    });
                }
                Ok(key) => keys.push(Arc::new(key)),
                Err(why) => skipped.push(Skipped { index, why }),
            }
        }
        if keys.is_empty() {
            Err(KeySetError::Empty(skipped))
        } else {
            Ok((Self { keys }, skipped))
        }
    }

    /// The key called `kid`; for a token without `kid`, the only key that allows `algorithm`.
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&Arc<VerifyKey>> {
        match kid {
            Some(_) => self.keys.iter().find(|key| key.kid.as_deref() == kid),
            None => {
                let mut fitting = self.keys.iter().filter(|key| key.allows(algorithm));
                fitting.next().filter(|_| fitting.next().is_none())
            }
        }
    }

    /// Whether the key with this [`VerifyKey::id`] is still in the set.
    pub fn holds(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    /// The keys, in the order of the document.
    pub fn keys(&self) -> &[Arc<VerifyKey>] {
        &self.keys
    }

    /// How many keys it has: 1 to [`MAX_KEYS`].
    pub fn count(&self) -> usize {
        self.keys.len()
    }
}
