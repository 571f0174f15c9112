//! What this hub knows of the others' tables, and what news mean to it. No clock and no network
//! inside: both are told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::routes::Entry;
use super::wire::{Changes, News, Notice, Stamp};

/// Hubs that are listened to; more is no mesh.
pub const MAX_HUBS: usize = 256;
/// Agents of one hub that are listened to.
pub const MAX_AGENTS: usize = 65_536;
/// How long a table must be missing before its agents are given up. Longer than a hub takes to write
/// its table again after the registry lost it.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);

/// The tables of other hubs as last read.
#[derive(Debug, Default)]
pub(super) struct Tables {
    hubs: HashMap<Arc<str>, Table>,
}

#[derive(Debug)]
struct Table {
    stamp: Stamp,
    agents: HashMap<Arc<str>, Entry>,
    missing_since: Option<Instant>,
}

/// What to do about a notification.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// These are the changes.
    Apply(Changes),
    /// Known already.
    Old,
    /// Something was missed: read the table.
    Read,
}

impl Tables {
    /// Takes a notification in.
    pub(super) fn hear(&mut self, notice: Notice) -> Heard {
        let Notice { hub, stamp, news } = notice;
        let Some(table) = self.hubs.get_mut(&hub) else {
            return match news {
                News::Left => Heard::Old,
                _ => Heard::Read,
            };
        };
        if table.stamp.nonce != stamp.nonce {
            // The end of a start of the hub that another one has followed.
            return match news {
                News::Left => Heard::Old,
                _ => Heard::Read,
            };
        }
        let news = match news {
            News::Left => return Heard::Apply(self.remove(&hub)),
            _ if stamp.version <= table.stamp.version => return Heard::Old,
            News::Rewritten => return Heard::Read,
            News::Changed(_) if stamp.version != table.stamp.version + 1 => return Heard::Read,
            // Told piece by piece it must not become more than what is read at once.
            News::Changed(changes) if table.agents.len() + changes.len() > MAX_AGENTS => {
                return Heard::Read;
            }
            News::Changed(changes) => changes,
        };
        table.stamp = stamp;
        table.missing_since = None;
        for (id, entry) in &news {
            match entry {
                Some(entry) => {
                    table.agents.insert(id.clone(), entry.clone());
                }
                None => {
                    table.agents.remove(id);
                }
            }
        }
        Heard::Apply(news)
    }

    /// Whether the table was seen in this state; it is not missing now.
    pub(super) fn is_current(&mut self, hub: &str, stamp: &Stamp) -> bool {
        let Some(table) = self.hubs.get_mut(hub) else {
            return false;
        };
        table.missing_since = None;
        table.stamp == *stamp
    }

    /// Takes in a whole table; returns what is different now.
    pub(super) fn replace(
        &mut self,
        hub: &Arc<str>,
        stamp: Stamp,
        agents: HashMap<Arc<str>, Entry>,
    ) -> Changes {
        if !self.hubs.contains_key(hub) && self.hubs.len() >= MAX_HUBS {
            return Vec::new();
        }
        let before = self.hubs.remove(hub).map(|table| table.agents);
        let before = before.unwrap_or_default();
        let gone = before.keys().filter(|id| !agents.contains_key(*id));
        let mut changes: Changes = gone.map(|id| (id.clone(), None)).collect();
        for (id, entry) in &agents {
            if before.get(id) != Some(entry) {
                changes.push((id.clone(), Some(entry.clone())));
            }
        }
        let table = Table {
            stamp,
            agents,
            missing_since: None,
        };
        self.hubs.insert(hub.clone(), table);
        changes
    }

    /// The registry has no table of this hub; returns its agents once that has lasted.
    pub(super) fn miss(&mut self, hub: &str, now: Instant) -> Changes {
        let Some(table) = self.hubs.get_mut(hub) else {
            return Vec::new();
        };
        let since = *table.missing_since.get_or_insert(now);
        if now.saturating_duration_since(since) < PATIENCE {
            return Vec::new();
        }
        self.remove(hub)
    }

    /// The registry does not answer: what is missing in it means nothing for that time.
    pub(super) fn suspend(&mut self) {
        for table in self.hubs.values_mut() {
            table.missing_since = None;
        }
    }

    /// Forgets a hub; returns what it had.
    pub(super) fn remove(&mut self, hub: &str) -> Changes {
        let table = self.hubs.remove(hub);
        let agents = table.into_iter().flat_map(|table| table.agents);
        agents.map(|(id, _)| (id, None)).collect()
    }

