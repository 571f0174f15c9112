//! All flows of a process, by name: found again when a path comes back, swept when it does not.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nowconnect_proto::{Cid, Reason};
use parking_lot::Mutex;

use crate::counters::Engine;
use crate::endpoint::SocketFlow;

/// Names of ended flows kept at most.
const REMEMBERED: usize = 4096;

/// The flows of a hub or an agent.
#[derive(Debug)]
pub struct FlowTable {
    engine: Arc<Engine>,
    flows: Mutex<HashMap<Cid, Entry>>,
    ended: Mutex<VecDeque<(Cid, u64)>>,
}

#[derive(Debug)]
struct Entry {
    flow: Arc<SocketFlow>,
    idle_timeout: Option<Duration>,
}

impl FlowTable {
    /// An empty table.
    #[must_use]
    pub fn new(engine: &Arc<Engine>) -> Self {
        Self {
            engine: Arc::clone(engine),
            flows: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    /// Adds a flow, which is ended when nothing moves for `idle_timeout` (zero: never).
    pub fn insert(&self, flow: &Arc<SocketFlow>, idle_timeout: Duration) {
        let idle_timeout = (!idle_timeout.is_zero()).then_some(idle_timeout);
        self.flows.lock().insert(
            flow.cid(),
            Entry {
                flow: Arc::clone(flow),
                idle_timeout,
            },
        );
    }

    /// The flow of that name.
    #[must_use]
    pub fn get(&self, cid: Cid) -> Option<Arc<SocketFlow>> {
        self.flows
            .lock()
            .get(&cid)
            .map(|entry| Arc::clone(&entry.flow))
    }

    /// Takes a flow out; to be called when it closed.
    pub fn remove(&self, cid: Cid) {
        let mut flows = self.flows.lock();
        flows.remove(&cid);
        if flows.is_empty() && flows.capacity() > 1024 {
            flows.shrink_to(64);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.lock().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All flows for which `wanted` holds.
    #[must_use]
    pub fn select(&self, mut wanted: impl FnMut(&Arc<SocketFlow>) -> bool) -> Vec<Arc<SocketFlow>> {
        let flows = self.flows.lock();
        flows
            .values()
            .map(|entry| &entry.flow)
            .filter(|flow| wanted(flow))
            .cloned()
            .collect()
    }

    /// Ends flows that are [overdue](SocketFlow::overdue). To be called about once a second.
    pub fn sweep(&self, grace: Duration) {
        let overdue: Vec<_> = {
            let flows = self.flows.lock();
            let judged = flows.values().filter_map(|entry| {
                let reason = entry.flow.overdue(grace, entry.idle_timeout)?;
                Some((Arc::clone(&entry.flow), reason))
            });
            judged.collect()
        };
        for (flow, reason) in overdue {
            match reason {
                Reason::ResumeExpired => flow.expire(reason),
                reason => flow.abort(reason),
            }
        }
        let now = self.engine.now_ms();
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut ended = self.ended.lock();
        while ended
            .front()
            .is_some_and(|(_, at)| now.saturating_sub(*at) >= grace)
        {
            ended.pop_front();
        }
    }

    /// Target end: remembers for a while that this flow was reset here after its target was
    /// connected. If that word is lost along with its path, the origin may offer the flow again as
    /// if it had never been answered; to dial then would repeat bytes to the target.
    pub fn remember_ended(&self, cid: Cid) {
        let mut ended = self.ended.lock();
        if ended.len() >= REMEMBERED {
            ended.pop_front();
        }
        ended.push_back((cid, self.engine.now_ms()));
    }

    /// Whether the flow is one of those.
    #[must_use]
    pub fn ended_recently(&self, cid: Cid) -> bool {
        self.ended.lock().iter().any(|(ended, _)| *ended == cid)
    }
}
