//! What a hub says that is configured for high availability, which this version does not have.

use crate::config::{HaConfig, HaMode};

/// Says once, where HA is on, that the hub runs alone all the same.
pub(super) fn warn(ha: &HaConfig) {
    if ha.mode != HaMode::Off {
        tracing::warn!(
            event = "ha_not_available",
            mode = ha.mode.as_str(),
            peers = ha.mesh.peers.len(),
            detail = "this version has no mesh and no shared registry: the hub runs alone and serves \
                the agents that connect to it",
        );
    }
}

/// What an active hub lacks: it must not pass for one whose links are up.
pub(super) fn troubles(ha: &HaConfig) -> Vec<String> {
    let mut troubles = Vec::new();
    if !ha.mesh.peers.is_empty() {
        troubles.push("mesh links to peers are not available in this version".to_owned());
    }
    if ha.redis_url.is_some() {
        troubles.push("the shared registry is not available in this version".to_owned());
    }
    troubles
}
