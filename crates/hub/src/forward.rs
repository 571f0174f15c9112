//! Flows whose client is at another hub and whose agent is here: the owner's side of the mesh.
//!
//! A peer names the agent and the epoch that it believes in. This hub answers only for tunnels that
//! end here, so no flow ever crosses a second link, and it judges again what the other hub has
//! judged before.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use nowconnect_link::pool::{Pool, Share};
use nowconnect_link::quiet::Quiet;
use nowconnect_link::relayed::{Passage, Relayed, Side};
use nowconnect_link::session::Link;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::trace::{Kind, Trace, Tracer};
use nowconnect_proto::frame::{Frame, Open, OpenMode};
use nowconnect_proto::{Cid, FlowId, Reason, TraceContext};
use parking_lot::Mutex;

use crate::config::{HaMode, HubConfig};
use crate::flow_trace;
use crate::mesh::Peer;
use crate::metrics::Metrics;
use crate::pdp::{Judged, Pass, Pdp, Pending, Question, Refused};
use crate::policy::Policy;
use crate::tunnels::{Session, Tunnels};

/// Flows that came over one link and that policy has yet to decide about, at most. More are refused,
/// so that a hub gone bad cannot pile up questions.
const MOST_HELD: usize = 256;

/// Passes flows of other hubs on to the agents of this one.
pub struct Forward {
    tunnels: Arc<Tunnels>,
    policy: Arc<Policy>,
    pdp: Arc<Pdp>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    tasks: Tasks,
    mode: AtomicU8,
    most_flows: AtomicUsize,
    /// Bytes that may wait here in each direction of a link.
    most_bytes: AtomicU64,
    rooms: Mutex<Vec<Rooms>>,
    flows: Arc<AtomicUsize>,
    quiet: Mutex<HashMap<&'static str, Quiet>>,
}

/// What it goes by.
pub struct Parts {
    /// The agents of this hub.
    pub tunnels: Arc<Tunnels>,
    /// Who may connect.
    pub policy: Arc<Policy>,
    /// Who decides about each flow.
    pub pdp: Arc<Pdp>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What makes spans.
    pub tracer: Tracer,
}

/// What flows that came over one link may have waiting here.
struct Rooms {
    link: Weak<Link>,
    /// Towards the other hub.
    back: Arc<Share>,
    /// Towards agents.
    onward: Arc<Pool>,
    agents: HashMap<Arc<str>, Weak<Share>>,
    /// Flows that are not decided about.
    held: Arc<AtomicUsize>,
}

impl Rooms {
    fn new(link: &Arc<Link>, limit: u64) -> Self {
        Self {
            link: Arc::downgrade(link),
            back: Share::new(&Pool::new(limit)),
            onward: Pool::new(limit),
            agents: HashMap::new(),
            held: Arc::default(),
        }
    }

    fn towards(&mut self, agent_id: &Arc<str>) -> Arc<Share> {
        if let Some(share) = self.agents.get(agent_id).and_then(Weak::upgrade) {
            return share;
        }
        self.agents.retain(|_, share| share.strong_count() > 0);
        let share = Share::new(&self.onward);
        self.agents.insert(agent_id.clone(), Arc::downgrade(&share));
        share
    }
}

