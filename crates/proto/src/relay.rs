//! A flow as the hub in the middle of its path sees it.
//!
//! The two ends of a flow may be joined by a hub that holds neither socket: the owner of the agent's
//! tunnel, asked by the hub that holds the client. It passes the frames of one link on to the other
//! under another number, and nothing else: offsets, replay and acknowledgement belong to the ends.
//! What it adds is a bound of its own. Bytes that the next link does not take wait here, so the
//! relay tells a sender no more credit than it has room for ([`Relay::next_frame`]'s `room`), which
//! slows one flow and no other.
//!
//! When one of the links is lost, the other end hears DETACH and waits for another path; the relay
//! is over then and keeps nothing.
//!
//! A hub that has yet to decide about a flow makes its relay at once and asks for no frame towards
//! the target: what the origin sends behind its OPEN waits within the first window. Then it either
//! goes on or [refuses](Relay::refuse), and the target's end never hears of the flow.

use bytes::Bytes;

use crate::byte_queue::ByteQueue;
use crate::close::Reason;
use crate::frame::{Frame, Open, OpenMode};
use crate::ids::FlowId;

/// Which of its two ends a relay talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Face {
    /// Towards the hub that holds the client's socket.
    Origin,
    /// Towards the agent that holds the target's.
    Target,
}

impl Face {
    /// The opposite one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Origin => Self::Target,
            Self::Target => Self::Origin,
        }
    }
}

/// The last word about a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Farewell {
    Refuse(Reason),
    Rst(Reason),
    Detach(Reason),
}

impl Farewell {
    fn reason(self) -> Reason {
        match self {
            Self::Refuse(reason) | Self::Rst(reason) | Self::Detach(reason) => reason,
        }
    }
}

/// Bytes that leave through one face, and how the ends stand in that direction.
#[derive(Debug, Default)]
struct Lane {
    queue: ByteQueue,
    /// Offset of the queue's first byte; everything below was passed on.
    next: Option<u64>,
    /// Bytes that were passed on.
    passed: u64,
    /// The end behind this face takes bytes below this.
    limit: u64,
    /// What the sending end was told of that.
    told: u64,
    /// The latest acknowledgement of the end behind this face.
    acked: u64,
    /// The acknowledgement is to be passed on to the sending end.
    ack_due: bool,
    /// The direction ends behind the queue.
    fin: bool,
    fin_passed: bool,
    /// The acknowledgement of the FIN was passed on.
    done: bool,
}

impl Lane {
    fn end(&self) -> u64 {
        self.next.unwrap_or(0) + self.queue.len() as u64
    }

    fn sendable(&self) -> usize {
        let below_limit = self.limit.saturating_sub(self.next.unwrap_or(0));
        usize::try_from(below_limit)
            .unwrap_or(usize::MAX)
            .min(self.queue.len())
    }

    fn fin_due(&self) -> bool {
        !self.fin_passed && self.queue.is_empty() && self.fin
    }

    /// What the sending end may be told that it can send.
    fn grant(&self, room: u64) -> u64 {
        let most = self.next.unwrap_or(0).saturating_add(room);
        self.limit.min(most).max(self.told)
    }

    /// Whether the sending end should hear of more credit or of an acknowledgement.
    fn credit_due(&self, room: u64) -> bool {
        let more = self.grant(room) - self.told;
        let worthwhile = (room / 2).min(self.limit.saturating_sub(self.told));
        self.ack_due || (more > 0 && more >= worthwhile)
    }

    /// What the sending end is told now that it can send.
    fn tell(&mut self, room: u64) -> u64 {
        self.told = self.grant(room);
        self.told
    }

    /// The same, with what was acknowledged.
    fn credit(&mut self, room: u64) -> (u64, u64) {
        self.ack_due = false;
        // A FIN takes one offset behind the bytes, whether or not it came over this path.
        self.done |= self.next.is_some() && self.acked > self.end();
        (self.acked, self.tell(room))
    }
}

