//! Where a flow can go from here: to a tunnel of this hub, or over the mesh to the hub that has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use nowconnect_link::endpoint::SocketFlow;
use nowconnect_link::session::Link;
use nowconnect_proto::Reason;

use super::Holder;
use crate::config::HaMode;
use crate::mesh::Mesh;
use crate::registry::{Registry, RegistryHealth, Route};
use crate::tunnels::{Session, Tunnels};

/// Among so many routes the least loaded one is taken; where there are more, among some of them, so
/// that a connection costs the same however many agents export a connector.
const CANDIDATES: usize = 64;

/// The hub that a path leads over; `None` is this one.
pub(super) type Place = Option<Arc<str>>;

/// A way to an agent.
#[derive(Debug, Clone)]
pub(super) enum Path {
    /// Its tunnel ends here.
    Local(Arc<Session>),
    /// Its tunnel ends at another hub, and a link leads there.
    Remote(Arc<Route>, Arc<Link>),
}

impl Path {
    pub(super) fn holder(&self) -> Holder {
        match self {
            Self::Local(session) => Holder::of(session),
            Self::Remote(route, _) => Holder {
                agent_id: route.agent_id.clone(),
                instance: route.instance,
            },
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        match self {
            Self::Local(session) => session.epoch(),
            Self::Remote(route, _) => route.epoch,
        }
    }

    /// The name of the token that the agent's tunnel stands on.
    pub(super) fn token(&self) -> Option<Arc<str>> {
        match self {
            Self::Local(session) => session.token_id(),
            Self::Remote(route, _) => route.token.clone(),
        }
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Self::Local(_) => None,
            Self::Remote(route, _) => Some(route.hub.clone()),
        }
    }

    /// Whether the agent exports `connector`.
    pub(super) fn leads_to(&self, connector: &str) -> bool {
        match self {
            Self::Local(session) => session.exports().iter().any(|e| e == connector),
            Self::Remote(route, _) => route.connectors.iter().any(|e| e == connector),
        }
    }

    /// Sends `flow` this way.
    ///
    /// # Errors
    /// The link has ended, or has no numbers left.
    pub(super) fn attach(&self, flow: &Arc<SocketFlow>) -> Result<(), Reason> {
        match self {
            Self::Local(session) => session.link().attach(flow, session.epoch()),
            Self::Remote(route, link) => link.attach_for(flow, route.epoch, &route.agent_id),
        }
    }

    /// Counts a flow on this path as long as the value lives.
    pub(super) fn load(&self) -> Option<Load> {
        match self {
            Self::Local(_) => None,
            Self::Remote(route, _) => {
                route.flows.fetch_add(1, Ordering::Relaxed);
                Some(Load(route.flows.clone()))
            }
        }
    }
}

/// One flow in the count of a route.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A path that did not work for a flow, and is not to be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    pub(super) agent_id: Arc<str>,
    /// Where it did not work; `None` = the agent itself refused, wherever it is reached.
    pub(super) at: Option<(Place, u64)>,
}

impl Tried {
    fn covers(&self, agent_id: &str, place: &Place, epoch: u64) -> bool {
        let here = |at: &(Place, u64)| at.0 == *place && at.1 == epoch;
        *self.agent_id == *agent_id && self.at.as_ref().is_none_or(here)
    }
}

/// What a connection would have become in `active` mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Local,
    Remote,
    None,
    /// Nobody here exports it, and the registry cannot be asked who does.
    Error,
}

impl Decision {
    /// Label of `nowconnect_shadow_decisions_total`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::None => "none",
            Self::Error => "error",
        }
    }
}

/// All ways to agents.
pub(super) struct Paths {
    pub(super) tunnels: Arc<Tunnels>,
    pub(super) registry: Arc<Registry>,
    mesh: Arc<Mesh>,
    mode: AtomicU8,
    turn: AtomicUsize,
}

