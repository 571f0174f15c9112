//! What log, audit trail and trace say of a flow.

use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::endpoint::Summary;

use super::ClientFlow;
use crate::flow_trace;
use crate::pdp::Pass;
use crate::router::orphans::Holder;
use crate::router::paths::Place;

/// Both ends of the way that a flow has taken, for its records.
struct Ends<'a> {
    origin: &'a Arc<str>,
    holder: Option<Holder>,
    /// The hub that it goes over, if that is another.
    place: Place,
    token: Option<Arc<str>>,
    epoch: u64,
}

impl Ends<'_> {
    fn agent_id(&self) -> Option<&str> {
        self.holder.as_ref().map(|holder| &*holder.agent_id)
    }

    /// The hub that holds the agent's tunnel.
    fn owner(&self) -> Option<&str> {
        let owner = self.place.as_ref().unwrap_or(self.origin);
        self.holder.as_ref().map(|_| &**owner)
    }

    fn epoch(&self) -> Option<u64> {
        self.holder.as_ref().map(|_| self.epoch)
    }
}

impl ClientFlow {
    fn ends(&self) -> Ends<'_> {
        let route = self.route.lock();
        Ends {
            origin: self.router.paths.registry.hub(),
            holder: route.holder.clone(),
            place: route.place.clone(),
            token: route.token.clone(),
            epoch: route.epoch,
        }
    }

    /// What its trace is told when the client has reached its target.
    pub(super) fn trace_opened(&self) {
        if self.trace.is_none() {
            return;
        }
        let ends = self.ends();
        self.traced(|trace| flow_trace::opened(trace, ends.agent_id(), ends.owner(), ends.epoch()));
    }

    /// The record that the client reached its target: should this hub die, the only one of the flow.
    pub(super) fn log_opened(&self, waited: Duration) {
        let (door, ends) = (self.permit.door(), self.ends());
        tracing::info!(
            event = "flow_opened",
            cid = %self.cid,
            connector = %door.connector,
            listener = %door.name,
            client = %self.permit.client(),
            agent_id = ends.agent_id(),
            hub = ends.place.as_deref(),
            origin = %ends.origin,
            owner = ends.owner(),
            epoch = ends.epoch(),
            token_id = ends.token.as_deref(),
            pdp = self.pass().and_then(Pass::as_str),
            open_ms = waited.as_millis() as u64,
            audit = true,
        );
    }

    /// The record of the whole flow.
    pub(super) fn log_closed(&self, summary: &Summary) {
        let (door, ends) = (self.permit.door(), self.ends());
        tracing::info!(
            event = "flow_closed",
            cid = %self.cid,
            connector = %door.connector,
            listener = %door.name,
            client = %self.permit.client(),
            agent_id = ends.agent_id(),
            hub = ends.place.as_deref(),
            origin = %ends.origin,
            owner = ends.owner(),
            epoch = ends.epoch(),
            token_id = ends.token.as_deref(),
            opened = self.is_open(),
            pdp = self.pass().and_then(Pass::as_str),
            bytes_c2a = summary.bytes_c2a,
            bytes_a2c = summary.bytes_a2c,
            duration_ms = summary.duration_ms,
            reason = summary.reason().name(),
            audit = true,
        );
    }
}
