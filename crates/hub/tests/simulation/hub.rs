//! A hub: its tunnels, its mesh, and the flows that only pass through.

use std::collections::BTreeMap;
use std::sync::Arc;

use nowconnect_proto::frame::{Open, OpenMode};
use nowconnect_proto::hello::Instance;
use nowconnect_proto::relay::{Face, Relay};
use nowconnect_proto::{FlowId, Frame, Reason};

use crate::ends::WINDOW;
use crate::net::{ACCEPTOR, Carried, ConnId, DIALER, FlowName, Kind, Message};
use crate::router::Client;
use crate::rules::{Claim, Directory, Owner, Record, Told};
use crate::traffic::{Leg, slot};
use crate::world::{HUBS, ProcId, Role, What, World};

/// The longest that policy takes to decide about a flow of another hub.
const DECISION_MS: u64 = 400;

/// What one process of a hub knows.
pub(crate) struct Hub {
    pub(crate) proc: ProcId,
    pub(crate) name: Arc<str>,
    /// How far its clock is ahead, in milliseconds.
    pub(crate) skew: u64,
    pub(crate) directory: Directory,
    /// Tunnels, by connection; those in their handshake have no owner.
    pub(crate) claims: BTreeMap<ConnId, Claim>,
    pub(crate) sessions: BTreeMap<ConnId, Session>,
    /// The link that it dialed to each peer.
    pub(crate) mesh: BTreeMap<usize, ConnId>,
    pub(crate) flows: BTreeMap<FlowName, Client>,
    pub(crate) draining: bool,
    /// Which start of it this is, and the version of its table.
    pub(crate) start: u64,
    pub(crate) version: u64,
    /// The tables of others as last heard, and since when they are missing.
    pub(crate) tables: BTreeMap<usize, Heard>,
    pub(crate) turn: usize,
}

pub(crate) struct Heard {
    pub(crate) start: u64,
    pub(crate) version: u64,
    pub(crate) table: BTreeMap<Arc<str>, Told>,
    pub(crate) missing_since: Option<u64>,
}

pub(crate) struct Session {
    pub(crate) agent_id: Arc<str>,
    pub(crate) owner: Owner,
    pub(crate) connectors: Vec<String>,
    record: Option<Record>,
}

/// A flow that passes through a hub.
pub(crate) struct Passing {
    pub(crate) relay: Relay,
    pub(crate) hub: usize,
    /// By face.
    legs: [Leg; 2],
    pub(crate) room: u64,
}

impl Passing {
    pub(crate) fn leg(&self, face: Face) -> Leg {
        self.legs[slot(face)]
    }
}

impl World {
    pub(crate) fn start_hub(&mut self, hub: usize) {
        let proc = self.spawn(Role::Hub(hub));
        let fresh = Hub {
            proc,
            name: format!("hub-{hub}").into(),
            skew: self.random.within(0..4000),
            directory: Directory::new(self.epoch),
            claims: BTreeMap::new(),
            sessions: BTreeMap::new(),
            mesh: BTreeMap::new(),
            flows: BTreeMap::new(),
            draining: false,
            start: proc as u64,
            version: 0,
            tables: BTreeMap::new(),
            turn: 0,
        };
        match self.hubs.get_mut(hub) {
            Some(old) => *old = fresh,
            None => self.hubs.push(fresh),
        }
        self.note(|| format!("hub-{hub} starts"));
        self.later(0, proc, What::Resync);
        self.later(1000, proc, What::Sweep);
        self.later(500, proc, What::Client);
        for peer in (0..HUBS).filter(|peer| *peer != hub) {
            self.later(1, proc, What::DialMesh(peer));
        }
    }

    /// The process is gone, and with it its clients.
    pub(crate) fn bury_hub(&mut self, hub: usize) {
        for name in std::mem::take(&mut self.hubs[hub].flows).into_keys() {
            if let Some(truth) = self.flows.get_mut(&name) {
                truth.lost = true;
            }
        }
        self.relays.retain(|_, passing| passing.hub != hub);
    }

