//! What a link sees of a flow: the path it has, what goes out on it and what came in.

use bytes::Bytes;

use super::{Accepted, Flow, Side, Step};
use crate::close::Reason;
use crate::frame::OpenMode;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
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

impl Flow {
    /// Target: the socket is there; the OPEN can be answered.
    pub fn connected(&mut self) {
        self.opened = true;
        if self.path == Path::Dialing {
            self.path = Path::MustAnswer;
        }
    }

    /// Origin: a link took the flow; `limit` is what its peer takes of a new flow unasked, and
    /// `ack_every` how many bytes it can do without acknowledgement.
    pub fn attach_origin(&mut self, limit: u64, ack_every: u32) {
        debug_assert_eq!(self.side, Side::Origin);
        self.farewell.repeat();
        self.receiving.ack_within(ack_every);
        self.path = Path::MustOpen(match (self.offered, self.opened) {
            (false, _) => {
                self.sending.set_limit(limit);
                OpenMode::New
            }
            (true, true) => OpenMode::Resume,
            // After an abort the other end is only to be told, never to dial.
            (true, false) if self.has_ended() => OpenMode::Resume,
            (true, false) => OpenMode::ResumeOrNew,
        });
    }

    /// Origin: the other end refused, so no byte was delivered: the flow may be offered to another
    /// agent from its first byte.
    ///
    /// Returns false, and changes nothing, when the flow was already opened or has ended.
    #[must_use]
    pub fn rewind(&mut self) -> bool {
        let heard = self.sending.has_acked() || self.receiving.has_begun();
        if self.opened || self.has_ended() || heard {
            return false;
        }
        self.path = Path::Detached;
        self.offered = false;
        self.sending.rewind();
        true
    }

    /// Origin: the path was lost before an answer came. If nothing but the OPEN was ever sent, no
    /// byte can have been delivered, and the flow may be offered to another agent.
    ///
    /// Returns false, and changes nothing, when that is not so.
    #[must_use]
    pub fn withdraw(&mut self) -> bool {
        !self.is_attached() && self.sending.is_untouched() && self.rewind()
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
        self.farewell.repeat();
        self.receiving.ack_within(ack_every);
        self.path = if self.opened {
            Path::MustAnswer
        } else {
            Path::Dialing
        };
        self.sending.set_limit(limit);
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
        self.farewell.lose_path();
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

    fn resume_from(&mut self, received: u64) -> Result<(), Reason> {
        if self.has_ended() {
            return Ok(());
        }
        self.sending.resume_from(received)?;
        self.receiving.resync();
        Ok(())
    }

    /// What to put on the path next, or `None` when there is nothing or it may not be sent yet.
    /// Acknowledgements that are not urgent are left for later unless `flush` is set or data goes
    /// the same way anyway. With a `max_payload` of 0, data is left for later.
    pub fn next_step(&mut self, max_payload: usize, flush: bool) -> Option<Step> {
        match self.path {
            Path::Detached => return None,
            Path::MustOpen(mode) => {
                if !self.may_speak() {
                    return None;
                }
                self.path = Path::Opening(mode);
                self.offered = true;
                if std::mem::replace(&mut self.attempted, true) {
                    self.attempt = self.attempt.saturating_add(1);
                }
                return Some(Step::Open {
                    mode,
                    received: self.receiving.received(),
                    limit: self.receiving.granted(),
                });
            }
            Path::MustAnswer if !self.has_ended() => {
                self.path = Path::Live;
                return Some(Step::OpenAck {
                    received: self.receiving.received(),
                    limit: self.receiving.granted(),
                });
            }
            Path::Dialing if !self.farewell.has_word() => return None,
            _ => {}
        }
        if self.has_ended() {
            let refuse = self.side == Side::Target && !self.opened;
            return self.farewell.next_step(refuse);
        }
        if matches!(self.path, Path::Opening(mode) if mode != OpenMode::New) {
            return None;
        }
        let flush = flush || (self.sending.has_data() && max_payload > 0);
        if self.is_live() && self.receiving.credit_due(flush) {
            let credit = self.receiving.credit();
            self.settle_ending();
            return Some(credit);
        }
        self.sending.next_step(max_payload)
    }

    /// Whether [`Flow::next_step`] would yield something (acknowledgements that can wait aside).
    #[must_use]
    pub fn has_step(&self) -> bool {
        match self.path {
            Path::Detached => false,
            Path::MustOpen(_) | Path::MustAnswer => self.may_speak(),
            _ if self.has_ended() => self.farewell.has_word(),
            Path::Dialing => false,
            Path::Opening(mode) if mode != OpenMode::New => false,
            Path::Opening(_) => self.sending.has_step(),
            Path::Live => self.receiving.credit_due(false) || self.sending.has_step(),
        }
    }

    /// Whether the peer does not know yet how much was handed on.
    #[must_use]
    pub fn owes_ack(&self) -> bool {
        self.is_live() && !self.has_ended() && self.receiving.owes_ack()
    }

    /// A flow that has ended takes a path only to say so.
    fn may_speak(&self) -> bool {
        !self.has_ended() || self.farewell.has_word()
    }

    /// Origin: the other end accepted or resumed the flow.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_open_ack(&mut self, received: u64, limit: u64) -> Result<(), Reason> {
        if self.has_ended() {
            return Ok(());
        }
        let Path::Opening(mode) = self.path else {
            return Err(Reason::ProtocolError);
        };
        if !self.sending.was_sent(received) {
            return Err(Reason::BadAck);
        }
        self.path = Path::Live;
        self.opened = true;
        if mode == OpenMode::New {
            self.sending.raise_limit(limit);
            Ok(())
        } else {
            // A hub in the middle may have less room than an earlier path had.
            self.sending.set_limit(limit);
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
        if self.has_ended() {
            return Ok(Accepted::default());
        }
        self.receiving.on_data(offset, payload)
    }

    /// The peer's direction ends at `offset`.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_fin(&mut self, offset: u64) -> Result<(), Reason> {
        if self.has_ended() {
            return Ok(());
        }
        let again = self.receiving.on_fin(offset)?;
        if again && self.is_live() {
            // Our acknowledgement may be what was lost.
            self.receiving.resync();
        }
        Ok(())
    }

    /// The peer handed bytes on and takes more.
    ///
    /// # Errors
    /// The reason to reset the flow with.
    pub fn on_credit(&mut self, acked: u64, limit: u64) -> Result<(), Reason> {
        if self.has_ended() {
            return Ok(());
        }
        self.sending.on_credit(acked, limit)?;
        self.settle_ending();
        Ok(())
    }

    /// The other end gave up, confirms that this one did ([`Reason::UnknownFlow`]), or does not
    /// know the flow (the same reason).
    pub fn on_rst(&mut self, reason: Reason) {
        if self.farewell.on_rst(reason) {
            self.clear();
        }
    }

    /// Origin: no agent takes the flow.
    pub fn refused(&mut self, reason: Reason) {
        if self.farewell.on_refusal(reason) {
            self.clear();
        }
    }
}
