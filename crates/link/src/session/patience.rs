//! How much a peer may say that moves nothing.
//!
//! Pings, credit, empty messages and frames of unknown types cost their sender next to nothing, and
//! every one makes the receiver look. An honest peer says such things because something happened: bytes
//! moved, a flow was opened, some time passed. Each of these earns patience, each word that moves nothing
//! uses some up, and a peer that has used it all up is flooding us. What it may do at most is then bounded,
//! whatever it sends.

/// What one idle word costs, in units of patience. A byte of payload earns one.
const WORD: u64 = 1024;
/// Words that may come every second, however little happens.
const WORDS_A_SECOND: u64 = 2_000;
/// The same for each flow: acknowledgements that can wait are sent every 25 ms.
const WORDS_A_SECOND_AND_FLOW: u64 = 50;
/// What was not used is kept for so many seconds: a path that stalls delivers everything at once.
const SECONDS_KEPT: u64 = 10;
/// Words about the link itself, which are rare and cost more, count as so many.
pub(super) const CONTROL: u64 = 200;
/// What follows a flow's opening (its end, its reset, an acknowledgement), in words.
pub(super) const OPENING: u64 = 8;

/// The patience with one peer. Times are microseconds of one clock.
#[derive(Debug)]
pub(super) struct Patience {
    left: u64,
    refilled_at: u64,
}

impl Patience {
    pub(super) fn new(now: u64) -> Self {
        let left = WORD * WORDS_A_SECOND * SECONDS_KEPT;
        Self {
            left,
            refilled_at: now,
        }
    }

    /// Time has passed, on a link with so many flows.
    pub(super) fn refill(&mut self, now: u64, flows: usize) {
        let rate = WORD * (WORDS_A_SECOND + WORDS_A_SECOND_AND_FLOW * flows as u64);
        let passed = now.saturating_sub(self.refilled_at);
        self.refilled_at = now;
        let most = rate * SECONDS_KEPT;
        self.left = (self.left + rate.saturating_mul(passed) / 1_000_000).min(most);
    }

    /// So many bytes of payload moved, in either direction.
    pub(super) fn earn(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes as u64);
    }

    /// Something happened that makes an honest peer say so many words.
    pub(super) fn expect(&mut self, words: u64) {
        self.left = self.left.saturating_add(WORD * words);
    }

    /// The peer said so many words that moved nothing; false when that is too much.
    pub(super) fn spend(&mut self, words: u64) -> bool {
        let enough = self.left >= WORD * words;
        self.left = self.left.saturating_sub(WORD * words);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// How many words are borne until there is no more patience, with `between` after each.
    fn borne(
        patience: &mut Patience,
        most: u64,
        mut between: impl FnMut(&mut Patience, u64),
    ) -> u64 {
        (0..most)
            .find(|n| {
                let enough = patience.spend(1);
                between(patience, *n);
                !enough
            })
            .unwrap_or(most)
    }

    #[test]
    fn a_flood_ends_soon() {
        let mut patience = Patience::new(0);
        assert_eq!(borne(&mut patience, 1 << 20, |_, _| ()), 20_000);
        patience.refill(SECOND, 0);
        assert_eq!(borne(&mut patience, 1 << 20, |_, _| ()), 2_000);
    }

    #[test]
    fn acknowledgements_of_many_slow_flows_are_borne_for_ever() {
        let mut patience = Patience::new(0);
        for second in 1..100 {
            patience.refill(second * SECOND, 1000);
            assert_eq!(borne(&mut patience, 40 * 1000, |_, _| ()), 40 * 1000);
        }
    }

    #[test]
    fn a_stall_of_some_seconds_is_forgiven() {
        let mut patience = Patience::new(0);
        patience.refill(9 * SECOND, 1000);
        assert_eq!(borne(&mut patience, 9 * 40_000, |_, _| ()), 9 * 40_000);
    }

    #[test]
    fn pings_that_go_with_bytes_are_borne() {
        let mut patience = Patience::new(0);
        // A ping for every quarter of the smallest window.
        let with_bytes = |patience: &mut Patience, _| patience.earn(4 * 1024);
        assert_eq!(borne(&mut patience, 1 << 20, with_bytes), 1 << 20);
    }
}