    pub(crate) fn is_up(&self, hub: usize) -> bool {
        self.procs[self.hubs[hub].proc].alive
    }

    // ---- tunnels --------------------------------------------------------------------------------

    pub(crate) fn hello(&mut self, hub: usize, conn: ConnId, claim: Claim) {
        if self.hubs[hub].draining {
            self.send(conn, ACCEPTOR, Message::Refused);
            return self.close(conn, ACCEPTOR);
        }
        self.hubs[hub].claims.insert(conn, claim);
        self.ask_store(hub, conn);
    }

    /// The registry has answered a claim, or not (`None`), and then the hub judges alone.
    pub(crate) fn claimed(&mut self, conn: ConnId, answer: Option<Option<Owner>>) {
        let Role::Hub(hub) = self.procs[self.conns[conn].procs[ACCEPTOR]].role else {
            return;
        };
        let Some(claim) = self.hubs[hub].claims.remove(&conn) else {
            return;
        };
        let (now, skew) = (self.now, self.hubs[hub].skew);
        let granted = answer.unwrap_or_else(|| self.hubs[hub].directory.judge(&claim, now, skew));
        let Some(owner) = granted else {
            self.note(|| format!("hub-{hub}: {} is in conflict", claim.agent_id));
            self.tally.conflicts += 1;
            self.send(conn, ACCEPTOR, Message::Refused);
            return self.close(conn, ACCEPTOR);
        };
        let held = claim.epoch_held.unwrap_or(0);
        assert!(
            owner.epoch == held || owner.epoch > claim.epoch_seen,
            "{} was told {} and is granted {}",
            claim.agent_id,
            claim.epoch_seen,
            owner.epoch
        );
        self.note(|| format!("hub-{hub}: {} has epoch {}", claim.agent_id, owner.epoch));
        let Claim {
            agent_id,
            connectors,
            ..
        } = claim;
        let directory = &mut self.hubs[hub].directory;
        let record = directory.enter(&agent_id, owner, connectors.clone());
        self.send(conn, ACCEPTOR, Message::Welcome(owner.epoch));
        self.make_ready(conn, ACCEPTOR);
        let session = Session {
            agent_id: agent_id.clone(),
            owner,
            connectors,
            record,
        };
        self.hubs[hub].sessions.insert(conn, session);
        self.supersede(hub, &agent_id);
        self.tell_others(hub);
        self.resume_flows(hub);
    }

    /// Tunnels of owners that are not the latest one here or elsewhere end.
    pub(crate) fn supersede(&mut self, hub: usize, agent_id: &Arc<str>) {
        let latest = self.hubs[hub].directory.known(agent_id);
        let sessions = self.hubs[hub].sessions.iter();
        let outlived: Vec<_> = sessions
            .filter(|(_, session)| session.agent_id == *agent_id && Some(session.owner) < latest)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in outlived {
            self.note(|| format!("hub-{hub}: {agent_id} on {conn} is superseded"));
            self.close(conn, ACCEPTOR);
        }
    }

    // ---- the mesh -------------------------------------------------------------------------------

    pub(crate) fn dial_mesh(&mut self, hub: usize, peer: usize) {
        if self.hubs[hub].draining || self.hubs[hub].mesh.contains_key(&peer) {
            return;
        }
        let (from, to) = (self.hubs[hub].proc, self.hubs[peer].proc);
        match self.connect(Kind::Mesh, from, to) {
            Some(conn) => {
                self.hubs[hub].mesh.insert(peer, conn);
                self.send(conn, DIALER, Message::MeshHello);
            }
            None => self.dial_mesh_again(hub, peer),
        }
    }

    fn dial_mesh_again(&mut self, hub: usize, peer: usize) {
        let wait = self.random.within(100..2000);
        let proc = self.hubs[hub].proc;
        self.later(wait, proc, What::DialMesh(peer));
    }

