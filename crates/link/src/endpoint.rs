//! The end of a flow that holds a socket.
//!
//! A flow has no task. Its socket's readiness wakes the link that carries it (through a [`Wake`]
//! made of the flow itself), and the link's driver gives the flow its turn: what arrived goes to
//! the socket, and, when the link can take data, what the socket holds goes to the link. An idle
//! flow is this structure and a registered socket, nothing more.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use nowconnect_proto::flow::{Ending, Side, Step};
use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::{Cid, Flow, FlowId, Reason, Secret};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::budget::MOST_WINDOW;
use crate::counters::{Engine, FlowCounters};
use crate::session::Link;

/// Bytes read from a socket at once at most; also a flow's share of a turn.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// From this size on a read's buffer is kept as it is; smaller reads are copied out of it, so that
/// a few bytes that wait for their acknowledgement do not keep a large buffer alive.
const KEEP_FROM: usize = READ_SIZE / 2;
/// A window that goes through within this time and two round trips is too small, in milliseconds.
const FAST_WINDOW_MS: u64 = 20;

/// What names a flow in logs and towards the target end.
#[derive(Clone, Debug)]
pub struct Label {
    /// The service.
    pub connector: Arc<str>,
    /// The listener that accepted the client; empty when unknown.
    pub listener: Arc<str>,
    /// The client's address as `ip:port`; empty when unknown.
    pub client: Arc<str>,
}

/// How a flow went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub ending: Ending,
    /// Payload bytes that were handed on from client to agent, as far as this end knows.
    pub bytes_c2a: u64,
    /// Payload bytes that were handed on from agent to client, as far as this end knows.
    pub bytes_a2c: u64,
    /// How long it lived, in milliseconds.
    pub duration_ms: u64,
}

impl Summary {
    /// The reason for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self.ending {
            Ending::Finished => Reason::Finished,
            Ending::Local(reason) | Ending::Remote(reason) => reason,
        }
    }
}

/// What the owner of flows is told. Calls come from a link's driver, without locks held; they must
/// not block.
pub trait FlowEvents: Send + Sync {
    /// Origin: the target is connected.
    fn opened(&self, flow: &Arc<SocketFlow>);

    /// Origin: the agent refused before a byte reached a target, and the flow stands as it did
    /// before it was offered. Returns whether it was offered to another agent; if not, it ends.
    fn refused(&self, flow: &Arc<SocketFlow>, reason: Reason) -> bool;

    /// The flow's link is gone; the flow waits for another.
    fn path_lost(&self, flow: &Arc<SocketFlow>);

    /// The flow ended and its socket is closed.
    fn closed(&self, flow: &Arc<SocketFlow>, summary: Summary);
}

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

struct State {
    flow: Flow,
    socket: Option<TcpStream>,
    /// Number of the flow on its link, and the epoch it was offered under.
    id: FlowId,
    epoch: u64,
    /// When the path was lost, in milliseconds.
    detached_ms: Option<u64>,
    /// When the flow began to wait for credit, in milliseconds.
    blocked_ms: Option<u64>,
    /// In its link's list of flows that wait for room to write.
    waiting: bool,
    /// In its link's list of flows that owe an acknowledgement.
    owing: bool,
    /// What was borrowed from the budget.
    borrowed: u64,
    /// What was added to `inbox_bytes`.
    shown: i64,
    closed: bool,
    on_closed: Option<Waker>,
}

