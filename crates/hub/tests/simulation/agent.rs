//! An agent's process: a tunnel to every hub under one epoch, and the targets' ends of flows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_proto::backoff::Backoff;
use nowconnect_proto::flow::{Ending, Side};
use nowconnect_proto::frame::{Open, OpenMode};
use nowconnect_proto::hello::Instance;
use nowconnect_proto::{Flow, FlowId, Frame, Reason};

use crate::ends::{End, WINDOW, name_of, secret};
use crate::net::{Carried, ConnId, DIALER, FlowName, Kind, Message};
use crate::rules::Claim;
use crate::traffic::apply;
use crate::world::{AGENTS, GRACE_MS, HUBS, ProcId, Role, What, World};

/// How long other tunnels wait for a hub that was asked for an epoch, in milliseconds.
const FOUNDING: u64 = 2000;

pub(crate) struct Agent {
    pub(crate) proc: ProcId,
    pub(crate) agent_id: Arc<str>,
    pub(crate) instance: Instance,
    connectors: Vec<String>,
    /// The highest epoch that it was ever told.
    seen: u64,
    /// It keeps one tunnel only.
    pub(crate) first: bool,
    keepers: Vec<Keeper>,
    /// The tunnel that asks for a new epoch, and since when.
    founder: Option<(ConnId, u64)>,
    pub(crate) flows: BTreeMap<FlowName, Served>,
    /// Flows that ended here: when, their latest attempt, and whether they were reset after their
    /// target was connected.
    remembered: BTreeMap<FlowName, (u64, u32, bool)>,
}

/// Keeps a tunnel to one hub, or (`tunnel.mode: first`) to any.
struct Keeper {
    /// The hub that is tried next.
    hub: usize,
    /// The tunnel, or the attempt at one.
    conn: Option<ConnId>,
    backoff: Backoff,
}

/// A flow whose target is here.
pub(crate) struct Served {
    pub(crate) end: End,
    dial: u32,
}

