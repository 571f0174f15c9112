//! One client connection: which agents it was offered to, and what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nowconnect_link::counters::Engine;
use nowconnect_link::endpoint::{FlowEvents, Label, SocketFlow, Summary};
use nowconnect_proto::{Cid, Reason};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::{Router, end_flow};
use crate::metrics::ListenerError;
use crate::policy::Permit;
use crate::tunnels::{Holder, Session};

/// What the hub knows about a flow. It holds the client's place in the limits until the flow ends.
pub struct ClientFlow {
    cid: Cid,
    permit: Permit,
    router: Arc<Router>,
    route: Mutex<Route>,
    opened: AtomicBool,
}

/// Where the flow goes.
#[derive(Default)]
struct Route {
    /// The process that holds, or is asked to hold, the other end.
    holder: Option<Holder>,
    /// Agents that it was offered to.
    tried: Vec<Arc<str>>,
}

impl ClientFlow {
    pub(super) fn new(router: &Arc<Router>, permit: Permit) -> Arc<Self> {
        let metrics = &permit.door().metrics;
        metrics.connections.inc();
        metrics.active.inc();
        Arc::new(Self {
            cid: Cid::generate(),
            permit,
            router: router.clone(),
            route: Mutex::default(),
            opened: AtomicBool::new(false),
        })
    }

    /// The engine's end of the flow.
    pub(super) fn with_socket(
        self: Arc<Self>,
        stream: TcpStream,
        engine: &Arc<Engine>,
    ) -> Arc<SocketFlow> {
        let door = self.permit.door();
        let label = Label {
            connector: door.connector.clone(),
            listener: door.name.clone(),
            client: self.permit.client().to_string().into(),
        };
        let counters = door.metrics.flow_counters();
        SocketFlow::origin(self.cid, label, stream, engine, counters, self)
    }

    /// The proof that the client was let in.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The agent process at the other end.
    pub fn holder(&self) -> Option<Holder> {
        self.route.lock().holder.clone()
    }

    /// Whether an agent has connected it to its target.
    pub fn is_open(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    /// How long the flow may be idle; `None` = for ever.
    pub(super) fn idle_limit(&self) -> Option<Duration> {
        self.permit.door().config().idle_timeout
    }

    /// Offers the flow to `session`, or to others when that one has just ended.
    pub(super) fn offer(&self, flow: &Arc<SocketFlow>, session: Arc<Session>) -> bool {
        let mut next = Some(session);
        while let Some(session) = next {
            {
                let mut route = self.route.lock();
                route.holder = Some(session.holder());
                route.tried.push(session.agent_id.clone());
            }
            match session.link().attach(flow, session.epoch()) {
                Ok(()) => return true,
                Err(Reason::FlowIdsExhausted) => {}
                // The link has just ended, so the flow waits like one that lost its path, unless
                // somebody has taken care of it since.
                Err(_) if !self.router.tunnels().release(&session.holder(), self.cid) => {
                    return true;
                }
                Err(_) => {}
            }
            next = self.next_session();
        }
        self.turn_away(flow, ListenerError::NoAgent, Reason::NoAgent);
        false
    }

    fn next_session(&self) -> Option<Arc<Session>> {
        let tried = self.route.lock().tried.clone();
        self.choose(&tried)
    }

    fn choose(&self, tried: &[Arc<str>]) -> Option<Arc<Session>> {
        let directory = self.router.tunnels().directory();
        directory.choose(&self.permit.door().connector, tried)
    }

    /// Offers the flow, which has no path, to another than `holder` if that process is not here,
    /// has not answered, and cannot have had a byte of the client's.
    fn offer_elsewhere(&self, flow: &Arc<SocketFlow>, holder: &Holder) -> bool {
        let directory = self.router.tunnels().directory();
        if directory
            .of_instance(&holder.agent_id, holder.instance)
            .is_some()
        {
            return false;
        }
        let mut refused = self.route.lock().tried.clone();
        // It was lost, it has not refused: its next start may be asked.
        refused.retain(|agent| *agent != holder.agent_id);
        let Some(session) = self.choose(&refused).filter(|_| flow.withdraw()) else {
            return false;
        };
        tracing::debug!(event = "flow_offered_again", cid = %self.cid, lost = %holder.agent_id);
        self.offer(flow, session);
        true
    }

    /// Sees whether somebody else can take over a flow that waits for its agent.
    pub(super) fn reconsider(&self, flow: &Arc<SocketFlow>) {
        if flow.is_opened() {
            return;
        }
        let Some(holder) = self.holder() else { return };
        // Whoever takes it out decides about it.
        if self.router.tunnels().release(&holder, self.cid) {
            flow.reconsider();
        }
    }

    fn turn_away(&self, flow: &Arc<SocketFlow>, why: ListenerError, reason: Reason) {
        self.permit.door().turn_away(self.permit.client(), why);
        end_flow(flow, reason);
    }
}

impl FlowEvents for ClientFlow {
    fn opened(&self, flow: &Arc<SocketFlow>) {
        if self.opened.swap(true, Ordering::Relaxed) {
            return;
        }
        let door = self.permit.door();
        let waited = flow.since().elapsed();
        door.metrics.open_latency.observe(waited.as_secs_f64());
        let holder = self.holder();
        tracing::info!(
            event = "flow_opened",
            cid = %self.cid,
            connector = %door.connector,
            listener = %door.name,
            client = %self.permit.client(),
            agent_id = holder.as_ref().map(|holder| &*holder.agent_id),
            open_ms = waited.as_millis() as u64,
        );
    }

    fn refused(&self, flow: &Arc<SocketFlow>, reason: Reason) -> bool {
        let refuser = self.holder().map(|holder| holder.agent_id);
        tracing::debug!(event = "flow_refused", cid = %self.cid, agent_id = refuser.as_deref(), %reason);
        match self.next_session() {
            Some(session) => self.offer(flow, session),
            None => {
                self.permit
                    .door()
                    .turn_away(self.permit.client(), ListenerError::Refused);
                false
            }
        }
    }

    fn path_lost(&self, flow: &Arc<SocketFlow>) {
        let Some(holder) = self.holder() else {
            return end_flow(flow, Reason::ConnectionLost);
        };
        if !self.offer_elsewhere(flow, &holder) {
            self.router.tunnels().adopt(&holder, flow);
        }
    }

    fn closed(&self, flow: &Arc<SocketFlow>, summary: Summary) {
        let door = self.permit.door();
        self.permit.release();
        door.metrics.active.dec();
        door.metrics
            .duration
            .observe(summary.duration_ms as f64 / 1e3);
        let holder = self.holder();
        if let Some(holder) = &holder {
            self.router.tunnels().release(holder, self.cid);
        }
        self.router.tunnels().count_lost(summary.reason());
        tracing::info!(
            event = "flow_closed",
            cid = %self.cid,
            connector = %door.connector,
            listener = %door.name,
            client = %self.permit.client(),
            agent_id = holder.as_ref().map(|holder| &*holder.agent_id),
            bytes_c2a = summary.bytes_c2a,
            bytes_a2c = summary.bytes_a2c,
            duration_ms = summary.duration_ms,
            reason = summary.reason().name(),
        );
        self.router.forget(flow.cid());
    }
}

impl std::fmt::Debug for ClientFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientFlow")
            .field("cid", &self.cid)
            .field("permit", &self.permit)
            .finish_non_exhaustive()
    }
}
