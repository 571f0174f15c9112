//! One link: a WebSocket that carries many flows.
//!
//! [`Link`] is the handle that everybody holds; [`driver::Driver`] is the one task that reads,
//! writes and gives flows their turns.

pub mod carrier;
pub mod driver;
mod pace;
mod patience;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::{Cid, FlowId, Reason};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::carried::Carried;
use crate::counters::Engine;
use crate::endpoint::SocketFlow;
use crate::meter::{Bounds, Meter};
use crate::relayed::Relayed;
use crate::shards::Resident;

pub use carrier::{Carrier, CarrierError, GreetError, NoHello};
pub use driver::{LinkClosed, start};

/// Most frames of the link itself that may wait: as many refusals as one read can bring OPENs, and
/// more. Beyond is a peer that asks and does not listen.
const MOST_CONTROL: usize = 8192;

/// Which way flows are opened on a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Opens flows: a hub towards an agent.
    Opener,
    /// Answers them: an agent.
    Answerer,
}

/// What was agreed with the peer before the link started.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name for logs: an agent's id or a hub's replica id.
    pub name: Arc<str>,
    /// What it takes of a new flow before its first credit, in bytes.
    pub first_window: u32,
    /// Largest payload of a DATA frame both ways, in bytes.
    pub max_payload: usize,
}

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Which way flows are opened.
    pub role: Role,
    /// What was agreed with the peer.
    pub peer: Peer,
    /// How often to ping.
    pub ping_interval: Duration,
    /// How long to wait for a pong.
    pub ping_timeout: Duration,
    /// What may be on its way.
    pub bounds: Bounds,
    /// What measures the link.
    pub meter: Option<Arc<dyn Meter>>,
}

/// What a link's owner is told. Calls come from the driver, without locks held; they must not
/// block.
pub trait LinkEvents: Send + Sync {
    /// The peer opens or resumes a flow. Answer with [`Link::bind`] or [`Link::refuse`], now or
    /// later. A peer that has no right to (we are the opener) is to be sent away.
    fn on_open(&self, link: &Arc<Link>, id: FlowId, open: Open);

    /// A frame of the link itself: UPDATE, TOKEN, QUERY, their answers, GOAWAY.
    fn on_control(&self, link: &Arc<Link>, frame: Frame);

    /// A malformed or forbidden message. `kind` is a metric label. What can be blamed on one flow
    /// ends that flow; after anything else the link closes itself.
    fn on_protocol_error(&self, link: &Arc<Link>, kind: &'static str);
}

/// The handle of a link.
pub struct Link {
    role: Role,
    peer: Peer,
    v1: bool,
    engine: Arc<Engine>,
    queue: Mutex<Queue>,
    flows: Mutex<HashMap<FlowId, Carried>>,
    active: AtomicUsize,
    /// Opener: the next number. Answerer: the highest number seen.
    ids: AtomicU32,
    rtt_micros: AtomicU64,
    meter: Option<Arc<dyn Meter>>,
    /// Where it lives, and the sockets of its flows with it.
    home: Handle,
    _resident: Resident,
}

/// What waits for the driver.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Carried>,
    owing: Vec<Carried>,
    control: VecDeque<Frame>,
    /// The peer, or we, want no new flows here.
    leaving: bool,
    close: Option<Reason>,
    closed: bool,
    driver: Option<Waker>,
}

impl Link {
    fn new(config: &LinkConfig, v1: bool, engine: &Arc<Engine>) -> Arc<Self> {
        Arc::new(Self {
            role: config.role,
            peer: config.peer.clone(),
            v1,
            engine: Arc::clone(engine),
            queue: Mutex::new(Queue::default()),
            flows: Mutex::new(HashMap::new()),
            active: AtomicUsize::new(0),
            ids: AtomicU32::new(0),
            rtt_micros: AtomicU64::new(0),
            meter: config.meter.clone(),
            home: Handle::current(),
            _resident: Resident::here(),
        })
    }

