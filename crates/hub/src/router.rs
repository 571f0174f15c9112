//! From an admitted client to an agent that serves its connector.

mod client_flow;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::counters::Engine;
use nowconnect_link::endpoint::SocketFlow;
use nowconnect_proto::{Cid, Reason};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::metrics::ListenerError;
use crate::policy::{Door, Permit, Policy};
use crate::tunnels::Tunnels;

pub use client_flow::ClientFlow;

/// Opens flows and keeps them until they end.
pub struct Router {
    tunnels: Arc<Tunnels>,
    engine: Arc<Engine>,
    flows: Mutex<HashMap<Cid, Entry>>,
    count: watch::Sender<usize>,
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
    pub fn new(tunnels: Arc<Tunnels>, engine: Arc<Engine>) -> Arc<Self> {
        Arc::new(Self {
            tunnels,
            engine,
            flows: Mutex::default(),
            count: watch::Sender::new(0),
        })
    }

    /// Sends an admitted client on its way, or away when no agent exports its connector.
    pub fn open(self: &Arc<Self>, permit: Permit, stream: TcpStream) {
        let door = permit.door().clone();
        let Some(session) = self.tunnels.directory().choose(&door.connector, &[]) else {
            door.turn_away(permit.client(), ListenerError::NoAgent);
            return reset(stream);
        };
        let client = ClientFlow::new(self, permit);
        let flow = client.clone().with_socket(stream, &self.engine);
        let count = {
            let mut flows = self.flows.lock();
            flows.insert(
                flow.cid(),
                Entry {
                    flow: flow.clone(),
                    client: client.clone(),
                },
            );
            flows.len()
        };
        self.count.send_replace(count);
        client.offer(&flow, session);
    }

    /// Every flow, for status and for what goes over all of them.
    pub fn flows(&self) -> Vec<Entry> {
        self.flows.lock().values().cloned().collect()
    }

    /// Flows that exist now.
    pub fn count(&self) -> usize {
        self.flows.lock().len()
    }

    /// Milliseconds since bytes of `flow` last moved.
    pub fn idle_ms(&self, flow: &SocketFlow) -> u64 {
        self.engine.now_ms().saturating_sub(flow.active_ms())
    }

    /// Waits until no flow is left.
    pub async fn idle(&self) {
        let mut count = self.count.subscribe();
        // The sender lives as long as `self`.
        let _ = count.wait_for(|count| *count == 0).await;
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
        let waiting = |entry: &Entry| entry.flow.detached_ms().is_some();
        for Entry { flow, client } in self.flows().into_iter().filter(waiting) {
            client.reconsider(&flow);
        }
        self.end(|Entry { flow, client }| flow.overdue(grace, client.idle_limit()));
    }

    pub(crate) fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    fn forget(&self, cid: Cid) {
        let count = {
            let mut flows = self.flows.lock();
            flows.remove(&cid);
            flows.len()
        };
        self.count.send_replace(count);
    }
}

/// Ends a flow; the other end is told when there is a path.
pub(crate) fn end_flow(flow: &Arc<SocketFlow>, reason: Reason) {
    // A reset while the path is away is told when it comes back, within the grace.
    if flow.link().is_some() || reason == Reason::SocketReset {
        flow.abort(reason)
    } else {
        flow.expire(reason)
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
