//! Looks at what a hub depends on, the way the hub does, without being one.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use nowconnect_link::tls::TlsError;
use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::auth::fetch::Fetcher;
use crate::auth::key::{KeySet, KeySetError, Skipped, VerifyKey};
use crate::auth::{Identity, Keys, Rejection, Rules, Timing, Verifier};
use crate::config::{JwksSource, SecurityConfig};
use nowconnect_link::web_client;

pub use crate::auth::fetch::FetchError;
pub use crate::mesh::visit::{Met, NotMet, Visit, VisitError, Whose};
pub use crate::pdp::{AskError, Trial, attempt as decision};
pub use crate::registry::{Node, Probed, probe as registry};
pub use nowconnect_link::web_client::WebError;

/// The keys that tokens are checked with, as they are published now.
#[derive(Debug)]
pub struct Published {
    /// Those that can be used.
    pub keys: Vec<Arc<VerifyKey>>,
    /// Those that cannot.
    pub skipped: Vec<Skipped>,
    /// The clock of their server (RFC 9110 section 6.6.1).
    pub date: Option<HeaderValue>,
    /// From the question to the last byte.
    pub took: Duration,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// `security.jwks_ca` cannot be used.
    #[error("security.jwks_ca: {0}")]
    Trust(#[from] TlsError),
    /// No document.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Another document.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

/// Fetches the keys of `source`.
///
/// # Errors
/// See [`KeysError`].
pub async fn keys(config: &SecurityConfig, source: &JwksSource) -> Result<Published, KeysError> {
    let begun = Instant::now();
    let fetcher = Fetcher::new(trust(config)?, Timing::default().timeout);
    let fetched = fetcher.fetch(source).await?;
    let took = begun.elapsed();
    let (set, skipped) = KeySet::parse(&fetched.body)?;
    Ok(Published {
        keys: set.keys().to_vec(),
        skipped,
        date: fetched.date,
        took,
    })
}

/// Judges an agent's token as a hub of this configuration would.
///
/// # Errors
/// `security.jwks_ca` cannot be used; inside, the first rule that the token breaks.
pub async fn token(
    config: &SecurityConfig,
    token: &str,
) -> Result<Result<Identity, Rejection>, TlsError> {
    let keys = Keys::new(config.jwks.clone(), trust(config)?, Timing::default());
    let mut fetching = JoinSet::new();
    fetching.spawn(keys.clone().run(CancellationToken::new()));
    keys.refresh().await;
    let rules = Rules {
        audience: config.audience.clone(),
        issuer: config.issuer.clone(),
    };
    let verifier = Verifier::new(rules, keys);
    Ok(verifier.verify(token, SystemTime::now()).await)
}

fn trust(config: &SecurityConfig) -> Result<ClientConfig, TlsError> {
    let https = match &config.jwks {
        Some(JwksSource::Url(url)) => url.scheme_str() == Some("https"),
        _ => false,
    };
    web_client::trust(https, config.jwks_ca.as_deref())
}