/// What a flow wants after its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wants {
    /// Nothing until it is woken.
    Nothing,
    /// Another turn: there is more.
    Turn,
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
                id: FlowId::LINK,
                epoch: 0,
                detached_ms: Some(engine.now_ms()),
                blocked_ms: None,
                waiting: false,
                owing: false,
                borrowed: 0,
                shown: 0,
                closed: false,
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

    /// Bytes it holds in memory.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().flow.held()
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
            if state.closed || state.flow.ending().is_some() {
                return;
            }
            state.socket = Some(socket);
            state.flow.connected();
        }
        self.wake_by_ref();
    }

    /// Ends the flow from this side, as a reset; before a target is connected this refuses it.
    pub fn abort(self: &Arc<Self>, reason: Reason) {
        let over = {
            let mut state = self.state.lock();
            state.flow.abort(reason);
            state.close_socket();
            state.flow.is_over()
        };
        if over {
            self.finish();
        } else {
            // The path must still be told, if there is one, or will be when it comes.
            self.wake_by_ref();
        }
    }

    /// Ends the flow for good, whether or not the other end can be told: its path did not come
    /// back in time.
    pub fn expire(self: &Arc<Self>, reason: Reason) {
        self.state.lock().flow.abort(reason);
        self.finish();
    }

    /// Resolves when the flow has ended.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.closed || state.flow.ending().is_some() {
                return Poll::Ready(());
            }
            state.on_closed = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    // ---- for the link ---------------------------------------------------------------------------

    /// Puts the flow on `link` as number `id` (origin).
    pub(crate) fn bind_origin(&self, link: &Arc<Link>, id: FlowId, epoch: u64) {
        self.leave_carrier(Some(link));
        let mut state = self.state.lock();
        let peer = link.peer();
        state
            .flow
            .attach_origin(u64::from(peer.first_window), peer.first_window);
        state.bind(id, epoch);
    }

    /// Puts the flow on `link` as the number its OPEN came with (target).
    pub(crate) fn bind_target(
        &self,
        link: &Arc<Link>,
        id: FlowId,
        open: &Open,
    ) -> Result<(), Reason> {
        self.leave_carrier(Some(link));
        let mut state = self.state.lock();
        let first_window = link.peer().first_window;
        state
            .flow
            .attach_target(open.received, open.limit, first_window)?;
        state.bind(id, open.epoch);
        Ok(())
    }

    fn leave_carrier(&self, next: Option<&Arc<Link>>) {
        let previous = std::mem::replace(&mut *self.carrier.lock(), next.cloned());
        if let Some(previous) = previous {
            let id = self.state.lock().id;
            previous.forget(id, self);
        }
    }

    /// Marks the flow as queued; true when it was not.
    pub(crate) fn set_queued(&self, queued: bool) -> bool {
        self.queued.swap(queued, Ordering::AcqRel) != queued
    }

    /// Marks the flow as waiting for room on its link; true when it was not.
    pub(crate) fn set_waiting(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().waiting, true)
    }

    /// The link is gone; `resumable` tells whether another may carry the flow.
    pub(crate) fn path_lost(self: &Arc<Self>, link: &Arc<Link>, resumable: bool) {
        {
            let mut carrier = self.carrier.lock();
            if !carrier
                .as_ref()
                .is_some_and(|carrier| Arc::ptr_eq(carrier, link))
            {
                return;
            }
            *carrier = None;
        }
        let over = {
            let mut state = self.state.lock();
            state.flow.detach();
            state.detached_ms = Some(self.engine.now_ms());
            state.waiting = false;
            state.owing = false;
            self.note_unblocked(&mut state);
            if !resumable {
                state.flow.abort(Reason::WsBroken);
            }
            !resumable || state.flow.is_over()
        };
        if over {
            self.finish()
        } else {
            self.events.path_lost(self)
        }
    }

    /// A frame came over `link` for number `id`.
    pub(crate) fn on_frame(self: &Arc<Self>, link: &Arc<Link>, id: FlowId, frame: Frame) {
        let now_ms = self.engine.now_ms();
        let mut state = self.state.lock();
        if state.id != id || state.closed || !self.is_carried_by(link) {
            self.engine.counters.epoch_mismatch.inc();
            return;
        }
        if let Frame::Refuse { reason, .. } = frame {
            drop(state);
            return self.on_refuse(reason);
        }
        let was_opened = state.flow.is_opened();
        let could_read = state.flow.room() > 0;
        let result = self.apply(&mut state, frame, now_ms);
        match result {
            Ok(()) => self.flush_inbox(&mut state, now_ms, true),
            Err(reason) => {
                tracing::debug!(event = "flow_violation", cid = %self.cid, %reason);
                state.flow.abort(reason);
            }
        }
        let ended = state.flow.ending().is_some();
        if ended {
            state.close_socket();
        }
        let over = state.flow.is_over();
        // A socket that could be read before is registered already, or has its turn coming.
        let turn = state.flow.has_step() || (!could_read && state.flow.room() > 0);
        let owes = !state.owing && state.flow.owes_ack();
        state.owing |= owes;
        let opened = !was_opened && state.flow.is_opened();
        drop(state);
        if opened && self.side == Side::Origin {
            self.events.opened(self);
        }
        if over {
            return self.finish();
        }
        if owes {
            link.owe(self);
        }
        if turn {
            link.ready(self);
        }
    }

    fn apply(&self, state: &mut State, frame: Frame, now_ms: u64) -> Result<(), Reason> {
        let counters = &self.engine.counters;
        match frame {
            Frame::Data {
                offset, payload, ..
            } => {
                let accepted = state.flow.on_data(offset, payload)?;
                if accepted.duplicate > 0 {
                    counters.dedup_dropped.inc();
                }
                if accepted.fresh > 0 {
                    self.active_ms.store(now_ms, Ordering::Relaxed);
                    self.received_counter().inc_by(accepted.fresh as u64);
                }
                Ok(())
            }
            Frame::Credit { acked, limit, .. } => state.flow.on_credit(acked, limit),
            Frame::Fin { offset, .. } => {
                counters.fin_recv.inc();
                state.flow.on_fin(offset)
            }
            Frame::OpenAck {
                received, limit, ..
            } => {
                let resumed = state.flow.is_opened();
                state.flow.on_open_ack(received, limit)?;
                if resumed {
                    counters.resumed.inc();
                }
                Ok(())
            }
            Frame::Rst { reason, .. } => {
                counters.rst_recv.inc();
                if reason == Reason::QueueOverflow {
                    self.counters.queue_overflow.inc();
                }
                state.flow.on_rst(reason);
                Ok(())
            }
            _ => Err(Reason::ProtocolError),
        }
    }

    fn on_refuse(self: &Arc<Self>, reason: Reason) {
        self.engine.counters.rst_recv.inc();
        let offer_again = {
            let mut state = self.state.lock();
            match state.flow.on_refuse() {
                Ok(()) if reason.allows_another_agent() && state.flow.rewind() => true,
                Ok(()) => {
                    state.flow.on_rst(reason);
                    false
                }
                Err(violation) => {
                    state.flow.abort(violation);
                    false
                }
            }
        };
        if !offer_again {
            return self.finish();
        }
        self.leave_carrier(None);
        if !self.events.refused(self, reason) {
            self.state.lock().flow.on_rst(reason);
            self.finish();
        }
    }

    fn is_carried_by(&self, link: &Arc<Link>) -> bool {
        self.carrier
            .lock()
            .as_ref()
            .is_some_and(|carrier| Arc::ptr_eq(carrier, link))
    }

    /// Gives what arrived to the socket, and tells whether the flow has something for the link.
    pub(crate) fn turn_in(self: &Arc<Self>, link: &Arc<Link>) -> Wants {
        let now_ms = self.engine.now_ms();
        let mut state = self.state.lock();
        if state.closed || !self.is_carried_by(link) {
            return Wants::Nothing;
        }
        self.flush_inbox(&mut state, now_ms, false);
        // Whether the socket has bytes is seen when it is read; asking costs nothing when not.
        Wants::Turn
    }

    /// Gives the flow its turn on the link: frames first, then bytes of the socket, up to about
    /// [`READ_SIZE`]. `flush` includes acknowledgements that could wait.
    pub(crate) fn turn_out(
        self: &Arc<Self>,
        link: &Arc<Link>,
        scratch: &mut BytesMut,
        flush: bool,
        put: &mut dyn FnMut(Frame),
    ) -> Wants {
        let mut state = self.state.lock();
        state.waiting = false;
        if flush {
            state.owing = false;
        }
        if state.closed || !self.is_carried_by(link) {
            return Wants::Nothing;
        }
        let max_payload = link.peer().max_payload;
        let mut budget = READ_SIZE;
        let mut wants = Wants::Nothing;
        loop {
            while let Some(step) = state.flow.next_step(max_payload, flush) {
                let n = self.put_step(&mut state, step, put);
                budget = budget.saturating_sub(n);
                if budget == 0 {
                    break;
                }
            }
            if budget == 0 {
                wants = Wants::Turn;
                break;
            }
            if !self.read_socket(&mut state, scratch, budget) {
                break;
            }
        }
        if state.flow.ending().is_some() {
            state.close_socket();
        }
        let over = state.flow.is_over();
        drop(state);
        if over {
            self.finish();
            return Wants::Nothing;
        }
        wants
    }

    fn put_step(&self, state: &mut State, step: Step, put: &mut dyn FnMut(Frame)) -> usize {
        let id = state.id;
        let counters = &self.engine.counters;
        let mut size = 0;
        put(match step {
            Step::Open {
                mode,
                received,
                limit,
            } => Frame::Open {
                id,
                open: Box::new(Open {
                    cid: self.cid,
                    secret: self.secret,
                    epoch: state.epoch,
                    mode,
                    received,
                    limit,
                    connector: self.label.connector.to_string(),
                    client: self.label.client.to_string(),
                    listener: self.label.listener.to_string(),
                }),
            },
            Step::OpenAck { received, limit } => Frame::OpenAck {
                id,
                received,
                limit,
            },
            Step::Data { offset, payload } => {
                size = payload.len();
                Frame::Data {
                    id,
                    offset,
                    payload,
                }
            }
            Step::Credit { acked, limit } => Frame::Credit { id, acked, limit },
            Step::Fin { offset } => {
                counters.fin_sent.inc();
                Frame::Fin { id, offset }
            }
            Step::Refuse { reason } => {
                counters.rst_sent.inc();
                Frame::Refuse { id, reason }
            }
            Step::Rst { reason } => {
                counters.rst_sent.inc();
                Frame::Rst { id, reason }
            }
        });
        size
    }

    /// Reads once from the socket into the flow; false when there is nothing to read now.
    fn read_socket(
        self: &Arc<Self>,
        state: &mut State,
        scratch: &mut BytesMut,
        most: usize,
    ) -> bool {
        if state.flow.waits_for_allowance() {
            let grown = state.borrow(&self.engine, state.flow.allowance());
            state.flow.grow_allowance(grown);
        }
        let room = state.flow.room().min(most);
        if room == 0 {
            if state.flow.waits_for_credit() && state.blocked_ms.is_none() {
                state.blocked_ms = Some(self.engine.now_ms());
            }
            return false;
        }
        self.note_unblocked(state);
        let Some(socket) = state.socket.as_mut() else {
            return false;
        };
        scratch.clear();
        scratch.reserve(READ_SIZE);
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut limited = (&mut *scratch).limit(room);
        match poll_read_buf(Pin::new(socket), &mut cx, &mut limited) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                state.flow.push_fin();
                true
            }
            Poll::Ready(Ok(n)) => {
                self.active_ms
                    .store(self.engine.now_ms(), Ordering::Relaxed);
                self.sent_counter().inc_by(n as u64);
                state.flow.push(if n >= KEEP_FROM {
                    scratch.split().freeze()
                } else {
                    Bytes::copy_from_slice(scratch)
                });
                true
            }
            Poll::Ready(Err(error)) => {
                self.socket_failed(state, &error);
                true
            }
        }
    }

    /// Gives the socket what the inbox holds. `fresh` says that the last of it still lies in the
    /// link's read buffer.
    fn flush_inbox(self: &Arc<Self>, state: &mut State, now_ms: u64, fresh: bool) {
        let had = state.flow.inbox().len();
        if (had > 0 || state.flow.fin_due()) && state.socket.is_some() {
            let waker = Waker::from(Arc::clone(self));
            let mut cx = Context::from_waker(&waker);
            if let Poll::Ready(Err(error)) = state.poll_flush(&mut cx) {
                self.socket_failed(state, &error);
            }
            self.enlarge_window(state, now_ms);
        }
        let left = state.flow.inbox().len();
        if left < had {
            self.active_ms.store(now_ms, Ordering::Relaxed);
        }
        if fresh && left > 0 {
            state.flow.settle();
        }
        let shown = i64::try_from(left).unwrap_or(i64::MAX);
        if shown != state.shown {
            self.counters.inbox_bytes.inc_by(shown - state.shown);
            state.shown = shown;
        }
    }

    fn enlarge_window(&self, state: &mut State, now_ms: u64) {
        let rtt_ms = self.carrier.lock().as_ref().map_or(0, |link| link.rtt_ms());
        if state
            .flow
            .window_is_small(now_ms, FAST_WINDOW_MS + 2 * rtt_ms)
        {
            let window = state.flow.window();
            let grown = state.borrow(&self.engine, window.min(MOST_WINDOW.saturating_sub(window)));
            state.flow.grow_window(grown);
        }
    }

    fn socket_failed(&self, state: &mut State, error: &io::Error) {
        tracing::debug!(event = "socket_failed", cid = %self.cid, %error);
        state.flow.abort(Reason::SocketReset);
    }

    fn note_unblocked(&self, state: &mut State) {
        if let Some(since) = state.blocked_ms.take() {
            let micros = self.engine.now_ms().saturating_sub(since) * 1000;
            self.engine
                .blocked_micros
                .fetch_add(micros, Ordering::Relaxed);
        }
    }

    fn received_counter(&self) -> &prometheus_client::metrics::counter::Counter {
        match self.side {
            Side::Origin => &self.counters.bytes_a2c,
            Side::Target => &self.counters.bytes_c2a,
        }
    }

    fn sent_counter(&self) -> &prometheus_client::metrics::counter::Counter {
        match self.side {
            Side::Origin => &self.counters.bytes_c2a,
            Side::Target => &self.counters.bytes_a2c,
        }
    }

    /// The flow is over: closes the socket, leaves the link, returns what it borrowed, and says so,
    /// once.
    fn finish(self: &Arc<Self>) {
        let (summary, id) = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.closed, true) {
                return;
            }
            state.close_socket();
            self.note_unblocked(&mut state);
            self.engine
                .budget
                .give_back(std::mem::take(&mut state.borrowed));
            self.counters
                .inbox_bytes
                .dec_by(std::mem::take(&mut state.shown));
            if let Some(waker) = state.on_closed.take() {
                waker.wake();
            }
            (self.summary(&state), state.id)
        };
        if let Some(link) = self.carrier.lock().take() {
            link.forget(id, self);
        }
        self.events.closed(self, summary);
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

