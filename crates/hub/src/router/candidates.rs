//! Which agents could serve a connector, and what stands in the way of each, for those who ask why.

use std::sync::Arc;

use super::paths::Paths;
use super::{HaMode, Router};
use crate::registry::Route;
use crate::tunnels::Session;

/// An agent that exports a connector, in one place.
#[derive(Debug)]
pub struct Candidate {
    /// The agent.
    pub agent_id: Arc<str>,
    /// The hub that holds its tunnel; `None` = this one.
    pub hub: Option<Arc<str>>,
    /// The fencing number of that hub's ownership.
    pub epoch: u64,
    /// Flows that go this way now.
    pub flows: usize,
    /// Probes find its target down: it is asked only while nobody else can serve.
    pub ailing: bool,
    /// Why it takes no new flow.
    pub obstacle: Option<String>,
}

impl Router {
    /// Every agent that exports `connector`, those first that would be asked first.
    pub fn candidates(&self, connector: &str) -> Vec<Candidate> {
        let sessions = self.paths.tunnels.directory().sessions();
        let exports = |session: &&Arc<Session>| session.exports().iter().any(|e| e == connector);
        let here = sessions.iter().filter(exports);
        let here = here.map(|session| of_session(&self.paths, session, connector));
        let mut all: Vec<_> = here.collect();
        let routes = self.paths.registry.routes().exporters(connector);
        all.extend(
            routes
                .iter()
                .map(|route| of_route(&self.paths, route, connector)),
        );
        all.sort_by_key(|one| {
            let last = (one.obstacle.is_some(), one.ailing);
            (last, one.hub.is_some(), one.flows)
        });
        all
    }
}

fn of_session(paths: &Paths, session: &Session, connector: &str) -> Candidate {
    let link = session.link();
    let leaving = || "its tunnel takes no new flows".to_owned();
    Candidate {
        agent_id: session.agent_id.clone(),
        hub: None,
        epoch: session.epoch(),
        flows: link.active_flows(),
        ailing: paths.registry.is_ailing(&session.agent_id, connector),
        obstacle: (!link.takes_flows()).then(leaving),
    }
}

fn of_route(paths: &Paths, route: &Route, connector: &str) -> Candidate {
    let obstacle = if !paths.is_mode(HaMode::Active) {
        Some("it is at another hub, and ha.mode is not active".to_owned())
    } else if !paths.reaches(&route.hub) {
        Some(format!("no link to {} is up", route.hub))
    } else {
        None
    };
    Candidate {
        agent_id: route.agent_id.clone(),
        hub: Some(route.hub.clone()),
        epoch: route.epoch,
        flows: route.flows.load(std::sync::atomic::Ordering::Relaxed),
        ailing: route.is_ailing(connector),
        obstacle,
    }
}
