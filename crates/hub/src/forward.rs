//! Flows whose client is at another hub and whose agent is here: the owner's side of the mesh.
//!
//! A peer names the agent and the epoch that it believes in. This hub answers only for tunnels that
//! end here, so no flow ever crosses a second link, and it judges again what the other hub has
//! judged before.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use nowconnect_link::pool::{Pool, Share};
use nowconnect_link::relayed::{Relayed, Side};
use nowconnect_link::session::Link;
use nowconnect_proto::frame::{Frame, Open, OpenMode};
use nowconnect_proto::{FlowId, Reason};
use parking_lot::Mutex;

use crate::config::{HaMode, HubConfig};
use crate::mesh::Peer;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::tunnels::{Session, Tunnels};

/// Passes flows of other hubs on to the agents of this one.
pub struct Forward {
    tunnels: Arc<Tunnels>,
    policy: Arc<Policy>,
    metrics: Arc<Metrics>,
    mode: AtomicU8,
    most_flows: AtomicUsize,
    /// Bytes that may wait here in each direction of a link.
    most_bytes: AtomicU64,
    rooms: Mutex<Vec<Rooms>>,
    flows: Arc<AtomicUsize>,
}

/// What flows that came over one link may have waiting here.
struct Rooms {
    link: Weak<Link>,
    /// Towards the other hub.
    back: Arc<Share>,
    /// Towards agents.
    onward: Arc<Pool>,
    agents: HashMap<Arc<str>, Weak<Share>>,
}

impl Rooms {
    fn new(link: &Arc<Link>, limit: u64) -> Self {
        Self {
            link: Arc::downgrade(link),
            back: Share::new(&Pool::new(limit)),
            onward: Pool::new(limit),
            agents: HashMap::new(),
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

/// A flow's place in the count.
struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Forward {
    /// Nothing is passed on yet.
    pub fn new(
        config: &HubConfig,
        tunnels: Arc<Tunnels>,
        policy: Arc<Policy>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let forward = Arc::new(Self {
            tunnels,
            policy,
            metrics,
            mode: AtomicU8::default(),
            most_flows: AtomicUsize::default(),
            most_bytes: AtomicU64::default(),
            rooms: Mutex::default(),
            flows: Arc::default(),
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
    pub fn open(&self, link: &Arc<Link>, peer: &Peer, id: FlowId, open: Open) {
        if link.carries(id) {
            return link.close(Reason::ProtocolError);
        }
        let (mode, cid) = (open.mode, open.cid);
        let Err(reason) = self.pass_on(link, peer.first_window, id, open) else {
            return;
        };
        tracing::debug!(event = "flow_refused", %cid, hub = %peer.hub, %reason);
        if reason == Reason::Limit {
            self.metrics.mesh.backpressure.with(["refused"]).inc();
            peer.metrics.drops("refused").inc();
        }
        match (mode, reason) {
            (OpenMode::New, _) | (_, Reason::Denied) => link.refuse(id, reason),
            (OpenMode::Resume, Reason::UnknownConnector) => link.refuse(id, reason),
            // What stands in the way of a running flow may be gone in a moment, or elsewhere. One
            // that was not answered may run all the same: a refusal would offer it to another agent.
            _ => link.send(Frame::Detach { id, reason }),
        }
    }

    fn pass_on(
        &self,
        link: &Arc<Link>,
        first_window: u32,
        id: FlowId,
        open: Open,
    ) -> Result<(), Reason> {
        // Running flows may go on when the mode is not active any more.
        let active = self.mode.load(Ordering::Relaxed) == HaMode::Active as u8;
        if !active && open.mode != OpenMode::Resume {
            return Err(Reason::NotActive);
        }
        let client = open.client.parse::<SocketAddr>().ok();
        if client.is_some_and(|client| !self.policy.allows_anywhere(client.ip())) {
            return Err(Reason::Denied);
        }
        for session in self.sessions(&open)? {
            let ticket = self.ticket()?;
            let (back, onward) = self.rooms(link, &session.agent_id);
            let origin = Side {
                link: link.clone(),
                share: back,
            };
            let target = Side {
                link: session.link().clone(),
                share: onward,
            };
            let (epoch, open) = (session.epoch(), open.clone());
            match Relayed::start(origin, id, open, target, epoch, first_window, ticket) {
                Ok(_) => return Ok(()),
                // The tunnel has just ended; there may be another.
                Err(_) if !link.is_closed() => {}
                Err(reason) => return Err(reason),
            }
        }
        Err(Reason::NoAgent)
    }

    /// The tunnels of the agent that `open` names, the least loaded first. One that is leaving is
    /// better than none: its agent may have no other yet.
    fn sessions(&self, open: &Open) -> Result<Vec<Arc<Session>>, Reason> {
        let mut sessions = self.tunnels.directory().of_agent(&open.agent);
        sessions.retain(|session| session.epoch() == open.epoch);
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

    fn ticket(&self) -> Result<Box<dyn Send>, Reason> {
        let before = self.flows.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket(self.flows.clone());
        if before >= self.most_flows.load(Ordering::Relaxed) {
            return Err(Reason::Limit);
        }
        Ok(Box::new(ticket))
    }

    fn rooms(&self, link: &Arc<Link>, agent_id: &Arc<str>) -> (Arc<Share>, Arc<Share>) {
        let mut rooms = self.rooms.lock();
        let known = |rooms: &Rooms| std::ptr::eq(rooms.link.as_ptr(), Arc::as_ptr(link));
        let at = rooms.iter().position(known).unwrap_or_else(|| {
            rooms.retain(|rooms| rooms.link.strong_count() > 0);
            let limit = self.most_bytes.load(Ordering::Relaxed);
            rooms.push(Rooms::new(link, limit));
            rooms.len() - 1
        });
        let rooms = &mut rooms[at];
        (rooms.back.clone(), rooms.towards(agent_id))
    }
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward")
            .field("flows", &self.flows())
            .finish_non_exhaustive()
    }
}
