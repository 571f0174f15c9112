//! The agent's proof key: with it, a token is of use to this agent alone (DPoP, RFC 9449).

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use nowconnect_settings::open_file;
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

/// Bytes of the longest key file: several times what the largest key takes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why there is no proof to show. Never shows what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The file cannot be read.
    #[error(
        "cannot read the proof key {}: {source}; check tunnel.auth.dpop_key_file (NC_DPOP_KEY_FILE) \
         and its permissions", path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds no such key.
    #[error("the proof key {} is of no use: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The crypto library failed.
    #[error("cannot sign a proof: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Not a key that proofs can be made with.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is no PKCS#8 PEM private key of P-256, P-384, Ed25519 or RSA ({0}); \
     nowconnect token dpop-key --out FILE makes one"
)]
pub struct KeyError(String);

/// A private key and what tells of it.
pub struct ProofKey {
    signing: EncodingKey,
    algorithm: Algorithm,
    public: Value,
    thumbprint: String,
}

/// What a proof is for.
#[derive(Debug, Clone, Copy)]
pub struct Purpose<'a> {
    /// `htm`: `GET` for an upgrade, `TOKEN` for a renewal in band.
    pub method: &'a str,
    /// The URL of the hub.
    pub url: &'a Uri,
    /// The token that is shown with it.
    pub token: &'a str,
    /// The nonce that the hub gave, if any.
    pub nonce: Option<&'a str>,
}

impl ProofKey {
    /// Reads a key file.
    ///
    /// # Errors
    /// [`ProofError::Read`], [`ProofError::Content`].
    pub async fn read(path: &Path) -> Result<Self, ProofError> {
        let owned = path.to_owned();
        let read = move || -> io::Result<_> {
            let mut pem = String::new();
            let file = open_file(&owned)?;
            file.take(MAX_FILE_BYTES).read_to_string(&mut pem)?;
            Ok(Self::from_pem(&pem))
        };
        // A mounted secret may lie on a network that hangs.
        let read = tokio::task::spawn_blocking(read).await;
        let path = path.to_owned();
        match read.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())) {
            Ok(Ok(key)) => Ok(key),
            Ok(Err(source)) => Err(ProofError::Content { path, source }),
            Err(source) => Err(ProofError::Read { path, source }),
        }
    }

    /// Reads the text of a PKCS#8 PEM file.
    ///
    /// # Errors
    /// It holds no such key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let problem = |error: &dyn fmt::Display| KeyError(error.to_string());
        let pair = KeyPair::from_pem(pem).map_err(|error| problem(&error))?;
        let (private, public) = (pair.serialized_der(), pair.der_bytes());
        let is = |algorithm| pair.is_compatible(algorithm);
        let (algorithm, signing, public) = if is(&rcgen::PKCS_ECDSA_P256_SHA256) {
            let signing = EncodingKey::from_ec_der(private);
            (Algorithm::ES256, signing, DecodingKey::from_ec_der(public))
        } else if is(&rcgen::PKCS_ECDSA_P384_SHA384) {
            let signing = EncodingKey::from_ec_der(private);
            (Algorithm::ES384, signing, DecodingKey::from_ec_der(public))
        } else if is(&rcgen::PKCS_ED25519) {
            let signing = EncodingKey::from_ed_der(private);
            (Algorithm::EdDSA, signing, DecodingKey::from_ed_der(public))
        } else if is(&rcgen::PKCS_RSA_SHA256) {
            let signing = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes());
            let signing = signing.map_err(|error| problem(&error))?;
            (Algorithm::RS256, signing, DecodingKey::from_rsa_der(public))
        } else {
            return Err(problem(&"another kind of key"));
        };
        let jwk = Jwk::from_decoding_key(&public, Some(algorithm));
        let jwk = jwk.map_err(|error| problem(&error))?;
        let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256);
        Ok(Self {
            thumbprint: thumbprint.map_err(|error| problem(&error))?,
            public: serde_json::to_value(&jwk).map_err(|error| problem(&error))?,
            signing,
            algorithm,
        })
    }

    /// The RFC 7638 thumbprint, which tokens for this key carry as `cnf.jkt`.
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The public half as a JWK.
    pub fn public(&self) -> &Value {
        &self.public
    }

    /// A fresh proof (RFC 9449 section 4.2).
    ///
    /// # Errors
    /// [`ProofError::Sign`].
    pub fn prove(&self, purpose: &Purpose<'_>, now: SystemTime) -> Result<String, ProofError> {
        let header = json!({ "typ": "dpop+jwt", "alg": self.algorithm, "jwk": self.public });
        let mut claims = json!({
            "jti": uuid::Uuid::new_v4().to_string(),
            "htm": purpose.method,
            "htu": target(purpose.url),
            "iat": now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            "ath": URL_SAFE_NO_PAD.encode(digest(&SHA256, purpose.token.as_bytes())),
        });
        if let Some(nonce) = purpose.nonce {
            claims["nonce"] = nonce.into();
        }
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, self.algorithm)?;
        Ok(format!("{message}.{signature}"))
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProofKey({})", self.thumbprint)
    }
}

