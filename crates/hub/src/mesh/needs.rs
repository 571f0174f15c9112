//! Which other hubs flows of this one depend on: the flow lives over a link there, or waits for one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Flows of this hub by the hub that they go over.
#[derive(Debug, Clone, Default)]
pub(super) struct Needs(Arc<Mutex<HashMap<Arc<str>, usize>>>);

/// One flow that needs a hub, for as long as the value lives.
#[derive(Debug)]
pub struct Need {
    hub: Arc<str>,
    needs: Needs,
}

impl Needs {
    /// A flow goes over `hub` from now on.
    pub(super) fn note(&self, hub: &Arc<str>) -> Need {
        *self.0.lock().entry(hub.clone()).or_default() += 1;
        Need {
            hub: hub.clone(),
            needs: self.clone(),
        }
    }

    /// Flows that go over `hub`.
    pub(super) fn of(&self, hub: &str) -> usize {
        self.0.lock().get(hub).copied().unwrap_or_default()
    }
}

impl Drop for Need {
    fn drop(&mut self) {
        let mut needs = self.needs.0.lock();
        let Some(count) = needs.get_mut(&self.hub) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            needs.remove(&self.hub);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_needed_until_the_last_flow_has_ended() {
        let (needs, hub) = (Needs::default(), "hub-b".into());
        let (one, other) = (needs.note(&hub), needs.note(&hub));
        assert_eq!((needs.of("hub-b"), needs.of("hub-c")), (2, 0));
        drop(one);
        assert_eq!(needs.of("hub-b"), 1);
        drop(other);
        assert_eq!(needs.of("hub-b"), 0);
        assert!(needs.0.lock().is_empty(), "names of hubs do not pile up");
    }
}
