//! The reference model: two ends of a flow, the path between them, and everything that can happen
//! to it. Shared by the property tests and the fuzzer.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use nowconnect_proto::flow::{Ending, Side, Step};
use nowconnect_proto::frame::{self, Frame, Open, OpenMode};
use nowconnect_proto::{Cid, Flow, FlowId, Reason, Secret};

const ID: FlowId = FlowId(1);
const MAX_PAYLOAD: usize = 700;
const WINDOW: u32 = 1024;
const ALLOWANCE: u32 = 900;

/// What byte stands at `offset` of the direction that starts at `side`.
fn byte_at(side: Side, offset: u64) -> u8 {
    let salt = if side == Side::Origin {
        0x9e37_79b9
    } else {
        0x85eb_ca6b
    };
    (offset.wrapping_mul(salt) >> 7) as u8 ^ offset as u8
}

fn other(side: Side) -> Side {
    if side == Side::Origin {
        Side::Target
    } else {
        Side::Origin
    }
}

/// One end with what its socket wrote and read.
struct End {
    side: Side,
    flow: Flow,
    written: u64,
    eof: bool,
    read: u64,
    read_fin: bool,
    /// Encoded frames on their way from this end.
    wire: BytesMut,
    /// DATA and CREDIT frames that arrived from this end, on whatever path.
    history: Vec<Frame>,
}

impl End {
    fn new(side: Side, flow: Flow) -> Self {
        Self {
            side,
            flow,
            written: 0,
            eof: false,
            read: 0,
            read_fin: false,
            wire: BytesMut::new(),
            history: Vec::new(),
        }
    }

    fn write(&mut self, n: usize) {
        let n = n.min(self.flow.room());
        let bytes: Vec<u8> = (0..n as u64)
            .map(|i| byte_at(self.side, self.written + i))
            .collect();
        self.flow.push(Bytes::from(bytes));
        self.written += n as u64;
    }

    fn read(&mut self, n: usize) {
        let n = n.min(self.flow.inbox().len());
        let mut left = n;
        let mut offset = self.read;
        for chunk in self.flow.inbox().chunks() {
            for byte in chunk.iter().take(left) {
                assert_eq!(*byte, byte_at(other(self.side), offset), "byte {offset}");
                offset += 1;
            }
            left -= left.min(chunk.len());
        }
        self.flow.hand_on(n);
        self.read += n as u64;
        if self.flow.fin_due() {
            self.flow.fin_handed();
            self.read_fin = true;
        }
    }

    fn pump(&mut self, steps: usize, flush: bool) -> bool {
        let mut moved = false;
        for _ in 0..steps {
            let promised = self.flow.has_step();
            let Some(step) = self.flow.next_step(MAX_PAYLOAD, flush) else {
                assert!(!promised, "has_step without a step: {:?}", self.flow);
                break;
            };
            assert!(
                promised || flush || matches!(step, Step::Credit { .. }),
                "step without has_step"
            );
            moved = true;
            frame_of(step).encode(&mut self.wire);
        }
        moved
    }
}

fn frame_of(step: Step) -> Frame {
    step.into_frame(ID, |mode, received, limit| Open {
        cid: Cid([1; 16]),
        secret: Secret([2; 16]),
        epoch: 1,
        mode,
        received,
        limit,
        connector: "ldap".into(),
        client: String::new(),
        listener: String::new(),
        destination: String::new(),
        agent: String::new(),
        attempt: 0,
        trace: None,
    })
}

/// Both ends and the path between them.
struct World {
    origin: End,
    target: Option<End>,
    /// The dial of the target end, once it was asked to.
    dial_pending: bool,
    aborted: bool,
    refused: u32,
    duplicates: u64,
}

impl World {
    fn new() -> Self {
        let mut origin = End::new(Side::Origin, Flow::new(Side::Origin, WINDOW, ALLOWANCE, 0));
        origin.flow.attach_origin(u64::from(WINDOW), WINDOW);
        Self {
            origin,
            target: None,
            dial_pending: false,
            aborted: false,
            refused: 0,
            duplicates: 0,
        }
    }

    fn end(&mut self, side: Side) -> Option<&mut End> {
        match side {
            Side::Origin => Some(&mut self.origin),
            Side::Target => self.target.as_mut(),
        }
    }

    fn deliver(&mut self, from: Side, mut frames: usize) -> bool {
        let mut moved = false;
        while frames > 0 {
            frames -= 1;
            let Some(sender) = self.end(from) else {
                return moved;
            };
            let Some(message) = whole_frame(&mut sender.wire) else {
                return moved;
            };
            let mut message = message;
            let frame = frame::decode(&mut message, MAX_PAYLOAD)
                .expect("own frames decode")
                .expect("one frame");
            if matches!(frame, Frame::Data { .. } | Frame::Credit { .. }) {
                sender.history.push(frame.clone());
            }
            moved = true;
            self.receive(other(from), frame);
        }
        moved
    }

