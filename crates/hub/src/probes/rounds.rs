//! Whose turn it is, and what is believed of whom. No clock and no network inside: both are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Spec;
use super::fault::Fault;
use super::look::{Certificate, Outcome};
use super::vital::{State, Vital};

/// First looks are spread over this much time for each target that came at once.
const SPREAD: Duration = Duration::from_millis(5);
/// How long what is believed of a target is kept when its agent is gone.
const MEMORY: Duration = Duration::from_secs(60);
/// Shortest time between two looks while there is doubt.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// An agent and one of its connectors.
pub(super) type Pair = (Arc<str>, Arc<str>);

/// A target that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) spec: Arc<Spec>,
    pub(super) vital: Vital,
    pub(super) last: Option<Last>,
    /// Its agent has a tunnel here that takes flows.
    pub(super) present: bool,
    seen: Instant,
    /// `None` while somebody looks.
    due: Option<Instant>,
}

/// What the last look has found that said something about the target.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) at: Instant,
    pub(super) took: Duration,
    pub(super) fault: Option<Fault>,
    pub(super) certificate: Option<Certificate>,
}

/// What a result has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) from: State,
    pub(super) to: State,
    /// How long `from` has lasted.
    pub(super) lasted: Duration,
}

/// All targets, and when each is looked at next.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    watched: BTreeMap<Pair, Watched>,
    queue: BTreeSet<(Instant, Pair)>,
}

impl Rounds {
    /// Watches the targets in `present` and no others, but for those that were here a moment ago;
    /// returns the agents of those that are watched no longer, or anew. What connector is not
    /// `probed` any more is forgotten at once. `random` is 0 to 1.
    pub(super) fn reconcile(
        &mut self,
        mut present: BTreeMap<Pair, Arc<Spec>>,
        probed: impl Fn(&str) -> bool,
        now: Instant,
        clock: SystemTime,
        mut random: impl FnMut() -> f64,
    ) -> BTreeSet<Arc<str>> {
        let (mut altered, mut returned) = (BTreeSet::new(), Vec::new());
        self.watched.retain(|pair, watched| {
            match present.remove(pair) {
                Some(spec) => {
                    watched.seen = now;
                    if spec.config != watched.spec.config {
                        // Another question: earlier answers mean nothing.
                        (watched.vital, watched.last) = (Vital::unknown(clock), None);
                        altered.insert(pair.0.clone());
                        returned.push(pair.clone());
                    } else if !watched.present {
                        returned.push(pair.clone());
                    }
                    (watched.spec, watched.present) = (spec, true);
                    return true;
                }
                None => watched.present = false,
            }
            let keeps = probed(&pair.1) && now - watched.seen < MEMORY;
            if !keeps {
                altered.insert(pair.0.clone());
                if let Some(due) = watched.due {
                    self.queue.remove(&(due, pair.clone()));
                }
            }
            keeps
        });
        let first = present.len() + returned.len();
        let spread = SPREAD * u32::try_from(first).unwrap_or(u32::MAX);
        for (pair, spec) in present {
            let watched = Watched {
                vital: Vital::unknown(clock),
                last: None,
                present: true,
                seen: now,
                due: None,
                spec,
            };
            self.watched.insert(pair.clone(), watched);
            returned.push(pair);
        }
        for pair in returned {
            let Some(watched) = self.watched.get_mut(&pair) else {
                continue;
            };
            let soon = now + spread.min(watched.spec.config.interval).mul_f64(random());
            if let Some(due) = watched.due {
                self.queue.remove(&(due, pair.clone()));
            }
            watched.due = Some(soon);
            self.queue.insert((soon, pair));
        }
        altered
    }

    /// Takes out one that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Pair, Arc<Spec>)> {
        loop {
            let (due, _) = self.queue.first()?;
            if *due > now {
                return None;
            }
            let (_, pair) = self.queue.pop_first()?;
            let Some(watched) = self.watched.get_mut(&pair) else {
                continue;
            };
            watched.due = None;
            if watched.present {
                return Some((pair, watched.spec.clone()));
            }
        }
    }

    /// Takes in what a look by `spec` has found, and says when the next one is due; returns what
    /// has changed by it.
    pub(super) fn note(
        &mut self,
        pair: &Pair,
        spec: &Arc<Spec>,
        outcome: Outcome,
        now: Instant,
        clock: SystemTime,
        random: f64,
    ) -> Option<Turn> {
        let watched = self.watched.get_mut(pair)?;
        if watched.due.is_some() {
            // It was asked for anew in between.
            return None;
        }
        let config = &watched.spec.config;
        let is_about_target = !matches!(&outcome.verdict, Err(fault) if fault.of_path);
        let mut turn = None;
        if is_about_target && spec.config == *config {
            let since = watched.vital.since;
            let well = outcome.verdict.is_ok();
            let (down_after, up_after) = (config.down_after, config.up_after);
            let before = watched.vital.note(well, down_after, up_after, clock);
            turn = before.map(|from| Turn {
                from,
                to: watched.vital.state,
                lasted: clock.duration_since(since).unwrap_or_default(),
            });
            let kept = watched.last.take().and_then(|last| last.certificate);
            watched.last = Some(Last {
                at: now,
                took: outcome.took,
                fault: outcome.verdict.err(),
                certificate: outcome.certificate.or(kept),
            });
        }
        let pause = match watched.vital.doubts {
            0 => config.interval,
            _ => (config.interval / 4).max(LEAST_PAUSE).min(config.interval),
        };
        // So that those who began together do not stay together.
        let due = now + pause.mul_f64(0.9 + 0.2 * random);
        watched.due = Some(due);
        self.queue.insert((due, pair.clone()));
        turn
    }

    /// When somebody is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// The connectors of the agent whose targets are down.
    pub(super) fn down(&self, agent_id: &Arc<str>) -> Vec<String> {
        self.of_agent(agent_id)
            .filter(|(_, watched)| watched.vital.state == State::Down)
            .map(|((_, connector), _)| connector.to_string())
            .collect()
    }

    /// What is known of the agent's targets, by connector.
    pub(super) fn of_agent(&self, agent_id: &Arc<str>) -> impl Iterator<Item = (&Pair, &Watched)> {
        let first = (agent_id.clone(), Arc::from(""));
        let own = self.watched.range(first..);
        own.take_while(move |((id, _), _)| id == agent_id)
    }

    /// Everything that is watched, by agent and connector.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Pair, &Watched)> {
        self.watched.iter()
    }
}

#[cfg(test)]
mod tests;
