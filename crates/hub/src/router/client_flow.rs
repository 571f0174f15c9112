//! One client connection: which agents it was offered to, and what became of it.

mod judged;
mod records;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nowconnect_link::counters::Engine;
use nowconnect_link::endpoint::{FlowEvents, Label, SocketFlow, Summary};
use nowconnect_link::trace::Trace;
use nowconnect_proto::{Cid, Reason, TraceContext};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::orphans::Holder;
use super::paths::{Load, Path, Place, Tried};
use super::{Router, end_flow};
use crate::config::HaMode;
use crate::flow_trace;
use crate::metrics::ListenerError;
use crate::pdp::Pass;
use crate::policy::Permit;

/// What the hub knows about a flow. It holds the client's place in the limits until the flow ends.
pub struct ClientFlow {
    cid: Cid,
    permit: Permit,
    router: Arc<Router>,
    route: Mutex<Route>,
    opened: AtomicBool,
    /// Its spans, where it is traced. Nothing else is locked while this is.
    trace: Option<Mutex<Box<Trace>>>,
}

/// Where the flow goes.
#[derive(Default)]
struct Route {
    /// The process that holds, or is asked to hold, the other end.
    holder: Option<Holder>,
    /// The epoch under which it was last offered there.
    epoch: u64,
    /// The hub that the flow goes over; `None` = this one.
    place: Place,
    /// The name of the token that the agent showed there.
    token: Option<Arc<str>>,
    load: Option<Load>,
    /// Paths that did not work.
    tried: Vec<Tried>,
    /// The agent that policy lets it go to, and on what grounds.
    cleared: Option<(Arc<str>, Pass)>,
    /// A decision of policy is waited for.
    judged: bool,
    /// It was sent to a target that is down.
    failed_open: bool,
    /// The list of a hub was read anew because of this flow.
    sought: bool,
    crossed: bool,
}

impl ClientFlow {
    pub(super) fn new(
        router: &Arc<Router>,
        permit: Permit,
        mut trace: Option<Box<Trace>>,
    ) -> Arc<Self> {
        let cid = Cid::generate();
        if let Some(trace) = &mut trace {
            flow_trace::named(trace, cid);
        }
        let metrics = &permit.door().metrics;
        metrics.connections.inc();
        metrics.active.inc();
        Arc::new(Self {
            cid,
            permit,
            router: router.clone(),
            route: Mutex::default(),
            opened: AtomicBool::new(false),
            trace: trace.map(Mutex::new),
        })
    }

