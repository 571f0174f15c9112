//! From an admitted client to an agent that serves its connector.

mod candidates;
mod client_flow;
mod orphans;
mod paths;

use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nowconnect_link::counters::Engine;
use nowconnect_link::endpoint::SocketFlow;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::trace::{Kind, Trace, Tracer};
use nowconnect_proto::{Cid, Reason};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::HaMode;
use crate::flow_trace;
use crate::mesh::Mesh;
use crate::metrics::{ListenerError, Metrics};
use crate::pdp::Pdp;
use crate::policy::{Door, Permit, Policy};
use crate::registry::Registry;
use crate::tunnels::{Session, Tunnels};

pub use candidates::Candidate;
pub use client_flow::ClientFlow;
pub use orphans::{Holder, Orphans};

use paths::{Path, Paths};

/// Opens flows and keeps them until they end.
pub struct Router {
    paths: Paths,
    orphans: Orphans,
    pdp: Arc<Pdp>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    /// While all targets are down, every connection would be worth a line.
    fail_open: Quiet,
    tasks: Tasks,
    flows: Mutex<HashMap<Cid, Entry>>,
    count: watch::Sender<Count>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    /// Flows with a client.
    live: usize,
    /// Those and the ones of whose end the agent is still to hear.
    all: usize,
}

/// What a router brings together.
pub struct Parts {
    /// The agents of this hub.
    pub tunnels: Arc<Tunnels>,
    /// Where the agents of others are.
    pub registry: Arc<Registry>,
    /// The links to other hubs.
    pub mesh: Arc<Mesh>,
    /// Who decides about each flow.
    pub pdp: Arc<Pdp>,
    /// What all flows share.
    pub engine: Arc<Engine>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What makes spans.
    pub tracer: Tracer,
}

/// A flow and what the hub knows about it.
#[derive(Clone)]
pub struct Entry {
    /// The engine's end.
    pub flow: Arc<SocketFlow>,
    /// The client's side of the story.
    pub client: Arc<ClientFlow>,
}

impl Router {
    /// A router without flows.
    pub fn new(parts: Parts, mode: HaMode, tasks: Tasks) -> Arc<Self> {
        let Parts {
            tunnels,
            registry,
            mesh,
            pdp,
            engine,
            metrics,
            tracer,
        } = parts;
        let router = Arc::new(Self {
            paths: Paths::new(tunnels.clone(), registry, mesh, mode),
            orphans: Orphans::default(),
            pdp,
            engine,
            metrics,
            tracer,
            fail_open: Quiet::default(),
            tasks,
            flows: Mutex::default(),
            count: watch::Sender::default(),
        });
        let weak = Arc::downgrade(&router);
        tunnels.on_arrival(move |session| {
            if let Some(router) = Weak::upgrade(&weak) {
                router.agent_arrived(session);
            }
        });
        router.watch_routes();
        router
    }

    /// Flows that wait for a hub to tell of their agent go on as soon as one does.
    fn watch_routes(self: &Arc<Self>) {
        let mut changes = self.paths.registry.routes().changed();
        let router = Arc::downgrade(self);
        let watch = async move {
            while changes.changed().await.is_ok() {
                let Some(router) = router.upgrade() else {
                    return;
                };
                router.resume();
            }
        };
        let stop = self.tasks.token();
        self.tasks
            .spawn("routes", stop.run_until_cancelled_owned(watch));
    }

    /// Puts another mode in force. Flows that cross the mesh go on.
    pub fn set_mode(&self, mode: HaMode) {
        self.paths.set_mode(mode);
    }

    /// Sends an admitted client on its way, or away when no agent exports its connector.
    pub fn open(
        self: &Arc<Self>,
        permit: Permit,
        stream: TcpStream,
        mut trace: Option<Box<Trace>>,
    ) {
        let door = permit.door().clone();
        if let Some(trace) = &mut trace {
            trace.stage("route", Kind::Internal);
        }
        if self.paths.is_mode(HaMode::Shadow) {
            let decision = self.paths.decide(&door.connector).label();
            self.metrics.mesh.shadow_decisions.with([decision]).inc();
        }
        let Some(path) = self.paths.choose(&door.connector, &[]) else {
            door.turn_away(permit.client(), ListenerError::NoAgent);
            reset(stream);
            return flow_trace::turned_away(trace, ListenerError::NoAgent.as_str());
        };
        let client = ClientFlow::new(self, permit, trace);
        let flow = client.clone().with_socket(stream, &self.engine);
        let entry = Entry {
            flow: flow.clone(),
            client: client.clone(),
        };
        self.flows.lock().insert(flow.cid(), entry);
        self.count.send_modify(|count| {
            count.live += 1;
            count.all += 1;
        });
        client.offer(&flow, path);
    }