impl State {
    fn bind(&mut self, id: FlowId, epoch: u64) {
        self.id = id;
        self.epoch = epoch;
        self.detached_ms = None;
        self.waiting = false;
        self.owing = false;
    }

    fn borrow(&mut self, engine: &Engine, want: u64) -> u64 {
        let lent = engine.budget.borrow(want);
        self.borrowed += lent;
        lent
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(socket) = self.socket.as_mut() else {
            return Poll::Pending;
        };
        while !self.flow.inbox().is_empty() {
            let mut slices = [IoSlice::new(&[]); 16];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(self.flow.inbox().chunks()) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            let written = Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count]);
            match written {
                Poll::Ready(Ok(n)) => self.flow.hand_on(n),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.flow.fin_due() {
            match Pin::new(socket).poll_shutdown(cx) {
                // The peer of this socket may be gone already; then reading tells.
                Poll::Ready(_) => self.flow.fin_handed(),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the socket: with a reset unless both directions ended in good order, so that nobody
    /// takes an abort for an end.
    fn close_socket(&mut self) {
        if let Some(socket) = self.socket.take()
            && !(self.flow.socket_done() || self.flow.ending() == Some(Ending::Finished))
        {
            let _ = socket.set_zero_linger();
        }
        if self.flow.ending().is_some()
            && let Some(waker) = self.on_closed.take()
        {
            waker.wake();
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
            link.ready(self);
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
