//! Looks at what a hub depends on, the way the hub does, without being one.

use nowconnect_link::tls::TlsError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::auth::Keys;
use crate::auth::jwks::{KeysStatus, Timing};
use crate::config::{JwksSource, SecurityConfig};
use crate::web_client;

pub use crate::mesh::knock as mesh;
pub use crate::registry::{Node, Probed, probe as registry};

/// Fetches the keys that tokens are checked with.
///
/// # Errors
/// `security.jwks_ca` cannot be used.
pub async fn keys(config: &SecurityConfig) -> Result<KeysStatus, TlsError> {
    let https = match &config.jwks {
        Some(JwksSource::Url(url)) => url.scheme_str() == Some("https"),
        _ => false,
    };
    let trust = web_client::trust(https, config.jwks_ca.as_deref())?;
    let keys = Keys::new(config.jwks.clone(), trust, Timing::default());
    let mut fetching = JoinSet::new();
    fetching.spawn(keys.clone().run(CancellationToken::new()));
    keys.refresh().await;
    Ok(keys.status())
}