/// What is to leave through one face besides bytes.
#[derive(Debug, Default)]
struct Outbox {
    open: Option<Box<Open>>,
    /// OPEN_ACK's `received`.
    answer: Option<u64>,
    farewell: Option<Farewell>,
}

/// One flow on its way through. See the module's documentation.
#[derive(Debug)]
pub struct Relay {
    /// By the face that the bytes leave through.
    lanes: [Lane; 2],
    outboxes: [Outbox; 2],
    /// The target's end has answered, so both know from where to count.
    opened: bool,
    /// Nothing more is to come through this face: it said or was sent the last word.
    silent: [bool; 2],
    /// There is no link behind this face any more.
    gone: [bool; 2],
    /// Whether the end behind the target's face answers RST with RST.
    echoes: bool,
    ended: bool,
    /// Why, unless both directions have ended.
    reason: Option<Reason>,
}

impl Relay {
    /// A relay for a flow that `open` offers or resumes. The origin's end sends `first_window` bytes
    /// of a new flow unasked, the target's end takes `target_window` of them; `echoes` tells
    /// whether the target's end confirms a reset (version 2 does).
    #[must_use]
    pub fn new(open: Open, first_window: u32, target_window: u32, echoes: bool) -> Self {
        let to_origin = Lane {
            next: Some(open.received),
            limit: open.limit,
            ..Lane::default()
        };
        let mut to_target = Lane::default();
        if open.mode == OpenMode::New {
            to_target.next = Some(0);
            to_target.limit = u64::from(target_window);
            to_target.told = u64::from(first_window);
        }
        let mut relay = Self {
            lanes: [to_origin, to_target],
            outboxes: [Outbox::default(), Outbox::default()],
            opened: false,
            silent: [false; 2],
            gone: [false; 2],
            echoes,
            ended: false,
            reason: None,
        };
        relay.outboxes[index(Face::Target)].open = Some(Box::new(open));
        relay
    }

    /// A frame came in through `face`.
    ///
    /// # Errors
    /// The reason to [reset](Relay::abort) the flow with.
    pub fn on_frame(&mut self, face: Face, frame: Frame) -> Result<(), Reason> {
        match frame {
            Frame::Rst { reason, .. } => self.on_rst(face, reason),
            Frame::Refuse { reason, .. } if face == Face::Target => {
                self.silent = [true; 2];
                self.end(Face::Origin, Farewell::Refuse(reason));
            }
            Frame::Detach { reason, .. } => self.lost(face, reason),
            // The rest is overtaken by the end.
            _ if self.ended => {}
            Frame::Data {
                offset, payload, ..
            } => self.on_data(face, offset, payload)?,
            Frame::Fin { offset, .. } => self.sending_lane(face, offset)?.fin = true,
            Frame::Credit { acked, limit, .. } => {
                let lane = &mut self.lanes[index(face)];
                if acked > lane.end().saturating_add(1) {
                    return Err(Reason::BadAck);
                }
                lane.limit = lane.limit.max(limit);
                lane.ack_due = true;
                lane.acked = lane.acked.max(acked);
            }
            Frame::OpenAck {
                received, limit, ..
            } if face == Face::Target && !self.opened => {
                let lane = &mut self.lanes[index(face)];
                lane.limit = lane.limit.max(limit);
                lane.next.get_or_insert(received);
                self.opened = true;
                self.outboxes[index(Face::Origin)].answer = Some(received);
            }
            _ => return Err(Reason::ProtocolError),
        }
        Ok(())
    }

    fn on_data(&mut self, face: Face, offset: u64, payload: Bytes) -> Result<(), Reason> {
        let lane = self.sending_lane(face, offset)?;
        let end = offset.checked_add(payload.len() as u64);
        // Not what the other end takes: one that sends ahead of this would use up the room of others.
        if end.is_none_or(|end| end > lane.told) {
            return Err(Reason::BeyondCredit);
        }
        lane.queue.push(payload);
        Ok(())
    }

