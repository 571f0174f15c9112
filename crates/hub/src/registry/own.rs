//! The agents whose tunnels end here: the truth about them, whatever a shared registry says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::rivalry::Rivalry;
use super::routes::Entry;
use super::{Claim, ClaimError, Owner, epoch, owner};

/// Agents whose epochs are ahead of the clock that are remembered.
const MOST_AHEAD: usize = 65_536;

/// One hub's own agents.
#[derive(Debug, Default)]
pub(super) struct Own {
    agents: HashMap<Arc<str>, Record>,
    rivalries: HashMap<Arc<str>, Rivalry>,
    /// Epochs of agents without tunnels here that the clock had not passed when they were noted. All
    /// others may be forgotten: a new one is above the clock.
    ahead: HashMap<Arc<str>, u64>,
    records: u64,
}

/// Which record a tunnel entered into; no two of a process are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordId(u64);

/// An agent with tunnels here.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) owner: Owner,
    pub(super) connectors: Arc<[String]>,
    /// The token that its latest tunnel stands on.
    pub(super) token: Option<Arc<str>>,
    id: RecordId,
    tunnels: usize,
}

impl Record {
    /// What other hubs are told; `ailing` are connectors whose targets are down.
    pub(super) fn entry(&self, ailing: Arc<[String]>) -> Entry {
        Entry {
            owner: self.owner,
            connectors: self.connectors.clone(),
            token: self.token.clone(),
            ailing,
        }
    }
}

/// Times at which a claim is judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) steady: Instant,
    pub(super) clock: SystemTime,
}

impl Now {
    pub(super) fn read() -> Self {
        Self {
            steady: Instant::now(),
            clock: SystemTime::now(),
        }
    }
}

impl Own {
    /// Judges a claim without asking anybody. `elsewhere` is the agent's owner on other hubs.
    ///
    /// # Errors
    /// [`ClaimError::Conflict`].
    pub(super) fn judge(
        &mut self,
        claim: &Claim,
        elsewhere: Option<Owner>,
        now: Now,
    ) -> Result<Owner, ClaimError> {
        self.rivalries
            .retain(|_, rivalry| !rivalry.is_over(now.steady));
        let living = self.owner(&claim.agent_id).max(elsewhere);
        let own = |epoch| Owner {
            epoch,
            instance: claim.instance,
        };
        if let Some(epoch) = owner::epoch_to_join(living, claim, now.clock) {
            return Ok(own(epoch));
        }
        if living.is_some_and(|living| living.instance != claim.instance) {
            let rivalry = self.rivalries.entry(claim.agent_id.clone()).or_default();
            if !rivalry.displace(now.steady) {
                return Err(ClaimError::Conflict);
            }
        }
        let stored = living.map_or(0, |living| living.epoch);
        let stored = stored.max(self.floor(&claim.agent_id));
        Ok(own(epoch::above(stored, claim.epoch_seen, now.clock)))
    }

    /// A tunnel of `owner` is here. `None`: a later owner is here already, and nothing has changed.
    pub(super) fn enter(
        &mut self,
        agent_id: &Arc<str>,
        owner: Owner,
        connectors: Vec<String>,
    ) -> Option<RecordId> {
        let connectors = connectors.into();
        match self.agents.get_mut(agent_id) {
            Some(record) if record.owner > owner => None,
            Some(record) if record.owner == owner => {
                record.tunnels += 1;
                record.connectors = connectors;
                Some(record.id)
            }
            _ => {
                self.records += 1;
                let id = RecordId(self.records);
                let record = Record {
                    owner,
                    connectors,
                    token: None,
                    id,
                    tunnels: 1,
                };
                self.agents.insert(agent_id.clone(), record);
                Some(id)
            }
        }
    }

    /// A tunnel that had entered is gone. The record goes with the last one.
    pub(super) fn leave(&mut self, agent_id: &Arc<str>, id: RecordId, clock: SystemTime) {
        let Some(record) = self.current(agent_id, id) else {
            return;
        };
        record.tunnels -= 1;
        if record.tunnels == 0 {
            let epoch = record.owner.epoch;
            self.agents.remove(agent_id);
            self.note_epoch(agent_id, epoch, clock);
        }
    }

    /// Other connectors of an owner, if it still is the one.
    pub(super) fn update(&mut self, agent_id: &str, id: RecordId, connectors: Vec<String>) {
        if let Some(record) = self.current(agent_id, id) {
            record.connectors = connectors.into();
        }
    }

    /// The name of the token that an owner's tunnel stands on.
    pub(super) fn name_token(&mut self, agent_id: &str, id: RecordId, token: Option<Arc<str>>) {
        if let Some(record) = self.current(agent_id, id) {
            record.token = token;
        }
    }

    fn current(&mut self, agent_id: &str, id: RecordId) -> Option<&mut Record> {
        self.agents
            .get_mut(agent_id)
            .filter(|record| record.id == id)
    }

    /// The agent has had this epoch: later ones granted here are above it.
    pub(super) fn note_epoch(&mut self, agent_id: &Arc<str>, epoch: u64, clock: SystemTime) {
        let passed = epoch::of_clock(clock);
        if epoch < passed {
            return;
        }
        if self.ahead.len() >= MOST_AHEAD {
            self.ahead.retain(|_, epoch| *epoch >= passed);
        }
        if self.ahead.len() < MOST_AHEAD {
            let noted = self.ahead.entry(agent_id.clone()).or_default();
            *noted = epoch.max(*noted);
        }
    }

