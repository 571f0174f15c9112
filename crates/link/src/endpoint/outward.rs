//! From the socket to the link.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use nowconnect_proto::flow::{Side, Step};
use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::{FlowId, Reason};

use super::SocketFlow;
use super::state::State;
use crate::carried::Turn;
use crate::read_size;
use crate::scratch::Scratch;
use crate::session::Link;

impl SocketFlow {
    /// Gives what arrived to the socket, and to the link what need not wait for room: everything
    /// but bytes. `flush` includes acknowledgements that could wait. Returns where the flow stands
    /// if it is to wait for a turn now.
    pub(crate) fn turn_in(
        self: &Arc<Self>,
        link: &Arc<Link>,
        flush: bool,
        now_ms: u64,
        put: &mut dyn FnMut(Frame),
    ) -> Option<u64> {
        let mut state = self.state.lock();
        if !self.is_carried_by(link) {
            drop(state);
            self.pass_on(link);
            return None;
        }
        if state.over {
            let id = state.id;
            drop(state);
            self.ended_while_moving(link, id, put);
            return None;
        }
        if flush {
            state.owing = false;
        }
        self.flush_inbox(&mut state, now_ms, false);
        while let Some(step) = state.flow.next_step(0, flush) {
            self.put_step(&mut state, step, put);
        }
        let ended = state.flow.ending().is_some();
        // Whether the socket has bytes is seen when it is read; asking costs nothing when not.
        let waits = !ended && !flush && !std::mem::replace(&mut state.waiting, true);
        let mark = state.mark;
        drop(state);
        if ended {
            self.conclude();
        }
        waits.then_some(mark)
    }

    /// Gives the flow its turn on the link: frames first, then bytes of the socket. Returns where
    /// the flow stands if it is to wait for another turn, because there is more.
    pub(crate) fn turn_out(
        self: &Arc<Self>,
        link: &Arc<Link>,
        turn: Turn,
        scratch: &mut Scratch,
        put: &mut dyn FnMut(Frame),
    ) -> Option<u64> {
        let mut state = self.state.lock();
        if state.over || !self.is_carried_by(link) {
            return None;
        }
        state.waiting = false;
        let max_payload = link.peer().max_payload;
        let most = turn.most.min(read_size::MOST);
        let mut left = most;
        let mut more = true;
        while more && left > 0 {
            while left > 0
                && let Some(step) = state.flow.next_step(max_payload.min(left), false)
            {
                left = left.saturating_sub(self.put_step(&mut state, step, put));
            }
            more = left > 0 && self.read_socket(&mut state, scratch, left, turn.now_ms);
        }
        state.mark = turn.mark + (most - left) as u64;
        let ended = state.flow.ending().is_some();
        let waits = !ended && left == 0;
        state.waiting = waits;
        let mark = state.mark;
        drop(state);
        if ended {
            self.conclude();
        }
        waits.then_some(mark)
    }

    /// The flow ended at the very moment that `link` took it.
    fn ended_while_moving(&self, link: &Link, id: FlowId, put: &mut dyn FnMut(Frame)) {
        self.carrier.lock().take();
        link.forget(id, self.address());
        if self.side == Side::Target {
            let reason = Reason::UnknownFlow;
            put(Frame::Rst { id, reason });
        }
    }

    fn put_step(&self, state: &mut State, step: Step, put: &mut dyn FnMut(Frame)) -> usize {
        let counters = &self.engine.counters;
        let mut size = 0;
        match &step {
            Step::Data { payload, .. } => size = payload.len(),
            Step::Fin { .. } => {
                counters.fin_sent.inc();
            }
            // A confirmation is not another reset.
            Step::Rst { reason } if *reason == Reason::UnknownFlow => {}
            Step::Refuse { .. } | Step::Rst { .. } => {
                counters.rst_sent.inc();
            }
            _ => {}
        }
        put(step.into_frame(state.id, |mode, received, limit| Open {
            cid: self.cid,
            secret: self.secret,
            epoch: state.epoch,
            mode,
            received,
            limit,
            connector: self.label.connector.to_string(),
            client: self.label.client.to_string(),
            listener: self.label.listener.to_string(),
            destination: self.label.destination.to_string(),
            agent: state.agent.as_deref().unwrap_or_default().to_owned(),
            attempt: state.flow.attempt(),
            trace: self.events.trace(),
        }));
        size
    }

    /// Reads once from the socket into the flow; false when there is nothing to read now.
    fn read_socket(
        self: &Arc<Self>,
        state: &mut State,
        scratch: &mut Scratch,
        most: usize,
        now_ms: u64,
    ) -> bool {
        if state.flow.waits_for_allowance() {
            let grown = state.borrow(&self.engine, state.flow.allowance());
            state.flow.grow_allowance(grown);
        }
        let room = state.flow.room().min(most);
        if room == 0 {
            if state.flow.waits_for_credit() && state.blocked_ms.is_none() {
                state.blocked_ms = Some(now_ms);
            }
            return false;
        }
        self.note_unblocked(state);
        let Some(socket) = state.socket.as_mut() else {
            return false;
        };
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        match scratch.poll_read(Pin::new(socket), &mut cx, room) {
            Poll::Pending => false,
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                state.flow.push_fin();
                true
            }
            Poll::Ready(Ok(bytes)) => {
                self.active_ms.store(now_ms, Ordering::Relaxed);
                self.sent_counter().inc_by(bytes.len() as u64);
                state.flow.push(bytes);
                true
            }
            Poll::Ready(Err(error)) => {
                self.socket_failed(state, &error);
                true
            }
        }
    }
}