/// Whether this is a SHA-256 in base64url, as RFC 7638 thumbprints are.
pub fn is_thumbprint(text: &str) -> bool {
    URL_SAFE_NO_PAD
        .decode(text)
        .is_ok_and(|hash| hash.len() == 32)
}

/// `htu`: the URL of the request that opens the WebSocket, without its query.
fn target(url: &Uri) -> String {
    let scheme = match url.scheme_str() {
        Some("wss" | "https") => "https",
        _ => "http",
    };
    let authority = url.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}{}", url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(proof: &str) -> Vec<Value> {
        let parts = proof.split('.').take(2);
        parts
            .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn proofs_are_fresh_and_hold_what_is_due_and_nothing_private() {
        let algorithms = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "ES256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ES384"),
            (&rcgen::PKCS_ED25519, "EdDSA"),
            (&rcgen::PKCS_RSA_SHA256, "RS256"),
        ];
        let url: Uri = "wss://hub.example.com/tunnel?x=1".parse().unwrap();
        for (algorithm, name) in algorithms {
            let pem = KeyPair::generate_for(algorithm).unwrap().serialize_pem();
            let key = ProofKey::from_pem(&pem).unwrap();
            assert_eq!(key.thumbprint().len(), 43);
            let purpose = Purpose {
                method: "GET",
                url: &url,
                token: "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
                nonce: None,
            };
            let now = UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
            let first = parts(&key.prove(&purpose, now).unwrap());
            let second = parts(
                &key.prove(
                    &Purpose {
                        nonce: Some("n"),
                        ..purpose
                    },
                    now,
                )
                .unwrap(),
            );
            assert_eq!(
                (&first[0]["typ"], &first[0]["alg"]),
                (&json!("dpop+jwt"), &json!(name))
            );
            assert!(first[0]["jwk"].get("d").is_none(), "{}", first[0]);
            assert_eq!(first[1]["htu"], "https://hub.example.com/tunnel");
            // RFC 9449 section 7.1.
            assert_eq!(
                first[1]["ath"],
                "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
            );
            assert_eq!(first[1]["iat"], 1_800_000_000);
            assert!(first[1].get("nonce").is_none() && second[1]["nonce"] == "n");
            assert_ne!(first[1]["jti"], second[1]["jti"]);
            assert!(!format!("{key:?}").contains("PRIVATE"));
        }
    }

    #[tokio::test]
    async fn errors_name_the_file_and_the_way_out_and_hide_the_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bad in [
            "",
            "secret",
            "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        ] {
            std::fs::write(file.path(), bad).unwrap();
            let error = ProofKey::read(file.path()).await.unwrap_err().to_string();
            assert!(
                error.contains("/tmp") && error.contains("token dpop-key"),
                "{error}"
            );
            assert!(
                !error.contains("secret") && !error.contains("c2Vj"),
                "{error}"
            );
        }
        let error = ProofKey::read(Path::new("/nonexistent/key"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("NC_DPOP_KEY_FILE"), "{error}");
    }
}
