//! A flow that passes through: in over one link, out over another.
//!
//! Like a [`SocketFlow`](crate::endpoint::SocketFlow) it has no task. The drivers of its two links
//! hand it frames and give it turns, and each wakes the other. It belongs to these two links: when
//! one is gone it is over, and the flow's ends find another path.
//!
//! A flow that is [held](Relayed::hold) is only on the origin's link until somebody has decided about
//! it. What the origin sends in the meantime waits in its relay, within the bounds that hold anyhow.

mod held;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::relay::{Face, Relay};
use nowconnect_proto::{Cid, FlowId, Reason};
use parking_lot::Mutex;

use crate::carried::{Carried, Heard, Turn};
use crate::pool::{Mark, Share};
use crate::session::Link;

/// A flow that has passed so many bytes on is one whose receiver takes them.
const PROVEN: u64 = 64 * 1024;

/// Bytes that a flow puts on a link in one turn at most: as many as one that reads a socket.
const MOST_A_TURN: usize = 256 * 1024;

/// A flow between two links of this process.
pub struct Relayed {
    cid: Cid,
    /// Towards the origin and towards the target.
    legs: [Leg; 2],
    state: Mutex<State>,
}

/// One of the two links.
struct Leg {
    link: Arc<Link>,
    id: FlowId,
    /// Where bytes are counted that wait for this link.
    share: Arc<Share>,
    /// In the link's ready queue.
    queued: AtomicBool,
}

struct State {
    relay: Relay,
    /// In the link's list of flows that wait for room to write, and where among them.
    turns: [(bool, u64); 2],
    /// Frames came in that [`Relayed::after_frames`] has not followed.
    touched: [bool; 2],
    /// Bytes that the shares know of.
    charged: [u64; 2],
    /// What the shares know of bytes that may still come.
    marks: [Mark; 2],
    /// Nobody has decided yet whether the target's end is to hear of the flow.
    held: bool,
    closed: bool,
    /// Who is told of the end.
    done: Option<Done>,
}

/// What became of a flow while it was passed on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// Payload bytes that left towards the agent.
    pub bytes_c2a: u64,
    /// Payload bytes that left towards the client.
    pub bytes_a2c: u64,
    /// Why it ended here.
    pub reason: Reason,
}

/// Called at the end of a passage, by a link's driver and without locks held; it must not block.
pub type Done = Box<dyn FnOnce(Passage) + Send>;

/// One side of a relay that is to be.
#[derive(Debug)]
pub struct Side {
    /// The link.
    pub link: Arc<Link>,
    /// Where bytes are counted that wait for it.
    pub share: Arc<Share>,
}

impl Relayed {
    /// Passes the flow that came over `origin` as number `id` with `open` on to `target`, whose
    /// tunnel knows the ownership as `epoch`. The origin sends `first_window` bytes of a new flow
    /// unasked. `done` is called when the flow is passed on no longer.
    ///
    /// # Errors
    /// One of the links is closed, used up its numbers, or has the number in use. Nothing was
    /// passed on.
    pub fn start(
        origin: Side,
        id: FlowId,
        open: Open,
        target: Side,
        epoch: u64,
        first_window: u32,
        done: Done,
    ) -> Result<Arc<Self>, Reason> {
        let relayed = Self::hold(origin, id, open, target, epoch, first_window, done)?;
        let entered = relayed.enter(Face::Target);
        if entered.is_err() {
            relayed.state.lock().closed = true;
            relayed.discharge();
        }
        // One link may have ended while the other took the flow.
        if relayed.state.lock().closed {
            relayed.leave();
            return Err(entered.err().unwrap_or(Reason::ConnectionLost));
        }
        relayed.let_go();
        Ok(relayed)
    }

    /// The same for a flow that is not decided about: [`Relayed::release`],
    /// [`Relayed::refuse`] or [`Relayed::give_back`] follows.
    ///
    /// # Errors
    /// As [`Relayed::start`].
    pub fn hold(
        origin: Side,
        id: FlowId,
        mut open: Open,
        target: Side,
        epoch: u64,
        first_window: u32,
        done: Done,
    ) -> Result<Arc<Self>, Reason> {
        let cid = open.cid;
        open.epoch = epoch;
        open.agent.clear();
        let takes = target.link.peer().first_window;
        let relay = Relay::new(open, first_window, takes, !target.link.is_v1());
        let number = target.link.next_number()?;
        let leg = |side: Side, id| Leg {
            link: side.link,
            id,
            share: side.share,
            queued: AtomicBool::new(false),
        };
        let relayed = Arc::new(Self {
            cid,
            legs: [leg(origin, id), leg(target, number)],
            state: Mutex::new(State {
                relay,
                turns: [(false, 0); 2],
                touched: [false; 2],
                charged: [0; 2],
                marks: Default::default(),
                held: true,
                closed: false,
                done: Some(done),
            }),
        });
        if relayed.leg(Face::Origin).link.carries(id) {
            return Err(Reason::ProtocolError);
        }
        // What the origin sends unasked counts from the start.
        relayed.charge(&mut relayed.state.lock());
        if let Err(reason) = relayed.enter(Face::Origin) {
            relayed.discharge();
            return Err(reason);
        }
        Ok(relayed)
    }