    fn receive(&mut self, side: Side, frame: Frame) {
        if let Frame::Open { open, .. } = frame {
            return self.on_open(&open);
        }
        let Some(end) = self.end(side) else { return };
        let flow = &mut end.flow;
        let mut duplicate = 0;
        match frame {
            Frame::OpenAck {
                received, limit, ..
            } if flow.ending().is_none() => {
                flow.on_open_ack(received, limit).expect("OPEN_ACK fits");
            }
            Frame::OpenAck { .. } => {}
            Frame::Refuse { reason, .. } => {
                if flow.ending().is_some() {
                    flow.refused(reason);
                } else {
                    flow.on_refuse().expect("REFUSE fits");
                    if flow.rewind() {
                        self.refused += 1;
                        self.target = None;
                        self.origin.wire.clear();
                        self.origin.flow.attach_origin(u64::from(WINDOW), WINDOW);
                    } else {
                        flow.refused(reason);
                    }
                }
            }
            // What a link answers for flows that it has forgotten.
            Frame::Rst { reason, .. } if flow.is_over() => {
                if reason != Reason::UnknownFlow {
                    let reason = Reason::UnknownFlow;
                    Frame::Rst { id: ID, reason }.encode(&mut end.wire);
                }
            }
            Frame::Data {
                offset, payload, ..
            } => {
                duplicate = flow.on_data(offset, payload).expect("DATA fits").duplicate as u64;
            }
            Frame::Fin { offset, .. } => flow.on_fin(offset).expect("FIN fits"),
            Frame::Credit { acked, limit, .. } => {
                flow.on_credit(acked, limit).expect("CREDIT fits")
            }
            Frame::Rst { reason, .. } => flow.on_rst(reason),
            other => panic!("unexpected {other:?}"),
        }
        self.duplicates += duplicate;
    }

    fn on_open(&mut self, open: &Open) {
        // An end forgets a flow that is over; one that it refused may be offered to it again.
        let forgotten = self.target.take_if(|target| target.flow.is_over());
        let mode = match forgotten {
            Some(target) if target.flow.is_opened() => OpenMode::Resume,
            _ => open.mode,
        };
        match (&mut self.target, mode) {
            (Some(target), OpenMode::Resume | OpenMode::ResumeOrNew) => {
                target
                    .flow
                    .attach_target(open.received, open.limit, WINDOW)
                    .expect("attach fits");
            }
            (None, OpenMode::Resume) => {
                // Only a flow that the target end finished, or never heard of before it was aborted.
                assert!(
                    self.aborted || self.origin.flow.socket_done(),
                    "the target forgot a living flow"
                );
                self.origin.flow.refused(Reason::UnknownFlow);
            }
            (None, _) => {
                let mut flow = Flow::new(Side::Target, WINDOW, ALLOWANCE, open.limit);
                flow.attach_target(open.received, open.limit, WINDOW)
                    .expect("attach fits");
                self.target = Some(End::new(Side::Target, flow));
                self.origin.history.clear();
                self.dial_pending = true;
            }
            (Some(_), OpenMode::New) => panic!("opened twice"),
        }
    }

    fn dial(&mut self, works: bool) {
        if let Some(target) = self.target.as_mut().filter(|_| self.dial_pending) {
            self.dial_pending = false;
            if works {
                target.flow.connected();
            } else {
                target.flow.abort(Reason::ConnectFailed);
            }
        }
    }

    /// Of what is on its way from each side, a prefix of any length arrives; then the path is gone.
    fn cut(&mut self, keep: u16) {
        for (side, keep) in [(Side::Origin, keep >> 8), (Side::Target, keep & 255)] {
            if let Some(end) = self.end(side) {
                let len = end.wire.len() * usize::from(keep) / 255;
                end.wire.truncate(len);
            }
            while self.deliver(side, usize::MAX) {}
        }
        for side in [Side::Origin, Side::Target] {
            if let Some(end) = self.end(side) {
                end.wire.clear();
                end.flow.detach();
            }
        }
    }

    fn attach(&mut self) {
        if !self.origin.flow.is_attached() && !self.origin.flow.is_over() {
            self.origin.flow.attach_origin(u64::from(WINDOW), WINDOW);
        }
    }

    fn abort(&mut self, side: Side) {
        let lives = |end: &&mut End| end.flow.is_opened() && end.flow.ending().is_none();
        if let Some(end) = self.end(side).filter(lives) {
            end.flow.abort(Reason::SocketReset);
            self.aborted = true;
        }
    }

    /// Repeats a frame that arrived before, from this path or an older one.
    fn repeat(&mut self, from: Side, pick: usize) {
        let Some(end) = self.end(from) else { return };
        if end.history.is_empty() {
            return;
        }
        let frame = end.history[pick % end.history.len()].clone();
        let attached = end.flow.is_attached();
        let before = self.end(other(from)).map(|end| end.flow.inbox().len());
        if attached {
            self.receive(other(from), frame);
            assert_eq!(
                self.end(other(from)).map(|end| end.flow.inbox().len()),
                before,
                "a repeated frame added bytes"
            );
        }
    }