impl Paths {
    pub(super) fn new(
        tunnels: Arc<Tunnels>,
        registry: Arc<Registry>,
        mesh: Arc<Mesh>,
        mode: HaMode,
    ) -> Self {
        Self {
            tunnels,
            registry,
            mesh,
            mode: AtomicU8::new(mode as u8),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn set_mode(&self, mode: HaMode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    pub(super) fn is_mode(&self, mode: HaMode) -> bool {
        self.mode.load(Ordering::Relaxed) == mode as u8
    }

    /// The path for a new flow of `connector`: a tunnel here before one elsewhere, and among equals
    /// the one with the fewest flows.
    pub(super) fn choose(&self, connector: &str, tried: &[Tried]) -> Option<Path> {
        self.choose_here(connector, tried).or_else(|| {
            let active = self.is_mode(HaMode::Active);
            active.then(|| self.choose_elsewhere(connector, tried))?
        })
    }

    /// What [`Paths::choose`] would do in `active` mode.
    pub(super) fn decide(&self, connector: &str) -> Decision {
        if self.choose_here(connector, &[]).is_some() {
            Decision::Local
        } else if self.choose_elsewhere(connector, &[]).is_some() {
            Decision::Remote
        } else if matches!(self.registry.health(), Some(RegistryHealth::Down(_))) {
            Decision::Error
        } else {
            Decision::None
        }
    }

    fn choose_here(&self, connector: &str, tried: &[Tried]) -> Option<Path> {
        let untried = |session: &Session| {
            let covers = |tried: &Tried| tried.covers(&session.agent_id, &None, session.epoch());
            !tried.iter().any(covers)
        };
        let session = self.tunnels.directory().choose(connector, untried)?;
        Some(Path::Local(session))
    }

    fn choose_elsewhere(&self, connector: &str, tried: &[Tried]) -> Option<Path> {
        // Equals take turns.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let routes = self.registry.routes();
        let untried = |route: &Arc<Route>| {
            let place = Some(route.hub.clone());
            let covers = |tried: &Tried| tried.covers(&route.agent_id, &place, route.epoch);
            !tried.iter().any(covers)
        };
        let some = routes.some_exporters(connector, turn, CANDIDATES);
        let is_all = some.len() < CANDIDATES;
        let path = self.least_loaded(some.into_iter().filter(untried));
        if path.is_some() || is_all {
            return path;
        }
        let all = routes.exporters(connector);
        self.least_loaded(all.into_iter().filter(untried))
    }

    fn least_loaded(&self, routes: impl Iterator<Item = Arc<Route>>) -> Option<Path> {
        let reachable = routes.filter_map(|route| Some((self.mesh.link(&route.hub)?, route)));
        let (link, route) =
            reachable.min_by_key(|(_, route)| route.flows.load(Ordering::Relaxed))?;
        Some(Path::Remote(route, link))
    }

    /// A path to the process that holds the other end of a flow: a tunnel here, or, if it `may_cross`
    /// the mesh, one elsewhere, but not over `shunned`.
    pub(super) fn towards(
        &self,
        holder: &Holder,
        may_cross: bool,
        shunned: Option<&str>,
    ) -> Option<Path> {
        let directory = self.tunnels.directory();
        if let Some(session) = directory.of_instance(&holder.agent_id, holder.instance) {
            return Some(Path::Local(session));
        }
        if !may_cross {
            return None;
        }
        let routes = self
            .registry
            .routes()
            .of_instance(&holder.agent_id, holder.instance);
        let routes = routes.into_iter();
        self.least_loaded(routes.filter(|route| Some(&*route.hub) != shunned))
    }

    /// Whether a later process than `holder` has the agent's id now, so that it will not come back.
    pub(super) fn is_replaced(&self, holder: &Holder) -> bool {
        let routes = self.registry.routes();
        routes.is_superseded(&holder.agent_id, holder.instance)
    }

    /// Whether a link to `hub` is up.
    pub(super) fn reaches(&self, hub: &str) -> bool {
        self.mesh.link(hub).is_some()
    }
}
