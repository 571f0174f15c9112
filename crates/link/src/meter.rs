//! What is measured on a link between hubs. Tunnels have no meter: theirs would have too many labels.

use std::fmt;
use std::time::Duration;

use nowconnect_proto::Frame;

/// Counts what passes one link. Called by the link's driver; must not block.
pub trait Meter: Send + Sync + fmt::Debug {
    /// A frame was received.
    fn frame_in(&self, frame: &Frame);
    /// A frame was put on its way.
    fn frame_out(&self, frame: &Frame);
    /// So many bytes were received and sent since the last call, all headers included.
    fn bytes(&self, received: usize, sent: usize);
    /// A pong came.
    fn round_trip(&self, rtt: Duration);
    /// So many frames wait to be written, and so many bytes are not known to have arrived.
    fn waiting(&self, frames: usize, bytes: u64);
    /// A bound of the link holds flows up.
    fn held_up(&self, bound: Bound);
    /// A flow was sent to look for another path because what it sent found no room.
    fn shed(&self);
}

/// Which bound of a link was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// [`Bounds::frames`].
    Frames,
    /// [`Bounds::bytes`].
    Bytes,
}

/// What one link may have on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Frames that wait to be written, at most.
    pub frames: usize,
    /// Bytes that the peer is not known to have received, at most.
    pub bytes: u64,
}

impl Bounds {
    /// None but those that every link has.
    pub const NONE: Self = Self {
        frames: usize::MAX,
        bytes: u64::MAX,
    };
}
