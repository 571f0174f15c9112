//! What becomes of a flow that was held: it goes on, or its OPEN is answered here.

use std::sync::Arc;

use nowconnect_proto::Reason;
use nowconnect_proto::relay::{Face, Relay};

use super::Relayed;

impl Relayed {
    /// Passes a held flow on, unless it is over by now. When the target's link has ended meanwhile,
    /// the origin finds another path.
    pub fn release(self: &Arc<Self>) {
        if self.is_over() {
            return;
        }
        if self.enter(Face::Target).is_err() {
            return self.path_lost(Face::Target, true);
        }
        self.let_go();
        // It may have ended while it entered.
        if self.is_over() {
            self.leave();
        }
    }

    /// Does not pass a held flow on: answers its OPEN with REFUSE.
    pub fn refuse(self: &Arc<Self>, reason: Reason) {
        self.decline(|relay| relay.refuse(reason));
    }

    /// The same with DETACH: the origin finds another path.
    pub fn give_back(self: &Arc<Self>, reason: Reason) {
        self.decline(|relay| relay.shed(reason));
    }

    /// One that has ended meanwhile goes on, to tell the target's end if that may know it.
    fn decline(self: &Arc<Self>, with: impl FnOnce(&mut Relay)) {
        let mut ended = false;
        self.change(|relay| {
            ended = relay.has_ended();
            if !ended {
                with(relay);
            }
        });
        if ended {
            self.release();
        }
    }

    /// Whether nothing is passed on any more: the origin gave up, or its link is gone.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state.lock().closed
    }

    pub(super) fn let_go(self: &Arc<Self>) {
        self.state.lock().held = false;
        self.change(|_| ());
    }
}
