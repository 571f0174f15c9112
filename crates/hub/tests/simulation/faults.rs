//! What goes wrong.

use crate::net::{ConnId, Kind};
use crate::world::{AGENTS, FAULTS_MS, HUBS, ProcId, Role, What, World};

/// How something that went wrong is put right.
pub(crate) enum Heal {
    Release(ConnId),
    Continue(ProcId),
    StoreUp,
    StoreQuick,
    StartHub(usize),
    StartAgent(usize),
    Kill(ProcId),
}

impl World {
    /// One fault, of any kind.
    pub(crate) fn fault(&mut self) {
        match self.random.below(16) {
            0..=3 => self.cut(),
            4 | 5 => self.hold(),
            6 => self.deafen(),
            7 => {
                let proc = self.any_proc();
                if self.procs[proc].waiting.is_none() {
                    self.pause(proc);
                    let most = if self.random.percent(30) {
                        25_000
                    } else {
                        4000
                    };
                    let wait = self.random.within(100..most);
                    self.heal_later(wait, Heal::Continue(proc));
                }
            }
            8 => self.lose_hub(),
            9 => self.restart_agent(),
            10 => self.double_agent(),
            11 => self.break_store(),
            12 => {
                self.note(|| "the registry is flushed".into());
                self.store.flush();
            }
            13 => {
                self.note(|| "an old copy of the registry takes over".into());
                self.store.fail_over();
            }
            14 => {
                let relays: Vec<_> = self.relays.keys().copied().collect();
                if let Some(relay) = self.random.pick(&relays) {
                    self.note(|| format!("relay {relay} is shed"));
                    self.shed(relay);
                    self.let_flows_send();
                }
            }
            _ => {
                let rooms: Vec<_> = self.relays.keys().copied().collect();
                for relay in rooms {
                    let room = self.random.within(1..9000);
                    if let Some(passing) = self.relays.get_mut(&relay) {
                        passing.room = room;
                    }
                }
            }
        }
    }

    fn heal_later(&mut self, ms: u64, heal: Heal) {
        // What lasts longer than all faults is put right with the rest.
        let ms = ms.min(FAULTS_MS.saturating_sub(self.now).max(500));
        self.later(ms, self.store.proc, What::Heal(heal));
    }