    /// Whether a client of `connector` would find an agent now.
    pub(crate) fn serves(&self, connector: &str) -> bool {
        self.paths.choose(connector, &[]).is_some()
    }

    /// What makes the spans of flows.
    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Every flow that has a client, for status.
    pub fn flows(&self) -> Vec<Entry> {
        let mut flows: Vec<_> = self.flows.lock().values().cloned().collect();
        flows.retain(|entry| !entry.flow.has_ended());
        flows
    }

    /// Up to `most` flows whose names come after `after`, in the order of their names, which is that of
    /// their beginning; ended ones among them. Costs a look at every name.
    pub fn some_after(&self, after: Option<Cid>, most: usize) -> Vec<Entry> {
        let mut first = BinaryHeap::with_capacity(most + 1);
        let flows = self.flows.lock();
        for cid in flows.keys().filter(|cid| Some(**cid) > after) {
            if first.len() < most {
                first.push(*cid);
            } else if first.peek().is_some_and(|last| cid < last) {
                first.pop();
                first.push(*cid);
            }
        }
        let names = first.into_sorted_vec();
        names
            .iter()
            .filter_map(|cid| flows.get(cid).cloned())
            .collect()
    }

    /// The flow of this name.
    pub fn find(&self, cid: Cid) -> Option<Entry> {
        self.entry(cid).filter(|entry| !entry.flow.has_ended())
    }

    /// Flows that exist now.
    pub fn count(&self) -> usize {
        self.count.borrow().live
    }

    /// Milliseconds since bytes of `flow` last moved.
    pub fn idle_ms(&self, flow: &SocketFlow) -> u64 {
        self.engine.now_ms().saturating_sub(flow.active_ms())
    }

