//! The one task of a link.
//!
//! A round does, in this order: keepalive; what came in (flows write it to their sockets at once);
//! flows that are ready (they flush what waits for their socket, and queue for the link); control
//! frames; then flows in turn, each up to its share, until enough waits to be written; then the
//! write. Reading never waits for writing, nor either for a flow.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use nowconnect_proto::frame::Frame;
use nowconnect_proto::keepalive::{Beat, Keepalive};
use nowconnect_proto::{FlowId, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::pace::Pace;
use super::patience::{self, Patience};
use super::turns::Turns;
use super::{Carrier, CarrierError, Link, LinkConfig, LinkEvents, Role};
use crate::carried::{Carried, Turn};
use crate::counters::Engine;
use crate::meter::Bound;
use crate::scratch::Scratch;
use crate::ws::Opcode;

/// Acknowledgements that can wait are sent after this time at the latest, in microseconds.
const ACK_DELAY: u64 = 25_000;
/// Reads of the connection in one round before flows and writes have their turn.
const READS_A_ROUND: usize = 2;
/// Rounds before other tasks of the runtime have their turn.
const ROUNDS_A_TURN: usize = 16;
/// How long a closing link may take to say goodbye, in microseconds.
const CLOSE_LINGER: u64 = 1_000_000;
/// The longest sleep, in microseconds.
const LONGEST_SLEEP: u64 = 3_600_000_000;

/// How a link ended.
#[derive(Clone, Debug)]
pub struct LinkClosed {
    /// Why.
    pub reason: Reason,
    /// More about it, for the log; empty when there is nothing to add.
    pub detail: String,
}

/// Reads, writes and gives flows their turns. Created by [`start`].
struct Driver<S> {
    link: Arc<Link>,
    engine: Arc<Engine>,
    events: Arc<dyn LinkEvents>,
    carrier: Carrier<S>,
    keepalive: Keepalive,
    pace: Pace,
    patience: Patience,
    beat_at: u64,
    /// The peer's latest ping; older ones need no answer.
    pong: Option<u64>,
    /// Flows that got frames which are not all looked at yet.
    touched: Vec<Carried>,
    /// Flows that were woken, being looked at.
    woken: VecDeque<Carried>,
    /// Flows that want a turn to write.
    waiting: Turns,
    owing: Vec<Carried>,
    owing_due: Option<u64>,
    scratch: Scratch,
    /// The peer closed, or broke the protocol: nothing more is read.
    input_over: bool,
    /// How the link ends, and when to stop waiting for the last bytes to leave.
    closing: Option<(LinkClosed, u64)>,
    /// The reason of the peer's GOAWAY.
    peer_reason: Option<Reason>,
    max_frames: usize,
    sleep: Pin<Box<Sleep>>,
    ended: bool,
}

/// Makes a link of a connection whose handshake is done. The future is the link's task; when it is
/// dropped or resolves, the link is closed and its flows wait for another.
pub fn start<S>(
    mut carrier: Carrier<S>,
    config: &LinkConfig,
    engine: &Arc<Engine>,
    events: Arc<dyn LinkEvents>,
) -> (Arc<Link>, impl Future<Output = LinkClosed> + Send + use<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let link = Link::new(config, carrier.is_v1(), engine);
    carrier.meter = config.meter.clone();
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let now = engine.now_micros();
    let driver = Driver {
        link: Arc::clone(&link),
        engine: Arc::clone(engine),
        events,
        carrier,
        keepalive: Keepalive::new(
            micros(config.ping_interval),
            micros(config.ping_timeout),
            now,
        ),
        pace: Pace::new(now, config.bounds.bytes),
        patience: Patience::new(now),
        beat_at: 0,
        pong: None,
        touched: Vec::new(),
        woken: VecDeque::new(),
        waiting: Turns::default(),
        owing: Vec::new(),
        owing_due: None,
        scratch: Scratch::default(),
        input_over: false,
        closing: None,
        peer_reason: None,
        max_frames: config.bounds.frames,
        sleep: Box::pin(sleep_until(Instant::now())),
        ended: false,
    };
    // The driver bounds its own turns; tokio's budget would count every flow's socket.
    (link, tokio::task::unconstrained(driver.run()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    async fn run(mut self) -> LinkClosed {
        let closed = poll_fn(|cx| self.poll(cx)).await;
        self.end();
        closed
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkClosed> {
        for _ in 0..ROUNDS_A_TURN {
            let now = self.engine.now_micros();
            self.patience.refill(now, self.link.active_flows());
            self.beat(now);
            let mut progressed = self.take_in(cx, now);
            self.take_queue(now);
            self.fill(now);
            let mut moved = 0;
            let written = self
                .carrier
                .out
                .poll_write(&mut self.carrier.io, cx, &mut moved);
            progressed |= moved > 0;
            self.measure(moved);
            if let Poll::Ready(Err(error)) = written {
                return Poll::Ready(self.lost(&error.into()));
            }
            if let Some((closed, deadline)) = &self.closing
                && (written.is_ready() || now >= *deadline)
            {
                return Poll::Ready(closed.clone());
            }
            if !progressed && self.park(cx, now) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn measure(&mut self, sent: usize) {
        if let Some(meter) = &self.carrier.meter {
            meter.bytes(std::mem::take(&mut self.carrier.received), sent);
            let in_flight = self.pace.in_flight(self.carrier.out.appended());
            meter.waiting(self.carrier.out.frames(), in_flight);
        }
    }

    // ---- keepalive and time ---------------------------------------------------------------------

    fn beat(&mut self, now: u64) {
        if let Some(value) = self.carrier.ws_pong.take() {
            self.on_pong(value, now);
        }
        if now >= self.beat_at && self.closing.is_none() {
            match self.keepalive.poll(now) {
                Beat::Ping(value) => self.ping(value),
                Beat::Dead => {
                    let reason = Reason::PingTimeout;
                    let detail = if self.carrier.out.is_empty() {
                        ""
                    } else {
                        "bytes wait to be written"
                    };
                    // Nobody listens: no goodbye.
                    self.closing = Some((
                        LinkClosed {
                            reason,
                            detail: detail.into(),
                        },
                        now,
                    ));
                }
                Beat::Wait(until) => self.beat_at = until,
            }
        }
        if self.owing_due.is_some_and(|due| now >= due) {
            self.owing_due = None;
            for flow in std::mem::take(&mut self.owing) {
                self.turn_in(&flow, true, now);
            }
        }
        if self
            .carrier
            .wire
            .deadline_ms()
            .is_some_and(|due| now / 1000 >= due)
        {
            let Carrier {
                wire, out, frames, ..
            } = &mut self.carrier;
            wire.on_time(now / 1000, out, frames);
        }
    }

    fn ping(&mut self, value: u64) {
        if self.link.is_v1() {
            let out = &mut self.carrier.out;
            out.push_message(Opcode::Ping, &value.to_be_bytes());
        } else {
            self.push(Frame::Ping(value));
        }
        self.pace.on_ping(self.carrier.out.appended());
    }

    fn on_pong(&mut self, value: u64, now: u64) {
        if let Some(rtt) = self.keepalive.on_pong(value, now) {
            self.pace.on_pong(rtt, now);
            if let Some(meter) = &self.carrier.meter {
                meter.round_trip(Duration::from_micros(rtt));
            }
            self.link.note_rtt(Duration::from_micros(rtt));
            self.beat_at = 0;
        }
    }

    /// Sleeps until something happens; false when something has happened already.
    fn park(&mut self, cx: &mut Context<'_>, now: u64) -> bool {
        if !self.carrier.frames.is_empty() {
            return false;
        }
        let bridge = self
            .carrier
            .wire
            .deadline_ms()
            .map(|ms| ms.saturating_mul(1000));
        let closing = self.closing.as_ref().map(|(_, deadline)| *deadline);
        let beat = self.closing.is_none().then_some(self.beat_at);
        let wake_at = [beat, self.owing_due, bridge, closing]
            .into_iter()
            .flatten()
            .min();
        let wake_at = wake_at.unwrap_or(u64::MAX).min(now + LONGEST_SLEEP);
        if wake_at <= now {
            return false;
        }
        let deadline = Instant::from_std(self.engine.instant(wake_at));
        if self.sleep.deadline() != deadline {
            self.sleep.as_mut().reset(deadline);
        }
        if self.sleep.as_mut().poll(cx).is_ready() {
            return false;
        }
        let mut queue = self.link.queue.lock();
        let close = queue.close.is_some() && self.closing.is_none();
        // What waits while we are flooded is looked at when bytes have left.
        let control = !queue.control.is_empty() && !self.carrier.out.is_flooded();
        if queue.ready.is_empty() && queue.owing.is_empty() && !control && !close {
            queue.driver = Some(cx.waker().clone());
            return true;
        }
        false
    }

    // ---- in -------------------------------------------------------------------------------------

    fn take_in(&mut self, cx: &mut Context<'_>, now: u64) -> bool {
        for reads in 0..READS_A_ROUND {
            self.take_frames(now);
            for flow in self.touched.drain(..) {
                flow.after_frames(&self.link, now / 1000);
            }
            if self.input_over {
                return reads > 0;
            }
            match self.carrier.poll_read(cx) {
                Poll::Pending => return reads > 0,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.failed(&error, now),
            }
        }
        true
    }

    /// Hands out all frames that were read. What they bring goes to the sockets afterwards, in one
    /// piece for each.
    fn take_frames(&mut self, now: u64) {
        while !self.input_over {
            let next = self.carrier.next_frame();
            let offences = self.carrier.offences.len() as u64;
            for kind in self.carrier.offences.drain(..) {
                self.events.on_protocol_error(&self.link, kind);
            }
            let idle = std::mem::take(&mut self.carrier.idle);
            self.bear(idle + offences, now);
            match next {
                Ok(Some(frame)) => self.on_frame(frame, now),
                Ok(None) => break,
                Err(error) => self.failed(&error, now),
            }
        }
        let control = &mut self.link.queue.lock().control;
        self.carrier.take_control(control, now);
    }

    fn on_frame(&mut self, frame: Frame, now: u64) {
        if let Some(meter) = &self.carrier.meter {
            meter.frame_in(&frame);
        }
        match frame {
            Frame::Data { id, .. }
            | Frame::Credit { id, .. }
            | Frame::Fin { id, .. }
            | Frame::Rst { id, .. }
            | Frame::Detach { id, .. }
            | Frame::OpenAck { id, .. }
            | Frame::Refuse { id, .. } => self.on_flow_frame(id, frame, now),
            Frame::Ping(value) => {
                self.bear(1, now);
                self.pong = Some(value);
            }
            Frame::Pong(value) => {
                self.bear(1, now);
                self.on_pong(value, self.engine.now_micros());
            }
            Frame::Open { id, open } => {
                if self.link.role == Role::Answerer {
                    self.patience.expect(patience::OPENING);
                    self.link.note_used(id);
                }
                self.events.on_open(&self.link, id, *open);
            }
            Frame::GoAway { reason, .. } => {
                self.bear(patience::CONTROL, now);
                self.peer_reason = Some(reason);
                self.events.on_control(&self.link, frame);
            }
            Frame::Query { .. } | Frame::Answer { .. } => {
                self.bear(1, now);
                self.events.on_control(&self.link, frame);
            }
            Frame::Update(_) | Frame::UpdateAck(_) | Frame::Token(_) | Frame::TokenAck(_) => {
                self.bear(patience::CONTROL, now);
                self.events.on_control(&self.link, frame);
            }
            Frame::Hello(_) | Frame::HelloAck(_) => {
                self.events
                    .on_protocol_error(&self.link, "unexpected_frame");
                let detail = format!("unexpected {}", frame.name());
                self.close(
                    LinkClosed {
                        reason: Reason::ProtocolError,
                        detail,
                    },
                    now,
                );
            }
        }
    }

    /// The peer said so many words that moved nothing.
    fn bear(&mut self, words: u64, now: u64) {
        if words > 0 && !self.patience.spend(words) && !self.input_over {
            self.events.on_protocol_error(&self.link, "flood");
            let (reason, detail) = (Reason::Flood, "more idle frames than any flow needs".into());
            self.close(LinkClosed { reason, detail }, now);
        }
    }

    fn on_flow_frame(&mut self, id: FlowId, frame: Frame, now: u64) {
        let payload = match &frame {
            Frame::Data { payload, .. } => payload.len(),
            _ => 0,
        };
        if payload == 0 {
            self.bear(1, now);
        }
        if let Some(flow) = self.link.flow(id) {
            self.patience.earn(payload);
            let heard = flow.on_frame(&self.link, id, frame, now / 1000);
            if heard.first {
                self.touched.push(flow);
            }
            if let Some(reason) = heard.violation {
                self.events.on_protocol_error(&self.link, reason.name());
            }
            return;
        }
        if payload > 0 {
            self.bear(1, now);
        }
        match frame {
            Frame::Rst { reason, .. } => self.link.confirm_reset(id, reason),
            Frame::Detach { .. } => {}
            // The flow ended a moment ago, and this was on its way.
            _ if self.link.was_used(id) => {}
            _ => {
                self.events.on_protocol_error(&self.link, "unknown_flow");
                let reason = Reason::UnknownFlow;
                self.link.send(Frame::Rst { id, reason });
            }
        }
    }

    fn failed(&mut self, error: &CarrierError, now: u64) {
        let kind = match error {
            CarrierError::Wire(error) => Some(error.name()),
            CarrierError::Ws(_) => Some("websocket"),
            CarrierError::Io(_) | CarrierError::Closed(_) => None,
        };
        if let Some(kind) = kind {
            self.events.on_protocol_error(&self.link, kind);
        }
        let closed = self.lost(error);
        if matches!(error, CarrierError::Io(_)) {
            self.input_over = true;
            self.closing = Some((closed, now));
        } else {
            self.close(closed, now);
        }
    }

    fn lost(&self, error: &CarrierError) -> LinkClosed {
        let reason = match error {
            CarrierError::Ws(_) | CarrierError::Wire(_) => Reason::ProtocolError,
            CarrierError::Io(_) => self.peer_reason.unwrap_or(Reason::ConnectionLost),
            CarrierError::Closed(reason) => match reason.as_deref().map(Reason::from_name) {
                None | Some(Reason::Unspecified) => self.peer_reason.unwrap_or(Reason::PeerClosed),
                Some(reason) => reason,
            },
        };
        LinkClosed {
            reason,
            detail: error.to_string(),
        }
    }

    /// Says goodbye and reads no more.
    fn close(&mut self, closed: LinkClosed, now: u64) {
        self.input_over = true;
        if self.closing.is_none() {
            self.carrier.push_close(closed.reason);
            self.closing = Some((closed, now + CLOSE_LINGER));
        }
    }

    // ---- out ------------------------------------------------------------------------------------

    /// Takes over what waits in the link's queue.
    fn take_queue(&mut self, now: u64) {
        let close = {
            let mut queue = self.link.queue.lock();
            std::mem::swap(&mut self.woken, &mut queue.ready);
            self.owing.append(&mut queue.owing);
            self.carrier.take_control(&mut queue.control, now);
            queue.close
        };
        if self.owing_due.is_none() && !self.owing.is_empty() {
            self.owing_due = Some(now + ACK_DELAY);
        }
        if let Some(value) = self.pong.take() {
            self.push(Frame::Pong(value));
        }
        self.carrier.push_ws_control();
        if let Some(reason) = close {
            self.close(
                LinkClosed {
                    reason,
                    detail: String::new(),
                },
                now,
            );
        }
        while let Some(flow) = self.woken.pop_front() {
            flow.set_queued(false);
            self.turn_in(&flow, false, now);
        }
    }

    /// Gives flows their turns while there is room.
    fn fill(&mut self, now: u64) {
        if self.closing.is_some() {
            return;
        }
        while !self.carrier.out.is_full() && !self.waiting.is_empty() {
            self.look_ahead(now);
            let room = self.pace.room(self.carrier.out.appended());
            if room == 0 {
                self.pace.note_limited();
                self.held_up(Bound::Bytes);
                break;
            }
            if self.carrier.out.frames() >= self.max_frames {
                self.held_up(Bound::Frames);
                break;
            }
            if let Some((flow, mark)) = self.waiting.pop() {
                let most = usize::try_from(room.min(self.pace.share())).unwrap_or(usize::MAX);
                let now_ms = now / 1000;
                self.turn_out(flow, Turn { mark, most, now_ms });
            }
        }
        self.look_ahead(now);
    }

    fn held_up(&self, bound: Bound) {
        if let Some(meter) = &self.carrier.meter
            && (bound == Bound::Frames || self.pace.is_bounded())
        {
            meter.held_up(bound);
        }
    }

    /// Asks what the peer has got, when that is worth knowing.
    fn look_ahead(&mut self, now: u64) {
        if self.pace.wants_ping(self.carrier.out.appended())
            && let Some(value) = self.keepalive.ping_now(now)
        {
            self.ping(value);
            self.beat_at = 0;
        }
    }

    fn turn_in(&mut self, flow: &Carried, flush: bool, now: u64) {
        let (carrier, patience) = (&mut self.carrier, &mut self.patience);
        let mut put = |frame| {
            note_sent(patience, &frame);
            carrier.put(frame, now / 1000);
        };
        if let Some(mark) = flow.turn_in(&self.link, flush, now / 1000, &mut put) {
            self.waiting.come_back(flow.clone(), mark);
        }
    }

    fn turn_out(&mut self, flow: Carried, turn: Turn) {
        let (carrier, patience) = (&mut self.carrier, &mut self.patience);
        let mut put = |frame| {
            note_sent(patience, &frame);
            carrier.put(frame, turn.now_ms);
        };
        if let Some(mark) = flow.turn_out(&self.link, turn, &mut self.scratch, &mut put) {
            self.waiting.go_on(flow, mark);
        }
    }

    fn push(&mut self, frame: Frame) {
        self.carrier.put(frame, 0);
    }
}

/// What we say on a flow, an honest peer has to answer.
fn note_sent(patience: &mut Patience, frame: &Frame) {
    match frame {
        Frame::Open { .. } => patience.expect(patience::OPENING),
        Frame::Data { payload, .. } => {
            patience.expect(1);
            patience.earn(payload.len());
        }
        Frame::OpenAck { .. } | Frame::Fin { .. } | Frame::Credit { .. } => patience.expect(1),
        _ => {}
    }
}

impl<S> Driver<S> {
    /// Closes the link for everybody; its flows wait for another.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut woken = std::mem::take(&mut self.woken);
        {
            let mut queue = self.link.queue.lock();
            queue.closed = true;
            woken.append(&mut queue.ready);
            queue.owing.clear();
            queue.control.clear();
        }
        let flows = std::mem::take(&mut *self.link.flows.lock());
        self.link.active.store(0, Ordering::Relaxed);
        for flow in flows.into_values() {
            flow.path_lost(&self.link, !self.link.is_v1());
        }
        for flow in woken {
            flow.pass_on(&self.link);
        }
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.end();
    }
}
