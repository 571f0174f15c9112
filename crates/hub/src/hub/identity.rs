//! The keys that agents' tokens are checked with, across reloads.

use std::path::Path;
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

/// What another configuration asks for, and nothing has been done about yet.
pub(super) enum Prepared {
    /// The source stays; its server is trusted by these rules.
    Trust(Box<ClientConfig>),
    /// A cache for another source.
    Cache(Arc<Keys>),
}

impl KeyKeeper {
    /// The cache for `config`'s source, being filled.
    pub(super) fn new(config: &SecurityConfig, tasks: Tasks) -> Result<Self, TlsError> {
        let keys = Keys::new(config.jwks.clone(), trust(config)?, Timing::default());
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

    /// Gets ready for another configuration.
    pub(super) fn prepare(&self, config: &SecurityConfig) -> Result<Prepared, TlsError> {
        let trust = trust(config)?;
        if config.jwks.as_ref() == self.current.lock().keys.source() {
            return Ok(Prepared::Trust(Box::new(trust)));
        }
        let keys = Keys::new(config.jwks.clone(), trust, Timing::default());
        Ok(Prepared::Cache(keys))
    }

    /// Goes on with what was prepared.
    pub(super) fn commit(&self, prepared: Prepared) {
        let mut current = self.current.lock();
        match prepared {
            Prepared::Trust(trust) => current.keys.trust(*trust),
            Prepared::Cache(keys) => *current = run(keys, &self.tasks),
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

/// Which servers may deliver the keys.
fn trust(config: &SecurityConfig) -> Result<ClientConfig, TlsError> {
    match &config.jwks {
        Some(JwksSource::Url(url)) if url.scheme_str() == Some("https") => {
            some_trust(config.jwks_ca.as_deref())
        }
        // A machine without a certificate store can still use a file.
        _ => no_trust(),
    }
}

fn some_trust(bundle: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let files = ClientFiles {
        roots: bundle.map_or(Roots::System, |bundle| Roots::Only(bundle.to_owned())),
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