    fn check_bounds(&mut self) {
        for side in [Side::Origin, Side::Target] {
            if let Some(end) = self.end(side) {
                assert!(
                    end.flow.inbox().len() as u64 <= end.flow.window(),
                    "inbox over the window"
                );
                let replay = end.flow.held() - end.flow.inbox().len();
                assert!(
                    replay as u64 <= end.flow.allowance(),
                    "replay over the allowance"
                );
            }
        }
    }

    /// No more faults: everything must come to its end.
    fn settle(&mut self) {
        for _ in 0..2000 {
            self.attach();
            self.dial(true);
            let mut moved = false;
            for side in [Side::Origin, Side::Target] {
                if let Some(end) = self.end(side) {
                    moved |= end.pump(64, true);
                }
                moved |= self.deliver(side, 64);
                if let Some(end) = self.end(side) {
                    moved |= !end.flow.inbox().is_empty() || end.flow.fin_due();
                    end.read(usize::MAX);
                }
            }
            if !moved {
                break;
            }
        }
        if self.aborted {
            // Both know, without waiting for a grace; the one that knows nobody who could tell it more
            // may wait for a path that its peer has no use for.
            let origin = &self.origin.flow;
            assert!(
                origin.ending().is_some(),
                "origin does not know of the abort"
            );
            assert!(origin.is_over(), "origin not over: {origin:?}");
            if let Some(End { flow, .. }) = &self.target {
                assert!(flow.ending().is_some(), "target does not know: {flow:?}");
                assert!(
                    flow.is_over() || !flow.is_attached(),
                    "target not over: {flow:?}"
                );
                assert_eq!(flow.held(), 0);
            }
            return;
        }
        let origin = &self.origin;
        if let Some(Ending::Remote(reason)) = origin.flow.ending() {
            assert_eq!(reason, Reason::UnknownFlow);
            assert!(origin.flow.socket_done() && origin.read_fin);
        } else {
            let target = self.target.as_ref().expect("a target end");
            assert_eq!(target.read, origin.written, "c2a bytes");
            assert_eq!(origin.read, target.written, "a2c bytes");
            assert_eq!(
                (target.read_fin, origin.read_fin),
                (origin.eof, target.eof),
                "FIN"
            );
            if origin.eof && target.eof {
                assert!(origin.flow.is_over(), "origin not over: {:?}", origin.flow);
                // The last acknowledgement may be lost with its path. Its sender is done; the other
                // end waits out the grace, with everything delivered and its socket closed.
                let waits = !target.flow.is_attached() && target.flow.socket_done();
                assert!(
                    target.flow.is_over() || waits,
                    "target not over: {:?}",
                    target.flow
                );
                assert_eq!(origin.flow.held(), 0);
            }
        }
    }
}

/// The first whole frame of `wire`.
fn whole_frame(wire: &mut BytesMut) -> Option<Bytes> {
    if wire.len() < frame::HEADER_LEN {
        return None;
    }
    let len = frame::HEADER_LEN
        + (usize::from(wire[0]) << 16 | usize::from(wire[1]) << 8 | usize::from(wire[2]));
    (len <= wire.len()).then(|| wire.split_to(len).freeze())
}

fn side(arg: u16) -> Side {
    if arg & 1 == 0 {
        Side::Origin
    } else {
        Side::Target
    }
}

/// Plays `ops` (what, and an argument), lets the faults stop, and checks how it ended.
pub(crate) fn run(ops: &[(u8, u16)], aborts: bool) {
    let mut world = World::new();
    let mut queue: VecDeque<_> = ops.iter().copied().collect();
    while let Some((op, arg)) = queue.pop_front() {
        let (side, amount) = (side(arg), usize::from(arg >> 1));
        match op {
            0..=3 => {
                if let Some(end) = world
                    .end(side)
                    .filter(|end| end.side == Side::Origin || end.flow.is_opened())
                {
                    end.write(amount % 1500);
                }
            }
            4..=8 => {
                if let Some(end) = world.end(side) {
                    end.pump(1 + amount % 5, amount & 64 != 0);
                }
            }
            9..=13 => drop(world.deliver(side, 1 + amount % 5)),
            14..=16 => {
                if let Some(end) = world
                    .end(side)
                    .filter(|end| end.side == Side::Origin || end.flow.is_opened())
                {
                    end.read(amount % 1500);
                }
            }
            17 => world.cut(arg),
            18 | 19 => world.attach(),
            20 | 21 => world.dial(amount % 8 != 0),
            22 | 23 => world.repeat(side, amount),
            24 => {
                if let Some(end) = world
                    .end(side)
                    .filter(|end| end.side == Side::Origin || end.flow.is_opened())
                {
                    end.flow.push_fin();
                    end.eof = true;
                }
            }
            25 if aborts => world.abort(side),
            26 => {
                if let Some(end) = world.end(side) {
                    end.flow.grow_window(arg.into());
                    end.flow.grow_allowance(arg.into());
                }
            }
            _ => {}
        }
        world.check_bounds();
    }
    world.settle();
}
