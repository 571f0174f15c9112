//! Allows that are remembered for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Question;

/// Allows that are remembered at most.
const MOST: usize = 16_384;

/// Two generations: when the younger one is full, the older one is forgotten. So both adding and
/// finding cost the same however many there are.
#[derive(Debug, Default)]
pub(super) struct Cache {
    young: HashMap<Question, Instant>,
    old: HashMap<Question, Instant>,
}

impl Cache {
    /// How long `question` is still allowed.
    pub(super) fn left(&self, question: &Question, now: Instant) -> Option<Duration> {
        let end = self
            .young
            .get(question)
            .or_else(|| self.old.get(question))?;
        let left = end.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn allow(&mut self, question: Question, ttl: Duration, now: Instant) {
        if ttl.is_zero() {
            return;
        }
        if self.young.len() >= MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(question, now + ttl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(client: u32) -> Question {
        Question {
            agent_id: "a".into(),
            connector: "c".into(),
            client: Some(std::net::Ipv4Addr::from(client).into()),
            listener: "l".into(),
            origin: None,
        }
    }

    const TTL: Duration = Duration::from_secs(5);

    #[test]
    fn an_allow_ends_with_its_time_and_is_for_one_question() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.allow(question(1), TTL, now);
        cache.allow(question(2), Duration::ZERO, now);
        assert_eq!(cache.left(&question(1), now), Some(TTL));
        assert_eq!(cache.left(&question(2), now), None);
        for other in [
            Question {
                agent_id: "b".into(),
                ..question(1)
            },
            Question {
                connector: "d".into(),
                ..question(1)
            },
            Question {
                client: None,
                ..question(1)
            },
            Question {
                listener: "m".into(),
                ..question(1)
            },
            Question {
                origin: Some("hub-b".into()),
                ..question(1)
            },
        ] {
            assert_eq!(cache.left(&other, now), None, "{other:?}");
        }
        assert_eq!(cache.left(&question(1), now + TTL), None);
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for client in 0..3 * MOST as u32 {
            cache.allow(question(client), TTL, now);
            assert!(cache.young.len() + cache.old.len() <= MOST);
        }
        let last = 3 * MOST as u32 - 1;
        assert!(cache.left(&question(last), now).is_some());
        assert!(cache.left(&question(0), now).is_none());
    }
}
