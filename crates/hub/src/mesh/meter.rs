//! What is measured of one link.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nowconnect_link::meter::{Bound, Meter};
use nowconnect_proto::Frame;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::{FRAME_TYPES, MeshMetrics, PeerMetrics};

/// Counts the frames of one link, resolved once. The peer's gauges are sums over its links, from which
/// this one's part goes when it is dropped.
#[derive(Debug)]
pub(super) struct LinkMeter {
    peer: Arc<PeerMetrics>,
    frames_in: [Counter; FRAME_TYPES.len()],
    frames_out: [Counter; FRAME_TYPES.len()],
    queue_full: Counter,
    inflight_bytes: Counter,
    shed: Counter,
    waiting: AtomicI64,
    in_flight: AtomicI64,
}

impl LinkMeter {
    pub(super) fn new(mesh: &MeshMetrics, peer: &Arc<PeerMetrics>) -> Arc<Self> {
        Arc::new(Self {
            peer: peer.clone(),
            frames_in: FRAME_TYPES.map(|kind| mesh.frames.with(["in", kind])),
            frames_out: FRAME_TYPES.map(|kind| mesh.frames.with(["out", kind])),
            queue_full: mesh.backpressure.with(["queue_full"]),
            inflight_bytes: mesh.backpressure.with(["inflight_bytes"]),
            shed: mesh.backpressure.with(["reset"]),
            waiting: AtomicI64::new(0),
            in_flight: AtomicI64::new(0),
        })
    }
}

/// The frame's place in [`FRAME_TYPES`].
fn place(frame: &Frame) -> usize {
    match frame {
        Frame::Hello(_) => 0,
        Frame::HelloAck(_) => 1,
        Frame::Open { .. } => 2,
        Frame::OpenAck { .. } => 3,
        Frame::Refuse { .. } => 4,
        Frame::Data { .. } => 5,
        Frame::Fin { .. } => 6,
        Frame::Rst { .. } => 7,
        Frame::Credit { .. } => 8,
        Frame::Ping(_) => 9,
        Frame::Pong(_) => 10,
        Frame::GoAway { .. } => 11,
        Frame::Detach { .. } => 12,
        Frame::Query { .. } => 13,
        Frame::Answer { .. } => 14,
        Frame::Update(_) | Frame::UpdateAck(_) | Frame::Token(_) | Frame::TokenAck(_) => 15,
    }
}

fn count(counters: &[Counter], frame: &Frame) {
    if let Some(counter) = counters.get(place(frame)) {
        counter.inc();
    }
}

/// Replaces this link's part of a gauge.
fn show(gauge: &Gauge, part: &AtomicI64, now: i64) {
    let before = part.swap(now, Ordering::Relaxed);
    if before != now {
        gauge.inc_by(now - before);
    }
}

impl Meter for LinkMeter {
    fn frame_in(&self, frame: &Frame) {
        count(&self.frames_in, frame);
    }

    fn frame_out(&self, frame: &Frame) {
        count(&self.frames_out, frame);
    }

    fn bytes(&self, received: usize, sent: usize) {
        self.peer.bytes_in.inc_by(received as u64);
        self.peer.bytes_out.inc_by(sent as u64);
    }

    fn round_trip(&self, rtt: Duration) {
        self.peer.observe_rtt(rtt);
    }

    fn waiting(&self, frames: usize, bytes: u64) {
        let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
        show(
            &self.peer.queue_frames,
            &self.waiting,
            signed(frames as u64),
        );
        show(&self.peer.inflight_bytes, &self.in_flight, signed(bytes));
    }

    fn held_up(&self, bound: Bound) {
        match bound {
            Bound::Frames => self.queue_full.inc(),
            Bound::Bytes => self.inflight_bytes.inc(),
        };
    }

    fn shed(&self) {
        self.shed.inc();
        self.peer.drops("reset").inc();
    }
}

impl Drop for LinkMeter {
    fn drop(&mut self) {
        self.waiting(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nowconnect_proto::{FlowId, Reason};

    #[test]
    fn frames_are_counted_by_their_names() {
        let id = FlowId(1);
        let frames = [
            (Frame::Ping(1), "M_PING"),
            (Frame::Fin { id, offset: 0 }, "M_FIN"),
            (Frame::Token(bytes::Bytes::new()), "M_OTHER"),
            (
                Frame::Answer {
                    number: 1,
                    more: false,
                    body: bytes::Bytes::new(),
                },
                "M_ANSWER",
            ),
            (
                Frame::Detach {
                    id,
                    reason: Reason::Moved,
                },
                "M_DETACH",
            ),
        ];
        for (frame, name) in frames {
            assert_eq!(FRAME_TYPES[place(&frame)], name);
        }
    }
}
