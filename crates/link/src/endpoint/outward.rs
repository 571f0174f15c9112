//! From the socket to the link.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use nowconnect_proto::flow::Step;
use nowconnect_proto::frame::{Frame, Open};
use tokio_util::io::poll_read_buf;

use super::SocketFlow;
use super::state::State;
use crate::session::Link;

/// Bytes read from a socket at once at most; also a flow's share of a turn.
const READ_SIZE: usize = 256 * 1024;

/// What a flow wants after its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wants {
    /// Nothing until it is woken.
    Nothing,
    /// Another turn: there is more.
    Turn,
}

impl SocketFlow {
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
                // A read that fills its buffer keeps it; what is smaller is copied out, so that a few
                // bytes that wait for their acknowledgement do not keep a large buffer alive.
                state.flow.push(if n >= scratch.capacity() / 2 {
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
}
