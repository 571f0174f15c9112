//! Connectors of agents whose targets are down, as the probes of this hub find.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

/// By agent. Asked with every connection, so that it costs next to nothing while all are well.
#[derive(Debug, Default)]
pub(super) struct Ailing {
    agents: RwLock<HashMap<Arc<str>, Arc<[String]>>>,
    count: AtomicUsize,
}

impl Ailing {
    /// Those of the agent from now on; false when nothing has changed.
    pub(super) fn set(&self, agent_id: &Arc<str>, connectors: Vec<String>) -> bool {
        let mut agents = self.agents.write();
        let before = match connectors.is_empty() {
            true => agents.remove(agent_id),
            false => agents.insert(agent_id.clone(), connectors.as_slice().into()),
        };
        self.count.store(agents.len(), Ordering::Relaxed);
        *before.unwrap_or_default() != *connectors
    }

    /// Those of the agent.
    pub(super) fn of(&self, agent_id: &str) -> Arc<[String]> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Arc::default();
        }
        let agents = self.agents.read();
        agents.get(agent_id).cloned().unwrap_or_default()
    }
}
