//! From the connection to the flows.

use std::task::{Context, Poll};

use nowconnect_proto::frame::Frame;
use nowconnect_proto::{FlowId, Reason};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Driver, LinkClosed};
use crate::session::{Role, patience};

/// Reads of the connection in one round before flows and writes have their turn.
const READS_A_ROUND: usize = 2;

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn take_in(&mut self, cx: &mut Context<'_>, now: u64) -> bool {
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
}
