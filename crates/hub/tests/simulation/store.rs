//! The registry that hubs share: the agents' records and the hubs' tables, and how these get around.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::hub::Heard;
use crate::net::{ACCEPTOR, ConnId};
use crate::rules::{Owner, Records, Told};
use crate::world::{FAULTS_MS, HUBS, ProcId, Role, What, World};

/// How long a table lives that its hub does not renew, and how long it must be missing before its
/// agents are given up, in milliseconds.
const TABLE_MS: u64 = 15_000;
const PATIENCE: u64 = 6000;
/// How long any operation may take.
const OPERATION: u64 = 500;
/// Old copies that a failover may bring back.
const COPIES: usize = 20;

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) proc: ProcId,
    pub(crate) down: bool,
    pub(crate) slow: bool,
    records: Records,
    tables: BTreeMap<usize, Table>,
    copies: VecDeque<Copy>,
}

#[derive(Clone)]
struct Table {
    start: u64,
    version: u64,
    agents: BTreeMap<Arc<str>, Told>,
    until: u64,
}

type Copy = (Vec<(Arc<str>, Owner)>, BTreeMap<usize, Table>);

impl Store {
    /// FLUSHALL.
    pub(crate) fn flush(&mut self) {
        self.records.forget();
        self.tables.clear();
    }

    /// An old copy takes over.
    pub(crate) fn fail_over(&mut self) {
        if let Some((records, tables)) = self.copies.front().cloned() {
            self.records.forget();
            for (id, owner) in records {
                self.records.hold(&id, owner);
            }
            self.tables = tables;
        }
    }

    fn copy(&mut self) {
        self.copies
            .push_back((self.records.owners(), self.tables.clone()));
        if self.copies.len() > COPIES {
            self.copies.pop_front();
        }
    }
}

impl World {
    fn store_latency(&mut self) -> u64 {
        let most = if self.store.slow { 900 } else { 15 };
        self.random.within(1..most)
    }

    // ---- claims ---------------------------------------------------------------------------------

    pub(crate) fn ask_store(&mut self, hub: usize, conn: ConnId) {
        let proc = self.hubs[hub].proc;
        if self.store.down {
            let wait = self.random.within(0..1000);
            return self.later(wait, proc, What::Claimed(conn, None));
        }
        self.later(OPERATION, proc, What::Claimed(conn, None));
        let wait = self.store_latency();
        self.later(wait, self.store.proc, What::Claim(conn));
    }

    pub(crate) fn claim_at_store(&mut self, conn: ConnId) {
        let to = self.conns[conn].procs[ACCEPTOR];
        let Role::Hub(hub) = self.procs[to].role else {
            return;
        };
        if self.store.down || self.hubs[hub].proc != to {
            return;
        }
        let one = &self.hubs[hub];
        let Some(claim) = one.claims.get(&conn) else {
            return;
        };
        let known = one.directory.known(&claim.agent_id);
        let floor = one.directory.floor(&claim.agent_id);
        let records = &mut self.store.records;
        let answer = records.claim(claim, known, floor, self.epoch, self.now);
        let wait = self.store_latency();
        self.later(wait, to, What::Claimed(conn, Some(answer)));
    }

    // ---- tables ---------------------------------------------------------------------------------

    /// The hub's table has changed.
    pub(crate) fn tell_others(&mut self, hub: usize) {
        self.hubs[hub].version += 1;
        let wait = self.random.within(0..5);
        self.later(wait, self.hubs[hub].proc, What::Publish);
    }

    pub(crate) fn publish(&mut self, hub: usize) {
        if self.store.down {
            return;
        }
        let one = &self.hubs[hub];
        let table = Table {
            start: one.start,
            version: one.version,
            agents: one.directory.table(),
            until: self.now + TABLE_MS,
        };
        for (id, entry) in &table.agents {
            self.store.records.hold(id, entry.owner);
        }
        for other in (0..HUBS).filter(|other| *other != hub) {
            // Whoever does not listen at the moment hears nothing.
            let lost = self.now < FAULTS_MS && self.random.percent(10);
            if !lost {
                let wait = 1 + self.store_latency();
                let (start, version) = (table.start, table.version);
                let news = What::Hear(hub, start, version, table.agents.clone());
                self.later(wait, self.hubs[other].proc, news);
            }
        }
        self.store.tables.insert(hub, table);
        self.store.copy();
    }

    /// Renews the table, and looks at those of all others.
    pub(crate) fn resync(&mut self, hub: usize) {
        let wait = self.random.within(3000..4500);
        self.later(wait, self.hubs[hub].proc, What::Resync);
        if self.store.down {
            for heard in self.hubs[hub].tables.values_mut() {
                heard.missing_since = None;
            }
            return;
        }
        self.publish(hub);
        for other in (0..HUBS).filter(|other| *other != hub) {
            self.read_table(hub, other);
        }
    }

    pub(crate) fn read_table(&mut self, hub: usize, other: usize) {
        if self.store.down {
            return;
        }
        let now = self.now;
        let table = self
            .store
            .tables
            .get(&other)
            .filter(|table| now < table.until);
        if let Some(table) = table.cloned() {
            return self.replace(hub, other, table);
        }
        let Some(heard) = self.hubs[hub].tables.get_mut(&other) else {
            return;
        };
        if now >= *heard.missing_since.get_or_insert(now) + PATIENCE {
            let (start, version) = (heard.start, heard.version);
            self.note(|| format!("hub-{hub} gives hub-{other} up"));
            let nothing = Table {
                start,
                version,
                agents: BTreeMap::new(),
                until: 0,
            };
            self.replace(hub, other, nothing);
            self.hubs[hub].tables.remove(&other);
        }
    }

    /// A notification, which may be late.
    pub(crate) fn hear(
        &mut self,
        hub: usize,
        from: usize,
        start: u64,
        version: u64,
        agents: BTreeMap<Arc<str>, Told>,
    ) {
        let known = self.hubs[hub].tables.get(&from);
        if known.is_none_or(|known| (known.start, known.version) < (start, version)) {
            let until = 0;
            self.replace(
                hub,
                from,
                Table {
                    start,
                    version,
                    agents,
                    until,
                },
            );
        }
    }

    fn replace(&mut self, hub: usize, from: usize, table: Table) {
        let (name, agents) = (self.hubs[from].name.clone(), table.agents.clone());
        let heard = Heard {
            start: table.start,
            version: table.version,
            table: table.agents,
            missing_since: None,
        };
        let before = self.hubs[hub].tables.insert(from, heard);
        let before = before.map(|heard| heard.table).unwrap_or_default();
        let mut changed = Vec::new();
        let now = self.now + self.hubs[hub].skew;
        let directory = &mut self.hubs[hub].directory;
        for (id, entry) in &agents {
            if before.get(id) != Some(entry) {
                directory.learn(&name, id, Some(entry), now);
                changed.push(id.clone());
            }
        }
        for id in before.keys().filter(|id| !agents.contains_key(*id)) {
            directory.learn(&name, id, None, now);
            changed.push(id.clone());
        }
        if changed.is_empty() {
            return;
        }
        for id in changed {
            self.supersede(hub, &id);
        }
        self.resume_flows(hub);
    }
}
