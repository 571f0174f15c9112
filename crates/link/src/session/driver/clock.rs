//! What time brings: pings and their answers, acknowledgements that are due, and sleep until more.

use std::task::Context;
use std::time::Duration;

use nowconnect_proto::Reason;
use nowconnect_proto::frame::Frame;
use nowconnect_proto::keepalive::Beat;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Driver, LinkClosed};
use crate::session::Carrier;
use crate::ws::Opcode;

/// The longest sleep, in microseconds.
const LONGEST_SLEEP: u64 = 3_600_000_000;

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn beat(&mut self, now: u64) {
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

    pub(super) fn ping(&mut self, value: u64) {
        if self.link.is_v1() {
            let out = &mut self.carrier.out;
            out.push_message(Opcode::Ping, &value.to_be_bytes());
        } else {
            self.push(Frame::Ping(value));
        }
        self.pace.on_ping(self.carrier.out.appended());
    }

    pub(super) fn on_pong(&mut self, value: u64, now: u64) {
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
    pub(super) fn park(&mut self, cx: &mut Context<'_>, now: u64) -> bool {
        if !self.carrier.frames.is_empty() && !self.input_over {
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
}
