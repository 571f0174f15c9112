//! Time, processes, and what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

use nowconnect_proto::keepalive::Beat;
use nowconnect_proto::{Frame, Reason};

use crate::agent::Agent;
use crate::ends::Truth;
use crate::faults::Heal;
use crate::hub::{Hub, Passing};
use crate::net::{Conn, ConnId, FlowName, Kind, Message};
use crate::random::Random;
use crate::rules::{Epoch, Owner, Told};
use crate::store::Store;
use crate::verdict::Tally;

pub(crate) const HUBS: usize = 3;
/// Agent ids, and the connectors that each exports.
pub(crate) const AGENTS: [(&str, &[&str]); 3] = [
    ("site-1", &["ldap"]),
    ("site-2", &["ldap", "pg"]),
    ("site-3", &["pg"]),
];
/// How long faults and new clients come, and how long everything may take to come to rest.
pub(crate) const FAULTS_MS: u64 = 60_000;
const REST_MS: u64 = 240_000;
/// How long flows wait for a path.
pub(crate) const GRACE_MS: u64 = 30_000;

pub(crate) type ProcId = usize;

/// Who a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Hub(usize),
    Agent(usize),
    Store,
}

pub(crate) struct Proc {
    pub(crate) role: Role,
    pub(crate) alive: bool,
    /// Stopped; what would happen to it waits.
    pub(crate) waiting: Option<VecDeque<What>>,
}

/// Something that happens to a process.
pub(crate) enum What {
    Arrive(ConnId, usize, Message),
    /// The kernel says that the connection is gone.
    Broken(ConnId, usize),
    Beat(ConnId, usize),
    HandshakeLate(ConnId),
    /// An agent's keeper tries a hub.
    Dial(usize),
    DialMesh(usize),
    /// The registry's answer to a tunnel's claim, or `None` when it gave none in time.
    Claimed(ConnId, Option<Option<Owner>>),
    /// A claim reaches the registry.
    Claim(ConnId),
    Publish,
    /// A hub's table, as it was when it was told.
    Hear(usize, u64, u64, BTreeMap<Arc<str>, Told>),
    Resync,
    Sweep,
    /// A client comes.
    Client,
    /// A socket of the flow is ready.
    Socket(FlowName),
    Dialed(FlowName, u32, bool),
    /// Policy has decided about a flow that passes through.
    Decided(usize),
    /// A hub that is asked to stop does.
    Stop,
    Heal(Heal),
}

