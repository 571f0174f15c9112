//! The proofs that this hub has accepted lately.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::{MEMORY, ProofId};

/// Proofs that are remembered at a time; about 10 MB.
pub const MOST: usize = 65_536;
/// Of these, proofs by one key: an agent that opens tunnels in a loop shuts out only itself.
pub const MOST_OF_A_KEY: u32 = 512;

/// Remembers each proof for [`MEMORY`]. Only for proofs that are good: whoever fills it has many keys
/// for which an issuer has signed tokens.
#[derive(Debug, Default)]
pub struct Seen(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashSet<ProofId>,
    /// The same in the order in which they are forgotten.
    order: VecDeque<(Instant, ProofId, Arc<str>)>,
    by_key: HashMap<Arc<str>, u32>,
}

/// What became of a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It is known from now on.
    New,
    /// It was known.
    Again,
    /// There is no room to remember it, so it must not be accepted.
    Full,
}

impl Seen {
    /// Remembers the proof `id` by the key with this thumbprint.
    pub fn note(&self, id: ProofId, key: &str) -> Noted {
        self.0.lock().note(id, key, Instant::now())
    }
}

impl State {
    fn note(&mut self, id: ProofId, key: &str, now: Instant) -> Noted {
        self.forget(now);
        if self.known.contains(&id) {
            return Noted::Again;
        }
        let of_key = self.by_key.get(key).copied().unwrap_or(0);
        if self.order.len() >= MOST || of_key >= MOST_OF_A_KEY {
            return Noted::Full;
        }
        let shared = self.by_key.get_key_value(key).map(|(key, _)| key.clone());
        let key = shared.unwrap_or_else(|| key.into());
        self.by_key.insert(key.clone(), of_key + 1);
        self.known.insert(id);
        self.order.push_back((now, id, key));
        Noted::New
    }

    fn forget(&mut self, now: Instant) {
        while let Some((since, ..)) = self.order.front()
            && now.saturating_duration_since(*since) >= MEMORY
            && let Some((_, id, key)) = self.order.pop_front()
        {
            self.known.remove(&id);
            match self.by_key.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.by_key.remove(&key)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(number: usize) -> ProofId {
        ProofId::new("key", &number.to_string())
    }

    #[test]
    fn a_proof_is_new_once_until_it_is_forgotten() {
        let (mut seen, now) = (State::default(), Instant::now());
        assert_eq!(seen.note(id(1), "k", now), Noted::New);
        assert_eq!(seen.note(id(1), "k", now), Noted::Again);
        let later = now + MEMORY - Duration::from_millis(1);
        assert_eq!(seen.note(id(1), "k", later), Noted::Again);
        assert_eq!(seen.note(id(1), "k", now + MEMORY), Noted::New);
        assert_ne!(ProofId::new("a", "1"), ProofId::new("b", "1"));
    }

    #[test]
    fn a_flood_of_one_key_shuts_out_that_key_alone_and_a_flood_of_many_is_bounded() {
        let (mut seen, now) = (State::default(), Instant::now());
        for number in 0..MOST_OF_A_KEY as usize {
            assert_eq!(seen.note(id(number), "k", now), Noted::New);
        }
        assert_eq!(seen.note(id(MOST), "k", now), Noted::Full);
        assert_eq!(
            seen.note(id(0), "k", now),
            Noted::Again,
            "still refused as such"
        );
        assert_eq!(seen.note(id(MOST), "other", now), Noted::New);
        for number in MOST + 1..2 * MOST {
            seen.note(id(number), &number.to_string(), now);
        }
        assert_eq!((seen.known.len(), seen.order.len()), (MOST, MOST));
        assert_eq!(seen.note(id(3 * MOST), "new", now), Noted::Full);
        assert_eq!(seen.note(id(3 * MOST), "new", now + MEMORY), Noted::New);
        assert_eq!(
            (seen.known.len(), seen.order.len(), seen.by_key.len()),
            (1, 1, 1)
        );
    }
}
