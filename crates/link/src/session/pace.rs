//! How much may be on its way on one link.
//!
//! What lies in front of a slow path, in our buffers, the kernel's, or those of proxies and
//! routers, makes every other flow and every ping wait. All of it is bounded here, wherever it
//! lies: only what the peer has seen, which a pong tells, makes room for more. The bound is
//! generous until round trips become long because of it; then it is what the path carries in a
//! few round trips and a little more.

/// The bound of a new link, in bytes.
const FIRST: u64 = 64 * 1024;
/// The bound never falls below this, in bytes.
const LEAST: u64 = 16 * 1024;
/// The bound never rises above this, in bytes: 5 Gbit/s at 100 ms of round-trip time.
const MOST: u64 = 64 * 1024 * 1024;
/// Less room than this is none: small pieces cost as much as large ones.
const LEAST_ROOM: u64 = LEAST / 4;
/// What the path is to have in stock beyond four of its empty round trips, in microseconds.
const STOCK: u64 = 250_000;
/// A round trip longer than four empty ones and this is too long, in microseconds.
const LONG: u64 = 400_000;
/// After so many long round trips in a row it is the path that is long.
const ENDURED: u32 = 4;
/// The rate is measured over at least this time, in microseconds.
const SPAN: u64 = 100_000;
/// Turns of flows a second, at least, when they have to wait for each other.
const TURNS: u64 = 50;

/// Watches one link. Times are microseconds of one clock, amounts count all bytes that were ever
/// put on the link.
#[derive(Debug)]
pub(super) struct Pace {
    window: u64,
    /// The window never grows beyond this.
    most: u64,
    /// What the peer has got for sure.
    seen: u64,
    /// What was put on the link before the ping that waits for its pong, and before the last one.
    asked: Option<u64>,
    asked_last: u64,
    /// The round trip of the empty path.
    base: Option<u64>,
    /// The window kept bytes back since the measurement began, and in the one before.
    limited: [bool; 2],
    /// What the peer had got when the measurement began, and when that was.
    mark: (u64, u64),
    /// Bytes per second, as of the last two measurements.
    rates: [u64; 2],
    /// Long round trips in a row, and the shortest of them.
    long: (u32, u64),
}

impl Pace {
    /// At most `most` bytes are to be on their way, however much the path carries.
    pub(super) fn new(now: u64, most: u64) -> Self {
        let most = most.min(MOST);
        Self {
            window: FIRST.min(most),
            most,
            seen: 0,
            asked: None,
            asked_last: 0,
            base: None,
            limited: [false; 2],
            mark: (0, now),
            rates: [0; 2],
            long: (0, u64::MAX),
        }
    }

    /// How many bytes may follow the `put` ones that the link has got.
    pub(super) fn room(&self, put: u64) -> u64 {
        let room = (self.seen + self.window).saturating_sub(put);
        if room < LEAST_ROOM { 0 } else { room }
    }

    /// The most that one flow may send before others have their turn.
    pub(super) fn share(&self) -> u64 {
        if self.limited == [false; 2] {
            return u64::MAX;
        }
        (self.carries() / TURNS).max(LEAST_ROOM)
    }

    /// Bytes that the peer is not known to have got, of the `put` ones.
    pub(super) fn in_flight(&self, put: u64) -> u64 {
        put.saturating_sub(self.seen)
    }

    /// Whether the window is as large as it may be.
    pub(super) fn is_bounded(&self) -> bool {
        self.window >= self.most
    }

    /// Bytes wait for room.
    pub(super) fn note_limited(&mut self) {
        self.limited[0] = true;
    }

    /// Whether it is time to ask what the peer has got.
    pub(super) fn wants_ping(&self, put: u64) -> bool {
        self.asked.is_none() && put.saturating_sub(self.asked_last) >= self.window / 4
    }

    /// A ping follows the first `put` bytes.
    pub(super) fn on_ping(&mut self, put: u64) {
        self.asked = Some(put);
        self.asked_last = put;
    }

