//! The end of a flow that holds a socket.
//!
//! A flow has no task. Its socket's readiness wakes the link that carries it (through a [`Wake`]
//! made of the flow itself), and the link's driver gives the flow its turn: what arrived goes to
//! the socket, and, when the link can take data, what the socket holds goes to the link. An idle
//! flow is this structure and a registered socket, nothing more.

mod events;
mod inward;
mod outward;
mod path;
mod state;

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Wake};
use std::time::{Duration, Instant};

use nowconnect_proto::flow::{Ending, Side};
use nowconnect_proto::frame::Open;
use nowconnect_proto::{Cid, Flow, FlowId, Reason, Secret};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

pub use events::{FlowEvents, Label, Summary};
use state::State;

use crate::carried::Carried;
use crate::counters::{Engine, FlowCounters};
use crate::session::Link;

/// One end of a flow with its socket.
pub struct SocketFlow {
    cid: Cid,
    secret: Secret,
    side: Side,
    label: Label,
    engine: Arc<Engine>,
    counters: FlowCounters,
    events: Arc<dyn FlowEvents>,
    since: Instant,
    /// The link to wake when the socket is ready. Apart from `state`, because the socket may
    /// become ready while a driver works on the flow.
    carrier: Mutex<Option<Arc<Link>>>,
    /// In some link's ready queue.
    queued: AtomicBool,
    /// When bytes last moved, in milliseconds of the engine's clock.
    active_ms: AtomicU64,
    state: Mutex<State>,
}

impl SocketFlow {
    /// The origin's end, for a client that was accepted. [`Link::attach`] puts it on its way.
    #[must_use]
    pub fn origin(
        cid: Cid,
        label: Label,
        socket: TcpStream,
        engine: &Arc<Engine>,
        counters: FlowCounters,
        events: Arc<dyn FlowEvents>,
    ) -> Arc<Self> {
        let window = engine.budget.first_window();
        let flow = Flow::new(Side::Origin, window, window, 0);
        Self::new(
            cid,
            Secret::generate(),
            flow,
            Side::Origin,
            label,
            Some(socket),
            engine,
            counters,
            events,
        )
    }

    /// The target's end, for an OPEN that came. It takes bytes at once; [`SocketFlow::connected`]
    /// or [`SocketFlow::abort`] follows.
    #[must_use]
    pub fn target(
        open: &Open,
        engine: &Arc<Engine>,
        counters: FlowCounters,
        events: Arc<dyn FlowEvents>,
    ) -> Arc<Self> {
        let window = engine.budget.first_window();
        let flow = Flow::new(Side::Target, window, window, open.limit);
        let label = Label {
            connector: open.connector.as_str().into(),
            listener: open.listener.as_str().into(),
            client: open.client.as_str().into(),
            destination: open.destination.as_str().into(),
        };
        Self::new(
            open.cid,
            open.secret,
            flow,
            Side::Target,
            label,
            None,
            engine,
            counters,
            events,
        )
    }

    #[allow(clippy::too_many_arguments)]
    fn new(
        cid: Cid,
        secret: Secret,
        flow: Flow,
        side: Side,
        label: Label,
        socket: Option<TcpStream>,
        engine: &Arc<Engine>,
        counters: FlowCounters,
        events: Arc<dyn FlowEvents>,
    ) -> Arc<Self> {
        Arc::new(Self {
            cid,
            secret,
            side,
            label,
            engine: Arc::clone(engine),
            counters,
            events,
            since: Instant::now(),
            carrier: Mutex::new(None),
            queued: AtomicBool::new(false),
            active_ms: AtomicU64::new(engine.now_ms()),
            state: Mutex::new(State {
                flow,
                socket,
                home: Handle::current().id(),
                id: FlowId::LINK,
                epoch: 0,
                agent: None,
                detached_ms: Some(engine.now_ms()),
                waited_ms: None,
                blocked_ms: None,
                stalled_ms: None,
                fin_given: false,
                waiting: false,
                mark: 0,
                owing: false,
                borrowed: 0,
                shown: 0,
                ended_ms: None,
                lingers: false,
                over: false,
                before: None,
                on_closed: None,
            }),
        })
    }

    /// The flow's name for life.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// Whether `secret` is the one that the flow was opened with.
    #[must_use]
    pub fn knows(&self, secret: &Secret) -> bool {
        self.secret.matches(secret)
    }

    /// What names it in logs.
    #[must_use]
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// How long it has lived.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether the other end has accepted it (origin), or its socket is connected (target).
    #[must_use]
    pub fn is_opened(&self) -> bool {
        self.state.lock().flow.is_opened()
    }