    pub(crate) fn mesh_hello(&mut self, hub: usize, conn: ConnId) {
        if self.hubs[hub].draining {
            return self.close(conn, ACCEPTOR);
        }
        self.send(conn, ACCEPTOR, Message::MeshWelcome);
        self.make_ready(conn, ACCEPTOR);
    }

    pub(crate) fn mesh_welcome(&mut self, hub: usize, conn: ConnId) {
        self.make_ready(conn, DIALER);
        self.resume_flows(hub);
    }

    /// The peer wants no new flows on a link that this hub dialed.
    pub(crate) fn leave_mesh(&mut self, hub: usize, conn: ConnId) {
        let mut known = self.hubs[hub].mesh.iter();
        let peer = known.find(|(_, link)| **link == conn);
        if let Some(peer) = peer.map(|(peer, _)| *peer) {
            self.hubs[hub].mesh.remove(&peer);
            self.dial_mesh_again(hub, peer);
        }
    }

    pub(crate) fn hub_lost(&mut self, hub: usize, conn: ConnId, side: usize) {
        self.hubs[hub].claims.remove(&conn);
        if let Some(session) = self.hubs[hub].sessions.remove(&conn) {
            if let Some(record) = session.record {
                let now = self.now + self.hubs[hub].skew;
                let directory = &mut self.hubs[hub].directory;
                directory.leave(&session.agent_id, record, now);
            }
            self.tell_others(hub);
        }
        if side == DIALER {
            self.leave_mesh(hub, conn);
        }
    }

    /// The link to `peer`, if it takes flows.
    pub(crate) fn link_to(&self, hub: usize, peer: usize) -> Option<ConnId> {
        let conn = *self.hubs[hub].mesh.get(&peer)?;
        self.conns[conn].takes_flows(DIALER).then_some(conn)
    }

    // ---- flows that pass through ----------------------------------------------------------------

    pub(crate) fn forward(&mut self, hub: usize, conn: ConnId, number: u32, open: Open) {
        let (mode, name) = (open.mode, crate::ends::name_of(open.cid));
        let Err(reason) = self.pass_on(hub, conn, number, open) else {
            return;
        };
        self.note(|| format!("hub-{hub}: passes flow {name} not on: {reason}"));
        let id = FlowId(number);
        let no = match reason {
            Reason::UnknownConnector => Frame::Refuse { id, reason },
            _ if mode == OpenMode::New => Frame::Refuse { id, reason },
            _ => Frame::Detach { id, reason },
        };
        self.send(conn, ACCEPTOR, Message::Frame(no));
    }

    fn pass_on(
        &mut self,
        hub: usize,
        conn: ConnId,
        number: u32,
        mut open: Open,
    ) -> Result<(), Reason> {
        let sessions = self.hubs[hub].sessions.iter();
        let tunnel = sessions
            .filter(|(_, session)| {
                *session.agent_id == *open.agent && session.owner.epoch == open.epoch
            })
            .map(|(tunnel, _)| *tunnel)
            .min_by_key(|tunnel| !self.conns[*tunnel].takes_flows(ACCEPTOR))
            .ok_or(Reason::StaleEpoch)?;
        open.agent.clear();
        let onward = self.conns[tunnel].next_number();
        let held = open.mode != OpenMode::Resume && self.random.percent(30);
        let relay = Relay::new(open, WINDOW, WINDOW, true);
        let leg = |conn, number| Leg {
            conn,
            side: ACCEPTOR,
            number,
        };
        let name = self.tally.relayed as usize;
        self.tally.relayed += 1;
        let passing = Passing {
            relay,
            hub,
            legs: [leg(conn, number), leg(tunnel, onward)],
            room: self.random.within(500..8000),
        };
        self.relays.insert(name, passing);
        let origin = Carried::Relay(name, Face::Origin);
        let double = self.conns[conn].flows[ACCEPTOR].insert(number, origin);
        assert!(double.is_none(), "a number in use");
        if held {
            let wait = self.random.within(1..DECISION_MS);
            let proc = self.hubs[hub].proc;
            self.later(wait, proc, What::Decided(name));
        } else {
            self.enter_target(name);
        }
        self.stir_relay(name);
        Ok(())
    }

