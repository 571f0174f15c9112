//! What a link carries: a flow with its socket here, or one that only passes through.

use std::sync::Arc;

use nowconnect_proto::frame::Frame;
use nowconnect_proto::relay::Face;
use nowconnect_proto::{FlowId, Reason};

use crate::endpoint::SocketFlow;
use crate::relayed::Relayed;
use crate::scratch::Scratch;
use crate::session::Link;

/// What is left to do about a frame of a flow.
#[derive(Default)]
pub(crate) struct Heard {
    /// It is the flow's first one of those at hand.
    pub(crate) first: bool,
    /// It broke a rule, and the flow ended with it.
    pub(crate) violation: Option<Reason>,
}

/// A flow's turn on its link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turn {
    /// Where the flow stands among those that wait.
    pub(crate) mark: u64,
    /// How many bytes it may put on the link.
    pub(crate) most: usize,
    /// When it is, in milliseconds of the engine's clock.
    pub(crate) now_ms: u64,
}

/// A flow as its link sees it. The methods are those of [`SocketFlow`] and [`Relayed`].
#[derive(Clone, Debug)]
pub(crate) enum Carried {
    /// An end of the flow.
    Socket(Arc<SocketFlow>),
    /// A flow on its way, and which of its ends the link leads to.
    Relayed(Arc<Relayed>, Face),
}

impl Carried {
    /// Where the flow lies in memory, which tells it from others.
    pub(crate) fn address(&self) -> *const () {
        match self {
            Self::Socket(flow) => flow.address(),
            Self::Relayed(flow, _) => flow.address(),
        }
    }

    /// Marks the flow as queued; true when it was not.
    pub(crate) fn set_queued(&self, queued: bool) -> bool {
        match self {
            Self::Socket(flow) => flow.set_queued(queued),
            Self::Relayed(flow, face) => flow.set_queued(*face, queued),
        }
    }

    /// `link` was woken for the flow, or would have been.
    pub(crate) fn pass_on(&self, link: &Arc<Link>) {
        match self {
            Self::Socket(flow) => flow.pass_on(link),
            Self::Relayed(flow, face) => {
                flow.set_queued(*face, false);
            }
        }
    }

    /// The link is gone; `resumable` tells whether its flows outlive it.
    pub(crate) fn path_lost(&self, link: &Arc<Link>, resumable: bool) {
        match self {
            Self::Socket(flow) => flow.path_lost(link, resumable),
            Self::Relayed(flow, face) => flow.path_lost(*face, resumable),
        }
    }

    /// A frame came over `link` for number `id`. When it is the first of the frames at hand for this
    /// flow, [`Carried::after_frames`] must follow the last.
    pub(crate) fn on_frame(&self, link: &Arc<Link>, id: FlowId, frame: Frame, now: u64) -> Heard {
        match self {
            Self::Socket(flow) => flow.on_frame(link, id, frame, now),
            Self::Relayed(flow, face) => flow.on_frame(*face, frame),
        }
    }

    /// The frames at hand are all looked at.
    pub(crate) fn after_frames(&self, link: &Arc<Link>, now: u64) {
        match self {
            Self::Socket(flow) => flow.after_frames(link, now),
            Self::Relayed(flow, face) => flow.after_frames(*face),
        }
    }

    /// Gives the link what need not wait for room. Returns where the flow stands if it is to wait
    /// for a turn now.
    pub(crate) fn turn_in(
        &self,
        link: &Arc<Link>,
        flush: bool,
        now_ms: u64,
        put: &mut dyn FnMut(Frame),
    ) -> Option<u64> {
        match self {
            Self::Socket(flow) => flow.turn_in(link, flush, now_ms, put),
            Self::Relayed(flow, face) => flow.turn_in(*face, put),
        }
    }

    /// Gives the flow its turn on the link. Returns where the flow stands if it is to wait for
    /// another turn.
    pub(crate) fn turn_out(
        &self,
        link: &Arc<Link>,
        turn: Turn,
        scratch: &mut Scratch,
        put: &mut dyn FnMut(Frame),
    ) -> Option<u64> {
        match self {
            Self::Socket(flow) => flow.turn_out(link, turn, scratch, put),
            Self::Relayed(flow, face) => flow.turn_out(*face, turn, put),
        }
    }
}
