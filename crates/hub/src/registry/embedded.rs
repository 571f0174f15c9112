//! The registry of a single hub, in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nowconnect_proto::hello::Instance;
use parking_lot::Mutex;

use super::rivalry::Rivalry;
use super::{Claim, ClaimError, Lease, epoch};

/// Keeps the owners of a hub that has no peers.
#[derive(Debug, Default)]
pub struct Embedded {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<Arc<str>, Record>,
    rivalries: HashMap<Arc<str>, Rivalry>,
    /// The highest epoch granted to anybody, so that a record may be forgotten with its last tunnel.
    highest: u64,
}

#[derive(Debug)]
struct Record {
    instance: Instance,
    epoch: u64,
    connectors: Vec<String>,
    /// Tunnels of this running agent.
    tunnels: usize,
}

impl Embedded {
    /// Grants `claim` unless two living agents fight over the id.
    ///
    /// # Errors
    /// [`ClaimError::Conflict`].
    pub async fn claim(self: &Arc<Self>, claim: Claim) -> Result<Lease, ClaimError> {
        self.claim_at(claim, Instant::now(), SystemTime::now())
    }

    fn claim_at(
        self: &Arc<Self>,
        claim: Claim,
        now: Instant,
        clock: SystemTime,
    ) -> Result<Lease, ClaimError> {
        let state = &mut *self.state.lock();
        state.rivalries.retain(|_, rivalry| !rivalry.is_over(now));
        let Claim {
            agent_id,
            instance,
            epoch_seen,
            connectors,
        } = claim;
        let lease = |epoch| Lease {
            agent_id: agent_id.clone(),
            instance,
            epoch,
            registry: self.clone(),
        };
        match state.agents.get_mut(&agent_id) {
            Some(own) if own.instance == instance => {
                own.tunnels += 1;
                own.connectors = connectors;
                return Ok(lease(own.epoch));
            }
            Some(_) => {
                let rivalry = state.rivalries.entry(agent_id.clone()).or_default();
                if !rivalry.displace(now) {
                    return Err(ClaimError::Conflict);
                }
            }
            None => {}
        }
        let epoch = epoch::above(state.highest, epoch_seen, clock);
        state.highest = epoch;
        state.agents.insert(
            agent_id.clone(),
            Record {
                instance,
                epoch,
                connectors,
                tunnels: 1,
            },
        );
        Ok(lease(epoch))
    }

    /// The epoch of the agent's present owner.
    pub fn epoch(&self, agent_id: &str) -> Option<u64> {
        self.state
            .lock()
            .agents
            .get(agent_id)
            .map(|record| record.epoch)
    }

    /// What the agent exports.
    pub fn connectors(&self, agent_id: &str) -> Vec<String> {
        let state = self.state.lock();
        state
            .agents
            .get(agent_id)
            .map(|record| record.connectors.clone())
            .unwrap_or_default()
    }

    pub(super) fn update(&self, agent_id: &str, epoch: u64, connectors: Vec<String>) {
        let mut state = self.state.lock();
        if let Some(record) = state.agents.get_mut(agent_id).filter(|r| r.epoch == epoch) {
            record.connectors = connectors;
        }
    }

    pub(super) fn withdraw(&self, agent_id: &str, epoch: u64, instance: Instance) {
        let mut state = self.state.lock();
        let Some(record) = state.agents.get_mut(agent_id) else {
            return;
        };
        if record.epoch != epoch || record.instance != instance {
            return;
        }
        record.tunnels -= 1;
        if record.tunnels == 0 {
            state.agents.remove(agent_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn claim(instance: u128) -> Claim {
        Claim {
            agent_id: "site-1".into(),
            instance: Instance(instance),
            epoch_seen: 0,
            connectors: vec!["ldap".into()],
        }
    }

    #[tokio::test]
    async fn every_new_ownership_is_above_the_last() {
        let registry = Arc::new(Embedded::default());
        let mut last = 0;
        for instance in 0..5 {
            let lease = registry.claim(claim(instance)).await.expect("granted");
            assert!(lease.epoch() > last);
            last = lease.epoch();
        }
        let reported = Claim {
            epoch_seen: last + 1000,
            ..claim(9)
        };
        let lease = registry.claim(reported).await.expect("granted");
        assert_eq!(lease.epoch(), last + 1001);
    }

    #[tokio::test]
    async fn tunnels_of_one_running_agent_share_an_epoch_until_the_last_is_gone() {
        let registry = Arc::new(Embedded::default());
        let first = registry.claim(claim(1)).await.expect("granted");
        let second = registry.claim(claim(1)).await.expect("granted");
        let epoch = first.epoch();
        assert_eq!(epoch, second.epoch());
        drop(first);
        assert_eq!(registry.epoch("site-1"), Some(epoch));
        drop(second);
        assert_eq!(registry.epoch("site-1"), None);
        let back = registry.claim(claim(1)).await.expect("granted");
        assert!(back.epoch() > epoch);
    }

    #[tokio::test]
    async fn a_displaced_lease_withdraws_nothing_of_its_successor() {
        let registry = Arc::new(Embedded::default());
        let old = registry.claim(claim(1)).await.expect("granted");
        let new = registry.claim(claim(2)).await.expect("granted");
        old.update(vec!["stale".into()]);
        drop(old);
        assert_eq!(registry.epoch("site-1"), Some(new.epoch()));
        assert_eq!(registry.connectors("site-1"), ["ldap"]);
    }

    #[tokio::test]
    async fn rivals_are_damped_and_a_lone_agent_is_not() {
        let registry = Arc::new(Embedded::default());
        let now = Instant::now();
        let at = |instance, seconds| {
            registry.claim_at(
                claim(instance),
                now + Duration::from_secs(seconds),
                SystemTime::now(),
            )
        };
        let held: Vec<_> = (0..4).map(|n| at(n, n as u64).expect("granted")).collect();
        let incumbent = held[3].epoch();
        assert_eq!(at(7, 5).err(), Some(ClaimError::Conflict));
        assert_eq!(registry.epoch("site-1"), Some(incumbent));
        drop(held);
        assert!(
            at(7, 6).is_ok(),
            "nobody is displaced when the incumbent is gone"
        );
    }
}
