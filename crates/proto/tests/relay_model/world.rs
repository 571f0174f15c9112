//! Both ends, every path there ever was between them, and all that can happen to these. Shared by
//! the property tests and the fuzzer.

use nowconnect_proto::flow::{Ending, Side};
use nowconnect_proto::frame::{Frame, Open, OpenMode};
use nowconnect_proto::relay::{Face, Relay};
use nowconnect_proto::{Flow, FlowId, Reason};

use super::end::{self, MAX_PAYLOAD, frame_of, other};
use super::path::{Path, at, side_of};

/// The number of the path that carries the flow, if one does.
type End = end::End<Option<usize>>;

/// Numbers of operations.
pub(crate) const OPS: u8 = 50;

/// What the hub in the middle grants the origin unasked, and what the target grants the hub.
const FIRST_WINDOW: u32 = 1024;
const TARGET_WINDOW: u32 = 800;
const ALLOWANCE: u32 = 900;
const UNKNOWN: Reason = Reason::UnknownFlow;
const FACES: [Face; 2] = [Face::Origin, Face::Target];

/// What may happen besides lost links.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// An end may give up.
    pub(crate) aborts: bool,
    /// The target's end speaks version 1.
    pub(crate) v1: bool,
}

struct World {
    rules: Rules,
    origin: End,
    target: Option<End>,
    /// The latest target end that is over.
    past: Option<End>,
    paths: Vec<Path>,
    /// By the face that bytes leave through.
    rooms: [u64; 2],
    /// The target's end was asked to dial.
    dial_pending: bool,
    /// The latest path that the target's end saw the flow on.
    seen: Option<usize>,
    /// The hub in the middle refuses the next new flow.
    refuses: bool,
    /// The hub in the middle takes its time with the next flow.
    holds: bool,
    aborted: bool,
}

