//! What an agent shows to a hub: its token, and a proof that the token is its own.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Uri};
use nowconnect_link::upgrade::Bearer;
use nowconnect_proto::hello::Token;

use crate::config::TunnelConfig;
use crate::failure::Failure;
use crate::proof::{ProofError, ProofKey, Purpose};
use crate::token::{self, TokenError};

/// A token and the key that it is for, read afresh for every attempt.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) token: Token,
    key: Option<Arc<ProofKey>>,
}

impl Credential {
    /// Reads the files.
    pub(crate) async fn read(config: &TunnelConfig) -> Result<Self, Failure> {
        let token = token::read(&config.token_file).await?;
        let key = match &config.dpop_key_file {
            Some(path) => Some(Arc::new(ProofKey::read(path).await?)),
            None => None,
        };
        Ok(Self { token, key })
    }

    /// Whether proofs can be made.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Whether proofs are made with the same key, if any.
    pub(crate) fn is_same_key(&self, other: &Self) -> bool {
        let thumbprint = |one: &Self| one.key.as_ref().map(|key| key.thumbprint().to_owned());
        thumbprint(self) == thumbprint(other)
    }

    /// What goes with a request for an upgrade at `url`.
    pub(crate) fn for_upgrade(
        &self,
        config: &TunnelConfig,
        url: &Uri,
        nonce: Option<&str>,
    ) -> Result<(Bearer, HeaderMap), Failure> {
        let mut headers = HeaderMap::new();
        let bearer = match self.prove("GET", url, nonce)? {
            Some(proof) => {
                // Base64 and dots.
                if let Ok(value) = HeaderValue::try_from(proof) {
                    headers.insert("dpop", value);
                }
                Bearer::with_proof(&self.token.token)
            }
            None => Bearer::new(&self.token.token),
        };
        let path = &config.token_file;
        let bearer = bearer.map_err(|_| TokenError::Content { path: path.clone() })?;
        Ok((bearer, headers))
    }

    /// What is said over a tunnel to `url` to go on with this token.
    pub(crate) fn for_renewal(&self, url: &Uri, nonce: Option<&str>) -> Result<Token, ProofError> {
        Ok(Token {
            token: self.token.token.clone(),
            proof: self.prove("TOKEN", url, nonce)?,
        })
    }

    fn prove(
        &self,
        method: &str,
        url: &Uri,
        nonce: Option<&str>,
    ) -> Result<Option<String>, ProofError> {
        let Some(key) = &self.key else {
            return Ok(None);
        };
        let purpose = Purpose {
            method,
            url,
            token: &self.token.token,
            nonce,
        };
        key.prove(&purpose, SystemTime::now()).map(Some)
    }
}