    /// Where the end behind `face` may go on at `offset`.
    fn sending_lane(&mut self, face: Face, offset: u64) -> Result<&mut Lane, Reason> {
        let lane = &mut self.lanes[index(face.other())];
        if lane.fin {
            return Err(Reason::AfterFin);
        }
        if lane.next.is_none() {
            // Only the answer to OPEN says from where on a resumed flow is sent.
            return Err(Reason::ProtocolError);
        }
        if lane.end() != offset {
            return Err(Reason::OffsetGap);
        }
        Ok(lane)
    }

    /// A reset is passed on, and so is its confirmation, which is a reset as well.
    fn on_rst(&mut self, face: Face, reason: Reason) {
        if std::mem::replace(&mut self.silent[index(face)], true) {
            return;
        }
        let farewell = Farewell::Rst(reason);
        self.end(face.other(), farewell);
        if reason == Reason::UnknownFlow {
            // Nobody answers that.
            self.silent = [true; 2];
        } else if !self.echoes || self.outboxes[index(face.other())].farewell.is_none() {
            // The target's end does not confirm, or was never told of the flow.
            self.silent = [true; 2];
            if face == Face::Origin {
                self.end(face, Farewell::Rst(Reason::UnknownFlow));
            }
        }
    }

    /// The link behind `face` is gone, or does not carry the flow any more: the other end is told.
    pub fn lost(&mut self, face: Face, reason: Reason) {
        self.hang_up(face, Farewell::Detach(reason));
    }

    /// Like [`Relay::lost`], for a link whose flows end with it (version 1).
    pub fn broken(&mut self, face: Face, reason: Reason) {
        self.hang_up(face, Farewell::Rst(reason));
    }

    fn hang_up(&mut self, face: Face, farewell: Farewell) {
        let settled = self.is_settled();
        self.silent = [true; 2];
        self.gone[index(face)] = true;
        self.outboxes[index(face)] = Outbox::default();
        if !settled && self.outboxes[index(face.other())].farewell.is_none() {
            self.end(face.other(), farewell);
        }
    }

    /// Does not take the flow, whose OPEN was not passed on yet and which has not
    /// [ended](Relay::has_ended): answers it instead.
    pub fn refuse(&mut self, reason: Reason) {
        debug_assert!(!self.ended);
        self.silent = [true; 2];
        self.outboxes[index(Face::Target)] = Outbox::default();
        self.end(Face::Origin, Farewell::Refuse(reason));
    }

    /// Whether the flow has ended, or left: all that may be left is to tell an end. The target's end may
    /// know it from an earlier path even if its OPEN was not passed on here.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Resets the flow towards both ends: one of them broke a rule.
    pub fn abort(&mut self, reason: Reason) {
        self.dismiss(Farewell::Rst(reason));
    }

    /// Tells both ends that the flow has no path here: there is no room for what it sends.
    pub fn shed(&mut self, reason: Reason) {
        self.dismiss(Farewell::Detach(reason));
    }

    fn dismiss(&mut self, farewell: Farewell) {
        if self.is_settled() {
            return;
        }
        self.silent = [true; 2];
        self.end(Face::Origin, farewell);
        self.end(Face::Target, farewell);
    }

    fn end(&mut self, towards: Face, farewell: Farewell) {
        self.reason.get_or_insert(farewell.reason());
        let outbox = &mut self.outboxes[index(towards)];
        let resets = self.echoes && matches!(farewell, Farewell::Rst(_));
        let unaware = match &mut outbox.open {
            // It may know the flow from an earlier path, and is only to be told of the end.
            Some(open) if open.mode != OpenMode::New && resets => {
                open.mode = OpenMode::Resume;
                false
            }
            // An end that was never told of the flow need not hear that it is over.
            open => open.take().is_some(),
        };
        outbox.farewell = (!unaware && !self.gone[index(towards)]).then_some(farewell);
        self.fall_silent();
    }

    fn fall_silent(&mut self) {
        self.ended = true;
        for lane in &mut self.lanes {
            lane.queue.clear();
        }
    }

