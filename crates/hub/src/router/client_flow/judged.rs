//! What policy says about a client and each agent that it is offered to.

use std::sync::Arc;

use nowconnect_link::endpoint::SocketFlow;
use nowconnect_link::trace::Kind;
use nowconnect_proto::Reason;

use super::ClientFlow;
use crate::metrics::ListenerError;
use crate::pdp::{Judged, Pass, Pending, Question, Refused};
use crate::router::paths::{Path, Tried};
use crate::router::{Entry, end_flow};

impl ClientFlow {
    /// Sees whether the flow may go to the agent of `path`; returns what is to be waited for. Over
    /// another path to the same agent nobody is asked again.
    pub(super) fn judge(&self, path: &Path) -> Option<Pending> {
        let agent_id = path.holder().agent_id;
        let mut route = self.route.lock();
        let is_cleared = |(cleared, _): &(Arc<str>, Pass)| *cleared == agent_id;
        if route.cleared.as_ref().is_some_and(is_cleared) {
            return None;
        }
        match self.router.pdp.judge(&self.question(&agent_id)) {
            Judged::Pass(pass) => {
                route.cleared = Some((agent_id, pass));
                None
            }
            Judged::Asked(pending) => {
                route.judged = true;
                Some(pending)
            }
        }
    }

    fn question(&self, agent_id: &Arc<str>) -> Question {
        let door = self.permit.door();
        Question {
            agent_id: agent_id.clone(),
            connector: door.connector.clone(),
            client: Some(self.permit.client().ip()),
            listener: door.name.clone(),
            origin: None,
        }
    }

    /// The client waits, unread, and nobody else has heard of it.
    pub(super) fn await_decision(&self, path: Path, pending: Pending) {
        self.traced(|trace| {
            trace.stage("pdp", Kind::Client);
            trace.set("nowconnect.agent.id", &path.holder().agent_id);
        });
        // What is not listed any more is over.
        let Some(Entry { flow, client }) = self.router.entry(self.cid) else {
            return;
        };
        let tasks = &self.router.tasks;
        let decided = async move {
            let decision = pending.decision().await;
            client.decided(&flow, path, decision);
        };
        let stop = tasks.token();
        let work = stop.run_until_cancelled_owned(decided);
        tasks.spawn_on(self.router.pdp.runtime(), "pdp_decision", work);
    }

    fn decided(&self, flow: &Arc<SocketFlow>, path: Path, decision: Result<Pass, Refused>) {
        let agent_id = path.holder().agent_id;
        if decision.is_err() {
            self.traced(|trace| trace.fail_stage(ListenerError::PdpDenied.as_str()));
        }
        {
            let mut route = self.route.lock();
            route.judged = false;
            match decision {
                Ok(pass) => route.cleared = Some((agent_id, pass)),
                Err(_) => route.tried.push(Tried { agent_id, at: None }),
            }
        }
        if flow.has_ended() {
            return;
        }
        if flow.was_reset() {
            return end_flow(flow, Reason::SocketReset);
        }
        let next = match decision {
            // Other rules may hold by now.
            Ok(_) if self.may_take(&path) => Some(path),
            Ok(_) | Err(Refused::Denied) => self.choose(),
            // Others would wait for the same silence.
            Err(Refused::Failed) => None,
        };
        match next {
            Some(path) => {
                self.offer(flow, path);
            }
            None if decision.is_ok() => {
                self.turn_away(flow, ListenerError::NoAgent, Reason::NoAgent);
            }
            None => self.turn_away(flow, ListenerError::PdpDenied, Reason::PdpDenied),
        }
    }

    /// Whether `path` is still one for the flow.
    fn may_take(&self, path: &Path) -> bool {
        let here = path.place().is_none();
        (here || self.may_cross()) && path.leads_to(&self.permit.door().connector)
    }
}