    /// The engine's end of the flow.
    pub(super) fn with_socket(
        self: Arc<Self>,
        stream: TcpStream,
        engine: &Arc<Engine>,
    ) -> Arc<SocketFlow> {
        let door = self.permit.door();
        let destination = self.permit.destination().map(|to| to.to_string());
        let label = Label {
            connector: door.connector.clone(),
            listener: door.name.clone(),
            client: self.permit.client().to_string().into(),
            destination: destination.unwrap_or_default().into(),
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

    /// Why the flow should be ended now, if it should. While a decision is waited for, which has a
    /// deadline of its own, only the client can end it.
    pub(super) fn overdue(&self, flow: &SocketFlow, grace: Duration) -> Option<Reason> {
        if self.route.lock().judged {
            return flow.was_reset().then_some(Reason::SocketReset);
        }
        flow.overdue(grace, self.permit.door().config().idle_timeout)
    }

    /// The epoch under which the flow was last offered.
    pub fn epoch(&self) -> u64 {
        self.route.lock().epoch
    }

    /// The hub that the flow goes over; `None` = this one.
    pub fn place(&self) -> Option<Arc<str>> {
        self.route.lock().place.clone()
    }

    /// On what grounds policy lets the flow go to the agent that it went to.
    pub fn pass(&self) -> Option<Pass> {
        let route = self.route.lock();
        route.cleared.as_ref().map(|(_, pass)| *pass)
    }

    /// Offers the flow over `path`, if policy allows it, or over others when that one has just ended.
    pub(super) fn offer(&self, flow: &Arc<SocketFlow>, path: Path) -> bool {
        let mut next = Some(path);
        while let Some(path) = next {
            if let Some(pending) = self.judge(&path) {
                self.await_decision(path, pending);
                return true;
            }
            self.take(&path);
            self.note_ailing(&path);
            match path.attach(flow) {
                Ok(()) => return true,
                Err(Reason::FlowIdsExhausted) => {}
                // The link has just ended, so the flow waits like one that lost its path, unless
                // somebody has taken care of it since.
                Err(_) if !self.router.orphans.take(&path.holder(), self.cid) => return true,
                Err(_) => {}
            }
            self.note_failed(Some((path.place(), path.epoch())));
            next = self.choose();
        }
        self.turn_away(flow, ListenerError::NoAgent, Reason::NoAgent);
        false
    }

    /// Whether the flow may go over another hub: where that is the mode, or it has done so before.
    pub(super) fn may_cross(&self) -> bool {
        self.route.lock().crossed || self.router.paths.is_mode(HaMode::Active)
    }

    /// The way that the flow took before, over another hub than `shunned`, where nobody tells of ways any
    /// more.
    pub(super) fn way_back(&self, shunned: Option<&str>) -> Option<Path> {
        let route = self.route.lock();
        if route.place.is_none() || route.place.as_deref() == shunned {
            return None;
        }
        self.router.paths.back(route.load.as_ref()?)
    }

    /// Carries on over `path` a flow that lost its own.
    pub(super) fn go_on(&self, flow: &Arc<SocketFlow>, path: &Path) {
        self.take(path);
        if path.attach(flow) == Err(Reason::FlowIdsExhausted)
            && let Some(entry) = self.router.entry(self.cid)
        {
            self.router.await_path(&path.holder(), entry);
        }
        // When the link ends at this moment, the flow is told that its path is lost, once more.
    }

    /// Says something about the flow where it is traced.
    pub(super) fn traced(&self, say: impl FnOnce(&mut Trace)) {
        if let Some(trace) = &self.trace {
            say(&mut trace.lock());
        }
    }

    fn take(&self, path: &Path) {
        self.traced(|trace| {
            let (holder, hub) = (path.holder(), path.place());
            flow_trace::sent(trace, &holder.agent_id, hub.as_ref(), path.epoch());
        });
        let mut route = self.route.lock();
        route.holder = Some(path.holder());
        route.epoch = path.epoch();
        route.place = path.place();
        route.token = path.token();
        route.load = self.router.paths.load(path);
        if route.place.is_some() && !std::mem::replace(&mut route.crossed, true) {
            self.router.metrics.mesh.cross_hub_flows.inc();
        }
    }

    /// Counts and logs, once, that the flow goes to a target that is down, which it does only while
    /// nobody else serves the connector.
    fn note_ailing(&self, path: &Path) {
        let connector = &self.permit.door().connector;
        if !self.router.paths.is_ailing(path, connector)
            || std::mem::replace(&mut self.route.lock().failed_open, true)
        {
            return;
        }
        let metrics = &self.router.metrics;
        let label = metrics.connector_label(connector);
        metrics.probes.fail_open.with([label]).inc();
        if let Some(suppressed) = self.router.fail_open.pass() {
            tracing::warn!(
                event = "probe_fail_open",
                cid = %self.cid,
                %connector,
                agent_id = %path.holder().agent_id,
                hub = path.place().as_deref(),
                detail = "probes find the targets of all agents down: clients are sent on all the same",
                suppressed,
            );
        }
    }

    /// What the flow was offered to last is not to be tried again: in that place, or at all.
    fn note_failed(&self, at: Option<(Place, u64)>) {
        let mut route = self.route.lock();
        if let Some(holder) = &route.holder {
            let agent_id = holder.agent_id.clone();
            route.tried.push(Tried { agent_id, at });
        }
    }

    fn choose(&self) -> Option<Path> {
        let tried = self.route.lock().tried.clone();
        self.router
            .paths
            .choose(&self.permit.door().connector, &tried)
    }

    /// Offers the flow, which has no path, to another than `holder` if that process cannot be
    /// reached, has not answered, and cannot have had a byte of the client's.
    fn offer_elsewhere(
        &self,
        flow: &Arc<SocketFlow>,
        holder: &Holder,
        shunned: Option<&str>,
    ) -> bool {
        let paths = &self.router.paths;
        if paths.towards(holder, self.may_cross(), shunned).is_some() {
            return false;
        }
        if let Some(hub) = shunned {
            self.note_failed(Some((Some(hub.into()), self.epoch())));
        }
        let Some(path) = self.choose().filter(|_| flow.withdraw()) else {
            return false;
        };
        tracing::debug!(event = "flow_offered_again", cid = %self.cid, lost = %holder.agent_id);
        self.offer(flow, path);
        true
    }

    /// Sees whether somebody else can take over a flow that waits for its agent.
    pub(super) fn reconsider(&self, flow: &Arc<SocketFlow>) {
        if flow.is_opened() {
            return;
        }
        let Some(holder) = self.holder() else { return };
        // Whoever takes it out decides about it.
        if self.router.orphans.take(&holder, self.cid) {
            self.route.lock().place = None;
            flow.reconsider();
        }
    }

    /// A hub does not hold the agent as this one believed: reads its list anew, once, and goes by
    /// that.
    fn seek(&self, flow: &Arc<SocketFlow>) -> bool {
        let (hub, Some(entry)) = (
            {
                let mut route = self.route.lock();
                let Some(hub) = route.place.clone() else {
                    return false;
                };
                if std::mem::replace(&mut route.sought, true) {
                    return false;
                }
                hub
            },
            self.router.entry(self.cid),
        ) else {
            return false;
        };
        let (flow, router) = (flow.clone(), self.router.clone());
        self.router.tasks.spawn("seek", async move {
            router.paths.registry.routes().refresh(&hub).await;
            match entry.client.choose() {
                _ if flow.has_ended() => {}
                Some(path) => {
                    entry.client.offer(&flow, path);
                }
                None => {
                    let why = ListenerError::NoAgent;
                    entry.client.turn_away(&flow, why, Reason::NoAgent);
                }
            }
        });
        true
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
        door.metrics.note_open(waited);
        self.trace_opened();
        self.log_opened(waited);
    }

    fn refused(&self, flow: &Arc<SocketFlow>, reason: Reason) -> bool {
        let refuser = self.holder().map(|holder| holder.agent_id);
        let place = self.place();
        tracing::debug!(
            event = "flow_refused", cid = %self.cid, agent_id = refuser.as_deref(),
            hub = place.as_deref(), %reason
        );
        self.traced(|trace| trace.event("refused", [("nowconnect.reason", reason.name().into())]));
        let failed = reason.is_of_path().then(|| (place, self.epoch()));
        self.note_failed(failed);
        match self.choose() {
            Some(path) => self.offer(flow, path),
            None if reason == Reason::StaleEpoch && self.seek(flow) => true,
            None => {
                let why = match reason {
                    Reason::PdpDenied => ListenerError::PdpDenied,
                    _ => ListenerError::Refused,
                };
                self.permit.door().turn_away(self.permit.client(), why);
                false
            }
        }
    }

    fn path_lost(&self, flow: &Arc<SocketFlow>) {
        self.traced(|trace| trace.event("path_lost", []));
        let (Some(holder), Some(entry)) = (self.holder(), self.router.entry(self.cid)) else {
            return flow.expire(Reason::ConnectionLost);
        };
        // A hub whose link is up has said that it has no path; it is asked again in a moment.
        let shunned = self.place().filter(|hub| self.router.paths.reaches(hub));
        let shunned = shunned.as_deref();
        if !self.offer_elsewhere(flow, &holder, shunned) {
            self.router.adopt(&holder, entry, shunned);
        }
    }

    fn closed(&self, _: &Arc<SocketFlow>, summary: Summary) {
        let door = self.permit.door();
        self.permit.release();
        door.metrics.active.dec();
        door.metrics
            .duration
            .observe(summary.duration_ms as f64 / 1e3);
        self.traced(|trace| flow_trace::closed(trace, &summary));
        self.router.count_lost(summary.reason());
        self.log_closed(&summary);
        self.router.note_closed();
    }

    fn over(&self, flow: &Arc<SocketFlow>) {
        self.router.forget(flow.cid());
        self.route.lock().load = None;
        if let Some(holder) = self.holder() {
            self.router.orphans.take(&holder, self.cid);
        }
    }

    fn trace(&self) -> Option<TraceContext> {
        self.trace.as_ref().map(|trace| trace.lock().context())
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