    fn enter_target(&mut self, name: usize) {
        if let Some(passing) = self.relays.get(&name) {
            let Leg { conn, number, .. } = passing.leg(Face::Target);
            let target = Carried::Relay(name, Face::Target);
            self.conns[conn].flows[ACCEPTOR].insert(number, target);
        }
    }

    /// Policy lets a flow through, whose tunnel may be gone by now.
    pub(crate) fn decided(&mut self, name: usize) {
        let Some(passing) = self.relays.get(&name) else {
            return;
        };
        let tunnel = passing.leg(Face::Target).conn;
        if self.conns[tunnel].carries(ACCEPTOR) {
            self.enter_target(name);
            self.stir_relay(name);
        } else {
            self.relay_lost(name, Face::Target);
        }
    }

    fn stir_relay(&mut self, name: usize) {
        if let Some(passing) = self.relays.get(&name) {
            let ends = passing.legs.map(|leg| (leg.conn, leg.side));
            self.stirred.extend(ends);
        }
    }

    pub(crate) fn relay_frame(&mut self, name: usize, face: Face, frame: Frame) {
        let Some(passing) = self.relays.get_mut(&name) else {
            return;
        };
        let taken = passing.relay.on_frame(face, frame);
        assert_eq!(taken, Ok(()), "an end broke a rule: {:?}", passing.relay);
        self.stir_relay(name);
        self.drop_if_over(name);
    }

    pub(crate) fn relay_lost(&mut self, name: usize, face: Face) {
        if let Some(passing) = self.relays.get_mut(&name) {
            passing.relay.lost(face, Reason::ConnectionLost);
            self.stir_relay(name);
            self.drop_if_over(name);
        }
    }

    /// Takes a flow off its hub, as when there is no memory for it.
    pub(crate) fn shed(&mut self, name: usize) {
        if let Some(passing) = self.relays.get_mut(&name) {
            passing.relay.shed(Reason::Backpressure);
            self.stir_relay(name);
            self.drop_if_over(name);
        }
    }

    pub(crate) fn drop_if_over(&mut self, name: usize) {
        let over = |passing: &&mut Passing| passing.relay.is_over();
        let Some(passing) = self.relays.get_mut(&name).filter(over) else {
            return;
        };
        for leg in passing.legs {
            self.conns[leg.conn].flows[leg.side].remove(&leg.number);
        }
        self.relays.remove(&name);
    }

    // ---- drain ----------------------------------------------------------------------------------

    /// Tells everybody to go elsewhere, and stops a while later.
    pub(crate) fn drain(&mut self, hub: usize) {
        self.note(|| format!("hub-{hub} drains"));
        self.hubs[hub].draining = true;
        let proc = self.hubs[hub].proc;
        for conn in 0..self.conns.len() {
            let link = &self.conns[conn];
            let mine = link.procs[ACCEPTOR] == proc && link.carries(ACCEPTOR);
            if mine {
                self.conns[conn].leaving = true;
                let frame = Frame::GoAway {
                    reason: Reason::Draining,
                    deadline_ms: 5000,
                };
                self.send(conn, ACCEPTOR, Message::Frame(frame));
            }
        }
        self.later(5000, proc, What::Stop);
    }

    /// The processes that hold tunnels of an agent here, for the verdict.
    pub(crate) fn holders(&self, hub: usize, agent_id: &str) -> Vec<(Instance, u64)> {
        let sessions = self.hubs[hub].sessions.values();
        let own = sessions.filter(|session| *session.agent_id == *agent_id);
        own.map(|session| (session.owner.instance, session.owner.epoch))
            .collect()
    }
}