    /// What was agreed with the peer.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn meter(&self) -> Option<&Arc<dyn Meter>> {
        self.meter.as_ref()
    }

    /// The runtime of its driver.
    pub(crate) fn home(&self) -> &Handle {
        &self.home
    }

    /// Whether the peer speaks version 1.
    #[must_use]
    pub fn is_v1(&self) -> bool {
        self.v1
    }

    /// Flows on this link now.
    #[must_use]
    pub fn active_flows(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// The smoothed round-trip time; `None` before the first pong.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt_micros.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(crate) fn rtt_ms(&self) -> u64 {
        self.rtt_micros.load(Ordering::Relaxed) / 1000
    }

    /// Whether the link lives and takes new flows.
    #[must_use]
    pub fn takes_flows(&self) -> bool {
        let queue = self.queue.lock();
        !(queue.leaving || queue.closed || queue.close.is_some())
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    /// Opener: carries `flow` from now on, be it new, or cut off from its path, or refused
    /// elsewhere. `epoch` is that of the agent's ownership.
    ///
    /// # Errors
    /// The link is closed, or used up its numbers (then it is told to go away).
    pub fn attach(self: &Arc<Self>, flow: &Arc<SocketFlow>, epoch: u64) -> Result<(), Reason> {
        let id = self.next_number()?;
        self.expect(id, flow);
        flow.bind_origin(self, id, epoch, None);
        self.insert(id, flow)
    }

    /// Opener, to another hub: like [`Link::attach`], for the tunnel that `agent` has there.
    ///
    /// # Errors
    /// As [`Link::attach`].
    pub fn attach_for(
        self: &Arc<Self>,
        flow: &Arc<SocketFlow>,
        epoch: u64,
        agent: &Arc<str>,
    ) -> Result<(), Reason> {
        let id = self.next_number()?;
        self.expect(id, flow);
        flow.bind_origin(self, id, epoch, Some(Arc::clone(agent)));
        self.insert(id, flow)
    }

    /// Opener: the number of the next flow.
    pub(crate) fn next_number(&self) -> Result<FlowId, Reason> {
        debug_assert_eq!(self.role, Role::Opener);
        let id = self
            .ids
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1));
        let Ok(previous) = id else {
            self.close(Reason::FlowIdsExhausted);
            return Err(Reason::FlowIdsExhausted);
        };
        Ok(FlowId(previous + 1))
    }

    /// Answerer: carries `flow` under the number that its OPEN came with.
    ///
    /// # Errors
    /// The link is closed, the number is taken, or the OPEN does not fit the flow.
    pub fn bind(
        self: &Arc<Self>,
        id: FlowId,
        flow: &Arc<SocketFlow>,
        open: &Open,
    ) -> Result<(), Reason> {
        if self.carries(id) {
            return Err(Reason::ProtocolError);
        }
        flow.bind_target(self, id, open)?;
        self.insert(id, flow)
    }

    /// Opener: makes the flow known by its number before it is bound. Its socket may wake it from
    /// then on, and the answer to its OPEN must find it.
    fn expect(&self, id: FlowId, flow: &Arc<SocketFlow>) {
        let queue = self.queue.lock();
        if !queue.closed {
            self.enlist(id, &Carried::Socket(Arc::clone(flow)));
        }
    }

    fn enlist(&self, id: FlowId, flow: &Carried) {
        if self.flows.lock().insert(id, flow.clone()).is_none() {
            self.active.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn insert(self: &Arc<Self>, id: FlowId, flow: &Arc<SocketFlow>) -> Result<(), Reason> {
        let taken = self.take_up(id, &Carried::Socket(Arc::clone(flow)));
        if taken.is_err() {
            flow.path_lost(self, !self.v1);
        }
        taken
    }

    /// Carries `flow` as number `id`.
    ///
    /// # Errors
    /// The link is closed.
    pub(crate) fn take_up(&self, id: FlowId, flow: &Carried) -> Result<(), Reason> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Reason::ConnectionLost);
        }
        self.enlist(id, flow);
        flow.set_queued(true);
        queue.ready.push_back(flow.clone());
        queue.wake();
        Ok(())
    }

    /// Answerer: whether a flow has this number now.
    #[must_use]
    pub fn carries(&self, id: FlowId) -> bool {
        self.flows.lock().contains_key(&id)
    }

    /// The flow of this name that passes through on this link, for whoever shows it. Looks at every
    /// flow of the link.
    #[must_use]
    pub fn passing(&self, cid: Cid) -> Option<Arc<Relayed>> {
        let flows = self.flows.lock();
        flows.values().find_map(|carried| match carried {
            Carried::Relayed(flow, _) if flow.cid() == cid => Some(Arc::clone(flow)),
            _ => None,
        })
    }

    /// Answerer: does not take the flow behind an OPEN.
    pub fn refuse(&self, id: FlowId, reason: Reason) {
        self.engine.counters.rst_sent.inc();
        self.send(Frame::Refuse { id, reason });
    }

    /// The peer reset a flow that this link does not carry, or not any more: whoever does so waits
    /// for a word, unless it says that it does not know the flow itself.
    pub(crate) fn confirm_reset(&self, id: FlowId, reason: Reason) {
        if reason != Reason::UnknownFlow {
            let reason = Reason::UnknownFlow;
            self.send(Frame::Rst { id, reason });
        }
    }

    /// Sends a frame of the link itself.
    pub fn send(&self, frame: Frame) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        if queue.control.len() >= MOST_CONTROL {
            queue.close.get_or_insert(Reason::WriteStalled);
        } else {
            queue.control.push_back(frame);
        }
        queue.wake();
    }

    /// Frames of the link itself that wait because the peer takes none.
    pub fn unsent(&self) -> usize {
        self.queue.lock().control.len()
    }

    /// Takes no new flows and tells the peer that the link will end after `deadline`.
    pub fn go_away(&self, reason: Reason, deadline: Duration) {
        self.queue.lock().leaving = true;
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        self.send(Frame::GoAway {
            reason,
            deadline_ms,
        });
    }

    /// The peer said GOAWAY: no new flows go this way.
    pub fn leave(&self) {
        self.queue.lock().leaving = true;
    }

    /// Closes the link. Its flows stay, to be carried by another.
    pub fn close(&self, reason: Reason) {
        let mut queue = self.queue.lock();
        queue.close.get_or_insert(reason);
        queue.wake();
    }

    // ---- for flows ------------------------------------------------------------------------------

    /// The flow wants a turn.
    pub(crate) fn ready(self: &Arc<Self>, flow: Carried) {
        if flow.set_queued(true) {
            let mut queue = self.queue.lock();
            if !queue.closed {
                queue.ready.push_back(flow);
                return queue.wake();
            }
            drop(queue);
            flow.pass_on(self);
        }
    }

    /// The flow owes an acknowledgement that can wait a little.
    pub(crate) fn owe(&self, flow: Carried) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.owing.push(flow);
            queue.wake();
        }
    }

    /// The flow that lies at `flow` is over, or carried by another link.
    pub(crate) fn forget(&self, id: FlowId, flow: *const ()) {
        let mut flows = self.flows.lock();
        if flows.get(&id).is_some_and(|known| known.address() == flow) {
            flows.remove(&id);
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
        if flows.is_empty() && flows.capacity() > 1024 {
            flows.shrink_to(64);
        }
    }

    // ---- for the driver -------------------------------------------------------------------------

    fn flow(&self, id: FlowId) -> Option<Carried> {
        self.flows.lock().get(&id).cloned()
    }

    /// Whether `id` belongs to a flow that ended a moment ago: it was in use on this link.
    fn was_used(&self, id: FlowId) -> bool {
        id.0 <= self.ids.load(Ordering::Relaxed)
    }

    fn note_used(&self, id: FlowId) {
        self.ids.fetch_max(id.0, Ordering::Relaxed);
    }

    fn note_rtt(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.rtt_micros.load(Ordering::Relaxed) {
            0 => sample,
            // RFC 6298 section 2.3.
            old => (old * 7 + sample) / 8,
        };
        self.rtt_micros.store(smoothed.max(1), Ordering::Relaxed);
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer.name)
            .field("v1", &self.v1)
            .finish_non_exhaustive()
    }
}
