//! The keys that agents' tokens are checked with, across reloads.

use std::sync::Arc;

use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::{ClientFiles, LiveClientConfig, Roots, TlsError};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::DropGuard;

use crate::auth::{Keys, Rules, Timing, Verifier};
use crate::config::{JwksSource, SecurityConfig};

/// Keeps one key cache running, and the same one for as long as its source stays.
pub(super) struct KeyKeeper {
    current: Mutex<Running>,
    tasks: Tasks,
}

struct Running {
    keys: Arc<Keys>,
    _guard: DropGuard,
}

impl KeyKeeper {
    /// The cache for `config`'s source, being filled.
    pub(super) fn new(config: &SecurityConfig, tasks: Tasks) -> Result<Self, TlsError> {
        let keys = cache(config.jwks.clone())?;
        Ok(Self {
            current: Mutex::new(run(keys, &tasks)),
            tasks,
        })
    }

    /// The verifier for `config`'s rules with the keys in force.
    pub(super) fn verifier(&self, config: &SecurityConfig) -> Verifier {
        let rules = Rules {
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
        };
        Verifier::new(rules, self.current.lock().keys.clone())
    }

    /// A cache for another source; `None` when the source stays.
    pub(super) fn prepare(&self, config: &SecurityConfig) -> Result<Option<Arc<Keys>>, TlsError> {
        if config.jwks.as_ref() == self.current.lock().keys.source() {
            return Ok(None);
        }
        cache(config.jwks.clone()).map(Some)
    }

    /// Goes on with the prepared cache.
    pub(super) fn commit(&self, prepared: Option<Arc<Keys>>) {
        if let Some(keys) = prepared {
            *self.current.lock() = run(keys, &self.tasks);
        }
    }
}

fn run(keys: Arc<Keys>, tasks: &Tasks) -> Running {
    let stop = tasks.token();
    tasks.spawn("jwks", keys.clone().run(stop.clone()));
    Running {
        keys,
        _guard: stop.drop_guard(),
    }
}

fn cache(source: Option<JwksSource>) -> Result<Arc<Keys>, TlsError> {
    let secure = matches!(&source, Some(JwksSource::Url(url)) if url.scheme_str() == Some("https"));
    // A machine without a certificate store can still use a file.
    let trust = if secure { system_trust()? } else { no_trust()? };
    Ok(Keys::new(source, trust, Timing::default()))
}

fn system_trust() -> Result<ClientConfig, TlsError> {
    let files = ClientFiles {
        roots: Roots::System,
        identity: None,
    };
    Ok(ClientConfig::clone(
        &LiveClientConfig::load(files)?.current(),
    ))
}

fn no_trust() -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| TlsError::Config(error.to_string()))?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}
