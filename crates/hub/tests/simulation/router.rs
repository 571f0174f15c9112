//! The clients of a hub, and which path each of their flows takes: the rules of the hub's router.

use std::sync::Arc;

use nowconnect_proto::flow::{Ending, Side};
use nowconnect_proto::hello::Instance;
use nowconnect_proto::{Flow, Frame, Reason};

use crate::ends::{End, Truth, WINDOW};
use crate::net::{ACCEPTOR, Carried, ConnId, DIALER, FlowName, Kind};
use crate::rules::Route;
use crate::traffic::apply;
use crate::world::{FAULTS_MS, GRACE_MS, What, World};

/// The agent process at the other end of a flow.
pub(crate) type Holder = (Arc<str>, Instance);

/// A flow whose client is at this hub.
pub(crate) struct Client {
    pub(crate) end: End,
    pub(crate) connector: &'static str,
    pub(crate) holder: Option<Holder>,
    pub(crate) epoch: u64,
    /// The hub that the flow goes over, if not this one.
    place: Option<usize>,
    tried: Vec<Tried>,
    sought: bool,
    gives_up: bool,
}

/// A path that did not work: to this agent, in this place under this epoch, or anywhere.
#[derive(Clone)]
struct Tried {
    agent_id: Arc<str>,
    at: Option<(Option<usize>, u64)>,
}

impl Tried {
    fn covers(&self, way: &Way) -> bool {
        let here = |at: &(Option<usize>, u64)| *at == (way.place, way.epoch);
        self.agent_id == way.holder.0 && self.at.as_ref().is_none_or(here)
    }
}

/// A way to an agent.
struct Way {
    conn: ConnId,
    side: usize,
    holder: Holder,
    epoch: u64,
    place: Option<usize>,
}

impl World {
    fn client(&mut self, hub: usize, name: FlowName) -> Option<&mut Client> {
        self.hubs[hub].flows.get_mut(&name)
    }

    // ---- ways -----------------------------------------------------------------------------------

    fn ways_here(&self, hub: usize, fits: impl Fn(&Holder, &[String]) -> bool) -> Vec<Way> {
        let sessions = self.hubs[hub].sessions.iter();
        let ways = sessions.filter(|(conn, _)| self.conns[**conn].takes_flows(ACCEPTOR));
        ways.filter_map(|(conn, session)| {
            let holder = (session.agent_id.clone(), session.owner.instance);
            fits(&holder, &session.connectors).then_some(Way {
                conn: *conn,
                side: ACCEPTOR,
                holder,
                epoch: session.owner.epoch,
                place: None,
            })
        })
        .collect()
    }

    fn ways_elsewhere(&self, hub: usize, routes: Vec<Arc<Route>>) -> Vec<Way> {
        let way = |route: Arc<Route>| {
            let peer = self.hubs.iter().position(|other| other.name == route.hub)?;
            Some(Way {
                conn: self.link_to(hub, peer)?,
                side: DIALER,
                holder: (route.agent_id.clone(), route.instance),
                epoch: route.epoch,
                place: Some(peer),
            })
        };
        routes.into_iter().filter_map(way).collect()
    }

    /// A way for a new flow: a tunnel here before one elsewhere; equals take turns.
    fn choose(&mut self, hub: usize, name: FlowName) -> Option<Way> {
        let client = self.hubs[hub].flows.get(&name)?;
        let connector = client.connector;
        let untried = |way: &Way| !client.tried.iter().any(|tried| tried.covers(way));
        let mut ways = self.ways_here(hub, |_, exports| exports.iter().any(|e| e == connector));
        ways.retain(untried);
        if ways.is_empty() {
            let routes = self.hubs[hub].directory.exporters(connector);
            ways = self.ways_elsewhere(hub, routes);
            ways.retain(untried);
        }
        self.hubs[hub].turn += 1;
        let turn = self.hubs[hub].turn;
        (!ways.is_empty()).then(|| ways.swap_remove(turn % ways.len()))
    }

