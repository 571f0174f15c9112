//! Flows that lost their path and wait for their agent to come back.

use std::collections::HashMap;
use std::sync::Arc;

use link::endpoint::SocketFlow;
use nowconnect_link as link;
use nowconnect_proto::Cid;
use nowconnect_proto::hello::Instance;
use parking_lot::Mutex;

/// The agent process that holds the other end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The agent.
    pub agent_id: Arc<str>,
    /// Which start of it.
    pub instance: Instance,
}

/// Waiting flows by the process that could continue them. Whoever takes a flow out decides about
/// it; nobody else does.
#[derive(Debug, Default)]
pub struct Orphans(Mutex<HashMap<Holder, HashMap<Cid, Arc<SocketFlow>>>>);

impl Orphans {
    /// Lets `flow` wait for `holder`.
    pub fn add(&self, holder: &Holder, flow: &Arc<SocketFlow>) {
        self.0
            .lock()
            .entry(holder.clone())
            .or_default()
            .insert(flow.cid(), flow.clone());
    }

    /// Takes one flow out; false when somebody else did before.
    pub fn take(&self, holder: &Holder, cid: Cid) -> bool {
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
    pub fn take_all(&self, holder: &Holder) -> Vec<Arc<SocketFlow>> {
        let flows = self.0.lock().remove(holder);
        flows
            .map(|flows| flows.into_values().collect())
            .unwrap_or_default()
    }

    /// Takes out all that wait for other processes of the same agent, which will not come back.
    pub fn take_outlived(&self, by: &Holder) -> Vec<Arc<SocketFlow>> {
        let mut waiting = self.0.lock();
        let gone =
            |holder: &Holder| holder.agent_id == by.agent_id && holder.instance != by.instance;
        let outlived = waiting.extract_if(|holder, _| gone(holder));
        outlived
            .flat_map(|(_, flows)| flows.into_values())
            .collect()
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.0.lock().values().map(HashMap::len).sum()
    }
}
