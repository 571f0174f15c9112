//! One end of a flow: offsets, credit, replay, FIN, RST, attach and detach.
//!
//! A flow has two ends, the *origin* (which holds the client's socket) and the *target* end (which
//! holds the target's). Between them lies a path that may break and be replaced at any moment. An
//! end takes bytes from its socket ([`Flow::push`]) and steps for the path ([`Flow::next_step`]);
//! it takes what the path brought (`on_*`) and yields bytes for the socket ([`Flow::inbox`]).
//!
//! What holds at every moment (and is asserted by the property tests):
//! - every byte of a direction is handed to the socket exactly once and in order, or the flow ends
//!   with a reset;
//! - an end never holds more unsent or unacknowledged bytes than its allowance, nor more received
//!   bytes than the window it granted;
//! - bytes are kept until the peer acknowledged that it *handed them on*, so that a lost path loses
//!   nothing;
//! - a FIN occupies one offset of its own, so that its acknowledgement is unambiguous;
//! - an end that gave up repeats its RST on every further path until the other end has confirmed
//!   it, or turned out not to know the flow: no farewell is lost with its path.

use bytes::Bytes;

use crate::byte_queue::ByteQueue;
use crate::close::Reason;
use crate::frame::OpenMode;

/// Most bytes that may be handed on before the peer is told at once, whatever its window.
const ACK_AT_MOST_EVERY: u64 = 64 * 1024;

/// Which end of the flow this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Holds the client's socket, opens and attaches.
    Origin,
    /// Holds the target's socket, answers.
    Target,
}

/// What the end wants to put on its path next; the link adds the flow's number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    Open {
        mode: OpenMode,
        received: u64,
        limit: u64,
    },
    OpenAck {
        received: u64,
        limit: u64,
    },
    Refuse {
        reason: Reason,
    },
    Data {
        offset: u64,
        payload: Bytes,
    },
    Fin {
        offset: u64,
    },
    Credit {
        acked: u64,
        limit: u64,
    },
    Rst {
        reason: Reason,
    },
}

/// What became of the payload of a DATA frame, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Accepted {
    /// New, now in the inbox.
    pub fresh: usize,
    /// Received before and dropped.
    pub duplicate: usize,
}

/// How a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Both directions ended with FIN and everything was acknowledged.
    Finished,
    /// This end gave up.
    Local(Reason),
    /// The other end gave up.
    Remote(Reason),
}

/// What is left to say, or to hear, about the end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Farewell {
    /// Nothing: the flow can be forgotten.
    Done,
    /// This end gave up, and the other one is to be told.
    Due,
    /// It was told on this path, and has not confirmed it.
    Unconfirmed,
    /// The other end gave up, which is to be confirmed.
    Echo,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Path {
    /// No link carries the flow.
    Detached,
    /// Origin: bound to a link, OPEN not sent.
    MustOpen(OpenMode),
    /// Origin: OPEN sent and not answered. Bytes may travel ahead only when the flow is new: after
    /// a resume the answer says where to begin.
    Opening(OpenMode),
    /// Target: bound, and the answer waits for the socket.
    Dialing,
    /// Target: bound, OPEN_ACK not sent.
    MustAnswer,
    /// Both sides know where they are.
    Live,
}

/// One end of a flow. See the module's documentation.
#[derive(Debug)]
pub struct Flow {
    side: Side,
    path: Path,
    /// The origin has seen an answer; the target has a socket.
    opened: bool,
    ending: Option<Ending>,
    farewell: Farewell,
    /// The other end confirms a reset.
    echoes: bool,
    /// An OPEN was sent on some path, so the other end may know the flow.
    offered: bool,
    /// How many OPENs came before the latest one: those that arrive later are outdated.
    attempt: u32,
    /// An OPEN was sent.
    attempted: bool,

    // Sending half.
    replay: ByteQueue,
    /// Below this everything was acknowledged; the replay begins here.
    acked: u64,
    /// Next byte to put on the current path.
    cursor: u64,
    /// Highest offset ever put on a path.
    sent: u64,
    /// Below this the peer takes bytes.
    limit: u64,
    allowance: u64,
    fin: bool,
    /// Sent on the current path.
    fin_sent: bool,
    /// Sent on any path, so that an acknowledgement may come before it is sent again.
    fin_offered: bool,
    fin_acked: bool,

