//! Nonces that a hub asks for: they bind a proof to this process, without anything to remember.

use std::time::{Duration, Instant};

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign, verify};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A nonce counts in the period that it was given in, and in the next.
pub const PERIOD: Duration = Duration::from_secs(30);

/// Gives nonces and knows them again: each is the period's number, signed with a secret that no other
/// process has.
#[derive(Debug)]
pub struct Nonces {
    key: Key,
    begun: Instant,
}

impl Nonces {
    /// With a new secret.
    pub fn new() -> Self {
        Self {
            key: Key::new(HMAC_SHA256, &rand::random::<[u8; 32]>()),
            begun: Instant::now(),
        }
    }

    /// The nonce of the moment.
    pub fn current(&self) -> String {
        self.of(self.period(Instant::now()))
    }

    /// Whether this process gave `nonce` 30 to 60 s ago at most.
    pub fn accept(&self, nonce: &str) -> bool {
        self.accept_at(nonce, Instant::now())
    }

    fn accept_at(&self, nonce: &str, now: Instant) -> bool {
        let Ok(tag) = URL_SAFE_NO_PAD.decode(nonce) else {
            return false;
        };
        let period = self.period(now);
        let given_in = |period: u64| verify(&self.key, &period.to_be_bytes(), &tag).is_ok();
        given_in(period) || period.checked_sub(1).is_some_and(given_in)
    }

    fn of(&self, period: u64) -> String {
        URL_SAFE_NO_PAD.encode(sign(&self.key, &period.to_be_bytes()))
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs() / PERIOD.as_secs()
    }
}

impl Default for Nonces {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_counts_for_two_periods_and_for_one_process() {
        let nonces = Nonces::new();
        let nonce = nonces.of(0);
        for (age, counts) in [
            (0, true),
            (29, true),
            (59, true),
            (60, false),
            (3600, false),
        ] {
            let later = nonces.begun + Duration::from_secs(age);
            assert_eq!(nonces.accept_at(&nonce, later), counts, "{age} s");
        }
        assert!(nonces.accept(&nonces.current()));
        assert!(!Nonces::new().accept(&nonce));
        for bad in ["", "x", "====", &nonce[1..]] {
            assert!(!nonces.accept(bad), "{bad:?}");
        }
    }
}
