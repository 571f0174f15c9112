//! One path: a link from the origin to the hub in the middle, the relay there, a link from there to
//! the target's end.

use bytes::BytesMut;
use nowconnect_proto::FlowId;
use nowconnect_proto::flow::Side;
use nowconnect_proto::frame::Frame;
use nowconnect_proto::relay::{Face, Relay};

use super::end::{next_frame, other};

/// A link. Its two sides learn of its loss one by one.
#[derive(Default)]
pub(crate) struct Link {
    /// Bytes on their way, by the side of the flow that they come from.
    wires: [BytesMut; 2],
    /// Which side (by the side of the flow that it is nearer to) has learned of the loss.
    lost: [bool; 2],
}

pub(crate) fn at(side: Side) -> usize {
    match side {
        Side::Origin => 0,
        Side::Target => 1,
    }
}

impl Link {
    /// The side nearer to `from` sends.
    pub(crate) fn send(&mut self, from: Side, frame: &Frame) {
        if !self.is_lost(from) && !self.is_lost(other(from)) {
            frame.encode(&mut self.wires[at(from)]);
        }
    }

    /// Whether the side nearer to `side` knows that the link is gone.
    pub(crate) fn is_lost(&self, side: Side) -> bool {
        self.lost[at(side)]
    }

    pub(crate) fn is_half_lost(&self) -> bool {
        self.lost[0] != self.lost[1]
    }

    /// The side nearer to `side` loses the link. Of what it has on its way, `keep` of 255 parts will
    /// still arrive; what was on its way to it is gone.
    pub(crate) fn lose(&mut self, side: Side, keep: usize) {
        self.lost[at(side)] = true;
        self.wires[at(other(side))].clear();
        let wire = &mut self.wires[at(side)];
        wire.truncate(wire.len() * keep / 255);
    }

    /// The next frame that comes from the side of `from`.
    pub(crate) fn receive(&mut self, from: Side) -> Option<Frame> {
        next_frame(&mut self.wires[at(from)])
    }
}

/// What the hub in the middle told and passed on, of the bytes that leave through one face.
#[derive(Default)]
struct Ledger {
    /// The sender was told that it may send below this.
    told: u64,
    /// Bytes below this were passed on.
    passed: Option<u64>,
}

pub(crate) struct Path {
    /// Number on the origin's link; that of the target's link is another.
    pub(crate) number: u32,
    /// To the origin and to the target.
    pub(crate) links: [Link; 2],
    pub(crate) relay: Option<Relay>,
    /// The hub in the middle has yet to decide about the flow: nothing leaves towards the target.
    pub(crate) held: bool,
    /// Its origin may be told no: the flow is new.
    pub(crate) refusable: bool,
    /// By the face that bytes leave through.
    ledgers: [Ledger; 2],
    answered: bool,
}

pub(crate) fn side_of(face: Face) -> Side {
    match face {
        Face::Origin => Side::Origin,
        Face::Target => Side::Target,
    }
}

fn slot(face: Face) -> usize {
    at(side_of(face))
}

impl Path {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            links: Default::default(),
            relay: None,
            held: false,
            refusable: false,
            ledgers: Default::default(),
            answered: false,
        }
    }

    /// The flow's number on the link behind `face`.
    pub(crate) fn id(&self, face: Face) -> FlowId {
        match face {
            Face::Origin => FlowId(self.number),
            Face::Target => FlowId(self.number + 1000),
        }
    }

    /// The hub in the middle sends towards `face`.
    pub(crate) fn send(&mut self, face: Face, frame: &Frame) {
        let from = other(side_of(face));
        self.links[slot(face)].send(from, frame);
    }

    /// Whether the relay still has something to do.
    pub(crate) fn is_relayed(&self) -> bool {
        self.relay.as_ref().is_some_and(|relay| !relay.is_over())
    }

    /// What the relay has for the link behind `face` leaves; at most `frames` of them.
    pub(crate) fn pump(
        &mut self,
        face: Face,
        frames: usize,
        max_payload: usize,
        room: u64,
    ) -> bool {
        let id = self.id(face);
        let mut moved = false;
        for _ in 0..frames {
            let Some(relay) = &mut self.relay else {
                return moved;
            };
            if self.held && face == Face::Target {
                return moved;
            }
            if self.links[slot(face)].is_lost(other(side_of(face))) {
                assert!(!relay.has_frame(face, room), "a frame for a lost link");
                return moved;
            }
            let promised = relay.has_frame(face, room);
            let bytes_wait = relay.queued(face) > 0;
            let Some(frame) = relay.next_frame(face, id, max_payload, room) else {
                assert!(
                    !promised || (max_payload == 0 && bytes_wait),
                    "has_frame without a frame: {relay:?}"
                );
                break;
            };
            assert!(promised, "{frame:?} without has_frame");
            self.note(face, &frame, room);
            self.send(face, &frame);
            moved = true;
        }
        self.check_bounds();
        moved
    }

    fn note(&mut self, face: Face, frame: &Frame, room: u64) {
        // Whoever reads this frame sends bytes that leave through the other face.
        let mut tell = |limit: u64| {
            let ledger = &mut self.ledgers[slot(face.other())];
            let most = ledger.passed.unwrap_or(0) + room;
            assert!(
                limit <= ledger.told.max(most),
                "told {limit}, room up to {most}"
            );
            ledger.told = ledger.told.max(limit);
        };
        match frame {
            Frame::Open { open, .. } => tell(open.limit),
            Frame::OpenAck { limit, .. } => {
                tell(*limit);
                self.answered = true;
            }
            Frame::Credit { limit, .. } => {
                tell(*limit);
                assert!(
                    face == Face::Target || self.answered,
                    "the origin hears of credit before the answer"
                );
            }
            Frame::Data {
                offset, payload, ..
            } => {
                let passed = &mut self.ledgers[slot(face)].passed;
                assert_eq!(*passed, Some(*offset), "bytes passed on out of order");
                *passed = Some(offset + payload.len() as u64);
            }
            _ => {}
        }
    }

    /// OPEN came: where the relay begins to count.
    pub(crate) fn begin(&mut self, relay: Relay, received: u64, first_window: Option<u32>) {
        self.ledgers[slot(Face::Origin)].passed = Some(received);
        if let Some(window) = first_window {
            let ledger = &mut self.ledgers[slot(Face::Target)];
            (ledger.passed, ledger.told) = (Some(0), u64::from(window));
        }
        self.relay = Some(relay);
    }

    /// OPEN_ACK came: the same for the other direction.
    pub(crate) fn answered_from(&mut self, received: u64) {
        self.ledgers[slot(Face::Target)]
            .passed
            .get_or_insert(received);
    }

    pub(crate) fn check_bounds(&self) {
        let Some(relay) = &self.relay else { return };
        for face in [Face::Origin, Face::Target] {
            let ledger = &self.ledgers[slot(face)];
            let held = relay.queued(face) as u64;
            let most = ledger.told.saturating_sub(ledger.passed.unwrap_or(0));
            assert!(held <= most, "{face:?}: holds {held} of {most}");
        }
        if relay.is_over() {
            for face in [Face::Origin, Face::Target] {
                assert_eq!(relay.queued(face), 0, "a relay that is over holds bytes");
                assert!(
                    !relay.has_frame(face, 1),
                    "a relay that is over has a frame"
                );
            }
        }
    }
}
