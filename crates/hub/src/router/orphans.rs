//! Flows that lost their path and wait for their agent to come back.

use std::collections::HashMap;
use std::sync::Arc;

use nowconnect_proto::Cid;
use nowconnect_proto::hello::Instance;
use parking_lot::Mutex;

use super::Entry;
use crate::tunnels::Session;

/// The agent process that holds the other end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The agent.
    pub agent_id: Arc<str>,
    /// Which start of it.
    pub instance: Instance,
}

impl Holder {
    /// The process at the other end of a tunnel.
    pub fn of(session: &Session) -> Self {
        Self {
            agent_id: session.agent_id.clone(),
            instance: session.instance,
        }
    }
}

/// Waiting flows by the process that could continue them. Whoever takes a flow out decides about
/// it; nobody else does.
#[derive(Default)]
pub struct Orphans(Mutex<HashMap<Holder, HashMap<Cid, Entry>>>);

impl Orphans {
    /// Lets the flow wait for `holder`.
    pub(super) fn add(&self, holder: &Holder, entry: Entry) {
        let mut waiting = self.0.lock();
        let flows = waiting.entry(holder.clone()).or_default();
        flows.insert(entry.flow.cid(), entry);
    }

    /// Takes one flow out; false when somebody else did before.
    pub(super) fn take(&self, holder: &Holder, cid: Cid) -> bool {
        let mut waiting = self.0.lock();
        let Some(flows) = waiting.get_mut(holder) else {
            return false;
        };
        let found = flows.remove(&cid).is_some();
        if flows.is_empty() {
            waiting.remove(holder);
        }
        found
    }

    /// Takes out all that wait for `holder`.
    pub(super) fn take_all(&self, holder: &Holder) -> Vec<Entry> {
        let flows = self.0.lock().remove(holder);
        flows
            .map(|flows| flows.into_values().collect())
            .unwrap_or_default()
    }

    /// Whom flows wait for.
    pub(super) fn holders(&self) -> Vec<Holder> {
        self.0.lock().keys().cloned().collect()
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.0.lock().values().map(HashMap::len).sum()
    }
}
