//! How many tokens are judged, and when the agents whose are not shall come back.
//!
//! When a hub restarts, all of its agents come at once. Judging a token costs a signature check, and
//! an agent that waits too long for its answer gives up and comes again, so the work for it was
//! wasted. So the hub judges as many as it can, and sends the others away until their turn: the
//! n-th of them is told to come back when n others have been judged. No clock and no randomness
//! inside.

use std::num::NonZeroU32;
use std::time::Duration;

use nowconnect_proto::bucket::Bucket;

use crate::policy::{Client, ClientBuckets};

/// Bad tokens in a second after which an address is sent away unjudged.
const FAILURES: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
/// Nobody is sent away for longer; when there are so many that their turns would be later, they come
/// back at any time of the second half of it.
const LONGEST: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Why an agent is sent away, and for how long: whole seconds, as `Retry-After` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shed {
    /// More agents come than are judged.
    Rate(Duration),
    /// Bad tokens came from its address.
    Failures(Duration),
}

impl Shed {
    /// What metrics and logs call it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Rate(_) => "rate",
            Self::Failures(_) => "failures",
        }
    }
}

/// Decides whose token is judged. Times count from any fixed instant on a monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Shedder {
    judged: Bucket,
    failures: ClientBuckets,
    /// Until when turns are given away.
    taken_until: Duration,
}

impl Shedder {
    /// Whether the token of an agent is judged now, when `per_sec` are; `random` is any 64 random bits.
    ///
    /// # Errors
    /// It is not; when to come back.
    pub(super) fn admit(
        &mut self,
        from: Client,
        now: Duration,
        per_sec: NonZeroU32,
        random: u64,
    ) -> Result<(), Shed> {
        if self.failures.wait(from, now, FAILURES).is_some() {
            return Err(Shed::Failures(SECOND));
        }
        let taken = self.judged.take(now, per_sec);
        taken.map_err(|_| Shed::Rate(self.turn(now, per_sec, random)))
    }

    /// The token from there was bad.
    pub(super) fn note_failed(&mut self, from: Client, now: Duration) {
        // An address that is over already pays no more.
        let _ = self.failures.take(from, now, FAILURES);
    }

    /// How long from `now` until the next turn that is not given away, as whole seconds: up or down,
    /// in proportion, so that as many come in each of them.
    fn turn(&mut self, now: Duration, per_sec: NonZeroU32, random: u64) -> Duration {
        let turn = self.taken_until.max(now) + SECOND / per_sec.get();
        let (wait, spread) = if turn - now <= LONGEST {
            self.taken_until = turn;
            (turn - now, SECOND)
        } else {
            (LONGEST / 2, LONGEST / 2)
        };
        let random = (random >> 32) as u32;
        let jitter = spread.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0));
        Duration::from_secs((wait + jitter).as_secs().max(1))
    }
}

#[cfg(test)]
mod tests;
