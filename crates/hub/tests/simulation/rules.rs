//! The hub's own rules, as they are: this module stands where `registry` stands in the hub.

#![allow(dead_code, unreachable_pub)]

#[path = "../../src/registry/epoch.rs"]
mod epoch;
#[path = "../../src/registry/own.rs"]
mod own;
#[path = "../../src/registry/owner.rs"]
mod owner;
#[path = "../../src/registry/rivalry.rs"]
mod rivalry;
#[path = "../../src/registry/routes.rs"]
mod routes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nowconnect_proto::hello::Instance;

use own::{Now, Own};
use rivalry::Rivalry;
use routes::{Entry, Routes};

pub(crate) use owner::Owner;
pub(crate) use routes::Route;

/// What a tunnel's HELLO claims.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) agent_id: Arc<str>,
    pub(crate) instance: Instance,
    pub(crate) epoch_seen: u64,
    pub(crate) epoch_held: Option<u64>,
    pub(crate) connectors: Vec<String>,
}

/// A claim was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimError {
    Conflict,
}

/// When the simulation begins, on clocks that it does not ask.
#[derive(Clone, Copy)]
pub(crate) struct Epoch(Instant);

impl Epoch {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    /// The time `ms` after the beginning, on a clock that is `skew` milliseconds wrong.
    fn at(self, ms: u64, skew: u64) -> Now {
        Now {
            steady: self.0 + Duration::from_millis(ms),
            clock: clock(ms + skew),
        }
    }
}

fn clock(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + ms)
}

/// What a tunnel entered into.
pub(crate) struct Record(own::RecordId);

/// What a hub says of one of its agents.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) owner: Owner,
    connectors: Arc<[String]>,
}

/// One hub's agents and routes.
pub(crate) struct Directory {
    own: Own,
    routes: Routes,
    epoch: Epoch,
}

impl Directory {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            own: Own::default(),
            routes: Routes::new(),
            epoch,
        }
    }

    /// Judges a claim without the registry.
    pub(crate) fn judge(&mut self, claim: &Claim, ms: u64, skew: u64) -> Option<Owner> {
        let elsewhere = self.routes.owner(&claim.agent_id);
        let now = self.epoch.at(ms, skew);
        self.own.judge(claim, elsewhere, now).ok()
    }

    /// The latest owner that this hub knows of.
    pub(crate) fn known(&self, agent_id: &str) -> Option<Owner> {
        self.own.owner(agent_id).max(self.routes.owner(agent_id))
    }

    pub(crate) fn here(&self, agent_id: &str) -> Option<Owner> {
        self.own.owner(agent_id)
    }

    /// What a new epoch must be above although the clock is not.
    pub(crate) fn floor(&self, agent_id: &str) -> u64 {
        self.own.floor(agent_id)
    }

    pub(crate) fn enter(
        &mut self,
        agent_id: &Arc<str>,
        owner: Owner,
        connectors: Vec<String>,
    ) -> Option<Record> {
        let record = self.own.enter(agent_id, owner, connectors);
        self.routes.set_here(agent_id, self.own.owner(agent_id));
        record.map(Record)
    }

    pub(crate) fn leave(&mut self, agent_id: &Arc<str>, record: Record, ms: u64) {
        self.own.leave(agent_id, record.0, clock(ms));
        self.routes.set_here(agent_id, self.own.owner(agent_id));
    }

    /// What other hubs are told.
    pub(crate) fn table(&self) -> BTreeMap<Arc<str>, Told> {
        let told = |record: &own::Record| Told {
            owner: record.owner,
            connectors: record.connectors.clone(),
        };
        let own = self.own.iter();
        own.map(|(id, record)| (id.clone(), told(record))).collect()
    }

    /// Another hub has the agent, or has it no more.
    pub(crate) fn learn(
        &mut self,
        hub: &Arc<str>,
        agent_id: &Arc<str>,
        told: Option<&Told>,
        ms: u64,
    ) {
        if let Some(before) = self.routes.owner(agent_id) {
            self.own.note_epoch(agent_id, before.epoch, clock(ms));
        }
        let entry = told.map(|told| Entry {
            owner: told.owner,
            connectors: told.connectors.clone(),
            token: None,
            ailing: Arc::default(),
        });
        self.routes.set(hub, agent_id, entry.as_ref());
    }

    pub(crate) fn exporters(&self, connector: &str) -> Vec<Arc<Route>> {
        self.routes.exporters(connector)
    }

    pub(crate) fn of_instance(&self, agent_id: &str, instance: Instance) -> Vec<Arc<Route>> {
        self.routes.of_instance(agent_id, instance)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Route>> {
        self.routes.all()
    }

    pub(crate) fn is_superseded(&self, agent_id: &str, instance: Instance) -> bool {
        self.routes.is_superseded(agent_id, instance)
    }
}

/// The agents' records in the shared registry.
#[derive(Default)]
pub(crate) struct Records(BTreeMap<Arc<str>, (Owner, Rivalry)>);

impl Records {
    /// What the registry answers to a claim of a hub that knows of `known` and holds `floor`.
    pub(crate) fn claim(
        &mut self,
        claim: &Claim,
        known: Option<Owner>,
        floor: u64,
        epoch: Epoch,
        ms: u64,
    ) -> Option<Owner> {
        let now = epoch.at(ms, 0);
        let stored = self.0.get(&claim.agent_id).map(|(owner, _)| *owner);
        let latest = stored.max(known);
        let granted = match owner::epoch_to_join(latest, claim, now.clock) {
            Some(epoch) => epoch,
            None => {
                let rival = known.is_some_and(|known| known.instance != claim.instance);
                if rival && latest == known {
                    let record = self.0.get_mut(&claim.agent_id);
                    if record.is_some_and(|(_, rivalry)| !rivalry.displace(now.steady)) {
                        return None;
                    }
                }
                let stored = latest.map_or(0, |owner| owner.epoch).max(floor);
                epoch::above(stored, claim.epoch_seen, now.clock)
            }
        };
        let owner = Owner {
            epoch: granted,
            instance: claim.instance,
        };
        self.hold(&claim.agent_id, owner);
        Some(owner)
    }

    /// An owner whose tunnels live.
    pub(crate) fn hold(&mut self, agent_id: &Arc<str>, owner: Owner) {
        let record = self
            .0
            .entry(agent_id.clone())
            .or_insert_with(|| (owner, Rivalry::default()));
        record.0 = record.0.max(owner);
    }

    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }

    pub(crate) fn owners(&self) -> Vec<(Arc<str>, Owner)> {
        let records = self.0.iter();
        records
            .map(|(id, (owner, _))| (id.clone(), *owner))
            .collect()
    }
}