impl World {
    pub(crate) fn start_agent(&mut self, id: usize) {
        let proc = self.spawn(Role::Agent(self.agents.len()));
        let (agent_id, connectors) = AGENTS[id];
        let first = self.first[id];
        let keepers = if first { 1 } else { HUBS };
        let keeper = |hub| Keeper {
            hub,
            conn: None,
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(30)),
        };
        self.agents.push(Agent {
            proc,
            agent_id: agent_id.into(),
            instance: Instance(u128::from(self.random.next())),
            connectors: connectors.iter().map(|name| (*name).to_owned()).collect(),
            seen: 0,
            first,
            keepers: (0..keepers).map(keeper).collect(),
            founder: None,
            flows: BTreeMap::new(),
            remembered: BTreeMap::new(),
        });
        self.note(|| format!("{agent_id} starts as process {proc}"));
        self.later(1000, proc, What::Sweep);
        for keeper in 0..keepers {
            self.later(1 + keeper as u64, proc, What::Dial(keeper));
        }
    }

    // ---- tunnels --------------------------------------------------------------------------------

    /// The epoch of the process's living tunnels, 0 without any.
    pub(crate) fn held(&self, agent: usize) -> u64 {
        let proc = self.agents[agent].proc;
        let mine = self.conns.iter().filter(|conn| conn.procs[DIALER] == proc);
        let living = mine.filter(|conn| conn.carries(DIALER));
        living.map(|conn| conn.epoch).max().unwrap_or(0)
    }

    pub(crate) fn dial(&mut self, agent: usize, keeper: usize) {
        if self.agents[agent].keepers[keeper].conn.is_some() {
            return;
        }
        let (now, held) = (self.now, self.held(agent));
        let (proc, hub) = (
            self.agents[agent].proc,
            self.agents[agent].keepers[keeper].hub,
        );
        let founding = self.agents[agent].founder;
        if held == 0 && founding.is_some_and(|(_, since)| now < since + FOUNDING) {
            return self.later(100, proc, What::Dial(keeper));
        }
        let Some(conn) = self.connect(Kind::Tunnel, proc, self.hubs[hub].proc) else {
            return self.dial_again(agent, keeper, false);
        };
        let one = &mut self.agents[agent];
        one.keepers[keeper].conn = Some(conn);
        if held == 0 {
            one.founder = Some((conn, now));
        }
        let claim = Claim {
            agent_id: one.agent_id.clone(),
            instance: one.instance,
            epoch_seen: one.seen,
            epoch_held: Some(held),
            connectors: one.connectors.clone(),
        };
        self.send(conn, DIALER, Message::Hello(claim));
    }

    fn dial_again(&mut self, agent: usize, keeper: usize, just_lost: bool) {
        let random = self.random.next();
        let one = &mut self.agents[agent];
        let waits = one.flows.values().any(|served| served.end.at.is_none());
        let most = Duration::from_secs(if just_lost || waits { 5 } else { 30 });
        let kept = &mut one.keepers[keeper];
        if one.first && !just_lost {
            kept.hub = (kept.hub + 1) % HUBS;
        }
        let wait = kept.backoff.next_within(random, most);
        let proc = one.proc;
        self.later(1 + wait.as_millis() as u64, proc, What::Dial(keeper));
    }

    pub(crate) fn welcome(&mut self, agent: usize, conn: ConnId, epoch: u64) {
        let (now, held) = (self.now, self.held(agent));
        let one = &mut self.agents[agent];
        one.seen = one.seen.max(epoch);
        one.founder = one.founder.filter(|(founder, _)| *founder != conn);
        if epoch < held {
            return self.close(conn, DIALER);
        }
        self.conns[conn].epoch = epoch;
        self.make_ready(conn, DIALER);
        self.stirred.insert((conn, DIALER));
        let one = &mut self.agents[agent];
        let mut outdated = Vec::new();
        for (number, keeper) in one.keepers.iter_mut().enumerate() {
            if keeper.conn == Some(conn) {
                keeper.backoff.note_connected(Duration::from_millis(now));
            } else if let Some(other) = keeper.conn
                && self.conns[other].ready[DIALER]
                && self.conns[other].epoch < epoch
            {
                // The old one carries its flows until the hub has the new one.
                keeper.conn = None;
                outdated.push(number);
            }
        }
        let proc = one.proc;
        for keeper in outdated {
            self.later(1, proc, What::Dial(keeper));
        }
    }

    fn keeper_of(&self, agent: usize, conn: ConnId) -> Option<usize> {
        let mut keepers = self.agents[agent].keepers.iter();
        keepers.position(|keeper| keeper.conn == Some(conn))
    }

    /// The hub wants it elsewhere: another tunnel is made while this one still carries its flows.
    pub(crate) fn agent_told_to_go(&mut self, agent: usize, conn: ConnId, reason: Reason) {
        if reason != Reason::Superseded
            && let Some(keeper) = self.keeper_of(agent, conn)
        {
            self.agents[agent].keepers[keeper].conn = None;
            self.dial_again(agent, keeper, reason != Reason::Draining);
        }
    }

    pub(crate) fn agent_lost(&mut self, agent: usize, conn: ConnId) {
        let now = self.now;
        let one = &mut self.agents[agent];
        one.founder = one.founder.filter(|(founder, _)| *founder != conn);
        let was_ready = self.conns[conn].ready[DIALER];
        if let Some(keeper) = self.keeper_of(agent, conn) {
            let kept = &mut self.agents[agent].keepers[keeper];
            kept.conn = None;
            kept.backoff.note_lost(Duration::from_millis(now));
            self.dial_again(agent, keeper, was_ready);
        }
    }

    // ---- flows ----------------------------------------------------------------------------------

    pub(crate) fn open_at_agent(&mut self, agent: usize, conn: ConnId, number: u32, open: &Open) {
        let name = name_of(open.cid);
        if let Err(reason) = self.admit(agent, conn, number, open) {
            self.note(|| format!("process {agent} refuses flow {name}: {reason}"));
            let id = FlowId(number);
            self.send(conn, DIALER, Message::Frame(Frame::Refuse { id, reason }));
        }
    }

    fn admit(
        &mut self,
        agent: usize,
        conn: ConnId,
        number: u32,
        open: &Open,
    ) -> Result<(), Reason> {
        let (now, name) = (self.now, name_of(open.cid));
        if open.epoch != self.conns[conn].epoch {
            self.tally.stale_epochs += 1;
            return Err(Reason::StaleEpoch);
        }
        let proc = self.agents[agent].proc;
        let one = &mut self.agents[agent];
        if let Some(served) = one.flows.get_mut(&name) {
            assert!(secret(name).matches(&open.secret), "another flow's secret");
            if !served.end.flow.follow(open.attempt) {
                self.tally.overtaken += 1;
                return Err(Reason::Moved);
            }
            let old = served.end.at.replace((conn, number));
            let attached = served
                .end
                .flow
                .attach_target(open.received, open.limit, WINDOW);
            assert_eq!(attached, Ok(()), "flow {name}: {:?}", served.end.flow);
            if let Some((conn, number)) = old {
                self.leave_link(conn, DIALER, number, true);
            }
        } else {
            let ended = one.remembered.get(&name);
            let comes_late = ended.is_some_and(|(_, attempt, reset)| {
                open.attempt <= *attempt || (*reset && open.mode == OpenMode::ResumeOrNew)
            });
            let unknown = open.mode == OpenMode::Resume || comes_late;
            if unknown {
                return Err(Reason::UnknownFlow);
            }
            let truth = self.flows.get_mut(&name).ok_or(Reason::UnknownFlow)?;
            truth.dials += 1;
            let (dial, brings) = (truth.dials, truth.target_brings);
            let mut flow = Flow::new(Side::Target, WINDOW, 2 * WINDOW, open.limit);
            let attached = flow.attach_target(open.received, open.limit, WINDOW);
            assert!(
                attached.is_ok() && flow.follow(open.attempt),
                "flow {name}: {flow:?}"
            );
            let mut end = End::new(name, Side::Target, flow, brings, now);
            end.at = Some((conn, number));
            one.flows.insert(name, Served { end, dial });
            let works = !self.random.percent(4);
            let wait = self.random.within(1..300);
            self.later(wait, proc, What::Dialed(name, dial, works));
        }
        self.conns[conn].flows[DIALER].insert(number, Carried::Target(name));
        self.stirred.insert((conn, DIALER));
        Ok(())
    }

    fn served(&mut self, agent: usize, name: FlowName) -> Option<&mut Served> {
        self.agents[agent].flows.get_mut(&name)
    }

    pub(crate) fn target_dialed(&mut self, agent: usize, name: FlowName, dial: u32, works: bool) {
        let proc = self.agents[agent].proc;
        let Some(served) = self.served(agent, name) else {
            return;
        };
        if served.dial != dial || served.end.flow.ending().is_some() {
            return;
        }
        if works {
            served.end.flow.connected();
        } else {
            served.end.flow.abort(Reason::ConnectFailed);
        }
        if let Some((conn, _)) = served.end.at {
            self.stirred.insert((conn, DIALER));
        }
        self.later(1, proc, What::Socket(name));
    }

    pub(crate) fn target_socket(&mut self, agent: usize, name: FlowName) {
        let (n, m) = (self.random.within(1..6000), self.random.below(9000));
        let gives_up = self.random.within(0..2000) == 0;
        let wait = self.random.within(20..400);
        let proc = self.agents[agent].proc;
        let Some(served) = self.served(agent, name) else {
            return;
        };
        if served.end.flow.ending().is_some() {
            return;
        }
        served.end.write(n);
        let fed = served.end.read(m) > 0;
        if gives_up {
            served.end.flow.abort(Reason::SocketReset);
        }
        let read = (served.end.read, served.end.read_fin);
        let (dial, at) = (served.dial, served.end.at);
        if let Some((conn, _)) = at {
            self.stirred.insert((conn, DIALER));
        }
        if let Some(truth) = self.flows.get_mut(&name) {
            if fed {
                let first = *truth.fed.get_or_insert((proc, dial));
                assert_eq!(
                    first,
                    (proc, dial),
                    "flow {name}: two targets have had its bytes"
                );
            }
            if truth.fed.is_none_or(|first| first == (proc, dial)) {
                truth.target_read = read;
            }
        }
        self.later(wait, proc, What::Socket(name));
        self.target_stepped(agent, name);
    }

    pub(crate) fn target_frame(
        &mut self,
        agent: usize,
        conn: ConnId,
        name: FlowName,
        frame: Frame,
    ) {
        if let Frame::Detach { id, .. } = frame {
            self.leave_link(conn, DIALER, id.0, false);
            return self.target_detached(agent, conn, id.0, name);
        }
        let Some(served) = self.served(agent, name) else {
            return;
        };
        let applied = apply(&mut served.end, frame);
        assert_eq!(applied, Ok(()), "flow {name}: {:?}", served.end.flow);
        self.target_stepped(agent, name);
    }

    pub(crate) fn target_detached(
        &mut self,
        agent: usize,
        conn: ConnId,
        number: u32,
        name: FlowName,
    ) {
        let now = self.now;
        let Some(served) = self.served(agent, name) else {
            return;
        };
        if served.end.at == Some((conn, number)) {
            served.end.detach(now);
            self.target_stepped(agent, name);
        }
    }

    /// The flow may be over now.
    pub(crate) fn target_stepped(&mut self, agent: usize, name: FlowName) {
        let now = self.now;
        let Some(served) = self.served(agent, name) else {
            return;
        };
        if served.end.flow.ending().is_some() {
            served.end.ended_at.get_or_insert(now);
        }
        if served.end.flow.is_over() {
            self.forget_target(agent, name);
        }
    }

    fn forget_target(&mut self, agent: usize, name: FlowName) {
        let now = self.now;
        let one = &mut self.agents[agent];
        let Some(Served { end, .. }) = one.flows.remove(&name) else {
            return;
        };
        let ending = end.flow.ending();
        let reset = end.flow.is_opened() && matches!(ending, Some(Ending::Local(_)));
        let past = (now, end.flow.attempt(), reset);
        one.remembered.insert(name, past);
        if let Some((conn, number)) = end.at {
            self.leave_link(conn, DIALER, number, false);
        }
        self.note(|| format!("process {agent}: flow {name} is over: {ending:?}"));
        self.judge_ending(name, ending);
    }

    pub(crate) fn sweep_agent(&mut self, agent: usize) {
        let (now, proc) = (self.now, self.agents[agent].proc);
        self.later(1000, proc, What::Sweep);
        let one = &mut self.agents[agent];
        one.remembered.retain(|_, (at, ..)| now < *at + GRACE_MS);
        let overdue = |served: &&Served| {
            let end = &served.end;
            let waits = end.at.is_none() && now >= end.detached_at + GRACE_MS;
            waits || end.ended_at.is_some_and(|at| now >= at + GRACE_MS)
        };
        let overdue: Vec<_> = one
            .flows
            .values()
            .filter(overdue)
            .map(|s| s.end.name)
            .collect();
        for name in overdue {
            if let Some(served) = self.served(agent, name) {
                served.end.flow.abort(Reason::ResumeExpired);
                self.forget_target(agent, name);
            }
        }
    }
}
