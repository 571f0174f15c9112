//! One end of a flow: offsets, credit, replay, FIN, RST, attach and detach.
//!
//! A flow has two ends, the *origin* (which holds the client's socket) and the *target* end (which
//! holds the target's). Between them lies a path that may break and be replaced at any moment. An
//! end takes bytes from its socket ([`Flow::push`]) and steps for the path ([`Flow::next_step`]);
//! it takes what the path brought (`on_*`) and yields bytes for the socket ([`Flow::inbox`]).
//!
//! The two directions know nothing of each other, nor of the path: each is a half with offsets of
//! its own (`sending`, `receiving`). How the flow ends, and who still has to hear of it, is a third
//! thing (`farewell`). Which path there is, and in which order the three may use it, is the fourth
//! (`path`). A [`Flow`] is these four; this file is what its socket sees of it.
//!
//! What holds at every moment (and is asserted by the property tests):
//! - every byte of a direction is handed to the socket exactly once and in order, or the flow ends
//!   with a reset;
//! - an end never holds more unsent or unacknowledged bytes than its allowance, nor more received
//!   bytes than the window it granted;
//! - bytes are kept until the peer acknowledged that it *handed them on*, so that a lost path loses
//!   nothing;
//! - a FIN occupies one offset of its own, so that its acknowledgement is unambiguous;
//! - an end that gave up repeats its RST on every further path until the other end has confirmed
//!   it, or turned out not to know the flow: no farewell is lost with its path.

mod farewell;
mod path;
mod receiving;
mod sending;

use bytes::Bytes;

use crate::byte_queue::ByteQueue;
use crate::close::Reason;
use crate::frame::{Frame, Open, OpenMode};
use crate::ids::FlowId;

pub use farewell::Ending;

use farewell::Farewell;
use path::Path;
use receiving::Receiving;
use sending::Sending;

/// Which end of the flow this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Holds the client's socket, opens and attaches.
    Origin,
    /// Holds the target's socket, answers.
    Target,
}

/// What the end wants to put on its path next; the link adds the flow's number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    Open {
        mode: OpenMode,
        received: u64,
        limit: u64,
    },
    OpenAck {
        received: u64,
        limit: u64,
    },
    Refuse {
        reason: Reason,
    },
    Data {
        offset: u64,
        payload: Bytes,
    },
    Fin {
        offset: u64,
    },
    Credit {
        acked: u64,
        limit: u64,
    },
    Rst {
        reason: Reason,
    },
}

impl Step {
    /// The frame of flow `id` that says so. What the flow does not know of its OPEN, `open` adds to
    /// the mode, to what was received, and to the limit.
    pub fn into_frame(self, id: FlowId, open: impl FnOnce(OpenMode, u64, u64) -> Open) -> Frame {
        match self {
            Self::Open {
                mode,
                received,
                limit,
            } => Frame::Open {
                id,
                open: Box::new(open(mode, received, limit)),
            },
            Self::OpenAck { received, limit } => Frame::OpenAck {
                id,
                received,
                limit,
            },
            Self::Refuse { reason } => Frame::Refuse { id, reason },
            Self::Data { offset, payload } => Frame::Data {
                id,
                offset,
                payload,
            },
            Self::Fin { offset } => Frame::Fin { id, offset },
            Self::Credit { acked, limit } => Frame::Credit { id, acked, limit },
            Self::Rst { reason } => Frame::Rst { id, reason },
        }
    }
}

/// What became of the payload of a DATA frame, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Accepted {
    /// New, now in the inbox.
    pub fresh: usize,
    /// Received before and dropped.
    pub duplicate: usize,
}

/// One end of a flow. See the module's documentation.
#[derive(Debug)]
pub struct Flow {
    side: Side,
    path: Path,
    /// The origin has seen an answer; the target has a socket.
    opened: bool,
    /// An OPEN was sent on some path, so the other end may know the flow.
    offered: bool,
    /// An OPEN was sent, to whomever.
    attempted: bool,
    /// How many OPENs came before the latest one: those that arrive later are outdated.
    attempt: u32,
    sending: Sending,
    receiving: Receiving,
    farewell: Farewell,
}

impl Flow {
    /// A new end. `window` bytes are granted to the peer from the start; at most `allowance` bytes
    /// are kept for a peer that does not acknowledge; the peer takes `limit` bytes before its first
    /// credit.
    #[must_use]
    pub fn new(side: Side, window: u32, allowance: u32, limit: u64) -> Self {
        Self {
            side,
            path: Path::Detached,
            opened: false,
            offered: side == Side::Target,
            attempted: false,
            attempt: 0,
            sending: Sending::new(limit, allowance),
            receiving: Receiving::new(window),
            farewell: Farewell::new(),
        }
    }