    // Receiving half.
    inbox: ByteQueue,
    received: u64,
    handed: u64,
    window: u64,
    granted: u64,
    told: u64,
    resync: bool,
    ack_every: u64,
    fin_at: Option<u64>,
    fin_handed: bool,

    // Growth of the window: when and where the current measurement began.
    mark_ms: u64,
    mark_handed: u64,
}

impl Flow {
    /// A new end. `window` bytes are granted to the peer from the start; at most `allowance` bytes
    /// are kept for a peer that does not acknowledge; the peer takes `limit` bytes before its first
    /// credit.
    #[must_use]
    pub fn new(side: Side, window: u32, allowance: u32, limit: u64) -> Self {
        Self {
            side,
            path: Path::Detached,
            opened: false,
            ending: None,
            farewell: Farewell::Done,
            echoes: true,
            offered: side == Side::Target,
            attempt: 0,
            attempted: false,
            replay: ByteQueue::default(),
            acked: 0,
            cursor: 0,
            sent: 0,
            limit,
            allowance: u64::from(allowance),
            fin: false,
            fin_sent: false,
            fin_offered: false,
            fin_acked: false,
            inbox: ByteQueue::default(),
            received: 0,
            handed: 0,
            window: u64::from(window),
            granted: u64::from(window),
            told: 0,
            resync: false,
            ack_every: u64::from(window / 2).clamp(1, ACK_AT_MOST_EVERY),
            fin_at: None,
            fin_handed: false,
            mark_ms: 0,
            mark_handed: 0,
        }
    }

    // ---- between the socket and the path --------------------------------------------------------

