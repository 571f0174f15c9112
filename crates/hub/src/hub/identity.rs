//! The keys that agents' tokens are checked with, across reloads.

use std::sync::Arc;

use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::TlsError;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio_util::sync::DropGuard;

use crate::auth::{Keys, Rules, Timing, Verifier};
use crate::config::{JwksSource, SecurityConfig};
use nowconnect_link::web_client;

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
pub(super) fn trust(config: &SecurityConfig) -> Result<ClientConfig, TlsError> {
    let https = match &config.jwks {
        Some(JwksSource::Url(url)) => url.scheme_str() == Some("https"),
        _ => false,
    };
    web_client::trust(https, config.jwks_ca.as_deref())
}