    pub(crate) fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Release(conn) => self.release(conn),
            Heal::Continue(proc) => self.resume(proc),
            Heal::StoreUp => {
                self.note(|| "the registry is back".into());
                self.store.down = false;
            }
            Heal::StoreQuick => self.store.slow = false,
            Heal::StartHub(hub) if !self.is_up(hub) => self.start_hub(hub),
            Heal::StartHub(hub) if self.hubs[hub].draining => {
                self.heal_later(500, Heal::StartHub(hub));
            }
            Heal::StartHub(_) => {}
            Heal::StartAgent(id) => {
                if self.living(id).is_empty() {
                    self.start_agent(id);
                }
            }
            Heal::Kill(proc) => {
                if self.procs[proc].alive && !self.mended {
                    self.crash(proc);
                }
            }
        }
    }

    /// No more faults; what was taken away comes back.
    pub(crate) fn mend(&mut self) {
        self.mended = true;
        for passing in self.relays.values_mut() {
            passing.room = passing.room.max(4096);
        }
        self.store.down = false;
        self.store.slow = false;
        for conn in 0..self.conns.len() {
            self.release(conn);
        }
        for proc in 0..self.procs.len() {
            self.resume(proc);
        }
        for hub in 0..HUBS {
            if !self.is_up(hub) {
                self.start_hub(hub);
            }
        }
        for id in 0..AGENTS.len() {
            let living = self.living(id);
            for proc in living.iter().skip(1) {
                self.crash(*proc);
            }
            if living.is_empty() {
                self.start_agent(id);
            }
        }
        self.let_flows_send();
    }

    // ---- connections ----------------------------------------------------------------------------

    fn any_conn(&mut self) -> Option<ConnId> {
        let living = |conn: &ConnId| self.conns[*conn].up[0] || self.conns[*conn].up[1];
        let conns: Vec<_> = (0..self.conns.len()).filter(living).collect();
        self.random.pick(&conns)
    }

    /// The connection is gone, with some of what was on its way. Each side hears of it now, later, or
    /// not at all.
    fn cut(&mut self) {
        let Some(conn) = self.any_conn() else { return };
        self.note(|| format!("connection {conn} is cut"));
        for side in [0, 1] {
            let purged = self.random.percent(60);
            let hears = self.random.percent(80);
            let wait = self.random.within(1..2000);
            let link = &mut self.conns[conn];
            link.deaf[side] = true;
            link.purged[side] |= purged;
            let proc = link.procs[side];
            if hears {
                self.later(wait, proc, What::Broken(conn, side));
            }
        }
    }

    /// What one side sends is lost from now on, and nobody is told.
    fn deafen(&mut self) {
        let side = self.random.below(2);
        if let Some(conn) = self.any_conn() {
            self.note(|| format!("connection {conn} is deaf to side {side}"));
            self.conns[conn].deaf[side] = true;
        }
    }

    fn hold(&mut self) {
        let wait = self.random.within(50..14_000);
        if let Some(conn) = self.any_conn() {
            self.note(|| format!("connection {conn} is held"));
            self.conns[conn].held.get_or_insert_default();
            self.heal_later(wait, Heal::Release(conn));
        }
    }

    fn release(&mut self, conn: ConnId) {
        let Some(held) = self.conns[conn].held.take() else {
            return;
        };
        self.note(|| format!("connection {conn} goes on"));
        for (side, messages) in held.into_iter().enumerate() {
            let proc = self.conns[conn].procs[side];
            for message in messages {
                self.happen(proc, What::Arrive(conn, side, message));
            }
        }
    }

    // ---- processes ------------------------------------------------------------------------------

    fn any_proc(&mut self) -> ProcId {
        let fit = |proc: &ProcId| self.procs[*proc].alive && self.procs[*proc].role != Role::Store;
        let procs: Vec<_> = (0..self.procs.len()).filter(fit).collect();
        self.random.pick(&procs).unwrap_or_default()
    }

    /// The processes that run under an agent's id.
    pub(crate) fn living(&self, id: usize) -> Vec<ProcId> {
        let own = self
            .agents
            .iter()
            .filter(|agent| *agent.agent_id == *AGENTS[id].0);
        let procs = own.map(|agent| agent.proc);
        procs.filter(|proc| self.procs[*proc].alive).collect()
    }

    fn lose_hub(&mut self) {
        let hub = self.random.below(HUBS);
        let wait = self.random.within(100..12_000);
        if !self.is_up(hub) || self.hubs[hub].draining {
            return;
        }
        if self.random.percent(50) {
            self.drain(hub);
            self.heal_later(5001 + wait, Heal::StartHub(hub));
        } else {
            self.crash(self.hubs[hub].proc);
            self.heal_later(wait, Heal::StartHub(hub));
        }
    }

    fn restart_agent(&mut self) {
        let id = self.random.below(AGENTS.len());
        let wait = self.random.within(1..5000);
        for proc in self.living(id) {
            self.crash(proc);
        }
        self.heal_later(wait, Heal::StartAgent(id));
    }

    /// A second process under the id of a living agent; one of the two is gone after a while.
    fn double_agent(&mut self) {
        let id = self.random.below(AGENTS.len());
        let living = self.living(id);
        if living.len() == 1 {
            self.start_agent(id);
            let wait = self.random.within(2000..30_000);
            let both = self.living(id);
            if let Some(proc) = self.random.pick(&both) {
                self.heal_later(wait, Heal::Kill(proc));
            }
        }
    }

    fn break_store(&mut self) {
        let wait = self.random.within(200..20_000);
        if self.random.percent(30) {
            self.note(|| "the registry is slow".into());
            self.store.slow = true;
            return self.heal_later(wait, Heal::StoreQuick);
        }
        self.note(|| "the registry is down".into());
        self.store.down = true;
        self.heal_later(wait, Heal::StoreUp);
    }

    /// Which kinds of connections are up, for the verdict.
    pub(crate) fn living_conns(&self, kind: Kind) -> usize {
        let conns = self.conns.iter().filter(|conn| conn.kind == kind);
        conns
            .filter(|conn| conn.carries(0) && conn.carries(1))
            .count()
    }
}
