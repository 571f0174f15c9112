//! What is wanted of the link to a peer, and what its keeper does about it. No I/O.

use std::time::{Duration, Instant};

use nowconnect_proto::Reason;

/// What is wanted of the link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Keep it up.
    Run,
    /// High availability is off: keep it up for the flows that cross it, and for no others.
    Finish,
    /// Open no new flows, and close it when those there are have ended.
    Leave(Reason),
    /// Close it now.
    Close(Reason),
}

/// What the keeper of a link does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Make a link.
    Dial,
    /// Look again in a moment: an earlier link still carries what there is.
    Wait,
    /// No link will be wanted.
    Stop,
}

/// What flows of this hub depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crossing {
    /// Some live over the peer, or wait for a path there.
    pub(super) needed: bool,
    /// There is a link to it that can carry them.
    pub(super) carried: bool,
}

impl Order {
    /// What is to be done while there is no link that takes new flows.
    pub(super) fn next(self, crossing: Crossing) -> Next {
        match (self, crossing) {
            (Self::Run, _) => Next::Dial,
            (Self::Finish, Crossing { needed: false, .. }) => Next::Stop,
            (Self::Finish, Crossing { carried: true, .. }) => Next::Wait,
            (Self::Finish, _) => Next::Dial,
            (Self::Leave(_) | Self::Close(_), _) => Next::Stop,
        }
    }

    /// Whether a link that stands is to be kept.
    pub(super) fn keeps(self, needed: bool) -> bool {
        self == Self::Run || self == Self::Finish && needed
    }
}

impl Crossing {
    /// Whether flows wait for a link to be made.
    pub(super) fn waits(self) -> bool {
        self.needed && !self.carried
    }
}

/// Whether peers may dial a hub whose high availability is off: those with flows that cross it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses(Option<Instant>);

impl Losses {
    /// A link that a peer had dialed was lost.
    pub(super) fn note(&mut self, now: Instant) {
        self.0 = Some(now);
    }

    /// Whether flows of it may still wait for their path: for `grace`, as all flows do.
    pub(super) fn are_recent(&self, now: Instant, grace: Duration) -> bool {
        self.0
            .is_some_and(|at| now.saturating_duration_since(at) < grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Crossing; 4] = [
        crossing(false, false),
        crossing(false, true),
        crossing(true, false),
        crossing(true, true),
    ];

    const fn crossing(needed: bool, carried: bool) -> Crossing {
        Crossing { needed, carried }
    }

    #[test]
    fn a_hub_that_is_off_dials_for_waiting_flows_alone() {
        let next = ALL.map(|crossing| Order::Finish.next(crossing));
        assert_eq!(next, [Next::Stop, Next::Stop, Next::Dial, Next::Wait]);
        let waits = ALL.map(Crossing::waits);
        assert_eq!(waits, [false, false, true, false]);
    }

    #[test]
    fn a_link_stays_while_it_is_on_or_needed() {
        assert!(Order::Run.keeps(false) && Order::Finish.keeps(true));
        assert!(!Order::Finish.keeps(false));
        for order in [
            Order::Leave(Reason::Removed),
            Order::Close(Reason::Shutdown),
        ] {
            assert!(!order.keeps(true));
            assert_eq!(ALL.map(|crossing| order.next(crossing)), [Next::Stop; 4]);
        }
        assert_eq!(ALL.map(|one| Order::Run.next(one)), [Next::Dial; 4]);
    }

    #[test]
    fn who_lost_a_link_may_dial_for_the_grace() {
        let (now, grace) = (Instant::now(), Duration::from_secs(30));
        let mut losses = Losses::default();
        assert!(!losses.are_recent(now, grace));
        losses.note(now);
        assert!(losses.are_recent(now + grace - Duration::from_millis(1), grace));
        assert!(!losses.are_recent(now + grace, grace));
    }
}
