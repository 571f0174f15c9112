//! The one task of a link.
//!
//! A round does, in this order: keepalive; what came in (flows write it to their sockets at once);
//! flows that are ready (they flush what waits for their socket, and queue for the link); control
//! frames; then flows in turn, each up to its share, until enough waits to be written; then the
//! write. Reading never waits for writing, nor either for a flow.

mod clock;
mod ending;
mod incoming;
mod outgoing;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nowconnect_proto::Reason;
use nowconnect_proto::keepalive::Keepalive;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::pace::Pace;
use super::patience::Patience;
use super::turns::Turns;
use super::{Carrier, Link, LinkConfig, LinkEvents};
use crate::carried::Carried;
use crate::counters::Engine;
use crate::scratch::Scratch;

/// Rounds before other tasks of the runtime have their turn.
const ROUNDS_A_TURN: usize = 16;

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
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.end();
    }
}
