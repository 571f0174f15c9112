//! The reference model: two ends of a flow, the path between them, and everything that can happen
//! to it. Shared by the property tests and the fuzzer.

use std::collections::VecDeque;

use bytes::BytesMut;
use nowconnect_proto::flow::{Ending, Side, Step};
use nowconnect_proto::frame::{Frame, Open, OpenMode};
use nowconnect_proto::{Flow, FlowId, Reason};

use super::end::{self, MAX_PAYLOAD, frame_of, next_frame, other};

const ID: FlowId = FlowId(1);
const WINDOW: u32 = 1024;
const ALLOWANCE: u32 = 900;

type End = end::End<Wire>;

/// What came and is to come from an end.
#[derive(Default)]
struct Wire {
    /// Encoded frames on their way.
    bytes: BytesMut,
    /// DATA and CREDIT frames that arrived, on whatever path.
    history: Vec<Frame>,
}

fn pump(end: &mut End, steps: usize, flush: bool) -> bool {
    let mut moved = false;
    for _ in 0..steps {
        let promised = end.flow.has_step();
        let Some(step) = end.flow.next_step(MAX_PAYLOAD, flush) else {
            assert!(!promised, "has_step without a step: {:?}", end.flow);
            break;
        };
        assert!(
            promised || flush || matches!(step, Step::Credit { .. }),
            "step without has_step"
        );
        moved = true;
        frame_of(ID, step).encode(&mut end.path.bytes);
    }
    moved
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

    fn end_with_socket(&mut self, side: Side) -> Option<&mut End> {
        self.end(side).filter(|end| end.has_socket())
    }

    fn deliver(&mut self, from: Side, mut frames: usize) -> bool {
        let mut moved = false;
        while frames > 0 {
            frames -= 1;
            let Some(sender) = self.end(from) else {
                return moved;
            };
            let Some(frame) = next_frame(&mut sender.path.bytes) else {
                return moved;
            };
            if matches!(frame, Frame::Data { .. } | Frame::Credit { .. }) {
                sender.path.history.push(frame.clone());
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
                        self.origin.path.bytes.clear();
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
                    Frame::Rst { id: ID, reason }.encode(&mut end.path.bytes);
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
                self.origin.path.history.clear();
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
                let bytes = &mut end.path.bytes;
                bytes.truncate(bytes.len() * usize::from(keep) / 255);
            }
            while self.deliver(side, usize::MAX) {}
        }
        for side in [Side::Origin, Side::Target] {
            if let Some(end) = self.end(side) {
                end.path.bytes.clear();
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
        let history = &end.path.history;
        if history.is_empty() {
            return;
        }
        let frame = history[pick % history.len()].clone();
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
                end.check_bounds();
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
                    moved |= pump(end, 64, true);
                }
                moved |= self.deliver(side, 64);
                if let Some(end) = self.end(side) {
                    moved |= end.read(usize::MAX);
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
                if let Some(end) = world.end_with_socket(side) {
                    end.write(amount % 1500);
                }
            }
            4..=8 => {
                if let Some(end) = world.end(side) {
                    pump(end, 1 + amount % 5, amount & 64 != 0);
                }
            }
            9..=13 => drop(world.deliver(side, 1 + amount % 5)),
            14..=16 => {
                if let Some(end) = world.end_with_socket(side) {
                    end.read(amount % 1500);
                }
            }
            17 => world.cut(arg),
            18 | 19 => world.attach(),
            20 | 21 => world.dial(amount % 8 != 0),
            22 | 23 => world.repeat(side, amount),
            24 => {
                if let Some(end) = world.end_with_socket(side) {
                    end.write_fin();
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