/// A flow's place in a count.
struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    /// A place, unless `most` are taken.
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Result<Self, Reason> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let ticket = Self(count.clone());
        if before >= most {
            return Err(Reason::Limit);
        }
        Ok(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A flow that policy has yet to decide about.
struct Held {
    relayed: Arc<Relayed>,
    session: Arc<Session>,
    mode: OpenMode,
    connector: String,
    client: Option<SocketAddr>,
    /// Among those of its link.
    _place: Ticket,
}

/// Whether a flow that is not passed on is refused. What stands in the way of a running flow may be
/// gone in a moment, or elsewhere. One that was not answered may run all the same: a refusal would
/// offer it to another agent.
fn is_final(mode: OpenMode, reason: Reason) -> bool {
    matches!(
        (mode, reason),
        (OpenMode::New, _) | (_, Reason::Denied) | (OpenMode::Resume, Reason::UnknownConnector)
    )
}

/// What is recorded of a flow when it is passed on no longer.
struct Record {
    cid: Cid,
    connector: String,
    client: String,
    resumed: bool,
    origin: Arc<str>,
    agent_id: Arc<str>,
    token_id: Option<Arc<str>>,
    epoch: u64,
    since: Instant,
    trace: Option<Box<Trace>>,
    _ticket: Ticket,
}

impl Record {
    fn new(
        peer: &Peer,
        session: &Session,
        open: &Open,
        trace: Option<Box<Trace>>,
        ticket: Ticket,
    ) -> Self {
        Self {
            cid: open.cid,
            connector: open.connector.clone(),
            client: open.client.clone(),
            resumed: open.mode != OpenMode::New,
            origin: peer.hub.clone(),
            agent_id: session.agent_id.clone(),
            token_id: session.token_id(),
            epoch: session.epoch(),
            since: Instant::now(),
            trace,
            _ticket: ticket,
        }
    }

    fn write(mut self, passage: &Passage) {
        if let Some(trace) = &mut self.trace {
            flow_trace::passed(trace, passage);
        }
        tracing::info!(
            event = "flow_forwarded_closed",
            cid = %self.cid,
            connector = %self.connector,
            client = %self.client,
            origin = %self.origin,
            agent_id = %self.agent_id,
            token_id = self.token_id.as_deref(),
            epoch = self.epoch,
            resumed = self.resumed,
            bytes_c2a = passage.bytes_c2a,
            bytes_a2c = passage.bytes_a2c,
            duration_ms = self.since.elapsed().as_millis() as u64,
            reason = passage.reason.name(),
            audit = true,
        );
    }
}

impl Forward {
    /// Nothing is passed on yet.
    pub fn new(config: &HubConfig, parts: Parts, tasks: Tasks) -> Arc<Self> {
        let Parts {
            tunnels,
            policy,
            pdp,
            metrics,
            tracer,
        } = parts;
        let forward = Arc::new(Self {
            tunnels,
            policy,
            pdp,
            metrics,
            tracer,
            tasks,
            mode: AtomicU8::default(),
            most_flows: AtomicUsize::default(),
            most_bytes: AtomicU64::default(),
            rooms: Mutex::default(),
            flows: Arc::default(),
            quiet: Mutex::default(),
        });
        forward.set_rules(config);
        forward
    }

    /// Puts other rules in force for flows that come from now on.
    pub fn set_rules(&self, config: &HubConfig) {
        let relaxed = Ordering::Relaxed;
        self.mode.store(config.ha.mode as u8, relaxed);
        self.most_flows.store(config.limits.max_conn_total, relaxed);
        let bytes = config.ha.mesh.per_link_max_inflight_bytes as u64;
        self.most_bytes.store(bytes, relaxed);
    }

    /// Flows of other hubs that pass through now.
    pub fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// A peer offers or resumes a flow over its link.
    pub fn open(self: &Arc<Self>, link: &Arc<Link>, peer: &Peer, id: FlowId, open: Open) {
        if link.carries(id) {
            let errors = &self.metrics.tunnels.protocol_errors;
            errors.with(["mesh", "repeated_open"]).inc();
            return link.close(Reason::ProtocolError);
        }
        let (mode, cid, traced) = (open.mode, open.cid, open.trace);
        let (agent_id, client) = (open.agent.clone(), open.client.clone());
        let Err(reason) = self.pass_on(link, peer, id, open) else {
            return;
        };
        if let Some(mut trace) = self.followed(peer, traced, cid) {
            trace.fail(reason.name());
        }
        let pass = self.quiet.lock().entry(reason.name()).or_default().pass();
        if let Some(suppressed) = pass {
            tracing::warn!(
                event = "flow_forward_refused",
                %cid,
                agent_id,
                client,
                origin = %peer.hub,
                reason = reason.name(),
                suppressed,
                audit = true,
            );
        }
        if reason == Reason::Limit {
            self.metrics.mesh.backpressure.with(["refused"]).inc();
            peer.metrics.drops("refused").inc();
        }
        match is_final(mode, reason) {
            true => link.refuse(id, reason),
            false => link.send(Frame::Detach { id, reason }),
        }
    }

    fn pass_on(
        self: &Arc<Self>,
        link: &Arc<Link>,
        peer: &Peer,
        id: FlowId,
        open: Open,
    ) -> Result<(), Reason> {
        let client = open.client.parse::<SocketAddr>().ok();
        self.admits(open.mode, client)?;
        let sessions = self.sessions(&open)?;
        let pending = self.judge(link, peer, &open, client)?;
        let begin = match pending {
            Some(_) => Relayed::hold,
            None => Relayed::start,
        };
        for session in sessions {
            let most = self.most_flows.load(Ordering::Relaxed);
            let ticket = Ticket::take(&self.flows, most)?;
            let mut copy = open.clone();
            let mut trace = self.followed(peer, open.trace, open.cid);
            if let Some(trace) = &mut trace {
                flow_trace::passes(trace, &open, &session.agent_id);
                copy.trace = Some(trace.context());
            }
            let record = Record::new(peer, &session, &open, trace, ticket);
            let done = Box::new(|passage| record.write(&passage));
            let (back, onward) = self.rooms(link, &session.agent_id);
            let origin = Side {
                link: link.clone(),
                share: back,
            };
            let target = Side {
                link: session.link().clone(),
                share: onward,
            };
            let (epoch, first) = (session.epoch(), peer.first_window);
            match begin(origin, id, copy, target, epoch, first, done) {
                Ok(relayed) => {
                    if let Some((pending, place)) = pending {
                        let held = Held {
                            relayed,
                            session,
                            mode: open.mode,
                            connector: open.connector,
                            client,
                            _place: place,
                        };
                        self.await_decision(held, pending);
                    }
                    return Ok(());
                }
                // The tunnel has just ended; there may be another.
                Err(_) if !link.is_closed() => {}
                Err(reason) => return Err(reason),
            }
        }
        Err(Reason::NoAgent)
    }

    /// The span of a flow that comes from `peer`, where that one traces it.
    fn followed(&self, peer: &Peer, parent: Option<TraceContext>, cid: Cid) -> Option<Box<Trace>> {
        let mut trace = self.tracer.follow(parent)?;
        trace.stage("forward", Kind::Server);
        trace.set("nowconnect.cid", cid.to_string());
        trace.set("nowconnect.origin", &peer.hub);
        Some(trace)
    }

    /// Sees whether the flow may go to the agent that `open` names; returns what is to be waited for.
    /// A flow that the agent has answered was judged when it was new.
    fn judge(
        &self,
        link: &Arc<Link>,
        peer: &Peer,
        open: &Open,
        client: Option<SocketAddr>,
    ) -> Result<Option<(Pending, Ticket)>, Reason> {
        if open.mode == OpenMode::Resume || !self.pdp.is_on() {
            return Ok(None);
        }
        let question = Question {
            agent_id: open.agent.as_str().into(),
            connector: open.connector.as_str().into(),
            client: client.map(|client| client.ip().to_canonical()),
            listener: open.listener.as_str().into(),
            origin: Some(peer.hub.clone()),
        };
        if self.pdp.known(&question).is_some() {
            return Ok(None);
        }
        // First the place, then the question.
        let held = self.hold(link)?;
        Ok(match self.pdp.judge(&question) {
            Judged::Pass(_) => None,
            Judged::Asked(pending) => Some((pending, held)),
        })
    }

    /// What the origin sends behind its OPEN waits here until there is a decision.
    fn await_decision(self: &Arc<Self>, held: Held, pending: Pending) {
        let forward = self.clone();
        let decided = async move {
            let decision = pending.decision().await;
            match forward.confirms(&held, decision) {
                Ok(()) => held.relayed.release(),
                Err(reason) if is_final(held.mode, reason) => held.relayed.refuse(reason),
                Err(reason) => held.relayed.give_back(reason),
            }
        };
        let stop = self.tasks.token();
        let work = stop.run_until_cancelled_owned(decided);
        self.tasks
            .spawn_on(self.pdp.runtime(), "pdp_decision", work);
    }

    /// Other rules may hold by now than when the question was asked.
    fn confirms(&self, held: &Held, decision: Result<Pass, Refused>) -> Result<(), Reason> {
        decision.map_err(|_| match held.mode {
            OpenMode::New => Reason::PdpDenied,
            // It may run at the agent all the same, so no other may have it.
            _ => Reason::Denied,
        })?;
        self.admits(held.mode, held.client)?;
        match held.session.exports().contains(&held.connector) {
            true => Ok(()),
            false => Err(Reason::UnknownConnector),
        }
    }

    /// Judges by mode and networks.
    fn admits(&self, mode: OpenMode, client: Option<SocketAddr>) -> Result<(), Reason> {
        // Running flows may go on when the mode is not active any more.
        let active = self.mode.load(Ordering::Relaxed) == HaMode::Active as u8;
        if !active && mode != OpenMode::Resume {
            return Err(Reason::NotActive);
        }
        match self
            .policy
            .allows_anywhere(client.map(|client| client.ip()))
        {
            true => Ok(()),
            false => Err(Reason::Denied),
        }
    }

    /// The tunnels of the agent that `open` names, the least loaded first. One that is leaving is
    /// better than none: its agent may have no other yet.
    fn sessions(&self, open: &Open) -> Result<Vec<Arc<Session>>, Reason> {
        let mut sessions = self.tunnels.directory().of_agent(&open.agent);
        // A hub that is off tells nobody of epochs, so the origin may know an old one. What the agent does
        // not know it refuses itself.
        let off = self.mode.load(Ordering::Relaxed) == HaMode::Off as u8;
        if !off || open.mode != OpenMode::Resume {
            sessions.retain(|session| session.epoch() == open.epoch);
        }
        if sessions.is_empty() {
            self.metrics.mesh.epoch_mismatch.inc();
            return Err(Reason::StaleEpoch);
        }
        sessions.retain(|session| session.exports().contains(&open.connector));
        if sessions.is_empty() {
            return Err(Reason::UnknownConnector);
        }
        sessions.sort_by_key(|session| {
            let link = session.link();
            (!link.takes_flows(), link.active_flows())
        });
        Ok(sessions)
    }

    /// A place among the flows of `link` that are not decided about.
    fn hold(&self, link: &Arc<Link>) -> Result<Ticket, Reason> {
        let mut rooms = self.rooms.lock();
        Ticket::take(&self.rooms_of(&mut rooms, link).held, MOST_HELD)
    }

    fn rooms(&self, link: &Arc<Link>, agent_id: &Arc<str>) -> (Arc<Share>, Arc<Share>) {
        let mut rooms = self.rooms.lock();
        let rooms = self.rooms_of(&mut rooms, link);
        (rooms.back.clone(), rooms.towards(agent_id))
    }

    fn rooms_of<'a>(&self, rooms: &'a mut Vec<Rooms>, link: &Arc<Link>) -> &'a mut Rooms {
        let known = |rooms: &Rooms| std::ptr::eq(rooms.link.as_ptr(), Arc::as_ptr(link));
        let at = rooms.iter().position(known).unwrap_or_else(|| {
            rooms.retain(|rooms| rooms.link.strong_count() > 0);
            let limit = self.most_bytes.load(Ordering::Relaxed);
            rooms.push(Rooms::new(link, limit));
            rooms.len() - 1
        });
        &mut rooms[at]
    }
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward")
            .field("flows", &self.flows())
            .finish_non_exhaustive()
    }
}