    /// How many bytes may be taken from the socket now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.fin || self.ending.is_some() {
            return 0;
        }
        let end = self.end();
        let credit = self.limit.saturating_sub(end);
        let keep = self.allowance.saturating_sub(end - self.acked);
        usize::try_from(credit.min(keep)).unwrap_or(usize::MAX)
    }

    /// Takes bytes that were read from the socket; at most [`Flow::room`] of them.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(bytes.len() <= self.room(), "read beyond the room");
        if !self.fin && self.ending.is_none() {
            self.replay.push(bytes);
        }
    }

    /// The socket will bring no more bytes (it read end of file).
    pub fn push_fin(&mut self) {
        self.fin = true;
    }

    /// Whether the peer's credit, rather than the socket, holds this direction up.
    #[must_use]
    pub fn waits_for_credit(&self) -> bool {
        !self.fin && self.ending.is_none() && self.limit <= self.end()
    }

    /// Whether its own allowance holds this direction up although the peer would take more: a
    /// larger one ([`Flow::grow_allowance`]) would help.
    #[must_use]
    pub fn waits_for_allowance(&self) -> bool {
        let end = self.end();
        !self.fin && self.ending.is_none() && self.limit > end && end - self.acked >= self.allowance
    }

    /// Bytes for the socket, in order.
    #[must_use]
    pub fn inbox(&self) -> &ByteQueue {
        &self.inbox
    }

    /// Makes what waits in the inbox independent of the buffer it was received in. To be called
    /// when bytes of the frames at hand stay behind.
    pub fn settle(&mut self) {
        self.inbox.own();
    }

    /// The socket took the first `n` bytes of the inbox.
    pub fn hand_on(&mut self, n: usize) {
        debug_assert!(n <= self.inbox.len());
        self.inbox.advance(n);
        self.handed += n as u64;
    }

    /// Whether everything was handed on and the socket's writing half is to be shut down now.
    #[must_use]
    pub fn fin_due(&self) -> bool {
        !self.fin_handed && self.inbox.is_empty() && self.fin_at == Some(self.received)
    }

    /// The socket's writing half was shut down.
    pub fn fin_handed(&mut self) {
        debug_assert!(self.fin_due());
        self.fin_handed = true;
        self.settle_ending();
    }

    /// Target: the socket is there; the OPEN can be answered.
    pub fn connected(&mut self) {
        self.opened = true;
        if self.path == Path::Dialing {
            self.path = Path::MustAnswer;
        }
    }

    /// Ends the flow from this side. The peer is told as soon as a path can tell it; where the
    /// target end has no socket yet this is a refusal. The flow is [over](Flow::is_over) when the
    /// peer is known to have heard of it.
    pub fn abort(&mut self, reason: Reason) {
        if self.ending.is_none() {
            self.end_with(Ending::Local(reason));
            if self.offered {
                self.farewell = Farewell::Due;
            }
        }
    }

    /// Forgets a flow that has ended, whatever the peer knows of it.
    pub fn give_up(&mut self) {
        debug_assert!(self.ending.is_some());
        self.farewell = Farewell::Done;
    }

    /// Tells the peer of the end if it can be told now, and does not wait for an answer.
    pub fn tell_once(&mut self) {
        self.echoes = false;
        match self.farewell {
            Farewell::Unconfirmed => self.farewell = Farewell::Done,
            Farewell::Due if self.path == Path::Detached => self.farewell = Farewell::Done,
            _ => {}
        }
    }

    /// Whether the peer confirms a reset, which version 1 does not. A new flow's does.
    pub fn set_echoes(&mut self, echoes: bool) {
        self.echoes = echoes;
    }

    fn end_with(&mut self, ending: Ending) {
        self.ending = Some(ending);
        self.replay.clear();
        self.inbox.clear();
    }

    // ---- the path -------------------------------------------------------------------------------

    /// Origin: a link took the flow; `limit` is what its peer takes of a new flow unasked, and
    /// `ack_every` how many bytes it can do without acknowledgement.
    pub fn attach_origin(&mut self, limit: u64, ack_every: u32) {
        debug_assert_eq!(self.side, Side::Origin);
        self.repeat_farewell();
        self.set_ack_every(ack_every);
        self.path = Path::MustOpen(match (self.offered, self.opened) {
            (false, _) => {
                self.limit = limit;
                OpenMode::New
            }
            (true, true) => OpenMode::Resume,
            // After an abort the other end is only to be told, never to dial.
            (true, false) if self.ending.is_some() => OpenMode::Resume,
            (true, false) => OpenMode::ResumeOrNew,
        });
    }

    /// Origin: the other end refused, so no byte was delivered: the flow may be offered to another
    /// agent from its first byte.
    ///
    /// Returns false, and changes nothing, when the flow was already opened or has ended.
    #[must_use]
    pub fn rewind(&mut self) -> bool {
        if self.opened || self.ending.is_some() || self.acked != 0 || self.received != 0 {
            return false;
        }
        self.path = Path::Detached;
        self.offered = false;
        self.cursor = 0;
        self.sent = 0;
        self.limit = 0;
        self.fin_sent = false;
        self.fin_offered = false;
        true
    }

    /// Origin: the path was lost before an answer came. If nothing but the OPEN was ever sent, no
    /// byte can have been delivered, and the flow may be offered to another agent.
    ///
    /// Returns false, and changes nothing, when that is not so.
    #[must_use]
    pub fn withdraw(&mut self) -> bool {
        self.path == Path::Detached && self.sent == 0 && !self.fin_offered && self.rewind()
    }

    /// Target: an OPEN for this flow came over a link. `received` is what the origin has, `limit`
    /// what it takes.
    ///
    /// # Errors
    /// [`Reason::BadAck`] when it claims bytes that were never sent or denies acknowledged ones.
    pub fn attach_target(
        &mut self,
        received: u64,
        limit: u64,
        ack_every: u32,
    ) -> Result<(), Reason> {
        debug_assert_eq!(self.side, Side::Target);
        self.repeat_farewell();
        self.set_ack_every(ack_every);
        self.path = if self.opened {
            Path::MustAnswer
        } else {
            Path::Dialing
        };
        self.limit = limit;
        self.resume_from(received)
    }

    /// How many OPENs of the flow came before the latest one.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Target: an OPEN came that `attempt` others were sent before. False, and it must not be
    /// followed, when a later one has overtaken it on another path.
    #[must_use]
    pub fn follow(&mut self, attempt: u32) -> bool {
        let latest = attempt >= self.attempt;
        self.attempt = self.attempt.max(attempt);
        latest
    }

    /// The link is gone. What was on its way may be lost; what was received stays.
    pub fn detach(&mut self) {
        self.path = Path::Detached;
        self.repeat_farewell();
        match self.farewell {
            // Whoever gave up will hear that the flow is not known here.
            Farewell::Echo => self.farewell = Farewell::Done,
            Farewell::Due if !self.echoes => self.farewell = Farewell::Done,
            _ => {}
        }
    }

    fn repeat_farewell(&mut self) {
        if self.farewell == Farewell::Unconfirmed {
            self.farewell = Farewell::Due;
        }
    }

    /// Whether the other end has answered on the path that the flow has.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.path == Path::Live
    }

    /// Whether a link carries the flow.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.path != Path::Detached
    }

    fn set_ack_every(&mut self, ack_every: u32) {
        self.ack_every = u64::from(ack_every / 2)
            .clamp(1, ACK_AT_MOST_EVERY)
            .min((self.window / 2).max(1));
    }

    fn resume_from(&mut self, received: u64) -> Result<(), Reason> {
        if self.ending.is_some() {
            return Ok(());
        }
        if received > self.sent || received < self.acked {
            return Err(Reason::BadAck);
        }
        self.cursor = received;
        self.fin_sent = false;
        self.resync = true;
        Ok(())
    }

    /// What to put on the path next, or `None` when there is nothing or it may not be sent yet.
    /// Acknowledgements that are not urgent are left for later unless `flush` is set or data goes
    /// the same way anyway. With a `max_payload` of 0, data is left for later.
    pub fn next_step(&mut self, max_payload: usize, flush: bool) -> Option<Step> {
        match self.path {
            Path::Detached => return None,
            Path::MustOpen(mode) => {
                if self.ending.is_some() && !self.has_farewell() {
                    return None;
                }
                self.path = Path::Opening(mode);
                self.offered = true;
                if std::mem::replace(&mut self.attempted, true) {
                    self.attempt = self.attempt.saturating_add(1);
                }
                return Some(Step::Open {
                    mode,
                    received: self.received,
                    limit: self.granted,
                });
            }
            Path::MustAnswer if self.ending.is_none() => {
                self.path = Path::Live;
                return Some(Step::OpenAck {
                    received: self.received,
                    limit: self.granted,
                });
            }
            Path::Dialing if !self.has_farewell() => return None,
            _ => {}
        }
        if self.ending.is_some() {
            return self.farewell_step();
        }
        if matches!(self.path, Path::Opening(mode) if mode != OpenMode::New) {
            return None;
        }
        let data_end = self.end().min(self.limit);
        let has_data = self.cursor < data_end;
        let takes_data = has_data && max_payload > 0;
        if self.credit_due(flush || takes_data) && self.path == Path::Live {
            return Some(self.credit_step());
        }
        if has_data && !takes_data {
            return None;
        }
        if has_data {
            let most = usize::try_from(data_end - self.cursor)
                .unwrap_or(usize::MAX)
                .min(max_payload);
            let skip = usize::try_from(self.cursor - self.acked).unwrap_or(usize::MAX);
            let payload = self.replay.slice(skip, most);
            let offset = self.cursor;
            self.cursor += payload.len() as u64;
            self.sent = self.sent.max(self.cursor);
            return Some(Step::Data { offset, payload });
        }
        if self.fin && !self.fin_sent && self.cursor == self.end() {
            self.fin_sent = true;
            self.fin_offered = true;
            return Some(Step::Fin {
                offset: self.cursor,
            });
        }
        None
    }

    /// Whether [`Flow::next_step`] would yield something (acknowledgements that can wait aside).
    #[must_use]
    pub fn has_step(&self) -> bool {
        match self.path {
            Path::Detached => false,
            Path::MustOpen(_) | Path::MustAnswer => self.ending.is_none() || self.has_farewell(),
            _ if self.ending.is_some() => self.has_farewell(),
            Path::Dialing => false,
            Path::Opening(mode) if mode != OpenMode::New => false,
            Path::Opening(_) | Path::Live => {
                (self.path == Path::Live && self.credit_due(false))
                    || self.cursor < self.end().min(self.limit)
                    || (self.fin && !self.fin_sent && self.cursor == self.end())
            }
        }
    }

    /// Whether the peer does not know yet how much was handed on.
    #[must_use]
    pub fn owes_ack(&self) -> bool {
        self.path == Path::Live && self.ending.is_none() && self.ack() > self.told
    }

    fn has_farewell(&self) -> bool {
        matches!(self.farewell, Farewell::Due | Farewell::Echo)
    }

    fn farewell_step(&mut self) -> Option<Step> {
        let reason = match (self.farewell, self.ending) {
            (Farewell::Due, Some(Ending::Local(reason))) => reason,
            (Farewell::Echo, _) => {
                self.farewell = Farewell::Done;
                let reason = Reason::UnknownFlow;
                return Some(Step::Rst { reason });
            }
            _ => return None,
        };
        if self.side == Side::Target && !self.opened {
            // The origin takes it for an answer; if it is lost, the flow may be offered again.
            self.farewell = Farewell::Done;
            return Some(Step::Refuse { reason });
        }
        self.farewell = if self.echoes {
            Farewell::Unconfirmed
        } else {
            Farewell::Done
        };
        Some(Step::Rst { reason })
    }

    fn credit_due(&self, flush: bool) -> bool {
        let owed = self.ack() - self.told;
        self.resync
            || owed >= self.ack_every
            || (owed > 0 && (flush || self.fin_handed))
            || (self.fin_at.is_none()
                && self.handed + self.window >= self.granted + (self.window / 2).max(1))
    }

    fn credit_step(&mut self) -> Step {
        self.resync = false;
        self.told = self.ack();
        self.granted = self.granted.max(self.handed + self.window);
        self.settle_ending();
        Step::Credit {
            acked: self.told,
            limit: self.granted,
        }
    }

    // ---- from the path --------------------------------------------------------------------------

    /// Origin: the other end accepted or resumed the flow.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_open_ack(&mut self, received: u64, limit: u64) -> Result<(), Reason> {
        if self.ending.is_some() {
            return Ok(());
        }
        let Path::Opening(mode) = self.path else {
            return Err(Reason::ProtocolError);
        };
        if received > self.sent {
            return Err(Reason::BadAck);
        }
        self.path = Path::Live;
        self.opened = true;
        if mode == OpenMode::New {
            self.limit = self.limit.max(limit);
            Ok(())
        } else {
            // A hub in the middle may have less room than an earlier path had.
            self.limit = limit;
            self.resume_from(received)
        }
    }

    /// Origin: the other end does not take the flow. Whether another may be asked is for the
    /// caller to decide ([`Flow::rewind`]); otherwise it calls [`Flow::refused`].
    ///
    /// # Errors
    /// [`Reason::ProtocolError`] when the flow was not waiting for an answer.
    pub fn on_refuse(&mut self) -> Result<(), Reason> {
        match self.path {
            Path::Opening(_) => Ok(()),
            _ => Err(Reason::ProtocolError),
        }
    }

    /// Bytes came.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_data(&mut self, offset: u64, payload: Bytes) -> Result<Accepted, Reason> {
        if self.ending.is_some() {
            return Ok(Accepted::default());
        }
        let end = offset
            .checked_add(payload.len() as u64)
            .ok_or(Reason::ProtocolError)?;
        if self.fin_at.is_some_and(|fin| end > fin) {
            return Err(Reason::AfterFin);
        }
        if end > self.granted {
            return Err(Reason::BeyondCredit);
        }
        if offset > self.received {
            return Err(Reason::OffsetGap);
        }
        let len = payload.len();
        let duplicate = usize::try_from(self.received - offset)
            .unwrap_or(usize::MAX)
            .min(len);
        let fresh = len - duplicate;
        if fresh > 0 {
            self.inbox.push(payload.slice(duplicate..));
            self.received = end;
        }
        Ok(Accepted { fresh, duplicate })
    }

    /// The peer's direction ends at `offset`.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_fin(&mut self, offset: u64) -> Result<(), Reason> {
        match self.fin_at {
            _ if self.ending.is_some() => Ok(()),
            Some(fin) if fin == offset => {
                // Sent again, so our acknowledgement may be what was lost.
                self.resync |= self.path == Path::Live;
                Ok(())
            }
            Some(_) => Err(Reason::AfterFin),
            None if offset > self.received => Err(Reason::OffsetGap),
            None if offset < self.received => Err(Reason::ProtocolError),
            None => {
                self.fin_at = Some(offset);
                Ok(())
            }
        }
    }

    /// The peer handed bytes on and takes more.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_credit(&mut self, acked: u64, limit: u64) -> Result<(), Reason> {
        if self.ending.is_some() {
            return Ok(());
        }
        let fin_acked = self.fin_offered && acked == self.end() + 1;
        if acked > self.sent && !fin_acked {
            return Err(Reason::BadAck);
        }
        let acked = acked.min(self.sent);
        if acked > self.acked {
            self.replay
                .advance(usize::try_from(acked - self.acked).unwrap_or(usize::MAX));
            self.acked = acked;
            // A resumed peer may acknowledge what this path has not repeated yet.
            self.cursor = self.cursor.max(acked);
        }
        self.limit = self.limit.max(limit);
        self.fin_acked |= fin_acked;
        self.fin_sent |= fin_acked;
        self.settle_ending();
        Ok(())
    }

    /// The other end gave up, confirms that this one did ([`Reason::UnknownFlow`]), or does not
    /// know the flow (the same reason).
    pub fn on_rst(&mut self, reason: Reason) {
        let waits = self.echoes && reason != Reason::UnknownFlow;
        // An RST of our own that it gets, or has got, on this path is as good as an echo.
        let told = self.farewell == Farewell::Unconfirmed;
        if self.ending.is_none() {
            self.end_with(Ending::Remote(reason));
        }
        self.farewell = if waits && !told {
            Farewell::Echo
        } else {
            Farewell::Done
        };
    }

    /// Origin: no agent takes the flow.
    pub fn refused(&mut self, reason: Reason) {
        if self.ending.is_none() {
            self.end_with(Ending::Remote(reason));
        }
        self.farewell = Farewell::Done;
    }

    // ---- how it stands --------------------------------------------------------------------------

    /// How the flow ended, if it did.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Whether the flow ended, and there is nothing more to say or to hear about that.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ending.is_some() && self.farewell == Farewell::Done
    }

    /// Whether the socket has ended both ways in good order, so that even a reset flow closes it
    /// without a reset.
    #[must_use]
    pub fn socket_done(&self) -> bool {
        self.fin && self.fin_handed
    }

    /// Whether the other end accepted the flow (origin), or its socket is connected (target).
    #[must_use]
    pub fn is_opened(&self) -> bool {
        self.opened
    }

    /// Bytes taken from the socket so far.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.end()
    }

    /// Bytes given to the socket so far.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.handed
    }

    /// Bytes this end holds in memory, both directions.
    #[must_use]
    pub fn held(&self) -> usize {
        self.replay.len() + self.inbox.len()
    }

    fn end(&self) -> u64 {
        self.acked + self.replay.len() as u64
    }

    /// What is acknowledged: the bytes handed on, and one more for the FIN.
    fn ack(&self) -> u64 {
        self.handed + u64::from(self.fin_handed)
    }

    fn settle_ending(&mut self) {
        let told = !self.resync && self.told == self.ack();
        if self.ending.is_none() && self.fin_acked && self.fin_handed && told {
            self.ending = Some(Ending::Finished);
        }
    }

    // ---- growth ---------------------------------------------------------------------------------

    /// The window granted beyond what was handed on, in bytes.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }

    /// How many unacknowledged bytes this end keeps at most.
    #[must_use]
    pub fn allowance(&self) -> u64 {
        self.allowance
    }

    /// Whether a whole window went through within `within_ms`, so that the window and not the
    /// socket is what limits this direction. Asking starts the next measurement once a window has
    /// gone through.
    pub fn window_is_small(&mut self, now_ms: u64, within_ms: u64) -> bool {
        if self.handed - self.mark_handed < self.window {
            return false;
        }
        let took = now_ms.saturating_sub(self.mark_ms);
        self.mark_ms = now_ms;
        self.mark_handed = self.handed;
        took <= within_ms
    }

    /// Enlarges the window; the peer hears of it with the next credit.
    pub fn grow_window(&mut self, bytes: u64) {
        self.window = self.window.saturating_add(bytes);
    }

    /// Enlarges the allowance.
    pub fn grow_allowance(&mut self, bytes: u64) {
        self.allowance = self.allowance.saturating_add(bytes);
    }
}