    /// Whether it has ended, though the other end may not know yet.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state.lock().flow.ending().is_some()
    }

    /// How many OPENs of the flow came before the latest one.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.state.lock().flow.attempt()
    }

    /// When bytes last moved, in milliseconds of [`Engine::now_ms`].
    #[must_use]
    pub fn active_ms(&self) -> u64 {
        self.active_ms.load(Ordering::Relaxed)
    }

    /// Since when no link carries it, in milliseconds of [`Engine::now_ms`].
    #[must_use]
    pub fn detached_ms(&self) -> Option<u64> {
        self.state.lock().detached_ms
    }

    /// Why the flow should be ended now, if it should: no path came back within `grace` (or, where it
    /// has ended already, no word of the other end), nothing moved for `idle` (`None` is for ever), or
    /// its socket was reset while nobody read it (it has no path, no room, or waits for its turn on a
    /// link that takes nothing: the event loop says nothing about a socket that is readable already).
    /// To be asked about once a second.
    #[must_use]
    pub fn overdue(&self, grace: Duration, idle: Option<Duration>) -> Option<Reason> {
        let now_ms = self.engine.now_ms();
        let since = |then_ms: u64| Duration::from_millis(now_ms.saturating_sub(then_ms));
        let state = self.state.lock();
        if let Some(then) = state.ended_ms {
            return (since(then) >= grace).then_some(Reason::ResumeExpired);
        }
        let unread = state.detached_ms.is_some() || state.waiting || state.flow.room() == 0;
        if state.detached_ms.is_some_and(|then| since(then) >= grace) {
            Some(Reason::ResumeExpired)
        } else if unread && state.is_reset() {
            Some(Reason::SocketReset)
        } else if state.detached_ms.is_none()
            && idle.is_some_and(|idle| since(self.active_ms()) >= idle)
        {
            Some(Reason::IdleTimeout)
        } else {
            None
        }
    }

    /// Whether its socket was reset. True once: then the flow should be ended. For one that nobody
    /// reads.
    #[must_use]
    pub fn was_reset(&self) -> bool {
        self.state.lock().is_reset()
    }

    /// Bytes it holds in memory.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().flow.held()
    }

    /// How it has gone so far; how it ended is not known before it has.
    #[must_use]
    pub fn progress(&self) -> Summary {
        self.summary(&self.state.lock())
    }

    /// The link that carries it.
    #[must_use]
    pub fn link(&self) -> Option<Arc<Link>> {
        self.carrier.lock().clone()
    }

    /// Target: the socket is there.
    pub fn connected(self: &Arc<Self>, socket: TcpStream) {
        {
            let mut state = self.state.lock();
            if state.flow.ending().is_some() {
                return;
            }
            state.socket = Some(socket);
            state.home = Handle::current().id();
            if let Some(link) = &*self.carrier.lock() {
                state.move_to(link.home());
            }
            state.flow.connected();
            // Whoever dialed has no more to wait for; the waker would keep its task's memory.
            state.on_closed = None;
        }
        self.wake_by_ref();
    }

    /// Ends the flow from this side, as a reset; before a target is connected this refuses it.
    pub fn abort(self: &Arc<Self>, reason: Reason) {
        self.state.lock().flow.abort(reason);
        self.conclude();
        // The path must still be told, if there is one, or will be when it comes.
        self.wake_by_ref();
    }

    /// Ends the flow for good, whether or not the other end can be told: its path did not come
    /// back in time.
    pub fn expire(self: &Arc<Self>, reason: Reason) {
        {
            let mut state = self.state.lock();
            state.flow.abort(reason);
            state.flow.give_up();
        }
        self.conclude();
    }

    /// Origin, without a path: takes the offer back from an agent that has not answered, so that
    /// [`Link::attach`] may offer the flow to another. False, and nothing changes, when the agent
    /// answered, or may have had bytes of the client.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.state.lock().flow.withdraw()
    }

    /// Without a path: has its owner decide once more what becomes of it.
    pub fn reconsider(self: &Arc<Self>) {
        self.events.path_lost(self);
    }

    /// Resolves when the flow has ended.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.flow.ending().is_some() {
                return Poll::Ready(());
            }
            state.on_closed = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn note_unblocked(&self, state: &mut State) {
        if let Some(since) = state.blocked_ms.take() {
            let micros = self.engine.now_ms().saturating_sub(since) * 1000;
            self.engine
                .blocked_micros
                .fetch_add(micros, Ordering::Relaxed);
        }
    }

    fn received_counter(&self) -> &Counter {
        match self.side {
            Side::Origin => &self.counters.bytes_a2c,
            Side::Target => &self.counters.bytes_c2a,
        }
    }

    fn sent_counter(&self) -> &Counter {
        match self.side {
            Side::Origin => &self.counters.bytes_c2a,
            Side::Target => &self.counters.bytes_a2c,
        }
    }

    /// The flow has ended: closes the socket, returns what it borrowed, and says so, once. When the
    /// other end knows, or need not, the flow leaves its link and is forgotten.
    fn conclude(self: &Arc<Self>) {
        let (ended, over, id) = {
            let mut state = self.state.lock();
            if state.flow.ending().is_none() {
                return;
            }
            let ended = state.ended_ms.is_none().then(|| {
                self.note_unblocked(&mut state);
                self.counters
                    .inbox_bytes
                    .dec_by(std::mem::take(&mut state.shown));
                state.release(&self.engine);
                self.summary(&state)
            });
            let over = state.flow.is_over() && !std::mem::replace(&mut state.over, true);
            if over && std::mem::take(&mut state.lingers) {
                self.engine.end_farewell();
            }
            (ended, over, state.id)
        };
        if let Some(summary) = ended {
            self.events.closed(self, summary);
        }
        if over {
            let link = self.carrier.lock().take();
            if let Some(link) = link {
                link.forget(id, self.address());
            }
            self.events.over(self);
        }
    }

    fn summary(&self, state: &State) -> Summary {
        let (out, into) = (state.flow.bytes_out(), state.flow.bytes_in());
        let (bytes_c2a, bytes_a2c) = match self.side {
            Side::Origin => (out, into),
            Side::Target => (into, out),
        };
        Summary {
            ending: state
                .flow
                .ending()
                .unwrap_or(Ending::Local(Reason::Unspecified)),
            bytes_c2a,
            bytes_a2c,
            duration_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Wake for SocketFlow {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let carrier = self.carrier.lock().clone();
        if let Some(link) = carrier {
            link.ready(Carried::Socket(Arc::clone(self)));
        }
    }
}

impl fmt::Debug for SocketFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketFlow")
            .field("cid", &self.cid)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}
