//! All flows of a process, by name: found again when a path comes back, swept when it does not.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nowconnect_proto::frame::{Open, OpenMode};
use nowconnect_proto::{Cid, Reason};
use parking_lot::Mutex;

use crate::counters::Engine;
use crate::endpoint::SocketFlow;

/// Names of ended flows kept at most.
const REMEMBERED: usize = 32_768;

/// The flows of a hub or an agent.
#[derive(Debug)]
pub struct FlowTable {
    engine: Arc<Engine>,
    flows: Mutex<HashMap<Cid, Entry>>,
    live: Arc<AtomicUsize>,
    ended: Mutex<Ended>,
}

/// Flows that ended a while ago.
#[derive(Debug, Default)]
struct Ended {
    names: HashMap<Cid, Past>,
    /// In order, with the time of their end.
    order: VecDeque<(Cid, u64)>,
    /// When the latest one was reset that had to be forgotten too early.
    forgotten: Option<u64>,
}

#[derive(Debug)]
struct Past {
    ended_ms: u64,
    /// The latest OPEN of it.
    attempt: u32,
    /// It was reset here after its target was connected.
    reset: bool,
}

impl Ended {
    fn forget_first(&mut self) -> Option<Past> {
        let (cid, at) = self.order.pop_front()?;
        // It may have come and ended once more since.
        let ended = self.names.get(&cid)?.ended_ms;
        (ended == at).then(|| self.names.remove(&cid))?
    }
}

#[derive(Debug)]
struct Entry {
    flow: Arc<SocketFlow>,
    idle_timeout: Option<Duration>,
    place: Option<Arc<Place>>,
}

/// A flow's place among those that are counted, held until it has closed and everybody else who
/// still works for it has let go.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl FlowTable {
    /// An empty table.
    #[must_use]
    pub fn new(engine: &Arc<Engine>) -> Self {
        Self {
            engine: Arc::clone(engine),
            flows: Mutex::default(),
            live: Arc::default(),
            ended: Mutex::default(),
        }
    }

    /// Adds a flow, which is ended when nothing moves for `idle_timeout` (zero: never). It counts
    /// until it closed and the place that is returned was dropped.
    pub fn insert(&self, flow: &Arc<SocketFlow>, idle_timeout: Duration) -> Arc<Place> {
        let idle_timeout = (!idle_timeout.is_zero()).then_some(idle_timeout);
        self.live.fetch_add(1, Ordering::Relaxed);
        let place = Arc::new(Place(Arc::clone(&self.live)));
        self.flows.lock().insert(
            flow.cid(),
            Entry {
                flow: Arc::clone(flow),
                idle_timeout,
                place: Some(Arc::clone(&place)),
            },
        );
        place
    }

    /// The flow of that name.
    #[must_use]
    pub fn get(&self, cid: Cid) -> Option<Arc<SocketFlow>> {
        self.flows
            .lock()
            .get(&cid)
            .map(|entry| Arc::clone(&entry.flow))
    }

    /// The flow of that name closed, and gives up its own hold on its place.
    pub fn note_closed(&self, cid: Cid) {
        let mut flows = self.flows.lock();
        drop(flows.get_mut(&cid).and_then(|entry| entry.place.take()));
    }

    /// How many there are that have not closed, or for which somebody still works.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Takes a flow out; to be called when it is over.
    pub fn remove(&self, cid: Cid) {
        let mut flows = self.flows.lock();
        flows.remove(&cid);
        if flows.is_empty() && flows.capacity() > 1024 {
            flows.shrink_to(64);
        }
    }

    /// How many there are, with those that only wait for the other end to know of their end.
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
        let is_past = |at: u64| now.saturating_sub(at) >= grace;
        let mut ended = self.ended.lock();
        while ended.order.front().is_some_and(|(_, at)| is_past(*at)) {
            ended.forget_first();
        }
        ended.forgotten = ended.forgotten.filter(|at| !is_past(*at));
    }

    /// Target end: remembers for a while that this flow ended here, and whether it was `reset` after
    /// its target was connected. An OPEN of it may still be on its way on a path that stalls; and if
    /// the word of the reset is lost, the origin may offer the flow again as if it had never been
    /// answered. To dial then would repeat bytes to the target.
    pub fn remember_ended(&self, cid: Cid, attempt: u32, reset: bool) {
        let ended_ms = self.engine.now_ms();
        let mut ended = self.ended.lock();
        if ended.order.len() >= REMEMBERED
            && let Some(past) = ended.forget_first()
            && past.reset
        {
            ended.forgotten = Some(past.ended_ms);
        }
        let past = Past {
            ended_ms,
            attempt,
            reset,
        };
        ended.names.insert(cid, past);
        ended.order.push_back((cid, ended_ms));
    }

    /// Whether `open`, whose flow is not here, is for one of those, or may be: where too many ended
    /// to remember them all, nobody can tell.
    #[must_use]
    pub fn ended_recently(&self, open: &Open) -> bool {
        let may_be_known = open.mode == OpenMode::ResumeOrNew;
        let ended = self.ended.lock();
        match ended.names.get(&open.cid) {
            Some(past) => open.attempt <= past.attempt || (past.reset && may_be_known),
            None => may_be_known && ended.forgotten.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::counters::EngineCounters;
    use nowconnect_proto::Secret;

    fn table() -> FlowTable {
        let engine = Engine::new(Budget::new(1 << 20, 1), EngineCounters::default());
        FlowTable::new(&Arc::new(engine))
    }

    fn open(cid: Cid, mode: OpenMode, attempt: u32) -> Open {
        Open {
            epoch: 1,
            mode,
            attempt,
            ..Open::new(cid, Secret::generate(), "")
        }
    }

    #[test]
    fn what_had_to_be_forgotten_is_taken_for_ended() {
        let (table, first) = (table(), Cid::generate());
        let again = |cid| open(cid, OpenMode::ResumeOrNew, 1);
        table.remember_ended(first, 0, true);
        assert!(!table.ended_recently(&again(Cid::generate())));
        for _ in 0..REMEMBERED {
            table.remember_ended(Cid::generate(), 0, false);
        }
        assert!(table.ended_recently(&again(first)));
        assert!(!table.ended_recently(&open(Cid::generate(), OpenMode::New, 0)));
        table.sweep(Duration::ZERO);
        assert!(!table.ended_recently(&again(first)));
        assert!(table.ended.lock().names.is_empty());
    }

    #[test]
    fn an_open_that_was_overtaken_comes_too_late() {
        let (table, cid) = (table(), Cid::generate());
        table.remember_ended(cid, 1, false);
        assert!(table.ended_recently(&open(cid, OpenMode::New, 0)));
        assert!(table.ended_recently(&open(cid, OpenMode::ResumeOrNew, 1)));
        assert!(!table.ended_recently(&open(cid, OpenMode::New, 2)));
        table.remember_ended(cid, 2, true);
        assert!(!table.ended_recently(&open(cid, OpenMode::New, 3)));
        assert!(table.ended_recently(&open(cid, OpenMode::ResumeOrNew, 3)));
    }
}