    /// Its pong came, after `rtt`.
    pub(super) fn on_pong(&mut self, rtt: u64, now: u64) {
        let Some(seen) = self.asked.take() else {
            return;
        };
        self.seen = self.seen.max(seen);
        let base = self.judge(rtt);
        let took = now.saturating_sub(self.mark.1);
        if took < SPAN {
            return;
        }
        let rate = (self.seen - self.mark.0).saturating_mul(1_000_000) / took;
        self.rates = [rate, self.rates[0]];
        self.mark = (self.seen, now);
        let limited = self.limited[0];
        self.limited = [false, limited];
        if !limited {
            return;
        }
        let wanted = self.carries().saturating_mul(4 * base + STOCK) / 1_000_000;
        if wanted > self.window {
            self.window = wanted.min(self.window * 2).min(self.most);
        } else if self.long.0 > 0 {
            self.window = wanted.max(LEAST).min(self.most);
        }
    }

    /// Learns from a round trip what the empty path takes.
    fn judge(&mut self, rtt: u64) -> u64 {
        let mut base = self.base.map_or(rtt, |base| base.min(rtt));
        if rtt > 4 * base + LONG {
            self.long = (self.long.0 + 1, self.long.1.min(rtt));
            if self.long.0 >= ENDURED {
                base = self.long.1;
                self.long = (0, u64::MAX);
            }
        } else {
            self.long = (0, u64::MAX);
        }
        self.base = Some(base);
        base
    }

    fn carries(&self) -> u64 {
        self.rates[0].max(self.rates[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries `rate` bytes per second, has `base` microseconds of round trip, and keeps
    /// whatever it is given. Returns the bytes that came through in the last half of `seconds`, and the
    /// longest round trip then.
    fn run(rate: u64, base: u64, seconds: u64) -> (u64, u64) {
        const STEP: u64 = 1000;
        let mut pace = Pace::new(0, MOST);
        let (mut put, mut through) = (0, 0);
        let mut ping = Some((0, 0));
        pace.on_ping(0);
        let mut pong = None;
        let (mut half, mut longest) = (0, 0);
        for now in (0..seconds * 1_000_000).step_by(STEP as usize) {
            through = put.min(through + rate * STEP / 1_000_000);
            if let Some((at, since)) = ping
                && through >= at
                && pong.is_none()
            {
                pong = Some((now + base, since));
                ping = None;
            }
            if let Some((due, since)) = pong
                && now >= due
            {
                pong = None;
                pace.on_pong(now - since, now);
                if now > seconds * 500_000 {
                    longest = longest.max(now - since);
                }
            }
            loop {
                if pace.wants_ping(put) {
                    pace.on_ping(put);
                    ping = Some((put, now));
                }
                match pace.room(put) {
                    0 => break pace.note_limited(),
                    room => put += room.min(65_536),
                }
            }
            if now == seconds * 500_000 {
                half = through;
            }
        }
        (through - half, longest)
    }

    #[test]
    fn a_slow_path_is_kept_busy_with_little_in_front_of_it() {
        for base in [1_000, 30_000, 100_000] {
            let (through, longest) = run(125_000, base, 20);
            assert!(through >= 1_125_000, "{through} of 1250000, base {base}");
            assert!(longest <= 5 * base + LONG, "{longest}, base {base}");
        }
    }

    #[test]
    fn a_fast_path_is_filled() {
        for base in [100, 5_000, 100_000] {
            let (through, _) = run(125_000_000, base, 20);
            assert!(through >= 1_100_000_000, "{through}, base {base}");
        }
    }

    #[test]
    fn a_path_that_becomes_long_is_not_taken_for_a_full_one_for_ever() {
        let mut pace = Pace::new(0, MOST);
        pace.on_ping(0);
        pace.on_pong(1_000, 1_000);
        let (mut put, mut now) = (0, 1_000);
        for _ in 0..40 {
            put += pace.room(put);
            pace.note_limited();
            pace.on_ping(put);
            now += 600_000;
            pace.on_pong(600_000, now);
        }
        assert!(pace.window > 4 * FIRST, "{}", pace.window);
    }
}
