//! The half that sends: bytes of the socket, kept until the peer has handed them on.
//!
//! At every moment `acked <= cursor <= sent <= end`; a new path moves `cursor` back, nothing else
//! moves back as long as the flow stays with the same peer.

use bytes::Bytes;

use super::Step;
use crate::byte_queue::ByteQueue;
use crate::close::Reason;

#[derive(Debug)]
pub(super) struct Sending {
    /// The bytes from `acked` to `end`.
    replay: ByteQueue,
    /// Below this everything was acknowledged.
    acked: u64,
    /// Next byte to put on the current path.
    cursor: u64,
    /// Highest offset ever put on a path.
    sent: u64,
    /// Below this the peer takes bytes.
    limit: u64,
    /// How many bytes are kept for a peer that does not acknowledge.
    allowance: u64,
    /// The socket brings no more bytes.
    fin: bool,
    /// Sent on the current path.
    fin_sent: bool,
    /// Sent on any path, so that an acknowledgement may come before it is sent again.
    fin_offered: bool,
    fin_acked: bool,
}

impl Sending {
    pub(super) fn new(limit: u64, allowance: u32) -> Self {
        Self {
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
        }
    }

    /// Bytes taken from the socket so far.
    pub(super) fn end(&self) -> u64 {
        self.acked + self.replay.len() as u64
    }

    /// Bytes in memory.
    pub(super) fn held(&self) -> usize {
        self.replay.len()
    }

    /// How many bytes may be taken from the socket now.
    pub(super) fn room(&self) -> usize {
        if self.fin {
            return 0;
        }
        let end = self.end();
        let credit = self.limit.saturating_sub(end);
        let keep = self.allowance.saturating_sub(end - self.acked);
        usize::try_from(credit.min(keep)).unwrap_or(usize::MAX)
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if !self.fin {
            self.replay.push(bytes);
        }
    }

    pub(super) fn push_fin(&mut self) {
        self.fin = true;
    }

    pub(super) fn has_fin(&self) -> bool {
        self.fin
    }

    pub(super) fn waits_for_credit(&self) -> bool {
        !self.fin && self.limit <= self.end()
    }

    pub(super) fn waits_for_allowance(&self) -> bool {
        let end = self.end();
        !self.fin && self.limit > end && end - self.acked >= self.allowance
    }

    pub(super) fn allowance(&self) -> u64 {
        self.allowance
    }

    pub(super) fn grow_allowance(&mut self, bytes: u64) {
        self.allowance = self.allowance.saturating_add(bytes);
    }

    /// What the peer takes from now on: a path may have less room than an earlier one had.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    pub(super) fn raise_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Whether it can be that the peer has `received` bytes.
    pub(super) fn was_sent(&self, received: u64) -> bool {
        received <= self.sent
    }

    /// Whether nothing but the OPEN was ever sent.
    pub(super) fn is_untouched(&self) -> bool {
        self.sent == 0 && !self.fin_offered
    }

    /// Whether the peer has acknowledged anything, be it the FIN alone.
    pub(super) fn has_acked(&self) -> bool {
        self.acked != 0 || self.fin_acked
    }

    /// Begins again from the first byte, for another peer. Nothing was acknowledged yet.
    pub(super) fn rewind(&mut self) {
        debug_assert_eq!(self.acked, 0);
        self.cursor = 0;
        self.sent = 0;
        self.limit = 0;
        self.fin_sent = false;
        self.fin_offered = false;
    }

    /// Goes on over another path with a peer that has `received` bytes.
    pub(super) fn resume_from(&mut self, received: u64) -> Result<(), Reason> {
        if received > self.sent || received < self.acked {
            return Err(Reason::BadAck);
        }
        self.cursor = received;
        self.fin_sent = false;
        Ok(())
    }

    /// Whether the path can have data now.
    pub(super) fn has_data(&self) -> bool {
        self.cursor < self.end().min(self.limit)
    }

    pub(super) fn has_step(&self) -> bool {
        self.has_data() || self.fin_due()
    }

    fn fin_due(&self) -> bool {
        self.fin && !self.fin_sent && self.cursor == self.end()
    }

    /// Data, or the FIN behind the last of it. With a `max_payload` of 0, data is left for later.
    pub(super) fn next_step(&mut self, max_payload: usize) -> Option<Step> {
        if self.has_data() {
            return (max_payload > 0).then(|| self.next_data(max_payload));
        }
        if !self.fin_due() {
            return None;
        }
        self.fin_sent = true;
        self.fin_offered = true;
        Some(Step::Fin {
            offset: self.cursor,
        })
    }

    fn next_data(&mut self, max_payload: usize) -> Step {
        let offset = self.cursor;
        let most = usize::try_from(self.end().min(self.limit) - offset)
            .unwrap_or(usize::MAX)
            .min(max_payload);
        let skip = usize::try_from(offset - self.acked).unwrap_or(usize::MAX);
        let payload = self.replay.slice(skip, most);
        self.cursor += payload.len() as u64;
        self.sent = self.sent.max(self.cursor);
        Step::Data { offset, payload }
    }

    /// The peer handed on what is below `acked` (the FIN counts as one more), and takes bytes below
    /// `limit`.
    pub(super) fn on_credit(&mut self, acked: u64, limit: u64) -> Result<(), Reason> {
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
        self.raise_limit(limit);
        self.fin_acked |= fin_acked;
        self.fin_sent |= fin_acked;
        Ok(())
    }

    /// Whether the peer has handed on everything, the FIN included.
    pub(super) fn is_finished(&self) -> bool {
        self.fin_acked
    }

    /// The flow has ended: nobody will ask for these bytes.
    pub(super) fn clear(&mut self) {
        self.replay.clear();
    }
}
