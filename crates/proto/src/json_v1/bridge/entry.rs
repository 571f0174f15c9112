//! What a bridge knows of one flow.

use std::collections::VecDeque;

use bytes::Bytes;

use super::NO_LIMIT;
use crate::frame::Frame;
use crate::ids::FlowId;

/// One flow.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: FlowId,
    /// The engine knows that the flow stands; until then nothing it sent counts as handed on.
    pub(super) answered: bool,
    /// Towards the peer: bytes and frames sent, and whether FIN was.
    pub(super) sent: u64,
    pub(super) sent_seq: u64,
    pub(super) sent_fin: bool,
    /// From the peer: frames that came, and whether FIN did.
    pub(super) came_seq: u64,
    pub(super) came_fin: bool,
    /// Towards the engine: bytes and FIN given, what it takes, and what waits for that.
    pub(super) given: u64,
    pub(super) given_fin: bool,
    pub(super) limit: u64,
    pub(super) waiting: VecDeque<Bytes>,
}

impl Entry {
    pub(super) fn new(id: FlowId, answered: bool, limit: u64) -> Self {
        Self {
            id,
            answered,
            sent: 0,
            sent_seq: 0,
            sent_fin: false,
            came_seq: 0,
            came_fin: false,
            given: 0,
            given_fin: false,
            limit,
            waiting: VecDeque::new(),
        }
    }

    /// Everything sent counts as handed on.
    pub(super) fn credit(&self) -> Frame {
        let acked = self.sent + u64::from(self.sent_fin);
        Frame::Credit {
            id: self.id,
            acked,
            limit: NO_LIMIT,
        }
    }

    /// The peer consents, if it has not before.
    pub(super) fn answer(&mut self, frames: &mut Vec<Frame>) {
        if self.answered {
            return;
        }
        self.answered = true;
        frames.push(Frame::OpenAck {
            id: self.id,
            received: 0,
            limit: NO_LIMIT,
        });
        if self.sent > 0 || self.sent_fin {
            frames.push(self.credit());
        }
    }

    /// Gives the engine what it takes; returns the bytes given.
    pub(super) fn release(&mut self, frames: &mut Vec<Frame>) -> usize {
        let before = self.given;
        while let Some(mut payload) = self.waiting.pop_front() {
            let room = usize::try_from(self.limit.saturating_sub(self.given)).unwrap_or(usize::MAX);
            if payload.len() > room {
                let rest = payload.split_off(room);
                self.waiting.push_front(rest);
            }
            if payload.is_empty() {
                break;
            }
            let offset = self.given;
            self.given += payload.len() as u64;
            frames.push(Frame::Data {
                id: self.id,
                offset,
                payload,
            });
        }
        if self.came_fin && !self.given_fin && self.waiting.is_empty() {
            self.given_fin = true;
            frames.push(Frame::Fin {
                id: self.id,
                offset: self.given,
            });
        }
        usize::try_from(self.given - before).unwrap_or(usize::MAX)
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Bytes::len).sum()
    }
}