struct Event {
    at: u64,
    number: u64,
    to: ProcId,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) epoch: Epoch,
    pub(crate) now: u64,
    traced: bool,
    events: BinaryHeap<Reverse<Event>>,
    count: u64,
    pub(crate) procs: Vec<Proc>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) hubs: Vec<Hub>,
    /// Which agents keep one tunnel only, by id.
    pub(crate) first: [bool; AGENTS.len()],
    pub(crate) agents: Vec<Agent>,
    pub(crate) relays: BTreeMap<usize, Passing>,
    pub(crate) store: Store,
    pub(crate) flows: BTreeMap<FlowName, Truth>,
    /// Sides of connections whose flows may have something to send.
    pub(crate) stirred: BTreeSet<(ConnId, usize)>,
    /// No more faults.
    pub(crate) mended: bool,
    pub(crate) tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            epoch: Epoch::begin(),
            now: 0,
            traced,
            events: BinaryHeap::new(),
            count: 0,
            procs: Vec::new(),
            conns: Vec::new(),
            hubs: Vec::new(),
            first: [false; AGENTS.len()],
            agents: Vec::new(),
            relays: BTreeMap::new(),
            store: Store::default(),
            flows: BTreeMap::new(),
            stirred: BTreeSet::new(),
            mended: false,
            tally: Tally::default(),
        };
        world.store.proc = world.spawn(Role::Store);
        for hub in 0..HUBS {
            world.start_hub(hub);
        }
        for id in 0..AGENTS.len() {
            world.first[id] = world.random.percent(50);
            world.start_agent(id);
        }
        world
    }

    /// Lets everything happen, and judges it.
    pub(crate) fn run(mut self) -> Tally {
        let mut next_fault = 2000;
        while self.now < FAULTS_MS {
            self.step_until(next_fault);
            self.fault();
            next_fault = self.now + self.random.within(50..4000);
        }
        self.note(|| "---- no more faults".into());
        self.mend();
        self.step_until(FAULTS_MS + REST_MS);
        self.judge();
        self.tally
    }

    /// Tells what happens, to whoever watches.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if self.traced {
            println!("{:>9.3} {}", self.now as f64 / 1000.0, what());
        }
    }

    // ---- time -----------------------------------------------------------------------------------

    fn step_until(&mut self, until: u64) {
        while self.events.peek().is_some_and(|next| next.0.at <= until) {
            let Some(Reverse(event)) = self.events.pop() else {
                break;
            };
            self.now = event.at;
            self.happen(event.to, event.what);
        }
        self.now = until;
    }

    pub(crate) fn later(&mut self, ms: u64, to: ProcId, what: What) {
        self.at(self.now + ms, to, what);
    }

    fn at(&mut self, at: u64, to: ProcId, what: What) {
        self.count += 1;
        self.events.push(Reverse(Event {
            at,
            number: self.count,
            to,
            what,
        }));
    }

    pub(crate) fn happen(&mut self, to: ProcId, what: What) {
        let proc = &mut self.procs[to];
        if !proc.alive {
            return;
        }
        // What is held is not there yet, and what is there waits for who is stopped.
        let what = match what {
            What::Arrive(conn, side, message) => {
                if let Some(held) = &mut self.conns[conn].held {
                    return held[side].push_back(message);
                }
                What::Arrive(conn, side, message)
            }
            what => what,
        };
        match &mut proc.waiting {
            Some(waiting) => waiting.push_back(what),
            None => self.act(to, what),
        }
    }

    fn act(&mut self, to: ProcId, what: What) {
        if !self.procs[to].alive {
            return;
        }
        match (self.procs[to].role, what) {
            (_, What::Arrive(conn, side, message)) => self.arrive(conn, side, message),
            (_, What::Broken(conn, side)) => self.broken(conn, side),
            (_, What::Beat(conn, side)) => self.beat(conn, side),
            (_, What::HandshakeLate(conn)) => self.handshake_late(conn),
            (Role::Agent(agent), What::Dial(hub)) => self.dial(agent, hub),
            (Role::Agent(agent), What::Sweep) => self.sweep_agent(agent),
            (Role::Agent(agent), What::Socket(flow)) => self.target_socket(agent, flow),
            (Role::Agent(agent), What::Dialed(flow, dial, works)) => {
                self.target_dialed(agent, flow, dial, works);
            }
            (Role::Hub(_), What::Decided(relay)) => self.decided(relay),
            (Role::Hub(hub), What::DialMesh(peer)) => self.dial_mesh(hub, peer),
            (Role::Hub(_), What::Claimed(conn, answer)) => self.claimed(conn, answer),
            (Role::Hub(hub), What::Publish) => self.publish(hub),
            (Role::Hub(hub), What::Hear(from, start, version, table)) => {
                self.hear(hub, from, start, version, table);
            }
            (Role::Hub(hub), What::Resync) => self.resync(hub),
            (Role::Hub(hub), What::Sweep) => self.sweep_hub(hub),
            (Role::Hub(hub), What::Client) => self.client_comes(hub),
            (Role::Hub(hub), What::Socket(flow)) => self.client_socket(hub, flow),
            (Role::Hub(hub), What::Stop) => self.crash(self.hubs[hub].proc),
            (Role::Store, What::Claim(conn)) => self.claim_at_store(conn),
            (Role::Store, What::Heal(heal)) => self.heal(heal),
            _ => {}
        }
        self.let_flows_send();
    }

    // ---- processes ------------------------------------------------------------------------------

    pub(crate) fn spawn(&mut self, role: Role) -> ProcId {
        self.procs.push(Proc {
            role,
            alive: true,
            waiting: None,
        });
        self.procs.len() - 1
    }

    /// kill -9: the kernel closes what the process had open.
    pub(crate) fn crash(&mut self, proc: ProcId) {
        let role = self.procs[proc].role;
        self.note(|| format!("{role:?} dies"));
        self.procs[proc].alive = false;
        self.procs[proc].waiting = None;
        for conn in 0..self.conns.len() {
            for side in [0, 1] {
                if self.conns[conn].procs[side] == proc && self.conns[conn].up[side] {
                    self.hang_up(conn, side);
                    self.conns[conn].up[side] = false;
                    self.conns[conn].flows[side].clear();
                }
            }
        }
        match role {
            Role::Hub(hub) => self.bury_hub(hub),
            Role::Agent(agent) => self.agents[agent].flows.clear(),
            Role::Store => {}
        }
    }

    pub(crate) fn pause(&mut self, proc: ProcId) {
        let role = self.procs[proc].role;
        self.note(|| format!("{role:?} is stopped"));
        self.procs[proc].waiting.get_or_insert_default();
    }

    pub(crate) fn resume(&mut self, proc: ProcId) {
        let Some(waiting) = self.procs[proc].waiting.take() else {
            return;
        };
        let role = self.procs[proc].role;
        self.note(|| format!("{role:?} is continued"));
        for what in waiting {
            self.act(proc, what);
        }
    }

    // ---- connections ----------------------------------------------------------------------------

    /// A connection to a process that is there; `None` when it is refused.
    pub(crate) fn connect(&mut self, kind: Kind, from: ProcId, to: ProcId) -> Option<ConnId> {
        if !self.procs[to].alive {
            return None;
        }
        let latency = self.random.within(1..40);
        let conn = Conn::new(kind, [from, to], latency, self.now);
        self.conns.push(conn);
        let conn = self.conns.len() - 1;
        self.later(10_000, from, What::HandshakeLate(conn));
        Some(conn)
    }

    fn handshake_late(&mut self, conn: ConnId) {
        if self.conns[conn].up[0] && !self.conns[conn].ready[0] {
            self.close(conn, 0);
        }
    }

    /// The side's handshake is done: flows may go, and pings begin.
    pub(crate) fn make_ready(&mut self, conn: ConnId, side: usize) {
        let link = &mut self.conns[conn];
        link.ready[side] = true;
        link.keepalive[side] = nowconnect_proto::keepalive::Keepalive::new(5000, 10_000, self.now);
        let proc = link.procs[side];
        self.later(0, proc, What::Beat(conn, side));
    }

    pub(crate) fn send(&mut self, conn: ConnId, side: usize, message: Message) {
        let link = &mut self.conns[conn];
        if !link.up[side] || link.deaf[side] {
            return;
        }
        link.depart(side, &message);
        let at = (self.now + link.latency).max(link.last_at[side]);
        link.last_at[side] = at;
        let to = link.procs[1 - side];
        self.at(at, to, What::Arrive(conn, 1 - side, message));
    }

    fn arrive(&mut self, conn: ConnId, side: usize, message: Message) {
        let link = &mut self.conns[conn];
        if link.purged[side] {
            return;
        }
        link.arrive(1 - side, &message);
        self.stirred.insert((conn, 1 - side));
        let opens = matches!(message, Message::Hello(_) | Message::MeshHello);
        if opens {
            self.conns[conn].up[side] = true;
        }
        if self.conns[conn].up[side] {
            self.take(conn, side, message);
        }
    }

    fn take(&mut self, conn: ConnId, side: usize, message: Message) {
        let role = self.procs[self.conns[conn].procs[side]].role;
        match (message, role) {
            (Message::Frame(Frame::Ping(value)), _) => {
                self.send(conn, side, Message::Frame(Frame::Pong(value)));
            }
            (Message::Frame(Frame::Pong(value)), _) => {
                let now = self.now;
                self.conns[conn].keepalive[side].on_pong(value, now);
            }
            (Message::Frame(Frame::GoAway { reason, .. }), _) => {
                self.told_to_go(conn, side, reason)
            }
            (Message::Frame(frame), _) => self.take_frame(conn, side, frame),
            (Message::Hello(claim), Role::Hub(hub)) => self.hello(hub, conn, claim),
            (Message::MeshHello, Role::Hub(hub)) => self.mesh_hello(hub, conn),
            (Message::MeshWelcome, Role::Hub(hub)) => self.mesh_welcome(hub, conn),
            (Message::Welcome(epoch), Role::Agent(agent)) => self.welcome(agent, conn, epoch),
            (Message::Refused, _) => self.close(conn, side),
            _ => panic!("a message for somebody else"),
        }
    }

    fn told_to_go(&mut self, conn: ConnId, side: usize, reason: Reason) {
        self.conns[conn].leaving = true;
        match self.procs[self.conns[conn].procs[side]].role {
            Role::Agent(agent) => self.agent_told_to_go(agent, conn, reason),
            Role::Hub(hub) => self.leave_mesh(hub, conn),
            Role::Store => {}
        }
    }

    /// The side closes the connection; the other one hears of it, if it hears anything.
    pub(crate) fn close(&mut self, conn: ConnId, side: usize) {
        if self.conns[conn].up[side] {
            self.hang_up(conn, side);
            self.broken(conn, side);
        }
    }

    fn hang_up(&mut self, conn: ConnId, side: usize) {
        let link = &mut self.conns[conn];
        if !link.deaf[side] {
            let at = (self.now + link.latency).max(link.last_at[side]);
            let to = link.procs[1 - side];
            self.at(at, to, What::Broken(conn, 1 - side));
        }
    }

    /// The side has the connection no more: its flows wait for another.
    pub(crate) fn broken(&mut self, conn: ConnId, side: usize) {
        let link = &mut self.conns[conn];
        // A connection that was refused or given up before anybody answered.
        if !std::mem::replace(&mut link.up[side], false) {
            return;
        }
        let (kind, proc) = (link.kind, link.procs[side]);
        let role = self.procs[proc].role;
        self.note(|| format!("{role:?} lost {kind:?} {conn}"));
        let flows = std::mem::take(&mut self.conns[conn].flows[side]);
        match role {
            Role::Hub(hub) => self.hub_lost(hub, conn, side),
            Role::Agent(agent) => self.agent_lost(agent, conn),
            Role::Store => {}
        }
        for (number, carried) in flows {
            self.path_lost(conn, side, number, carried);
        }
    }

    fn beat(&mut self, conn: ConnId, side: usize) {
        let now = self.now;
        let link = &mut self.conns[conn];
        if !link.carries(side) {
            return;
        }
        let proc = link.procs[side];
        match link.keepalive[side].poll(now) {
            Beat::Ping(value) => {
                self.send(conn, side, Message::Frame(Frame::Ping(value)));
                self.later(0, proc, What::Beat(conn, side));
            }
            Beat::Wait(until) => self.later(until.max(now + 1) - now, proc, What::Beat(conn, side)),
            Beat::Dead => {
                self.note(|| format!("keepalive gives up {conn}"));
                self.close(conn, side);
            }
        }
    }
}
