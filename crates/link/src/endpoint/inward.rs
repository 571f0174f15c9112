//! From the link to the socket.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nowconnect_proto::flow::Side;
use nowconnect_proto::{FlowId, Frame, Reason};
use parking_lot::MutexGuard;

use super::SocketFlow;
use super::state::{Before, State};
use crate::budget::MOST_WINDOW;
use crate::carried::{Carried, Heard};
use crate::session::Link;

/// A window that goes through within this time and two round trips is too small, in milliseconds.
const FAST_WINDOW_MS: u64 = 20;

impl SocketFlow {
    /// A frame came over `link` for number `id`. `first` of the answer tells whether it is the first
    /// of the frames at hand for this flow: then [`SocketFlow::after_frames`] must follow the last.
    pub(crate) fn on_frame(
        self: &Arc<Self>,
        link: &Arc<Link>,
        id: FlowId,
        frame: Frame,
        now_ms: u64,
    ) -> Heard {
        let mut state = self.state.lock();
        if state.id != id || state.over || !self.is_carried_by(link) {
            drop(state);
            self.engine.counters.epoch_mismatch.inc();
            if let Frame::Rst { reason, .. } = frame {
                link.confirm_reset(id, reason);
            }
            return Heard::default();
        }
        if let Frame::Refuse { reason, .. } = frame {
            self.on_refuse(state, reason);
            return Heard::default();
        }
        if let Frame::Detach { reason, .. } = frame {
            // A hub that turns the flow away is no path: the flow has waited all the time, or it
            // would go there and back for ever.
            let turned_away = !state.flow.is_live() && reason != Reason::ConnectionLost;
            let waited_ms = state.waited_ms.filter(|_| turned_away);
            drop(state);
            tracing::debug!(event = "flow_detached", cid = %self.cid, %reason);
            link.forget(id, self.address());
            self.lose_path(link, true, waited_ms.unwrap_or(now_ms));
            return Heard::default();
        }
        let before = Before {
            opened: state.flow.is_opened(),
            could_read: state.flow.room() > 0,
        };
        let violation = self.apply(&mut state, frame, now_ms).err();
        if let Some(reason) = violation {
            tracing::debug!(event = "flow_violation", cid = %self.cid, %reason);
            state.flow.abort(reason);
        }
        let first = state.before.is_none();
        state.before.get_or_insert(before);
        Heard { first, violation }
    }

    /// Gives the socket what the frames at hand brought, in one piece, and sees what follows.
    pub(crate) fn after_frames(self: &Arc<Self>, link: &Arc<Link>, now_ms: u64) {
        let mut state = self.state.lock();
        if state.over || !self.is_carried_by(link) {
            return;
        }
        let Some(before) = state.before.take() else {
            return;
        };
        self.flush_inbox(&mut state, now_ms, true);
        let ended = state.flow.ending().is_some();
        let over = state.flow.is_over();
        // A socket that could be read before is registered already, or has its turn coming.
        let turn = state.flow.has_step() || (!before.could_read && state.flow.room() > 0);
        let owes = !state.owing && state.flow.owes_ack();
        state.owing |= owes;
        let opened = !before.opened && state.flow.is_opened();
        drop(state);
        if opened && self.side == Side::Origin {
            self.events.opened(self);
        }
        if ended {
            self.conclude();
        }
        if over {
            return;
        }
        if owes {
            link.owe(Carried::Socket(Arc::clone(self)));
        }
        if turn {
            link.ready(Carried::Socket(Arc::clone(self)));
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
                let resumed = state.flow.is_opened() && state.flow.ending().is_none();
                state.flow.on_open_ack(received, limit)?;
                if resumed {
                    counters.resumed.inc();
                }
                Ok(())
            }
            Frame::Rst { reason, .. } => {
                if state.flow.ending().is_none() {
                    counters.rst_recv.inc();
                }
                if reason == Reason::QueueOverflow {
                    self.counters.queue_overflow.inc();
                }
                state.flow.on_rst(reason);
                Ok(())
            }
            _ => Err(Reason::ProtocolError),
        }
    }

    fn on_refuse(self: &Arc<Self>, mut state: MutexGuard<'_, State>, reason: Reason) {
        self.engine.counters.rst_recv.inc();
        let offer_again = match state.flow.on_refuse() {
            Ok(()) if reason.allows_another_agent() && state.flow.rewind() => true,
            Ok(()) => {
                state.flow.refused(reason);
                false
            }
            Err(violation) => {
                state.flow.abort(violation);
                false
            }
        };
        drop(state);
        if !offer_again {
            self.conclude();
            return self.wake_by_ref();
        }
        self.leave_carrier(None);
        if !self.events.refused(self, reason) {
            self.state.lock().flow.refused(reason);
            self.conclude();
        }
    }

    /// Gives the socket what the inbox holds. `fresh` says that the last of it still lies in the
    /// link's read buffer.
    pub(super) fn flush_inbox(self: &Arc<Self>, state: &mut State, now_ms: u64, fresh: bool) {
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
        self.note_drained(state, left, now_ms);
    }

    fn note_drained(&self, state: &mut State, left: usize, now_ms: u64) {
        if left > 0 {
            state.stalled_ms.get_or_insert(now_ms);
        } else if let Some(since) = state.stalled_ms.take()
            && let Some(phases) = &self.counters.write_drain
        {
            let waited = Duration::from_millis(now_ms.saturating_sub(since));
            phases[usize::from(state.fin_given)].observe(waited.as_secs_f64());
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

    pub(super) fn socket_failed(&self, state: &mut State, error: &io::Error) {
        tracing::debug!(event = "socket_failed", cid = %self.cid, %error);
        state.flow.abort(Reason::SocketReset);
    }
}