    /// The time of the engine that flows are timed by, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.engine.now_ms()
    }

    /// Waits until no flow is left.
    pub async fn idle(&self) {
        self.until(|count| count.live == 0).await;
    }

    /// Waits until the agents know of the end of every flow.
    pub async fn all_over(&self) {
        self.until(|count| count.all == 0).await;
    }

    async fn until(&self, reached: impl Fn(Count) -> bool) {
        let mut count = self.count.subscribe();
        // The sender lives as long as `self`.
        let _ = count.wait_for(|count| reached(*count)).await;
    }

    /// Ends every flow that `doom` names a reason for.
    pub fn end(&self, doom: impl Fn(&Entry) -> Option<Reason>) {
        let doomed: Vec<_> = {
            let flows = self.flows.lock();
            let judged = flows
                .values()
                .filter_map(|entry| Some((entry.flow.clone(), doom(entry)?)));
            judged.collect()
        };
        for (flow, reason) in doomed {
            end_flow(&flow, reason);
        }
    }

    /// Ends the flows that the rules in force would not let in: those whose listener is gone or
    /// leads elsewhere, and those of clients that are not within the networks any more.
    pub fn enforce(&self, policy: &Policy, doors: &[Arc<Door>]) {
        self.end(|Entry { client, .. }| {
            let (address, door) = (client.permit().client().ip(), client.permit().door());
            match doors.iter().find(|open| open.leads_like(door)) {
                None => Some(Reason::Removed),
                Some(open) => (!policy.allows(address, open)).then_some(Reason::Denied),
            }
        });
    }

    /// Ends flows that are [overdue](SocketFlow::overdue), and lets other agents have what was never
    /// answered. Called about once a second.
    pub fn sweep(&self, grace: Duration) {
        // First: what goes on from here is not without a path for a moment.
        self.end(|Entry { flow, client }| client.overdue(flow, grace));
        let waiting = |entry: &Entry| entry.flow.detached_ms().is_some();
        for Entry { flow, client } in self.flows().into_iter().filter(waiting) {
            client.reconsider(&flow);
        }
        self.resume();
    }

    /// Flows that wait for their agent.
    pub fn orphans(&self) -> &Orphans {
        &self.orphans
    }

    /// A flow lost its path: it goes on at once over another one to the same agent process, or
    /// waits for one, or ends when that process is gone for good.
    fn adopt(&self, holder: &Holder, entry: Entry, shunned: Option<&str>) {
        if self.paths.is_replaced(holder) {
            return entry.flow.expire(Reason::AgentRestarted);
        }
        let cid = entry.flow.cid();
        self.await_path(holder, entry.clone());
        // Looked up only now: a path that comes later finds the flow waiting.
        let path = self
            .paths
            .towards(holder, entry.client.may_cross(), shunned)
            .or_else(|| entry.client.way_back(shunned));
        if let Some(path) = path
            && self.orphans.take(holder, cid)
        {
            entry.client.go_on(&entry.flow, &path);
        }
    }

    /// Lets a flow wait for `holder`, unless it is over by now.
    fn await_path(&self, holder: &Holder, entry: Entry) {
        let cid = entry.flow.cid();
        self.orphans.add(holder, entry);
        // What is over was forgotten first, and taken out of those that wait afterwards.
        if self.entry(cid).is_none() {
            self.orphans.take(holder, cid);
        }
    }

    /// A tunnel is open: what waited for it goes on, and what waited for an earlier process of the
    /// same agent ends.
    fn agent_arrived(&self, session: &Arc<Session>) {
        let holder = Holder::of(session);
        let outlived =
            self.orphans.holders().into_iter().filter(|other| {
                other.agent_id == holder.agent_id && other.instance != holder.instance
            });
        for holder in outlived {
            self.resume_for(&holder);
        }
        self.resume_for(&holder);
    }

    /// Looks for paths for all flows that wait for one: agents, routes or links have changed.
    pub fn resume(&self) {
        for holder in self.orphans.holders() {
            self.resume_for(&holder);
        }
    }

    fn resume_for(&self, holder: &Holder) {
        if let Some(path) = self.paths.towards(holder, true, None) {
            for entry in self.orphans.take_all(holder) {
                if matches!(path, Path::Local(_)) || entry.client.may_cross() {
                    entry.client.go_on(&entry.flow, &path);
                } else {
                    self.await_path(holder, entry);
                }
            }
            return;
        }
        // Who waits for a process that another has replaced goes to that one, if it may, or ends.
        if self.paths.is_replaced(holder) {
            for entry in self.orphans.take_all(holder) {
                entry.flow.reconsider();
            }
            return;
        }
        if self.paths.has_ways_back() {
            for entry in self.orphans.take_all(holder) {
                match entry.client.way_back(None) {
                    Some(path) => entry.client.go_on(&entry.flow, &path),
                    None => self.await_path(holder, entry),
                }
            }
        }
    }

    fn entry(&self, cid: Cid) -> Option<Entry> {
        self.flows.lock().get(&cid).cloned()
    }

    /// Counts a flow that ended because its path was lost.
    fn count_lost(&self, reason: Reason) {
        let result = match reason {
            Reason::ResumeExpired => "expired",
            Reason::UnknownFlow | Reason::AgentRestarted => "refused",
            _ => return,
        };
        self.metrics.flows.resumes.with([result]).inc();
    }

    fn note_closed(&self) {
        self.count.send_modify(|count| count.live -= 1);
    }

    fn forget(&self, cid: Cid) {
        if self.flows.lock().remove(&cid).is_some() {
            self.count.send_modify(|count| count.all -= 1);
        }
    }
}

/// Ends a flow; the other end is told, when the path is away as soon as it comes back within the
/// grace.
pub(crate) fn end_flow(flow: &Arc<SocketFlow>, reason: Reason) {
    match reason {
        Reason::ResumeExpired => flow.expire(reason),
        // Nobody will be here to tell.
        Reason::Shutdown if flow.link().is_none() => flow.expire(reason),
        _ => flow.abort(reason),
    }
}

/// Ends a client that was turned away in the one way that tells nothing: a TCP reset, which also
/// leaves no socket behind in TIME_WAIT.
pub(crate) fn reset(stream: TcpStream) {
    // Without the option the socket is closed in the ordinary way.
    let _ = stream.set_zero_linger();
    drop(stream);
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("flows", &self.count())
            .finish_non_exhaustive()
    }
}
