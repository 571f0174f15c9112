//! Allows that are remembered for a while.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

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
    pub(super) fn left(&self, question: &Question) -> Option<Duration> {
        let end = self
            .young
            .get(question)
            .or_else(|| self.old.get(question))?;
        let left = end.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn allow(&mut self, question: Question, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        if self.young.len() >= MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(question, Instant::now() + ttl);
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

    #[tokio::test(start_paused = true)]
    async fn an_allow_ends_with_its_time_and_is_for_one_question() {
        let mut cache = Cache::default();
        cache.allow(question(1), Duration::from_secs(5));
        cache.allow(question(2), Duration::ZERO);
        assert_eq!(cache.left(&question(1)), Some(Duration::from_secs(5)));
        assert_eq!(cache.left(&question(2)), None);
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
            assert_eq!(cache.left(&other), None, "{other:?}");
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(cache.left(&question(1)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_grow_without_bound() {
        let mut cache = Cache::default();
        for client in 0..3 * MOST as u32 {
            cache.allow(question(client), Duration::from_secs(5));
            assert!(cache.young.len() + cache.old.len() <= MOST);
        }
        let last = 3 * MOST as u32 - 1;
        assert!(cache.left(&question(last)).is_some());
        assert!(cache.left(&question(0)).is_none());
    }
}