    /// The highest epoch that the agent is known to have had, if the clock does not tell.
    pub(super) fn floor(&self, agent_id: &str) -> u64 {
        self.ahead.get(agent_id).copied().unwrap_or_default()
    }

    pub(super) fn get(&self, agent_id: &str) -> Option<&Record> {
        self.agents.get(agent_id)
    }

    pub(super) fn owner(&self, agent_id: &str) -> Option<Owner> {
        self.get(agent_id).map(|record| record.owner)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Record)> {
        self.agents.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nowconnect_proto::hello::Instance;
    use std::time::Duration;

    fn claim(instance: u128, held: Option<u64>) -> Claim {
        Claim {
            agent_id: "site-1".into(),
            instance: Instance(instance),
            epoch_seen: 0,
            epoch_held: held,
            connectors: Vec::new(),
        }
    }

    fn enter(own: &mut Own, claim: &Claim, now: Now) -> Result<Owner, ClaimError> {
        let owner = own.judge(claim, None, now)?;
        own.enter(&claim.agent_id, owner, claim.connectors.clone());
        Ok(owner)
    }

    #[test]
    fn rivals_are_damped_and_a_lone_agent_is_not() {
        let (mut own, start) = (Own::default(), Now::read());
        let at = |seconds| Now {
            steady: start.steady + Duration::from_secs(seconds),
            ..start
        };
        let incumbent = (0..4).map(|n| enter(&mut own, &claim(n, None), at(n as u64)));
        let incumbent = incumbent.last().expect("four").expect("granted");
        let rival = claim(7, None);
        assert_eq!(enter(&mut own, &rival, at(5)), Err(ClaimError::Conflict));
        assert_eq!(own.owner("site-1"), Some(incumbent));
        let id = own.get("site-1").expect("here").id;
        own.leave(&rival.agent_id, id, start.clock);
        assert!(enter(&mut own, &rival, at(6)).is_ok(), "displaces nobody");
    }

    #[test]
    fn a_process_that_lost_its_tunnels_is_no_rival_of_itself() {
        let (mut own, now) = (Own::default(), Now::read());
        let mut last = 0;
        for _ in 0..9 {
            let owner = enter(&mut own, &claim(1, Some(0)), now).expect("granted");
            assert!(owner.epoch > last);
            last = owner.epoch;
        }
    }

    #[test]
    fn an_epoch_ahead_of_the_clock_is_remembered_until_the_clock_has_passed_it() {
        let (mut own, now) = (Own::default(), Now::read());
        let ahead = Claim {
            epoch_seen: epoch::of_clock(now.clock) + 5_000,
            ..claim(1, None)
        };
        let first = enter(&mut own, &ahead, now).expect("granted");
        let id = own.get("site-1").expect("here").id;
        own.leave(&ahead.agent_id, id, now.clock);
        let other = Claim {
            agent_id: "site-2".into(),
            ..claim(2, None)
        };
        let other = enter(&mut own, &other, now).expect("granted");
        assert!(other.epoch < first.epoch, "one agent's word moves no other");
        let next = enter(&mut own, &claim(3, None), now).expect("granted");
        assert_eq!(next.epoch, first.epoch + 1);
        own.note_epoch(&"x".into(), 1, now.clock);
        assert_eq!(own.floor("x"), 0);
    }

    #[test]
    fn owners_elsewhere_count() {
        let (mut own, now) = (Own::default(), Now::read());
        let elsewhere = Owner {
            epoch: epoch::of_clock(now.clock) + 500,
            instance: Instance(1),
        };
        let judge =
            |own: &mut Own, instance, held| own.judge(&claim(instance, held), Some(elsewhere), now);
        assert_eq!(judge(&mut own, 1, None), Ok(elsewhere));
        let rival = judge(&mut own, 2, Some(0)).expect("granted");
        assert_eq!(rival.epoch, elsewhere.epoch + 1);
        assert!(judge(&mut own, 3, None).is_ok() && judge(&mut own, 4, None).is_ok());
        assert_eq!(judge(&mut own, 5, None), Err(ClaimError::Conflict));
    }

    #[test]
    fn a_late_leave_undoes_nothing_newer() {
        let (mut own, id): (_, Arc<str>) = (Own::default(), "site-1".into());
        let owner = |epoch| Owner {
            epoch,
            instance: Instance(1),
        };
        let first = own.enter(&id, owner(5), Vec::new()).expect("entered");
        let second = own.enter(&id, owner(6), Vec::new()).expect("entered");
        assert_eq!(own.enter(&id, owner(5), Vec::new()), None, "outlived");
        own.leave(&id, first, SystemTime::now());
        assert_eq!(own.owner(&id), Some(owner(6)));
        own.leave(&id, second, SystemTime::now());
        own.enter(&id, owner(5), Vec::new());
        own.leave(&id, first, SystemTime::now());
        assert_eq!(own.owner(&id), Some(owner(5)));
    }
}