    /// The next frame to leave through `face` under the number `id`. `room` is how many bytes may
    /// wait here for the other face. With a `max_payload` of 0, bytes are left for later.
    pub fn next_frame(
        &mut self,
        face: Face,
        id: FlowId,
        max_payload: usize,
        room: u64,
    ) -> Option<Frame> {
        let outbox = &mut self.outboxes[index(face)];
        if let Some(mut open) = outbox.open.take() {
            open.limit = self.lanes[index(Face::Origin)].tell(room);
            return Some(Frame::Open { id, open });
        }
        if let Some(farewell) = outbox.farewell.take() {
            *outbox = Outbox::default();
            return Some(match farewell {
                Farewell::Refuse(reason) => Frame::Refuse { id, reason },
                Farewell::Rst(reason) => Frame::Rst { id, reason },
                Farewell::Detach(reason) => Frame::Detach { id, reason },
            });
        }
        if self.ended {
            return None;
        }
        let from_here = &mut self.lanes[index(face.other())];
        if let Some(received) = outbox.answer.take() {
            let limit = from_here.tell(room);
            return Some(Frame::OpenAck {
                id,
                received,
                limit,
            });
        }
        if self.opened && from_here.credit_due(room) {
            let (acked, limit) = from_here.credit(room);
            self.finish();
            return Some(Frame::Credit { id, acked, limit });
        }
        let lane = &mut self.lanes[index(face)];
        let (n, offset) = (lane.sendable().min(max_payload), lane.next?);
        if n > 0 {
            let payload = lane.queue.slice(0, n);
            lane.queue.advance(payload.len());
            lane.next = Some(offset + payload.len() as u64);
            lane.passed += payload.len() as u64;
            return Some(Frame::Data {
                id,
                offset,
                payload,
            });
        }
        if lane.fin_due() {
            lane.fin_passed = true;
            return Some(Frame::Fin { id, offset });
        }
        None
    }

    /// Whether [`Relay::next_frame`] would yield something.
    #[must_use]
    pub fn has_frame(&self, face: Face, room: u64) -> bool {
        let outbox = &self.outboxes[index(face)];
        if outbox.farewell.is_some() {
            return true;
        }
        let lane = &self.lanes[index(face)];
        !self.ended
            && (outbox.open.is_some()
                || outbox.answer.is_some()
                || (self.opened && self.lanes[index(face.other())].credit_due(room))
                || lane.sendable() > 0
                || lane.fin_due())
    }

    fn finish(&mut self) {
        if self.lanes.iter().all(|lane| lane.done) {
            self.silent = [true; 2];
            self.fall_silent();
        }
    }

    /// Makes what waits here independent of the buffers that it was received in.
    pub fn settle(&mut self) {
        for lane in &mut self.lanes {
            lane.queue.own();
        }
    }

    /// Bytes that wait to leave through `face`.
    #[must_use]
    pub fn queued(&self, face: Face) -> usize {
        self.lanes[index(face)].queue.len()
    }

    /// Bytes that leave through `face` once they come: the end that sends them was told that it may.
    #[must_use]
    pub fn promised(&self, face: Face) -> u64 {
        let lane = &self.lanes[index(face)];
        match self.ended || lane.fin {
            true => 0,
            false => lane.told.saturating_sub(lane.end()),
        }
    }

    /// Bytes that left through `face`.
    #[must_use]
    pub fn passed(&self, face: Face) -> u64 {
        self.lanes[index(face)].passed
    }

    /// Why it is over, once it is.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason.unwrap_or(Reason::Finished)
    }

    /// Whether nothing more is to be passed on.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_settled() && self.outboxes.iter().all(|o| o.farewell.is_none())
    }

    /// Whether nothing more is to come in, or would matter.
    fn is_settled(&self) -> bool {
        self.ended && self.silent == [true; 2]
    }
}

fn index(face: Face) -> usize {
    match face {
        Face::Origin => 0,
        Face::Target => 1,
    }
}
