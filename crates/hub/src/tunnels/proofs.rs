//! Proofs of possession: who must show one, and that each is shown once.

use arc_swap::ArcSwap;
use http::HeaderMap;

use crate::auth::dpop::{Nonces, Noted, Occasion, Proof, RENEWAL, Seen, Target, UPGRADE};
use crate::auth::{Identity, Reason, Rejection, Scheme, authorization, proof};
use crate::config::{FapiMode, SecurityConfig};
use crate::registry::Registry;

/// A token with what came along.
#[derive(Debug)]
pub(super) struct Presented<'a> {
    pub(super) token: &'a str,
    scheme: Scheme,
    proof: Option<&'a str>,
    method: &'static str,
    /// The URL that it was shown at, as far as that can be told.
    at: Option<&'a Target>,
}

impl<'a> Presented<'a> {
    /// With a request that was sent to `at`.
    pub(super) fn with_upgrade(
        headers: &'a HeaderMap,
        at: Option<&'a Target>,
    ) -> Result<Self, Rejection> {
        let (scheme, token) = authorization(headers)?;
        Ok(Self {
            token,
            scheme,
            proof: proof(headers)?,
            method: UPGRADE,
            at,
        })
    }

    /// Over a tunnel whose upgrade was sent to `at`.
    pub(super) fn with_renewal(
        token: &'a str,
        proof: Option<&'a str>,
        at: Option<&'a Target>,
    ) -> Self {
        Self {
            token,
            scheme: if proof.is_some() {
                Scheme::Dpop
            } else {
                Scheme::Bearer
            },
            proof,
            method: RENEWAL,
            at,
        }
    }
}

/// Judges proofs by the rules in force, and remembers them.
#[derive(Debug)]
pub(super) struct Proofs {
    rules: ArcSwap<ProofRules>,
    nonces: Nonces,
    seen: Seen,
}

#[derive(Debug)]
struct ProofRules {
    /// Tokens that are for no key are refused.
    required: bool,
    /// The URLs that this hub goes by; `None` = the one that a request was sent to.
    targets: Option<Vec<Target>>,
}

impl ProofRules {
    fn of(config: &SecurityConfig) -> Self {
        let urls = &config.dpop_htu;
        let targets = urls
            .iter()
            .filter_map(|url| Target::parse(&url.to_string()));
        Self {
            required: config.fapi_mode == FapiMode::Dpop,
            // A list of which nothing is of use must not become no list.
            targets: (!urls.is_empty()).then(|| targets.collect()),
        }
    }
}

impl Proofs {
    pub(super) fn new(config: &SecurityConfig) -> Self {
        Self {
            rules: ArcSwap::from_pointee(ProofRules::of(config)),
            nonces: Nonces::new(),
            seen: Seen::default(),
        }
    }

    pub(super) fn set_rules(&self, config: &SecurityConfig) {
        self.rules.store(ProofRules::of(config).into());
    }

    /// Whether every agent must show a proof.
    pub(super) fn are_required(&self) -> bool {
        self.rules.load().required
    }

    /// Whether an agent that was let in may stay as far as proofs go.
    pub(super) fn uphold(&self, identity: &Identity) -> bool {
        identity.proven || !self.are_required()
    }

    /// What an agent makes its next proof with.
    pub(super) fn nonce(&self) -> String {
        self.nonces.current()
    }

    /// Judges what was shown with a token that is good by itself.
    ///
    /// A token that names a key needs a proof by it whatever the mode, else whoever steals it could
    /// show it as a mere bearer token (RFC 9449 section 7.2).
    pub(super) async fn judge(
        &self,
        identity: &mut Identity,
        presented: &Presented<'_>,
        registry: &Registry,
    ) -> Result<(), Rejection> {
        let required = self.are_required();
        let Some(key) = &identity.proof_key else {
            return match presented.scheme {
                _ if !required => Ok(()),
                Scheme::Bearer => Err(Reason::DpopRequired.into()),
                Scheme::Dpop => Err(Reason::DpopTokenUnbound.into()),
            };
        };
        let proof = match (presented.scheme, presented.proof) {
            (Scheme::Bearer, _) => return Err(Reason::DpopRequired.into()),
            (Scheme::Dpop, None) => return Err(Reason::DpopMissing.into()),
            (Scheme::Dpop, Some(proof)) => self.check(proof, key, presented)?,
        };
        self.note(&proof, key, registry).await?;
        identity.proven = true;
        Ok(())
    }

    fn check(&self, proof: &str, key: &str, presented: &Presented<'_>) -> Result<Proof, Rejection> {
        let rules = self.rules.load();
        let targets = match &rules.targets {
            None => presented.at.map_or(&[][..], std::slice::from_ref),
            Some(targets) => targets,
        };
        let occasion = Occasion {
            method: presented.method,
            targets,
            token: presented.token,
            key,
            now: std::time::SystemTime::now(),
        };
        Proof::check(proof, &occasion, &self.nonces)
    }

    /// Sees to it that no hub accepts a proof twice: either the registry that all hubs share has said
    /// that it is new, or it carries a nonce that no other hub takes. Nothing else is believed, so that
    /// a registry that is away, or a hub that was restarted, leaves no gap.
    async fn note(&self, proof: &Proof, key: &str, registry: &Registry) -> Result<(), Rejection> {
        if !proof.has_nonce {
            match registry.is_first_use(&proof.id.to_string()).await {
                Some(true) => {}
                Some(false) => return Err(Reason::DpopReplayed.into()),
                None => return Err(Reason::DpopNonceDemanded.into()),
            }
        }
        match self.seen.note(proof.id, key) {
            Noted::New => Ok(()),
            Noted::Again => Err(Reason::DpopReplayed.into()),
            Noted::Full => Err(Reason::DpopOverloaded.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(urls: &[&str]) -> ProofRules {
        let config = SecurityConfig {
            jwks: None,
            jwks_ca: None,
            issuer: None,
            audience: "nowconnect".into(),
            allow_cidrs: Vec::new(),
            require_connector_scopes: false,
            fapi_mode: FapiMode::Dpop,
            dpop_htu: urls.iter().map(|url| url.parse().expect("a URL")).collect(),
        };
        ProofRules::of(&config)
    }

    #[test]
    fn a_list_of_which_nothing_is_of_use_is_not_what_the_sender_names() {
        assert_eq!(rules(&[]).targets, None);
        assert_eq!(rules(&["https://a&b.example/tunnel"]).targets, Some(vec![]));
        let one = rules(&["https://a&b.example/tunnel", "wss://hub.example/tunnel"]);
        let good = Target::parse("https://hub.example/tunnel").expect("a URL");
        assert_eq!(one.targets, Some(vec![good]));
    }
}