    /// A way to the process that holds the other end, not over `shunned`.
    fn towards(&self, hub: usize, holder: &Holder, shunned: Option<usize>) -> Option<Way> {
        let here = self.ways_here(hub, |other, _| other == holder);
        let routes = self.hubs[hub].directory.of_instance(&holder.0, holder.1);
        let elsewhere = self.ways_elsewhere(hub, routes);
        let mut ways = elsewhere.into_iter().filter(|way| way.place != shunned);
        here.into_iter().next().or_else(|| ways.next())
    }

    fn is_replaced(&self, hub: usize, holder: &Holder) -> bool {
        self.hubs[hub].directory.is_superseded(&holder.0, holder.1)
    }

    fn go(&mut self, hub: usize, name: FlowName, way: Way) {
        let now = self.now;
        let number = self.conns[way.conn].next_number();
        let Some(client) = self.client(hub, name) else {
            return;
        };
        let old = client.end.at.replace((way.conn, number));
        client.holder = Some(way.holder);
        client.epoch = way.epoch;
        client.place = way.place;
        client.end.flow.attach_origin(u64::from(WINDOW), WINDOW);
        if client.end.written > 0 && old.is_none() && client.end.detached_at < now {
            self.tally.resumed += 1;
        }
        if let Some((conn, number)) = old {
            let side = self.hub_side(conn);
            self.leave_link(conn, side, number, true);
        }
        self.conns[way.conn].flows[way.side].insert(number, Carried::Client(name));
        self.stirred.insert((way.conn, way.side));
        let (conn, epoch, place) = (way.conn, way.epoch, way.place);
        self.note(|| {
            format!("hub-{hub}: flow {name} goes by {conn} over {place:?}, epoch {epoch}")
        });
    }

    /// The side of a connection that a hub's client flows are on.
    fn hub_side(&self, conn: ConnId) -> usize {
        match self.conns[conn].kind {
            Kind::Tunnel => ACCEPTOR,
            Kind::Mesh => DIALER,
        }
    }

    // ---- a client's life ------------------------------------------------------------------------

    pub(crate) fn client_comes(&mut self, hub: usize) {
        if self.now >= FAULTS_MS || self.hubs[hub].draining {
            return;
        }
        let proc = self.hubs[hub].proc;
        let wait = self.random.within(500..6000);
        self.later(wait, proc, What::Client);
        let name = self.flows.len() as FlowName + 1;
        let long = if self.random.percent(25) {
            150_000
        } else {
            20_000
        };
        let truth = Truth {
            brings: self.random.within(0..long),
            target_brings: self.random.within(0..long),
            ..Truth::default()
        };
        let flow = Flow::new(Side::Origin, WINDOW, 2 * WINDOW, 0);
        let end = End::new(name, Side::Origin, flow, truth.brings, self.now);
        self.flows.insert(name, truth);
        let client = Client {
            end,
            connector: self.random.pick(&["ldap", "pg"]).unwrap_or("ldap"),
            holder: None,
            epoch: 0,
            place: None,
            tried: Vec::new(),
            sought: false,
            gives_up: self.random.percent(10),
        };
        self.hubs[hub].flows.insert(name, client);
        self.tally.clients += 1;
        match self.choose(hub, name) {
            Some(way) => {
                self.go(hub, name, way);
                self.later(1, proc, What::Socket(name));
            }
            None => self.expire_client(hub, name, Reason::NoAgent),
        }
    }