    /// How many bytes may be taken from the socket now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.has_ended() {
            return 0;
        }
        self.sending.room()
    }

    /// Takes bytes that were read from the socket; at most [`Flow::room`] of them.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(bytes.len() <= self.room(), "read beyond the room");
        if !self.has_ended() {
            self.sending.push(bytes);
        }
    }

    /// The socket will bring no more bytes (it read end of file).
    pub fn push_fin(&mut self) {
        self.sending.push_fin();
    }

    /// Whether the peer's credit, rather than the socket, holds this direction up.
    #[must_use]
    pub fn waits_for_credit(&self) -> bool {
        !self.has_ended() && self.sending.waits_for_credit()
    }

    /// Whether its own allowance holds this direction up although the peer would take more: a
    /// larger one ([`Flow::grow_allowance`]) would help.
    #[must_use]
    pub fn waits_for_allowance(&self) -> bool {
        !self.has_ended() && self.sending.waits_for_allowance()
    }

    /// Bytes for the socket, in order.
    #[must_use]
    pub fn inbox(&self) -> &ByteQueue {
        self.receiving.inbox()
    }

    /// Makes what waits in the inbox independent of the buffer it was received in. To be called
    /// when bytes of the frames at hand stay behind.
    pub fn settle(&mut self) {
        self.receiving.own();
    }

    /// The socket took the first `n` bytes of the inbox.
    pub fn hand_on(&mut self, n: usize) {
        self.receiving.hand_on(n);
    }

    /// Whether everything was handed on and the socket's writing half is to be shut down now.
    #[must_use]
    pub fn fin_due(&self) -> bool {
        self.receiving.fin_due()
    }

    /// The socket's writing half was shut down.
    pub fn fin_handed(&mut self) {
        self.receiving.hand_fin_on();
        self.settle_ending();
    }

    /// Ends the flow from this side. The peer is told as soon as a path can tell it; where the
    /// target end has no socket yet this is a refusal. The flow is [over](Flow::is_over) when the
    /// peer is known to have heard of it.
    pub fn abort(&mut self, reason: Reason) {
        if !self.has_ended() {
            self.farewell.give_up(reason, self.offered);
            self.clear();
        }
    }

    /// Forgets a flow that has ended, whatever the peer knows of it.
    pub fn give_up(&mut self) {
        self.farewell.forget();
    }

    /// Tells the peer of the end if it can be told now, and does not wait for an answer.
    pub fn tell_once(&mut self) {
        self.farewell.tell_once(self.is_attached());
    }

    /// Whether the peer confirms a reset, which version 1 does not. A new flow's does.
    pub fn set_echoes(&mut self, echoes: bool) {
        self.farewell.set_echoes(echoes);
    }

    /// The flow has ended: its bytes are of no use any more.
    fn clear(&mut self) {
        self.sending.clear();
        self.receiving.clear();
    }

    /// How the flow ended, if it did.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.farewell.ending()
    }

    /// Whether the flow ended, and there is nothing more to say or to hear about that.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.farewell.is_over()
    }

    /// Whether the socket has ended both ways in good order, so that even a reset flow closes it
    /// without a reset.
    #[must_use]
    pub fn socket_done(&self) -> bool {
        self.sending.has_fin() && self.receiving.is_handed()
    }

    /// Whether the other end accepted the flow (origin), or its socket is connected (target).
    #[must_use]
    pub fn is_opened(&self) -> bool {
        self.opened
    }

    /// Bytes taken from the socket so far.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.sending.end()
    }

    /// Bytes given to the socket so far.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.receiving.handed()
    }

    /// Bytes this end holds in memory, both directions.
    #[must_use]
    pub fn held(&self) -> usize {
        self.sending.held() + self.receiving.inbox().len()
    }

    fn has_ended(&self) -> bool {
        self.farewell.has_ended()
    }

    fn settle_ending(&mut self) {
        let finished = self.sending.is_finished() && self.receiving.is_finished();
        if finished && !self.has_ended() {
            self.farewell.finish();
        }
    }

    /// The window granted beyond what was handed on, in bytes.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.receiving.window()
    }

    /// How many unacknowledged bytes this end keeps at most.
    #[must_use]
    pub fn allowance(&self) -> u64 {
        self.sending.allowance()
    }

    /// Whether a whole window went through within `within_ms`, so that the window and not the
    /// socket is what limits this direction. Asking starts the next measurement once a window has
    /// gone through.
    pub fn window_is_small(&mut self, now_ms: u64, within_ms: u64) -> bool {
        self.receiving.window_is_small(now_ms, within_ms)
    }

    /// Enlarges the window; the peer hears of it with the next credit.
    pub fn grow_window(&mut self, bytes: u64) {
        self.receiving.grow_window(bytes);
    }

    /// Enlarges the allowance.
    pub fn grow_allowance(&mut self, bytes: u64) {
        self.sending.grow_allowance(bytes);
    }
}
