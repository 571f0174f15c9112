//! Which living tunnel exports what: the picture that routing reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nowconnect_proto::hello::Instance;
use parking_lot::RwLock;

use super::session::Session;
use crate::registry::Owner;

/// The sessions of this hub. A displaced session is not in it any more, though it may still run.
#[derive(Debug, Default)]
pub struct Directory {
    table: RwLock<Table>,
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    exports: HashMap<Box<str>, Vec<Arc<Session>>>,
    agents: HashMap<Arc<str>, Vec<Arc<Session>>>,
}

impl Directory {
    /// Enters a session and returns those that it displaces: tunnels of earlier owners of the same
    /// agent id. A later owner displaces it itself, which then does not enter.
    pub fn enter(&self, session: &Arc<Session>) -> Vec<Arc<Session>> {
        let mut table = self.table.write();
        let own = table.agents.get(&session.agent_id);
        if own.is_some_and(|own| own.iter().any(|other| other.owner() > session.owner())) {
            return vec![session.clone()];
        }
        let displaced = table.displace(&session.agent_id, session.owner());
        let own = table.agents.entry(session.agent_id.clone()).or_default();
        own.push(session.clone());
        table.export(session);
        displaced
    }

    /// Takes out the tunnels of owners of this agent id that are earlier than `owner`.
    pub fn displace(&self, agent_id: &str, owner: Owner) -> Vec<Arc<Session>> {
        self.table.write().displace(agent_id, owner)
    }

    /// Takes a session out; false when it was displaced before.
    pub fn leave(&self, session: &Arc<Session>) -> bool {
        let mut table = self.table.write();
        let Some(own) = table.agents.get_mut(&session.agent_id) else {
            return false;
        };
        let before = own.len();
        own.retain(|other| !Arc::ptr_eq(other, session));
        let left = own.len();
        if left == 0 {
            table.agents.remove(&session.agent_id);
        }
        table.retract(session);
        left < before
    }

    /// Lets the session export `connectors` from now on.
    pub fn reexport(&self, session: &Arc<Session>, connectors: Vec<String>) {
        let mut table = self.table.write();
        table.retract(session);
        session.set_exports(connectors);
        let own = table.agents.get(&session.agent_id);
        if own.is_some_and(|own| own.iter().any(|other| Arc::ptr_eq(other, session))) {
            table.export(session);
        }
    }

    /// Agents that have a tunnel here.
    pub fn agents(&self) -> usize {
        self.table.read().agents.len()
    }

    /// Every session, for status, drain and reload.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.table
            .read()
            .agents
            .values()
            .flatten()
            .cloned()
            .collect()
    }

    /// A session of this running agent that takes flows.
    pub fn of_instance(&self, agent_id: &str, instance: Instance) -> Option<Arc<Session>> {
        let table = self.table.read();
        let own = table.agents.get(agent_id)?.iter();
        own.filter(|session| session.instance == instance && session.link().takes_flows())
            .min_by_key(|session| session.link().active_flows())
            .cloned()
    }

    /// Every session of the agent.
    pub fn of_agent(&self, agent_id: &str) -> Vec<Arc<Session>> {
        let table = self.table.read();
        table.agents.get(agent_id).cloned().unwrap_or_default()
    }

    /// The session for a new flow of `connector`: the least loaded one that takes flows and that is
    /// `wanted`. Equals take turns.
    pub fn choose(
        &self,
        connector: &str,
        wanted: impl Fn(&Session) -> bool,
    ) -> Option<Arc<Session>> {
        let table = self.table.read();
        let exporters = table.exports.get(connector)?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = least_loaded(exporters.len(), turn, |index| {
            let session = &exporters[index];
            let fits = session.link().takes_flows() && wanted(session);
            fits.then(|| session.link().active_flows())
        });
        chosen.map(|index| exporters[index].clone())
    }
}

impl Table {
    fn displace(&mut self, agent_id: &str, owner: Owner) -> Vec<Arc<Session>> {
        let Some(own) = self.agents.get_mut(agent_id) else {
            return Vec::new();
        };
        let displaced: Vec<_> = own.extract_if(.., |other| other.owner() < owner).collect();
        if own.is_empty() {
            self.agents.remove(agent_id);
        }
        for session in &displaced {
            self.retract(session);
        }
        displaced
    }

    fn export(&mut self, session: &Arc<Session>) {
        for connector in session.exports().iter() {
            let exporters = self.exports.entry(connector.as_str().into()).or_default();
            exporters.push(session.clone());
        }
    }

    fn retract(&mut self, session: &Arc<Session>) {
        for connector in session.exports().iter() {
            let Some(exporters) = self.exports.get_mut(connector.as_str()) else {
                continue;
            };
            exporters.retain(|other| !Arc::ptr_eq(other, session));
            if exporters.is_empty() {
                self.exports.remove(connector.as_str());
            }
        }
    }
}

/// The index below `count` with the smallest load; of equals the first from `turn` on, so that
/// equals take turns. `None` as load: does not take part.
fn least_loaded(count: usize, turn: usize, load: impl Fn(usize) -> Option<usize>) -> Option<usize> {
    let rotated = (0..count).map(|step| turn.wrapping_add(step) % count);
    rotated
        .filter_map(|index| Some((load(index)?, index)))
        .min_by_key(|(load, _)| *load)
        .map(|(_, i)| i)
}

#[cfg(test)]
mod tests {
    use super::least_loaded;

    fn choose(loads: &[Option<usize>], turn: usize) -> Option<usize> {
        least_loaded(loads.len(), turn, |index| loads[index])
    }

    #[test]
    fn the_least_loaded_that_takes_part_is_chosen() {
        assert_eq!(choose(&[Some(3), Some(1), Some(2)], 0), Some(1));
        assert_eq!(choose(&[Some(3), None, Some(2)], 7), Some(2));
        assert_eq!(choose(&[None, None], 0), None);
        assert_eq!(choose(&[], 5), None);
    }

    #[test]
    fn equals_take_turns() {
        let chosen: Vec<_> = (0..4)
            .map(|turn| choose(&[Some(1), Some(1), Some(9)], turn))
            .collect();
        assert_eq!(chosen, [Some(0), Some(1), Some(0), Some(0)]);
        assert_eq!(choose(&[Some(0); 3], usize::MAX), Some(usize::MAX % 3));
    }
}