    pub(crate) fn client_socket(&mut self, hub: usize, name: FlowName) {
        let (n, m) = (self.random.within(1..6000), self.random.below(9000));
        let gives_up = self.random.percent(3);
        let wait = self.random.within(20..400);
        let proc = self.hubs[hub].proc;
        let Some(client) = self.client(hub, name) else {
            return;
        };
        if client.end.flow.ending().is_some() {
            return;
        }
        client.end.write(n);
        client.end.read(m);
        if gives_up && client.gives_up && client.end.flow.is_opened() {
            client.end.flow.abort(Reason::SocketReset);
        }
        let read = (client.end.read, client.end.read_fin);
        if let Some((conn, _)) = client.end.at {
            let side = self.hub_side(conn);
            self.stirred.insert((conn, side));
        }
        if let Some(truth) = self.flows.get_mut(&name) {
            truth.client_read = read;
        }
        self.later(wait, proc, What::Socket(name));
        self.client_stepped(hub, name);
    }

    /// The flow may be over now.
    pub(crate) fn client_stepped(&mut self, hub: usize, name: FlowName) {
        let now = self.now;
        let Some(client) = self.client(hub, name) else {
            return;
        };
        if client.end.flow.ending().is_some() {
            client.end.ended_at.get_or_insert(now);
        }
        if client.end.flow.is_over() {
            self.forget_client(hub, name);
        }
    }

    fn expire_client(&mut self, hub: usize, name: FlowName, reason: Reason) {
        if let Some(client) = self.client(hub, name) {
            client.end.flow.abort(reason);
            self.forget_client(hub, name);
        }
    }

    fn forget_client(&mut self, hub: usize, name: FlowName) {
        let Some(client) = self.hubs[hub].flows.remove(&name) else {
            return;
        };
        if let Some((conn, number)) = client.end.at {
            let side = self.hub_side(conn);
            self.leave_link(conn, side, number, false);
        }
        let ending = client.end.flow.ending();
        self.note(|| format!("hub-{hub}: flow {name} is over: {ending:?}"));
        self.judge_ending(name, ending);
        if ending == Some(Ending::Finished) {
            if let Some(truth) = self.flows.get_mut(&name) {
                truth.client_read = (client.end.read, client.end.read_fin);
                truth.finished = true;
            }
            self.judge_finished(name);
        }
    }

    // ---- what comes back ------------------------------------------------------------------------

    pub(crate) fn client_frame(&mut self, hub: usize, conn: ConnId, name: FlowName, frame: Frame) {
        match frame {
            Frame::Refuse { reason, .. } => self.refused(hub, conn, name, reason),
            Frame::Detach { id, .. } => {
                let side = self.hub_side(conn);
                self.leave_link(conn, side, id.0, false);
                self.client_detached(hub, conn, id.0, name);
            }
            frame => {
                let Some(client) = self.client(hub, name) else {
                    return;
                };
                let applied = apply(&mut client.end, frame);
                assert_eq!(applied, Ok(()), "flow {name}: {:?}", client.end.flow);
                self.client_stepped(hub, name);
            }
        }
    }

    fn refused(&mut self, hub: usize, conn: ConnId, name: FlowName, reason: Reason) {
        self.note(|| format!("hub-{hub}: flow {name} is refused: {reason}"));
        let side = self.hub_side(conn);
        let Some(client) = self.client(hub, name) else {
            return;
        };
        let flow = &mut client.end.flow;
        if flow.ending().is_none() {
            assert_eq!(flow.on_refuse(), Ok(()), "flow {name}: {flow:?}");
        }
        if flow.ending().is_some() || !(reason.allows_another_agent() && flow.rewind()) {
            flow.refused(reason);
            return self.client_stepped(hub, name);
        }
        if let Some((_, number)) = client.end.at.take() {
            self.leave_link(conn, side, number, false);
        }
        let Some(client) = self.client(hub, name) else {
            return;
        };
        let at = reason.is_of_path().then_some((client.place, client.epoch));
        let (place, sought) = (client.place, client.sought);
        note_failed(client, at);
        let mut way = self.choose(hub, name);
        if way.is_none()
            && reason == Reason::StaleEpoch
            && !sought
            && let Some(peer) = place
        {
            // The hub does not hold the agent as this one believed: its list is read anew, once.
            if let Some(client) = self.client(hub, name) {
                client.sought = true;
            }
            self.read_table(hub, peer);
            way = self.choose(hub, name);
        }
        match way {
            Some(way) => self.go(hub, name, way),
            None => self.expire_client(hub, name, Reason::NoAgent),
        }
    }

