//! What a flow's lock protects.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use nowconnect_proto::flow::Ending;
use nowconnect_proto::{Flow, FlowId, Reason};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::runtime::{self, Handle};

use crate::counters::Engine;

pub(super) struct State {
    pub(super) flow: Flow,
    pub(super) socket: Option<TcpStream>,
    /// The runtime whose event loop watches the socket.
    pub(super) home: runtime::Id,
    /// Number of the flow on its link, and the epoch it was offered under.
    pub(super) id: FlowId,
    pub(super) epoch: u64,
    /// Between hubs: the agent that it was offered to.
    pub(super) agent: Option<Arc<str>>,
    /// When the path was lost, in milliseconds.
    pub(super) detached_ms: Option<u64>,
    /// When it was lost before the path that the flow has now.
    pub(super) waited_ms: Option<u64>,
    /// When the flow began to wait for credit, in milliseconds.
    pub(super) blocked_ms: Option<u64>,
    /// When bytes began to wait for the socket, in milliseconds.
    pub(super) stalled_ms: Option<u64>,
    /// The socket's writing half was shut down.
    pub(super) fin_given: bool,
    /// In its link's list of flows that wait for room to write.
    pub(super) waiting: bool,
    /// Where it stands among those flows.
    pub(super) mark: u64,
    /// In its link's list of flows that owe an acknowledgement.
    pub(super) owing: bool,
    /// What was borrowed from the budget.
    pub(super) borrowed: u64,
    /// What was added to `inbox_bytes`.
    pub(super) shown: i64,
    /// Since when its socket is closed, in milliseconds.
    pub(super) ended_ms: Option<u64>,
    /// It is counted among those that wait for the peer's word on that.
    pub(super) lingers: bool,
    /// It is over: nobody has to know of it any more.
    pub(super) over: bool,
    /// Frames were taken that [`SocketFlow::after_frames`](super::SocketFlow) has not followed.
    pub(super) before: Option<Before>,
    pub(super) on_closed: Option<Waker>,
}

/// How a flow stood before the frames at hand.
#[derive(Clone, Copy)]
pub(super) struct Before {
    pub(super) opened: bool,
    pub(super) could_read: bool,
}

impl State {
    /// Whether the socket was reset, which asking clears.
    pub(super) fn is_reset(&self) -> bool {
        let is_reset = |socket: &TcpStream| !matches!(socket.take_error(), Ok(None));
        self.socket.as_ref().is_some_and(is_reset)
    }

    pub(super) fn bind(&mut self, id: FlowId, epoch: u64, agent: Option<Arc<str>>) {
        self.id = id;
        self.epoch = epoch;
        self.agent = agent;
        self.waited_ms = self.detached_ms.take();
        self.waiting = false;
        self.mark = 0;
        self.before = None;
        self.owing = false;
    }

    /// Lets the event loop of `home` watch the socket.
    pub(super) fn move_to(&mut self, home: &Handle) {
        if self.home == home.id() {
            return;
        }
        self.home = home.id();
        let Some(socket) = self.socket.take() else {
            return;
        };
        let _inside = home.enter();
        match socket.into_std().and_then(TcpStream::from_std) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::warn!(event = "socket_not_watched", %error);
                self.flow.abort(Reason::LocalResource);
            }
        }
    }

    /// The flow ended: closes the socket, and returns what it borrowed.
    pub(super) fn release(&mut self, engine: &Engine) {
        self.ended_ms = Some(engine.now_ms());
        self.close_socket();
        engine.budget.give_back(std::mem::take(&mut self.borrowed));
        if let Some(waker) = self.on_closed.take() {
            waker.wake();
        }
        self.lingers = !self.flow.is_over() && engine.begin_farewell();
        if !self.lingers {
            self.flow.tell_once();
        }
    }

    /// Too many others wait for their peers' word, so it does not.
    pub(super) fn is_hushed(&self) -> bool {
        self.ended_ms.is_some() && !self.lingers
    }

    pub(super) fn borrow(&mut self, engine: &Engine, want: u64) -> u64 {
        let lent = engine.budget.borrow(want);
        self.borrowed += lent;
        lent
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
            let mut socket = Pin::new(&mut *socket);
            let written = match &slices[..count] {
                // send() costs the kernel less than writev().
                [only] => socket.as_mut().poll_write(cx, only),
                several => socket.as_mut().poll_write_vectored(cx, several),
            };
            match written {
                Poll::Ready(Ok(n)) => self.flow.hand_on(n),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.flow.fin_due() {
            match Pin::new(socket).poll_shutdown(cx) {
                // The peer of this socket may be gone already; then reading tells.
                Poll::Ready(_) => {
                    self.flow.fin_handed();
                    self.fin_given = true;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the socket: with a reset unless both directions ended in good order, so that nobody
    /// takes an abort for an end.
    pub(super) fn close_socket(&mut self) {
        if let Some(socket) = self.socket.take()
            && !(self.flow.socket_done() || self.flow.ending() == Some(Ending::Finished))
        {
            let _ = socket.set_zero_linger();
        }
    }
}
