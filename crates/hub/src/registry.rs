//! Which hub owns which agent: a directory with fencing numbers.
//!
//! An agent's tunnel claims ownership for the hub it reached. Every claim of a running agent that
//! holds no tunnel yet gets an epoch above all earlier ones; further tunnels of the same running
//! agent join its epoch. The newest claim wins. The directory never cuts a tunnel: the living tunnel
//! is the truth, and a displaced one is told so by the session table.

mod embedded;
mod epoch;
mod rivalry;

use std::sync::Arc;

use nowconnect_proto::hello::Instance;

pub use embedded::Embedded;

/// What a tunnel's HELLO claims.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The agent, as its token names it.
    pub agent_id: Arc<str>,
    /// Which start of the agent.
    pub instance: Instance,
    /// The highest epoch that the agent was ever told; 0 for none.
    pub epoch_seen: u64,
    /// What it exports.
    pub connectors: Vec<String>,
}

/// A claim was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Two living agents fight over the id; the one that is here stays for now.
    #[error("another living agent uses this id")]
    Conflict,
}

/// A granted claim. Dropping it withdraws exactly this claim, so a late drop cannot undo a newer one.
#[derive(Debug)]
pub struct Lease {
    agent_id: Arc<str>,
    instance: Instance,
    epoch: u64,
    registry: Arc<Embedded>,
}

impl Lease {
    /// The fencing number of the ownership.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Publishes other connectors under the same ownership.
    pub fn update(&self, connectors: Vec<String>) {
        self.registry.update(&self.agent_id, self.epoch, connectors);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.registry
            .withdraw(&self.agent_id, self.epoch, self.instance);
    }
}