    pub(crate) fn client_detached(
        &mut self,
        hub: usize,
        conn: ConnId,
        number: u32,
        name: FlowName,
    ) {
        let now = self.now;
        let Some(client) = self.client(hub, name) else {
            return;
        };
        if client.end.at != Some((conn, number)) {
            return;
        }
        client.end.detach(now);
        self.note(|| format!("hub-{hub}: flow {name} has no path"));
        self.client_stepped(hub, name);
        self.find_path(hub, name);
    }

    /// What becomes of a flow without a path.
    fn find_path(&mut self, hub: usize, name: FlowName) {
        let Some(client) = self.hubs[hub].flows.get(&name) else {
            return;
        };
        let (place, epoch) = (client.place, client.epoch);
        let Some(holder) = client.holder.clone() else {
            return;
        };
        // A hub whose link is up has said that it has no path; it is asked again in a moment.
        let shunned = place.filter(|peer| self.link_to(hub, *peer).is_some());
        if let Some(way) = self.towards(hub, &holder, shunned) {
            if !self.is_replaced(hub, &holder) {
                self.go(hub, name, way);
            } else {
                self.expire_client(hub, name, Reason::AgentRestarted);
            }
            return;
        }
        if shunned.is_some()
            && let Some(client) = self.client(hub, name)
        {
            note_failed(client, Some((shunned, epoch)));
        }
        if let Some(way) = self.choose(hub, name)
            && self
                .client(hub, name)
                .is_some_and(|client| client.end.flow.withdraw())
        {
            return self.go(hub, name, way);
        }
        if self.is_replaced(hub, &holder) {
            self.expire_client(hub, name, Reason::AgentRestarted);
        }
    }

    fn waiting(&self, hub: usize) -> Vec<FlowName> {
        let flows = self.hubs[hub].flows.values();
        let waiting = flows.filter(|client| client.end.at.is_none());
        waiting.map(|client| client.end.name).collect()
    }

    /// Tunnels, routes or links have changed: looks for paths for all flows that wait for one.
    pub(crate) fn resume_flows(&mut self, hub: usize) {
        for name in self.waiting(hub) {
            let client = self.hubs[hub].flows.get(&name);
            let Some(holder) = client.and_then(|client| client.holder.clone()) else {
                continue;
            };
            match self.towards(hub, &holder, None) {
                Some(way) => self.go(hub, name, way),
                None if self.is_replaced(hub, &holder) => self.find_path(hub, name),
                None => {}
            }
        }
    }

    pub(crate) fn sweep_hub(&mut self, hub: usize) {
        let (now, proc) = (self.now, self.hubs[hub].proc);
        self.later(1000, proc, What::Sweep);
        for name in self.waiting(hub) {
            if let Some(client) = self.client(hub, name)
                && !client.end.flow.is_opened()
            {
                client.place = None;
                self.find_path(hub, name);
            }
        }
        self.resume_flows(hub);
        let overdue = |client: &&Client| {
            let end = &client.end;
            let waits = end.at.is_none() && now >= end.detached_at + GRACE_MS;
            waits || end.ended_at.is_some_and(|at| now >= at + GRACE_MS)
        };
        let flows = self.hubs[hub].flows.values().filter(overdue);
        let overdue: Vec<_> = flows.map(|client| client.end.name).collect();
        for name in overdue {
            self.tally.expired += 1;
            self.expire_client(hub, name, Reason::ResumeExpired);
        }
    }
}

fn note_failed(client: &mut Client, at: Option<(Option<usize>, u64)>) {
    if let Some((agent_id, _)) = &client.holder {
        let agent_id = agent_id.clone();
        client.tried.push(Tried { agent_id, at });
    }
}
