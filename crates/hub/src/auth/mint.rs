//! Development keys and tokens: what an identity provider does, for trying out and for tests.
//!
//! Nothing here runs in a hub that serves real agents; `nowconnect token` and `nowconnect dev` use it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData as _};
use serde::Serialize;

/// The kinds of key that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// ECDSA on P-256: small and fast.
    #[default]
    Es256,
    /// RSA with 2048 bits, PKCS#1 v1.5: what most identity providers use.
    Rs256,
    /// Ed25519.
    EdDsa,
}

/// Why a key or token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The PEM text is no private key of a kind in [`KeyKind`].
    #[error("not a PKCS#8 PEM private key for ES256, RS256 or EdDSA: {0}")]
    Key(String),
    /// The crypto library failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// A wrong `agent_id`, see [`super::jwt::is_agent_id`].
    #[error("agent_id {0:?} is not 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    AgentId(String),
}

/// A private key that signs agent tokens.
pub struct SigningKey {
    pair: KeyPair,
    algorithm: Algorithm,
    encoding: EncodingKey,
    jwk: Jwk,
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// Only when the system gives no randomness.
    pub fn generate(kind: KeyKind) -> Result<Self, MintError> {
        let algorithm = match kind {
            KeyKind::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::Rs256 => &rcgen::PKCS_RSA_SHA256,
            KeyKind::EdDsa => &rcgen::PKCS_ED25519,
        };
        Self::from_pair(KeyPair::generate_for(algorithm).map_err(bad_key)?)
    }

    /// Reads a PKCS#8 PEM file's text.
    ///
    /// # Errors
    /// [`MintError::Key`].
    pub fn from_pem(pem: &str) -> Result<Self, MintError> {
        Self::from_pair(KeyPair::from_pem(pem).map_err(bad_key)?)
    }

    fn from_pair(pair: KeyPair) -> Result<Self, MintError> {
        let (algorithm, encoding, public) = if pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            let encoding = EncodingKey::from_ec_der(pair.serialized_der());
            (
                Algorithm::ES256,
                encoding,
                DecodingKey::from_ec_der(pair.der_bytes()),
            )
        } else if pair.is_compatible(&rcgen::PKCS_ED25519) {
            let encoding = EncodingKey::from_ed_der(pair.serialized_der());
            (
                Algorithm::EdDSA,
                encoding,
                DecodingKey::from_ed_der(pair.der_bytes()),
            )
        } else if pair.is_compatible(&rcgen::PKCS_RSA_SHA256) {
            let encoding = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes())?;
            (
                Algorithm::RS256,
                encoding,
                DecodingKey::from_rsa_der(pair.der_bytes()),
            )
        } else {
            return Err(MintError::Key("another kind of key".into()));
        };
        let mut jwk = Jwk::from_decoding_key(&public, Some(algorithm))?;
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256)?);
        Ok(Self {
            pair,
            algorithm,
            encoding,
            jwk,
        })
    }

    /// The private key as PKCS#8 PEM. Secret: write it to a file of mode 0600.
    pub fn to_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// The public key, named by its RFC 7638 thumbprint.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// Signs a token for `agent`.
    ///
    /// # Errors
    /// [`MintError::AgentId`], [`MintError::Sign`].
    pub fn mint(&self, agent: &AgentToken, now: SystemTime) -> Result<String, MintError> {
        if !super::jwt::is_agent_id(&agent.agent_id) {
            return Err(MintError::AgentId(agent.agent_id.clone()));
        }
        let issued_at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            iss: agent.issuer.as_deref(),
            aud: &agent.audience,
            sub: &agent.agent_id,
            agent_id: &agent.agent_id,
            connectors: agent.connectors.as_deref(),
            cnf: agent.proof_key.as_deref().map(|jkt| Confirmation { jkt }),
            iat: issued_at,
            nbf: issued_at,
            exp: issued_at.saturating_add(agent.lifetime.as_secs()),
            jti: uuid::Uuid::new_v4().to_string(),
        };
        let mut header = Header::new(self.algorithm);
        header.kid.clone_from(&self.jwk.common.key_id);
        Ok(jsonwebtoken::encode(&header, &claims, &self.encoding)?)
    }
}

fn bad_key(error: rcgen::Error) -> MintError {
    MintError::Key(error.to_string())
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The document that a hub reads from `security.jwks_url`.
pub fn jwks<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> JwkSet {
    JwkSet {
        keys: keys.into_iter().map(|key| key.jwk.clone()).collect(),
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentToken {
    /// Claims `agent_id` and `sub`.
    pub agent_id: String,
    /// Claim `aud`: what the hub has as `security.audience`.
    pub audience: String,
    /// Claim `iss`, if any.
    pub issuer: Option<String>,
    /// Claim `connectors`; `None` leaves it out.
    pub connectors: Option<Vec<String>>,
    /// Claim `cnf.jkt`: the thumbprint of the key that the agent must prove to hold, if any.
    pub proof_key: Option<String>,
    /// From now to `exp`.
    pub lifetime: Duration,
}

#[derive(Serialize)]
struct Claims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    aud: &'a str,
    sub: &'a str,
    agent_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connectors: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: Option<Confirmation<'a>>,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
}

#[derive(Serialize)]
struct Confirmation<'a> {
    jkt: &'a str,
}
