//! The half that receives: bytes of the path, held until the socket took them.
//!
//! At every moment `handed <= received <= granted`. What the peer is told is how much was handed
//! on, never how much arrived: what it forgets must be beyond loss.

use bytes::Bytes;

use super::{Accepted, Step};
use crate::byte_queue::ByteQueue;
use crate::close::Reason;

/// Most bytes that may be handed on before the peer is told at once, whatever its window.
const ACK_AT_MOST_EVERY: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Receiving {
    /// The bytes from `handed` to `received`.
    inbox: ByteQueue,
    received: u64,
    /// The socket took what is below this.
    handed: u64,
    /// What the peer may send beyond what was handed on.
    window: u64,
    /// Below this the peer was allowed to send.
    granted: u64,
    /// What the peer knows to be handed on, the FIN included.
    told: u64,
    /// The peer is to be told whatever it knows: a path was lost, and with it perhaps a credit.
    resync: bool,
    /// How many bytes may be handed on before the peer must be told.
    ack_every: u64,
    fin_at: Option<u64>,
    /// The socket's writing half was shut down.
    fin_handed: bool,

    /// When and where the measurement began by which the window grows.
    mark_ms: u64,
    mark_handed: u64,
}

impl Receiving {
    pub(super) fn new(window: u32) -> Self {
        Self {
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

    /// Whether the peer has said anything, be it the FIN alone.
    pub(super) fn has_begun(&self) -> bool {
        self.received != 0 || self.fin_at.is_some()
    }

    pub(super) fn inbox(&self) -> &ByteQueue {
        &self.inbox
    }

    pub(super) fn own(&mut self) {
        self.inbox.own();
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn handed(&self) -> u64 {
        self.handed
    }

    pub(super) fn granted(&self) -> u64 {
        self.granted
    }

    pub(super) fn hand_on(&mut self, n: usize) {
        debug_assert!(n <= self.inbox.len());
        self.inbox.advance(n);
        self.handed += n as u64;
    }

    pub(super) fn fin_due(&self) -> bool {
        !self.fin_handed && self.inbox.is_empty() && self.fin_at == Some(self.received)
    }

    pub(super) fn hand_fin_on(&mut self) {
        debug_assert!(self.fin_due());
        self.fin_handed = true;
    }

    /// Whether the socket took everything, the FIN included.
    pub(super) fn is_handed(&self) -> bool {
        self.fin_handed
    }

    /// Whether the socket took everything, and the peer was told on the path that there is.
    pub(super) fn is_finished(&self) -> bool {
        self.fin_handed && !self.resync && self.told == self.ack()
    }

    /// What is acknowledged: the bytes handed on, and one more for the FIN.
    fn ack(&self) -> u64 {
        self.handed + u64::from(self.fin_handed)
    }

    pub(super) fn owes_ack(&self) -> bool {
        self.ack() > self.told
    }

    /// What is asked by a peer that can do without acknowledgement for `bytes`.
    pub(super) fn ack_within(&mut self, bytes: u32) {
        self.ack_every = u64::from(bytes / 2)
            .clamp(1, ACK_AT_MOST_EVERY)
            .min((self.window / 2).max(1));
    }

    /// The peer is to be told again.
    pub(super) fn resync(&mut self) {
        self.resync = true;
    }

    /// Whether the peer is to be told now; when `flush` is set, of everything that it does not know.
    pub(super) fn credit_due(&self, flush: bool) -> bool {
        let owed = self.ack() - self.told;
        self.resync
            || owed >= self.ack_every
            || (owed > 0 && (flush || self.fin_handed))
            || (self.fin_at.is_none()
                && self.handed + self.window >= self.granted + (self.window / 2).max(1))
    }

    pub(super) fn credit(&mut self) -> Step {
        self.resync = false;
        self.told = self.ack();
        self.granted = self.granted.max(self.handed + self.window);
        Step::Credit {
            acked: self.told,
            limit: self.granted,
        }
    }

    pub(super) fn on_data(&mut self, offset: u64, payload: Bytes) -> Result<Accepted, Reason> {
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

    /// The peer's direction ends at `offset`. Whether it has said so before.
    pub(super) fn on_fin(&mut self, offset: u64) -> Result<bool, Reason> {
        match self.fin_at {
            Some(fin) if fin == offset => Ok(true),
            Some(_) => Err(Reason::AfterFin),
            None if offset > self.received => Err(Reason::OffsetGap),
            None if offset < self.received => Err(Reason::ProtocolError),
            None => {
                self.fin_at = Some(offset);
                Ok(false)
            }
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }

    pub(super) fn window_is_small(&mut self, now_ms: u64, within_ms: u64) -> bool {
        if self.handed - self.mark_handed < self.window {
            return false;
        }
        let took = now_ms.saturating_sub(self.mark_ms);
        self.mark_ms = now_ms;
        self.mark_handed = self.handed;
        took <= within_ms
    }

    pub(super) fn grow_window(&mut self, bytes: u64) {
        self.window = self.window.saturating_add(bytes);
    }

    /// The flow has ended: the socket takes no more.
    pub(super) fn clear(&mut self) {
        self.inbox.clear();
    }
}
