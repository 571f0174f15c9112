//! The registry that hubs share, in Redis 6 or later: one server, Sentinels or a Cluster.
//!
//! # Keys
//!
//! | key | type | holds |
//! |---|---|---|
//! | `nowconnect:{agent:ID}` | hash | the latest owner that was granted: `epoch`, `instance`; `at`, `by`, `rivals` for damping; lives for three days after the last claim |
//! | `nowconnect:{hub:ID}` | hash | a hub's table: `#nonce`, `#version`, and an entry of JSON per agent; lives for 15 s unless renewed |
//! | `nowconnect:hubs` | sorted set | hubs by their last sign of life |
//! | `nowconnect:{proofs:N}` | sorted set | a sixteenth of the proofs of possession that were accepted, by time, for two minutes, longer than they are good; and `#since` when nothing was forgotten |
//!
//! and the channel `nowconnect:changes:DB`, on which each change of a table is told with the version
//! that it makes. A reader applies the next version, and reads the table for anything else.
//!
//! Only its hub writes a table, and only the start of it that came last: the nonce begins with the
//! time of its first contact, and a later one takes the table over. A record is written by whoever is
//! claimed at. Every change is one script on one key, so it is atomic and needs no more than one slot
//! of a cluster. Nothing is ever lost with the data: tables are written anew from what the hubs hold,
//! epochs stay above the clock.

mod bounded;
pub(super) mod cluster;
mod dial;
mod fault;
mod link;
pub(super) mod operations;
pub(super) mod probe;
mod script;
pub(super) mod sentinel;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Claim, ClaimError, Owner, RegistryHealth, StoreConfig};
use link::Link;

pub(super) use crate::config::redis_url::Target;
pub(super) use worker::Worker;

/// How long an agent waits for the registry before its hub decides alone.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long proofs of possession need their own hub's nonce after the connection was lost: servers that
/// come back may have forgotten which were shown.
const AMNESIA: Duration = Duration::from_secs(120);

/// What the hub and the task that keeps up the shared registry have in common.
pub(super) struct Store {
    pub(super) config: StoreConfig,
    /// There while the registry is up and this hub may write to it.
    link: ArcSwapOption<Link>,
    /// Agents here of which the table does not tell yet.
    dirty: Mutex<HashSet<Arc<str>>>,
    changed: Notify,
    /// An operation failed: the link is to be looked at.
    suspect: Notify,
    health: Mutex<RegistryHealth>,
    /// When a connection was lost last.
    lost_at: Mutex<Option<Instant>>,
    pub(super) stop: CancellationToken,
}

impl Store {
    pub(super) fn new(config: StoreConfig, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            config,
            link: ArcSwapOption::empty(),
            dirty: Mutex::default(),
            changed: Notify::new(),
            suspect: Notify::new(),
            health: Mutex::new(RegistryHealth::Down("not reached yet".to_owned())),
            lost_at: Mutex::default(),
            stop,
        })
    }

    /// Asks for a claim; `None` when there is no answer to be had.
    pub(super) async fn claim(
        &self,
        hub: &str,
        claim: &Claim,
        known: Option<Owner>,
        floor: u64,
    ) -> Option<Result<Owner, ClaimError>> {
        let link = self.link.load_full()?;
        let asked = timeout(PATIENCE, link.claim(hub, claim, known, floor)).await;
        match asked.unwrap_or_else(|_| Err(link.late())) {
            Ok(verdict) => Some(verdict.map(|epoch| Owner {
                epoch,
                instance: claim.instance,
            })),
            Err(error) => {
                tracing::debug!(event = "claim_unanswered", agent_id = %claim.agent_id, %error);
                self.suspect.notify_one();
                None
            }
        }
    }

    /// See [`super::Registry::is_first_use`].
    pub(super) async fn is_first_use(&self, proof: &str) -> Option<bool> {
        let link = self.link.load_full()?;
        if (*self.lost_at.lock()).is_some_and(|at| at.elapsed() < AMNESIA) {
            return None;
        }
        let asked = timeout(PATIENCE, link.note_proof(proof)).await;
        let answer = asked.unwrap_or_else(|_| Err(link.late()));
        answer.unwrap_or_else(|error| {
            tracing::debug!(event = "proof_unanswered", %error);
            self.suspect.notify_one();
            None
        })
    }

    /// The agent's tunnels here are not what they were.
    pub(super) fn note(&self, agent_id: &Arc<str>) {
        self.dirty.lock().insert(agent_id.clone());
        self.changed.notify_one();
    }

    pub(super) fn health(&self) -> RegistryHealth {
        self.health.lock().clone()
    }
}
