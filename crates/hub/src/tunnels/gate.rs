//! Which agents are let in, and what they may export.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use nowconnect_proto::hello::Rejected;
use tokio::sync::watch;

use super::proofs::{Presented, Proofs};
use crate::auth::{Identity, Reason, Rejection, Verifier};
use crate::config::SecurityConfig;
use crate::metrics::Metrics;
use crate::registry::Registry;

/// Why an agent is turned away although its token is good.
const REJECTIONS: [&str; 3] = ["agent_id_mismatch", "nothing_granted", "client_certificate"];

/// Judges tokens and connectors by the rules in force.
#[derive(Debug)]
pub struct Gate {
    verifier: ArcSwap<Verifier>,
    require_scopes: AtomicBool,
    proofs: Proofs,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// A gate that checks tokens with `verifier`.
    pub fn new(verifier: Verifier, config: &SecurityConfig, metrics: Arc<Metrics>) -> Self {
        let failures = Reason::ALL.iter().filter(|reason| !reason.is_step());
        let known = failures.map(|reason| reason.code());
        for code in known.chain(REJECTIONS) {
            metrics.tunnels.auth_failures.with([code]);
        }
        Self {
            verifier: ArcSwap::from_pointee(verifier),
            require_scopes: AtomicBool::new(config.require_connector_scopes),
            proofs: Proofs::new(config),
            metrics,
        }
    }

    /// Puts other rules in force, for tokens shown from now on.
    pub fn set_rules(&self, verifier: Verifier, config: &SecurityConfig) {
        self.verifier.store(Arc::new(verifier));
        self.require_scopes
            .store(config.require_connector_scopes, Ordering::Relaxed);
        self.proofs.set_rules(config);
    }

    /// Whether a token must name the connectors of its agent.
    pub fn requires_scopes(&self) -> bool {
        self.require_scopes.load(Ordering::Relaxed)
    }

    /// The rules for tokens.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.verifier.load_full()
    }

    /// Who may show proofs, and which.
    pub(super) fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Judges a token and, where one is due, the proof that was shown with it.
    pub(super) async fn judge(
        &self,
        presented: &Presented<'_>,
        registry: &Registry,
    ) -> Result<Identity, Rejection> {
        let verifier = self.verifier();
        let mut identity = verifier.verify(presented.token, SystemTime::now()).await?;
        self.proofs
            .judge(&mut identity, presented, registry)
            .await?;
        Ok(identity)
    }

    /// Counts an agent that was turned away.
    pub(super) fn count_rejection(&self, code: &str) {
        self.metrics.tunnels.auth_failures.with([code]).inc();
    }

    /// Fires when keys were added or withdrawn.
    pub(super) fn key_changes(&self) -> watch::Receiver<u64> {
        self.verifier.load().keys().changes()
    }

    /// Whether a token passes under the rules and keys in force, its dates aside.
    pub(super) fn upholds(&self, identity: &Identity) -> bool {
        self.verifier.load().upholds(identity) && self.proofs.uphold(identity)
    }

    /// Parts connectors into those that the agent may export and those that it may not.
    pub(super) fn sort(
        &self,
        identity: &Identity,
        connectors: Vec<String>,
    ) -> (Vec<String>, Vec<Rejected>) {
        let everything = !self.require_scopes.load(Ordering::Relaxed);
        let (granted, denied): (Vec<_>, Vec<_>) = connectors
            .into_iter()
            .partition(|name| everything || identity.grants(name));
        let denied = denied
            .into_iter()
            .map(|name| rejected(name, "not_in_token_scopes"));
        (granted, denied.collect())
    }
}

/// One connector that is not routed to an agent, with the reason that the agent is told.
fn rejected(name: String, reason: &str) -> Rejected {
    Rejected {
        name,
        reason: reason.to_owned(),
    }
}