impl World {
    fn new(rules: Rules) -> Self {
        let origin = End::new(Side::Origin, Flow::new(Side::Origin, 1024, ALLOWANCE, 0));
        let mut world = Self {
            rules,
            origin,
            target: None,
            past: None,
            paths: Vec::new(),
            rooms: [600; 2],
            dial_pending: false,
            seen: None,
            refuses: false,
            holds: false,
            aborted: false,
        };
        world.attach(false);
        world
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

    /// One of the latest paths.
    fn pick(&self, arg: usize) -> usize {
        self.paths.len() - 1 - arg % self.paths.len().min(3)
    }

    // ---- the ends -------------------------------------------------------------------------------

    /// The origin takes another path: because it has none, or (`moves`) because it may.
    fn attach(&mut self, moves: bool) {
        if self.origin.flow.is_over() || (self.origin.path.is_some() && !moves) {
            return;
        }
        if let Some(old) = self.origin.path {
            self.leave(old, Side::Origin);
        }
        let number = self.paths.len();
        self.paths.push(Path::new(number as u32 + 1));
        self.origin.path = Some(number);
        self.origin
            .flow
            .attach_origin(u64::from(FIRST_WINDOW), FIRST_WINDOW);
    }

    /// The end at `side` tells its old path that it goes on over another.
    fn leave(&mut self, old: usize, side: Side) {
        self.answer(old, side, |id| Frame::Detach {
            id,
            reason: Reason::Moved,
        });
    }

    /// The end at `side` sends a frame over path `number`.
    fn answer(&mut self, number: usize, side: Side, frame: impl FnOnce(FlowId) -> Frame) {
        let path = &mut self.paths[number];
        let face = face_of(side);
        let frame = frame(path.id(face));
        path.links[at(side)].send(side, &frame);
    }

    fn pump_end(&mut self, side: Side, steps: usize, flush: bool) -> bool {
        let mut moved = false;
        for _ in 0..steps {
            let Some(end) = self.end(side) else { break };
            let Some(number) = end.path else { break };
            let promised = end.flow.has_step();
            let Some(step) = end.flow.next_step(MAX_PAYLOAD, flush) else {
                assert!(!promised, "has_step without a step: {:?}", end.flow);
                break;
            };
            self.answer(number, side, |id| frame_of(id, step));
            moved = true;
        }
        self.forget();
        moved
    }

    /// Ends that are over leave their links.
    fn forget(&mut self) {
        if self.origin.flow.is_over() {
            self.origin.path = None;
        }
        if let Some(mut target) = self.target.take_if(|target| target.flow.is_over()) {
            target.path = None;
            self.past = Some(target);
        }
    }

    fn detach(&mut self, side: Side, number: usize) {
        let v1 = self.rules.v1;
        let Some(end) = self.end(side).filter(|end| end.path == Some(number)) else {
            return;
        };
        end.path = None;
        end.flow.detach();
        if side == Side::Target && v1 {
            // Flows of version 1 end with their link.
            end.flow.on_rst(Reason::WsBroken);
            self.forget();
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

    fn abort(&mut self, side: Side) {
        if let Some(end) = self.end(side)
            && end.flow.is_opened()
            && end.flow.ending().is_none()
        {
            end.flow.abort(Reason::SocketReset);
            self.aborted = true;
            self.forget();
        }
    }

    // ---- frames ---------------------------------------------------------------------------------

    /// At most `frames` frames arrive on path `number`, on the link behind `face`, at the hub or from
    /// it.
    fn deliver(&mut self, number: usize, face: Face, to_hub: bool, frames: usize) -> bool {
        let end_side = side_of(face);
        let from = if to_hub { end_side } else { other(end_side) };
        let mut moved = false;
        for _ in 0..frames {
            let path = &mut self.paths[number];
            let Some(frame) = path.links[at(end_side)].receive(from) else {
                break;
            };
            moved = true;
            if to_hub {
                self.at_hub(number, face, frame);
            } else {
                self.at_end(number, end_side, frame);
            }
        }
        moved
    }

    fn at_hub(&mut self, number: usize, face: Face, frame: Frame) {
        let path = &mut self.paths[number];
        let id = path.id(face);
        match frame {
            Frame::Open { open, .. } => self.open_at_hub(number, *open),
            frame if path.is_relayed() => {
                if let Frame::OpenAck { received, .. } = frame {
                    path.answered_from(received);
                }
                if let Some(relay) = &mut path.relay {
                    relay.on_frame(face, frame).expect("honest ends");
                }
                path.check_bounds();
            }
            // The number was in use: its flow is over here.
            Frame::Rst { reason, .. } if reason != UNKNOWN => {
                path.send(face, &confirmation(id));
            }
            _ => {}
        }
    }

    fn open_at_hub(&mut self, number: usize, open: Open) {
        let path = &mut self.paths[number];
        let id = path.id(Face::Origin);
        let is_new = open.mode == OpenMode::New;
        let no_tunnel = path.links[at(Side::Target)].is_lost(Side::Origin);
        if no_tunnel || std::mem::take(&mut self.refuses) {
            let reason = Reason::NoAgent;
            let no = match open.mode {
                OpenMode::New => Frame::Refuse { id, reason },
                _ => Frame::Detach { id, reason },
            };
            return path.send(Face::Origin, &no);
        }
        let received = open.received;
        let relay = Relay::new(open, FIRST_WINDOW, TARGET_WINDOW, !self.rules.v1);
        path.begin(relay, received, is_new.then_some(FIRST_WINDOW));
        path.held = std::mem::take(&mut self.holds);
        path.refusable = is_new;
    }

    /// The hub in the middle makes up its mind about a flow that it holds.
    fn decide(&mut self, number: usize, allows: bool) -> bool {
        let path = &mut self.paths[number];
        let Some(relay) = path.relay.as_mut().filter(|_| path.held) else {
            return false;
        };
        let is_lost = path.links[at(Side::Target)].is_lost(Side::Origin);
        if !allows && !relay.has_ended() {
            match path.refusable {
                true => relay.refuse(Reason::PdpDenied),
                false => relay.shed(Reason::NotActive),
            }
        } else if is_lost {
            relay.lost(Face::Target, Reason::ConnectionLost);
        }
        path.held = false;
        path.check_bounds();
        true
    }

    fn at_end(&mut self, number: usize, side: Side, frame: Frame) {
        if let Frame::Open { open, .. } = frame {
            return self.on_open(number, &open);
        }
        let v1 = self.rules.v1;
        let Some(end) = self.end(side).filter(|end| end.path == Some(number)) else {
            // A number that was in use: a reset is confirmed.
            let confirms = !(v1 && side == Side::Target);
            if let Frame::Rst { reason, .. } = frame
                && reason != UNKNOWN
                && confirms
            {
                self.answer(number, side, confirmation);
            }
            return;
        };
        let flow = &mut end.flow;
        match frame {
            Frame::OpenAck {
                received, limit, ..
            } if flow.ending().is_none() => {
                flow.on_open_ack(received, limit).expect("OPEN_ACK fits");
            }
            Frame::OpenAck { .. } => {}
            Frame::Refuse { reason, .. } => self.on_refuse(reason),
            Frame::Data {
                offset, payload, ..
            } => {
                flow.on_data(offset, payload).expect("DATA fits");
            }
            Frame::Fin { offset, .. } => flow.on_fin(offset).expect("FIN fits"),
            Frame::Credit { acked, limit, .. } => {
                flow.on_credit(acked, limit).expect("CREDIT fits");
            }
            Frame::Rst { reason, .. } => flow.on_rst(reason),
            Frame::Detach { .. } => self.detach(side, number),
            other => panic!("unexpected {other:?}"),
        }
        self.forget();
    }

    fn on_refuse(&mut self, reason: Reason) {
        let flow = &mut self.origin.flow;
        if flow.ending().is_some() {
            return flow.refused(reason);
        }
        flow.on_refuse().expect("REFUSE fits");
        if reason.allows_another_agent() && flow.rewind() {
            self.origin.path = None;
        } else {
            flow.refused(reason);
        }
    }

    fn on_open(&mut self, number: usize, open: &Open) {
        let refuse = |id| Frame::Refuse {
            id,
            reason: UNKNOWN,
        };
        // What was on its way when the flow already went on over a later path.
        if self.seen.is_some_and(|seen| number < seen) {
            return self.answer(number, Side::Target, refuse);
        }
        self.seen = Some(number);
        if let Some(target) = &mut self.target {
            let old = target.path.replace(number);
            target
                .flow
                .attach_target(open.received, open.limit, FIRST_WINDOW)
                .expect("attach fits");
            if let Some(old) = old {
                self.leave(old, Side::Target);
            }
            return;
        }
        let forgotten = self.past.as_ref().is_some_and(|end| end.flow.is_opened());
        if open.mode == OpenMode::Resume || forgotten || (self.rules.v1 && number > 0) {
            assert!(
                self.aborted || self.rules.v1 || self.origin.flow.socket_done(),
                "the target forgot a living flow"
            );
            return self.answer(number, Side::Target, refuse);
        }
        let mut flow = Flow::new(Side::Target, TARGET_WINDOW, ALLOWANCE, open.limit);
        flow.set_echoes(!self.rules.v1);
        flow.attach_target(open.received, open.limit, FIRST_WINDOW)
            .expect("attach fits");
        let mut target = End::new(Side::Target, flow);
        target.path = Some(number);
        self.target = Some(target);
        self.dial_pending = true;
    }

    // ---- faults ---------------------------------------------------------------------------------

    /// `side` (the end, or the hub) learns that the link behind `face` is gone.
    fn lose(&mut self, number: usize, face: Face, side: Side, keep: usize) {
        let path = &mut self.paths[number];
        let link = &mut path.links[at(side_of(face))];
        if link.is_lost(side) {
            return;
        }
        link.lose(side, keep);
        if side == side_of(face) {
            self.detach(side, number);
        } else if let Some(relay) = &mut path.relay
            && !(path.held && face == Face::Target)
        {
            if self.rules.v1 && face == Face::Target {
                relay.broken(face, Reason::WsBroken);
            } else {
                relay.lost(face, Reason::ConnectionLost);
            }
            path.check_bounds();
        }
    }

    fn lose_some(&mut self, number: usize, arg: usize) {
        let (which, keep) = (arg & 7, arg >> 3 & 255);
        let face = FACES[which & 1];
        let side = [Side::Origin, Side::Target][which >> 1 & 1];
        self.lose(number, face, side, keep);
        if which & 4 != 0 {
            self.lose(number, face, other(side), 255 - keep);
        }
    }

    fn shed(&mut self, number: usize) {
        if let Some(relay) = &mut self.paths[number].relay {
            relay.shed(Reason::Backpressure);
        }
    }

    // ---- everything at once ---------------------------------------------------------------------

    /// Everybody has a turn, but nobody finds a new path.
    fn go_round(&mut self, frames: usize) -> bool {
        let mut moved = false;
        for side in [Side::Origin, Side::Target] {
            moved |= self.pump_end(side, frames, true);
        }
        for number in 0..self.paths.len() {
            for face in FACES {
                moved |= self.deliver(number, face, true, frames);
            }
            for face in FACES {
                let room = self.rooms[at(side_of(face.other()))];
                moved |= self.paths[number].pump(face, frames, MAX_PAYLOAD, room);
                moved |= self.deliver(number, face, false, frames);
            }
        }
        for side in [Side::Origin, Side::Target] {
            moved |= self.end(side).is_some_and(|end| end.read(usize::MAX));
        }
        self.forget();
        moved
    }

    /// No more faults: everything must come to its end.
    fn settle(&mut self) {
        for number in 0..self.paths.len() {
            for face in FACES {
                let link = &self.paths[number].links[at(side_of(face))];
                let half = link.is_half_lost();
                for side in [Side::Origin, Side::Target].into_iter().filter(|_| half) {
                    self.lose(number, face, side, 0);
                }
            }
        }
        (self.refuses, self.holds) = (false, false);
        // Where there is room for a byte at a time, each takes two rounds.
        for _ in 0..20_000 {
            let paths = self.paths.len();
            self.attach(false);
            self.dial(true);
            let decided = (0..paths).any(|number| self.decide(number, true));
            if !self.go_round(64) && self.paths.len() == paths && !decided {
                self.check_relays();
                return self.check_ends();
            }
        }
        panic!("it never comes to rest: {:?}", self.origin.flow);
    }

    fn check_relays(&self) {
        for (number, path) in self.paths.iter().enumerate() {
            path.check_bounds();
            let carries = |end: &End| end.path == Some(number) && end.flow.ending().is_none();
            let lives = carries(&self.origin) && self.target.as_ref().is_some_and(carries);
            assert!(
                !path.is_relayed() || lives,
                "path {number} leaks {:?}",
                path.relay
            );
        }
    }

    fn check_ends(&self) {
        let origin = &self.origin;
        if self.aborted || (self.rules.v1 && origin.flow.ending().is_some()) {
            // Both know, without waiting for a grace.
            let flow = &origin.flow;
            assert!(flow.ending().is_some(), "origin does not know of the abort");
            assert!(flow.is_over(), "origin not over: {flow:?}");
            if let Some(End { flow, .. }) = &self.target {
                assert!(flow.ending().is_some(), "target does not know: {flow:?}");
                assert!(!flow.is_attached(), "target not over: {flow:?}");
            }
            return;
        }
        if let Some(Ending::Remote(reason)) = origin.flow.ending() {
            assert_eq!(reason, UNKNOWN);
            assert!(origin.flow.socket_done() && origin.read_fin);
            return;
        }
        let target = self.target.as_ref().or(self.past.as_ref());
        let target = target.expect("a target end");
        assert_eq!(target.read, origin.written, "c2a bytes");
        assert_eq!(origin.read, target.written, "a2c bytes");
        let ends = (target.read_fin, origin.read_fin);
        assert_eq!(ends, (origin.eof, target.eof), "FIN");
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

    fn play(&mut self, op: u8, arg: u16) {
        let side = if arg & 1 == 0 {
            Side::Origin
        } else {
            Side::Target
        };
        let amount = usize::from(arg >> 1);
        let number = self.pick(amount >> 3);
        let face = FACES[usize::from(arg >> 1 & 1)];
        match op {
            0..=4 => {
                if let Some(end) = self.end_with_socket(side) {
                    end.write(amount % 1500);
                }
            }
            5..=8 => drop(self.pump_end(side, 1 + amount % 5, amount & 64 != 0)),
            9..=15 => drop(self.deliver(number, face, arg & 1 == 0, 1 + amount % 5)),
            16..=20 => {
                let room = self.rooms[at(side_of(face.other()))];
                let max_payload = [0, 1, 90, MAX_PAYLOAD][amount >> 5 & 3];
                self.paths[number].pump(face, 1 + amount % 7, max_payload, room);
            }
            21..=24 => {
                if let Some(end) = self.end_with_socket(side) {
                    end.read(amount % 1500);
                }
            }
            25..=30 => {
                for _ in 0..=amount % 4 {
                    self.go_round(1 + (amount >> 3) % 6);
                }
            }
            31 | 32 => self.lose_some(number, amount >> 2),
            33 | 34 => self.attach(false),
            35 => self.attach(true),
            36 | 37 => self.dial(!amount.is_multiple_of(8)),
            38 | 39 => {
                if let Some(end) = self.end_with_socket(side) {
                    end.write_fin();
                }
            }
            40 | 41 => self.rooms[at(side)] = 1 + (amount % 40).pow(2) as u64,
            42 => self.shed(number),
            43 if self.rules.aborts => self.abort(side),
            44 => {
                if let Some(end) = self.end(side) {
                    end.flow.grow_window(arg.into());
                    end.flow.grow_allowance(arg.into());
                }
            }
            45 => self.refuses = true,
            46 | 47 => self.holds = true,
            48 | 49 => drop(self.decide(number, arg & 1 == 0)),
            _ => {}
        }
        for side in [Side::Origin, Side::Target] {
            if let Some(end) = self.end(side) {
                end.check_bounds();
            }
        }
    }
}

/// What a reset is answered with, and what nobody answers.
fn confirmation(id: FlowId) -> Frame {
    Frame::Rst {
        id,
        reason: UNKNOWN,
    }
}

fn face_of(side: Side) -> Face {
    match side {
        Side::Origin => Face::Origin,
        Side::Target => Face::Target,
    }
}

/// Plays `ops` (what, and an argument), lets the faults stop, and checks how it ended.
pub(crate) fn run(ops: &[(u8, u16)], rules: Rules) {
    let mut world = World::new(rules);
    for (op, arg) in ops {
        world.play(*op, *arg);
    }
    world.settle();
}