    fn enter(self: &Arc<Self>, face: Face) -> Result<(), Reason> {
        let leg = self.leg(face);
        leg.link.take_up(leg.id, &self.on(face))
    }

    /// The flow's name for life.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The link that leads to the target.
    #[must_use]
    pub fn onward(&self) -> &Arc<Link> {
        &self.leg(Face::Target).link
    }

    /// Bytes that wait here, for the origin and for the target.
    #[must_use]
    pub fn waiting(&self) -> [u64; 2] {
        self.state.lock().charged
    }

    fn leg(&self, face: Face) -> &Leg {
        &self.legs[index(face)]
    }

    fn on(self: &Arc<Self>, face: Face) -> Carried {
        Carried::Relayed(Arc::clone(self), face)
    }

    pub(crate) fn address(&self) -> *const () {
        std::ptr::from_ref(self).cast()
    }

    pub(crate) fn set_queued(&self, face: Face, queued: bool) -> bool {
        self.leg(face).queued.swap(queued, Ordering::AcqRel) != queued
    }

    /// A frame came in through `face`.
    pub(crate) fn on_frame(&self, face: Face, frame: Frame) -> Heard {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            if let Frame::Rst { reason, .. } = frame {
                self.leg(face).link.confirm_reset(self.leg(face).id, reason);
            }
            return Heard::default();
        }
        let violation = state.relay.on_frame(face, frame).err();
        if let Some(reason) = violation {
            tracing::debug!(event = "flow_violation", cid = %self.cid, %reason);
            state.relay.abort(reason);
        }
        self.charge(&mut state);
        if self.leg(face.other()).share.is_over() && state.relay.queued(face.other()) > 0 {
            tracing::debug!(event = "flow_shed", cid = %self.cid);
            state.relay.shed(Reason::Backpressure);
            self.charge(&mut state);
            if let Some(meter) = self.mesh().meter() {
                meter.shed();
            }
        }
        let first = !std::mem::replace(&mut state.touched[index(face)], true);
        Heard { first, violation }
    }

    /// The link between the hubs.
    fn mesh(&self) -> &Link {
        &self.leg(Face::Origin).link
    }

    /// The frames at hand are all looked at: what they brought is for the other link.
    pub(crate) fn after_frames(self: &Arc<Self>, face: Face) {
        let wanted = {
            let mut state = self.state.lock();
            state.touched[index(face)] = false;
            state.relay.settle();
            self.wanted(&state)
        };
        self.wake(wanted);
        self.finish_if_over();
    }

    /// Gives the link what need not wait for room: everything but bytes. Returns where the flow
    /// stands if it is to wait for a turn now.
    pub(crate) fn turn_in(self: &Arc<Self>, face: Face, put: &mut dyn FnMut(Frame)) -> Option<u64> {
        let mut state = self.state.lock();
        if state.is_held(face) {
            return None;
        }
        self.put_frames(&mut state, face, 0, usize::MAX, put);
        self.charge(&mut state);
        let (waiting, mark) = &mut state.turns[index(face)];
        let (was_waiting, mark) = (*waiting, *mark);
        let waits = !was_waiting && state.relay.queued(face) > 0;
        state.turns[index(face)].0 |= waits;
        drop(state);
        self.finish_if_over();
        waits.then_some(mark)
    }

    /// Gives the flow its turn on the link. Returns where the flow stands if it is to wait for
    /// another turn, because there is more.
    pub(crate) fn turn_out(
        self: &Arc<Self>,
        face: Face,
        turn: Turn,
        put: &mut dyn FnMut(Frame),
    ) -> Option<u64> {
        let mut state = self.state.lock();
        if state.closed || state.is_held(face) {
            return None;
        }
        let max_payload = self.leg(face).link.peer().max_payload;
        let most = turn.most.min(MOST_A_TURN);
        let left = self.put_frames(&mut state, face, max_payload, most, put);
        self.charge(&mut state);
        let mark = turn.mark + (most - left) as u64;
        let wanted = self.wanted(&state);
        // More bytes, or the FIN behind them.
        let waits = left == 0 && wanted[index(face)];
        state.turns[index(face)] = (waits, mark);
        // What has left makes room for more of the other end's.
        drop(state);
        self.wake([
            wanted[0] && face != Face::Origin,
            wanted[1] && face != Face::Target,
        ]);
        self.finish_if_over();
        waits.then_some(mark)
    }

    /// Returns how much of `most` bytes is left.
    fn put_frames(
        &self,
        state: &mut State,
        face: Face,
        max_payload: usize,
        most: usize,
        put: &mut dyn FnMut(Frame),
    ) -> usize {
        let room = self.room(state, face.other());
        let mut left = most;
        while left > 0
            && let Some(frame) =
                state
                    .relay
                    .next_frame(face, self.leg(face).id, max_payload.min(left), room)
        {
            if let Frame::Data { payload, .. } = &frame {
                left = left.saturating_sub(payload.len());
            }
            put(frame);
        }
        left
    }

    /// The link behind `face` is gone; `resumable` tells whether its flows outlive it.
    pub(crate) fn path_lost(self: &Arc<Self>, face: Face, resumable: bool) {
        self.change(|relay| {
            if resumable {
                relay.lost(face, Reason::ConnectionLost);
            } else {
                relay.broken(face, Reason::WsBroken);
            }
        });
    }

    /// Takes the flow off this hub: both ends find another path.
    pub fn detach(self: &Arc<Self>, reason: Reason) {
        self.change(|relay| relay.shed(reason));
    }

    /// Ends the flow for both ends.
    pub fn abort(self: &Arc<Self>, reason: Reason) {
        self.change(|relay| relay.abort(reason));
    }

    fn change(self: &Arc<Self>, with: impl FnOnce(&mut Relay)) {
        let wanted = {
            let mut state = self.state.lock();
            with(&mut state.relay);
            self.charge(&mut state);
            self.wanted(&state)
        };
        self.wake(wanted);
        self.finish_if_over();
    }

    fn wanted(&self, state: &State) -> [bool; 2] {
        [Face::Origin, Face::Target].map(|face| {
            if state.is_held(face) {
                return false;
            }
            let room = self.room(state, face.other());
            state.relay.has_frame(face, room)
        })
    }

    fn wake(self: &Arc<Self>, wanted: [bool; 2]) {
        for face in [Face::Origin, Face::Target] {
            if wanted[index(face)] {
                self.leg(face).link.ready(self.on(face));
            }
        }
    }

    fn charge(&self, state: &mut State) {
        for face in [Face::Origin, Face::Target] {
            let now = state.relay.queued(face) as u64;
            let before = std::mem::replace(&mut state.charged[index(face)], now);
            let promised = state.relay.promised(face);
            let mark = &mut state.marks[index(face)];
            self.leg(face).share.change(mark, before, now, promised);
        }
    }

    /// It never came to anything: gives back what was charged.
    fn discharge(&self) {
        let mut state = self.state.lock();
        for face in [Face::Origin, Face::Target] {
            let before = std::mem::take(&mut state.charged[index(face)]);
            let mark = &mut state.marks[index(face)];
            self.leg(face).share.change(mark, before, 0, 0);
        }
    }

    /// What may wait here to leave through `face`.
    fn room(&self, state: &State, face: Face) -> u64 {
        let proven = state.relay.passed(face) >= PROVEN;
        self.leg(face).share.room(proven)
    }

    fn finish_if_over(self: &Arc<Self>) {
        let (done, passage) = {
            let mut state = self.state.lock();
            if !state.relay.is_over() || std::mem::replace(&mut state.closed, true) {
                return;
            }
            self.charge(&mut state);
            let passage = Passage {
                bytes_c2a: state.relay.passed(Face::Target),
                bytes_a2c: state.relay.passed(Face::Origin),
                reason: state.relay.reason(),
            };
            (state.done.take(), passage)
        };
        self.leave();
        if let Some(done) = done {
            done(passage);
        }
    }

    fn leave(&self) {
        for leg in &self.legs {
            leg.link.forget(leg.id, self.address());
        }
    }
}

impl State {
    /// Whether nothing may leave through `face` yet.
    fn is_held(&self, face: Face) -> bool {
        self.held && face == Face::Target
    }
}

impl std::fmt::Debug for Relayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relayed")
            .field("cid", &self.cid)
            .finish_non_exhaustive()
    }
}

fn index(face: Face) -> usize {
    match face {
        Face::Origin => 0,
        Face::Target => 1,
    }
}
