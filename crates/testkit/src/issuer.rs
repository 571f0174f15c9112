//! An identity provider on disk: a key, its JWKS file, and agent tokens.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::{Value, json};

use crate::program;

/// The audience that hubs expect unless told otherwise.
pub const AUDIENCE: &str = "nowconnect";

/// Signs agent tokens; its public keys stand in a JWKS file.
#[derive(Debug)]
pub struct Issuer {
    jwks: PathBuf,
    keys: Mutex<Vec<Key>>,
}

struct Key {
    kid: String,
    signing: EncodingKey,
    public: Value,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kid)
    }
}

impl Issuer {
    /// A new key and `dir/jwks.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(dir: &Path) -> Result<Self> {
        let issuer = Self {
            jwks: dir.join("jwks.json"),
            keys: Mutex::default(),
        };
        issuer.add_key()?;
        Ok(issuer)
    }

    /// Adds a key, with which all further tokens are signed, to the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add_key(&self) -> Result<()> {
        let mut keys = self.keys.lock();
        let key = Key::generate(&format!("key-{}", keys.len() + 1))?;
        keys.push(key);
        self.publish(&keys)
    }

    /// Takes all keys but the newest out of the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn retire_old_keys(&self) -> Result<()> {
        let mut keys = self.keys.lock();
        let old = keys.len() - 1;
        keys.drain(..old);
        self.publish(&keys)
    }

    fn publish(&self, keys: &[Key]) -> Result<()> {
        let public: Vec<&Value> = keys.iter().map(|key| &key.public).collect();
        program::write(&self.jwks, &json!({ "keys": public }).to_string())
    }

    /// Where a hub finds the keys.
    pub fn jwks_url(&self) -> String {
        format!("file://{}", self.jwks.display())
    }

    /// A token for `agent_id`, good for an hour.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token(&self, agent_id: &str) -> Result<String> {
        self.sign(&claims(agent_id, 3600))
    }

    /// Signs any claims with the newest key.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let keys = self.keys.lock();
        let key = keys.last().context("no key")?;
        let header = Header {
            kid: Some(key.kid.clone()),
            ..Header::new(Algorithm::ES256)
        };
        Ok(jsonwebtoken::encode(&header, claims, &key.signing)?)
    }

    /// A token under the name of one of the keys, signed with a shared secret: what an attacker does
    /// who takes a public key for one.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign_with_hmac(&self, claims: &Value, kid: &str, secret: &str) -> Result<String> {
        let header = Header {
            kid: Some(kid.to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        let key = EncodingKey::from_secret(secret.as_bytes());
        Ok(jsonwebtoken::encode(&header, claims, &key)?)
    }

    /// A token whose header and signature are the caller's business: what an attacker sends.
    pub fn forge(header: &Value, claims: &Value, signature: &[u8]) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!(
            "{}.{}.{}",
            part(header),
            part(claims),
            URL_SAFE_NO_PAD.encode(signature)
        )
    }
}

/// What a token says, whoever signed it.
///
/// # Errors
/// When it is none.
pub fn claims_of(token: &str) -> Result<Value> {
    let payload = token.split('.').nth(1).context("three parts")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?)
}

/// The claims of a good token that ends `lifetime_sec` from now (negative: has ended).
pub fn claims(agent_id: &str, lifetime_sec: i64) -> Value {
    let now = now();
    json!({ "agent_id": agent_id, "aud": AUDIENCE, "iat": now, "exp": now + lifetime_sec })
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Key {
    fn generate(kid: &str) -> Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // An uncompressed point (SEC 1, 2.3.3): 0x04, then x and y of 32 bytes each.
        let point = pair.der_bytes();
        let (x, y) = point.get(1..).context("no point")?.split_at(32);
        let public = json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        let signing = EncodingKey::from_ec_der(pair.serialized_der());
        Ok(Self {
            kid: kid.to_owned(),
            signing,
            public,
        })
    }
}
