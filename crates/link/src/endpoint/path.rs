//! Which link carries the flow: it comes onto one, leaves it, loses it, and waits for the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Wake;

use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::{FlowId, Reason};

use super::SocketFlow;
use crate::session::Link;

impl SocketFlow {
    /// Puts the flow on `link` as number `id` (origin).
    pub(crate) fn bind_origin(
        &self,
        link: &Arc<Link>,
        id: FlowId,
        epoch: u64,
        agent: Option<Arc<str>>,
    ) {
        self.leave_carrier(Some(link));
        let mut state = self.state.lock();
        let peer = link.peer();
        let echoes = !link.is_v1() && !state.is_hushed();
        state.flow.set_echoes(echoes);
        state
            .flow
            .attach_origin(u64::from(peer.first_window), peer.first_window);
        state.bind(id, epoch, agent);
        state.move_to(link.home());
    }

    /// Puts the flow on `link` as the number its OPEN came with (target).
    pub(crate) fn bind_target(
        &self,
        link: &Arc<Link>,
        id: FlowId,
        open: &Open,
    ) -> Result<(), Reason> {
        if !self.state.lock().flow.follow(open.attempt) {
            return Err(Reason::Moved);
        }
        self.leave_carrier(Some(link));
        let mut state = self.state.lock();
        if state.over || state.flow.is_over() {
            return Err(Reason::UnknownFlow);
        }
        let echoes = !link.is_v1() && !state.is_hushed();
        state.flow.set_echoes(echoes);
        let first_window = link.peer().first_window;
        state
            .flow
            .attach_target(open.received, open.limit, first_window)?;
        state.bind(id, open.epoch, None);
        state.move_to(link.home());
        Ok(())
    }

    pub(super) fn leave_carrier(&self, next: Option<&Arc<Link>>) {
        let previous = std::mem::replace(&mut *self.carrier.lock(), next.cloned());
        if let Some(previous) = previous {
            let id = self.state.lock().id;
            previous.forget(id, self.address());
            if next.is_some() && !previous.is_v1() {
                // A hub in the middle of the old path is to forget the flow as well.
                let reason = Reason::Moved;
                previous.send(Frame::Detach { id, reason });
            }
        }
    }

    /// Marks the flow as queued; true when it was not.
    pub(crate) fn set_queued(&self, queued: bool) -> bool {
        self.queued.swap(queued, Ordering::AcqRel) != queued
    }

    /// `link` was woken for the flow, or would have been. If another one carries the flow by now, it
    /// was not woken, because the flow was in a queue already.
    pub(crate) fn pass_on(self: &Arc<Self>, link: &Arc<Link>) {
        self.set_queued(false);
        if !self.is_carried_by(link) {
            self.wake_by_ref();
        }
    }

    /// The link is gone; `resumable` tells whether another may carry the flow.
    pub(crate) fn path_lost(self: &Arc<Self>, link: &Arc<Link>, resumable: bool) {
        self.lose_path(link, resumable, self.engine.now_ms());
    }

    /// `link` does not carry the flow any more, which has had no path since `since_ms`.
    pub(super) fn lose_path(self: &Arc<Self>, link: &Arc<Link>, resumable: bool, since_ms: u64) {
        {
            let mut carrier = self.carrier.lock();
            if !carrier
                .as_ref()
                .is_some_and(|carrier| Arc::ptr_eq(carrier, link))
            {
                return;
            }
            *carrier = None;
        }
        let (ended, over) = {
            let mut state = self.state.lock();
            state.flow.detach();
            state.detached_ms = Some(since_ms);
            state.waiting = false;
            state.owing = false;
            self.note_unblocked(&mut state);
            if !resumable {
                state.flow.abort(Reason::WsBroken);
                state.flow.give_up();
            }
            (state.flow.ending().is_some(), state.flow.is_over())
        };
        if ended {
            self.conclude();
        }
        if !over {
            self.events.path_lost(self)
        }
    }

    pub(crate) fn address(&self) -> *const () {
        std::ptr::from_ref(self).cast()
    }

    pub(super) fn is_carried_by(&self, link: &Arc<Link>) -> bool {
        self.carrier
            .lock()
            .as_ref()
            .is_some_and(|carrier| Arc::ptr_eq(carrier, link))
    }
}