    /// The hubs that are known.
    pub(super) fn hubs(&self) -> Vec<Arc<str>> {
        self.hubs.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Owner;
    use super::*;
    use nowconnect_proto::hello::Instance;
    use proptest::prelude::*;

    fn entry(epoch: u64) -> Entry {
        Entry {
            owner: Owner {
                epoch,
                instance: Instance(1),
            },
            connectors: Arc::default(),
            token: None,
            ailing: Arc::default(),
        }
    }

    fn stamp(nonce: &str, version: u64) -> Stamp {
        Stamp {
            nonce: nonce.into(),
            version,
        }
    }

    fn notice(nonce: &str, version: u64, news: News) -> Notice {
        Notice {
            hub: "hub-b".into(),
            stamp: stamp(nonce, version),
            news,
        }
    }

    fn changed(id: &str, epoch: Option<u64>) -> News {
        News::Changed(vec![(id.into(), epoch.map(entry))])
    }

    fn with_table(version: u64) -> Tables {
        let mut tables = Tables::default();
        let agents = HashMap::from([("a".into(), entry(5))]);
        tables.replace(&"hub-b".into(), stamp("n1", version), agents);
        tables
    }

    #[test]
    fn notifications_make_a_table_no_larger_than_one_that_is_read() {
        let mut tables = Tables::default();
        let id = |n: usize| -> Arc<str> { n.to_string().into() };
        let agents = (0..MAX_AGENTS).map(|n| (id(n), entry(5))).collect();
        tables.replace(&"hub-b".into(), stamp("n1", 1), agents);
        let one_more = notice("n1", 2, changed("one-more", Some(5)));
        assert_eq!(tables.hear(one_more), Heard::Read);
    }

    #[test]
    fn only_the_next_version_is_applied() {
        let mut tables = with_table(3);
        let hear = |tables: &mut Tables, version| {
            tables.hear(notice("n1", version, changed("b", Some(6))))
        };
        assert_eq!(hear(&mut tables, 3), Heard::Old);
        assert_eq!(hear(&mut tables, 5), Heard::Read);
        let change = vec![("b".into(), Some(entry(6)))];
        assert_eq!(hear(&mut tables, 4), Heard::Apply(change));
        assert_eq!(hear(&mut tables, 4), Heard::Old);
        assert_eq!(tables.hear(notice("n1", 5, News::Rewritten)), Heard::Read);
        assert!(tables.is_current("hub-b", &stamp("n1", 4)));
    }

    #[test]
    fn another_start_of_the_hub_is_read_and_its_farewell_counts_for_itself() {
        let mut tables = with_table(3);
        let other = notice("n2", 1, changed("b", Some(6)));
        assert_eq!(tables.hear(other), Heard::Read);
        assert_eq!(tables.hear(notice("n0", 9, News::Left)), Heard::Old);
        let left = tables.hear(notice("n1", 3, News::Left));
        assert_eq!(left, Heard::Apply(vec![("a".into(), None)]));
        assert_eq!(tables.hear(notice("n1", 3, News::Left)), Heard::Old);
        assert_eq!(tables.hear(notice("n1", 4, News::Rewritten)), Heard::Read);
    }

    #[test]
    fn a_missing_table_is_given_up_when_it_stays_missing() {
        let (mut tables, start) = (with_table(3), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(tables.miss("hub-b", at(0)).is_empty());
        tables.suspend();
        assert!(tables.miss("hub-b", at(10)).is_empty());
        assert!(tables.is_current("hub-b", &stamp("n1", 3)), "it is back");
        assert!(tables.miss("hub-b", at(20)).is_empty());
        assert!(tables.miss("hub-b", at(25)).is_empty());
        assert_eq!(tables.miss("hub-b", at(26)), [("a".into(), None)]);
        assert!(tables.hubs().is_empty());
    }

    #[test]
    fn the_number_of_hubs_is_bounded() {
        let mut tables = Tables::default();
        for hub in 0..MAX_HUBS + 9 {
            let agents = HashMap::from([("a".into(), entry(1))]);
            tables.replace(&format!("hub-{hub}").into(), stamp("n", 1), agents);
        }
        assert_eq!(tables.hubs().len(), MAX_HUBS);
    }

    proptest! {
        /// However many notices are lost, doubled or late: who reads when told to knows it all.
        #[test]
        fn a_reader_ends_up_with_the_table(
            writes in proptest::collection::vec((0u8..4, any::<bool>()), 1..40),
            fates in proptest::collection::vec(0u8..4, 40),
        ) {
            let (mut tables, mut seen) = (Tables::default(), HashMap::<Arc<str>, Entry>::new());
            let (mut truth, hub) = (HashMap::<Arc<str>, Entry>::new(), Arc::<str>::from("hub-b"));
            let mut note = |changes: Changes| {
                for (id, entry) in changes {
                    match entry {
                        Some(entry) => seen.insert(id, entry),
                        None => seen.remove(&id),
                    };
                }
            };
            let (mut late, mut version) = (None, 0);
            for ((id, present), fate) in writes.into_iter().zip(fates) {
                version += 1;
                let id: Arc<str> = id.to_string().into();
                let new = present.then(|| entry(version));
                match new.clone() {
                    Some(entry) => truth.insert(id.clone(), entry),
                    None => truth.remove(&id),
                };
                let sent = notice("n", version, News::Changed(vec![(id, new)]));
                let arrive = match fate {
                    0 => vec![],
                    1 => vec![sent.clone(), sent],
                    2 => late.replace(sent).into_iter().collect(),
                    _ => vec![sent],
                };
                for notice in arrive {
                    match tables.hear(notice) {
                        Heard::Apply(changes) => note(changes),
                        Heard::Old => {}
                        Heard::Read => note(tables.replace(&hub, stamp("n", version), truth.clone())),
                    }
                }
            }
            if !tables.is_current("hub-b", &stamp("n", version)) {
                note(tables.replace(&hub, stamp("n", version), truth.clone()));
            }
            prop_assert_eq!(seen, truth);
        }
    }
}
