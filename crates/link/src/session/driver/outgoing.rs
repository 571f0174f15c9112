//! From the flows to the connection.

use nowconnect_proto::frame::Frame;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Driver, LinkClosed};
use crate::carried::{Carried, Turn};
use crate::meter::Bound;
use crate::session::patience::{self, Patience};

/// Acknowledgements that can wait are sent after this time at the latest, in microseconds.
const ACK_DELAY: u64 = 25_000;

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Takes over what waits in the link's queue.
    pub(super) fn take_queue(&mut self, now: u64) {
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
    pub(super) fn fill(&mut self, now: u64) {
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

    pub(super) fn turn_in(&mut self, flow: &Carried, flush: bool, now: u64) {
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

    pub(super) fn push(&mut self, frame: Frame) {
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
