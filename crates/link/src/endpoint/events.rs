//! What a flow is called, and what its owner is told.

use std::sync::Arc;

use nowconnect_proto::flow::Ending;
use nowconnect_proto::frame::PROBE_LISTENER;
use nowconnect_proto::{Reason, TraceContext};

use super::SocketFlow;

/// What names a flow in logs and towards the target end.
#[derive(Clone, Debug)]
pub struct Label {
    /// The service.
    pub connector: Arc<str>,
    /// The listener that accepted the client; empty when unknown.
    pub listener: Arc<str>,
    /// The client's address as `ip:port`; empty when unknown.
    pub client: Arc<str>,
    /// The address that the client connected to, as `ip:port`; empty when unknown.
    pub destination: Arc<str>,
}

impl Label {
    /// Whether the hub itself is the client. A listener may have that name; its clients have addresses.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.client.is_empty() && *self.listener == *PROBE_LISTENER
    }
}

/// How a flow went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub ending: Ending,
    /// Payload bytes that were handed on from client to agent, as far as this end knows.
    pub bytes_c2a: u64,
    /// Payload bytes that were handed on from agent to client, as far as this end knows.
    pub bytes_a2c: u64,
    /// How long it lived, in milliseconds.
    pub duration_ms: u64,
}

impl Summary {
    /// The reason for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self.ending {
            Ending::Finished => Reason::Finished,
            Ending::Local(reason) | Ending::Remote(reason) => reason,
        }
    }
}

/// What the owner of flows is told. Calls come from a link's driver, without locks held; they must
/// not block.
pub trait FlowEvents: Send + Sync {
    /// Origin: the target is connected.
    fn opened(&self, flow: &Arc<SocketFlow>);

    /// Origin: the agent refused before a byte reached a target, and the flow stands as it did
    /// before it was offered. Returns whether it was offered to another agent; if not, it ends.
    fn refused(&self, flow: &Arc<SocketFlow>, reason: Reason) -> bool;

    /// The flow's link is gone; the flow waits for another.
    fn path_lost(&self, flow: &Arc<SocketFlow>);

    /// The flow ended and its socket is closed. It may still have to tell the other end, over the
    /// path that it has or the next one: until it is [over](FlowEvents::over) it is to be kept.
    fn closed(&self, flow: &Arc<SocketFlow>, summary: Summary);

    /// The other end knows that the flow ended, or will not be told: it can be forgotten. The call
    /// may overtake that of [`closed`](FlowEvents::closed).
    fn over(&self, _flow: &Arc<SocketFlow>) {}

    /// Origin: the span that its OPENs tell of, where the flow is traced. Asked with the flow locked.
    fn trace(&self) -> Option<TraceContext> {
        None
    }
}
