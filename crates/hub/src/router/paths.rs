//! Where a flow can go from here: to a tunnel of this hub, or over the mesh to the hub that has one.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use nowconnect_link::endpoint::SocketFlow;
use nowconnect_link::session::Link;
use nowconnect_proto::Reason;

use super::Holder;
use crate::config::HaMode;
use crate::mesh::{Mesh, Need};
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
}

/// One flow in the count of a route to another hub, and among those that need a link there.
#[derive(Debug)]
pub(super) struct Load {
    route: Arc<Route>,
    _need: Need,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.route.flows.fetch_sub(1, Ordering::Relaxed);
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

/// Which ways a new flow may go.
struct Wanted<'a> {
    connector: &'a str,
    tried: &'a [Tried],
    /// Not to targets that are down.
    only_well: bool,
    /// There was a way that is not wanted for that.
    withheld: Cell<bool>,
}

impl Wanted<'_> {
    fn untried(&self, agent_id: &str, place: &Place, epoch: u64) -> bool {
        !self
            .tried
            .iter()
            .any(|tried| tried.covers(agent_id, place, epoch))
    }

    fn admits(&self, is_ailing: impl Fn() -> bool) -> bool {
        let withheld = self.only_well && is_ailing();
        self.withheld.set(self.withheld.get() || withheld);
        !withheld
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
    /// the one with the fewest flows. Agents whose targets are down come after all others.
    pub(super) fn choose(&self, connector: &str, tried: &[Tried]) -> Option<Path> {
        self.choose_in(connector, tried, self.is_mode(HaMode::Active))
    }

    /// What [`Paths::choose`] would do in `active` mode.
    pub(super) fn decide(&self, connector: &str) -> Decision {
        match self.choose_in(connector, &[], true) {
            Some(Path::Local(_)) => Decision::Local,
            Some(Path::Remote(..)) => Decision::Remote,
            None if matches!(self.registry.health(), Some(RegistryHealth::Down(_))) => {
                Decision::Error
            }
            None => Decision::None,
        }
    }

    fn choose_in(&self, connector: &str, tried: &[Tried], active: bool) -> Option<Path> {
        let seek = |only_well| {
            let wanted = Wanted {
                connector,
                tried,
                only_well,
                withheld: Cell::new(false),
            };
            let path = self.choose_here(&wanted).or_else(|| {
                let elsewhere = || self.choose_elsewhere(&wanted);
                active.then(elsewhere)?
            });
            (path, wanted.withheld.get())
        };
        match seek(true) {
            // A probe may be wrong, and no way at all is never better.
            (None, true) => seek(false).0,
            (path, _) => path,
        }
    }

    /// Whether probes find the target down that the path leads to for `connector`.
    pub(super) fn is_ailing(&self, path: &Path, connector: &str) -> bool {
        match path {
            Path::Local(session) => self.registry.is_ailing(&session.agent_id, connector),
            Path::Remote(route, _) => route.is_ailing(connector),
        }
    }

    fn choose_here(&self, wanted: &Wanted<'_>) -> Option<Path> {
        let connector = wanted.connector;
        let fits = |session: &Session| {
            wanted.untried(&session.agent_id, &None, session.epoch())
                && wanted.admits(|| self.registry.is_ailing(&session.agent_id, connector))
        };
        let session = self.tunnels.directory().choose(connector, fits)?;
        Some(Path::Local(session))
    }

    fn choose_elsewhere(&self, wanted: &Wanted<'_>) -> Option<Path> {
        // Equals take turns.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (routes, connector) = (self.registry.routes(), wanted.connector);
        let fits = |route: &Arc<Route>| {
            wanted.untried(&route.agent_id, &Some(route.hub.clone()), route.epoch)
                && wanted.admits(|| route.is_ailing(connector))
        };
        let some = routes.some_exporters(connector, turn, CANDIDATES);
        let is_all = some.len() < CANDIDATES;
        let path = self.least_loaded(some.into_iter().filter(fits));
        if path.is_some() || is_all {
            return path;
        }
        let all = routes.exporters(connector);
        self.least_loaded(all.into_iter().filter(fits))
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

    /// Counts a flow on `path` as long as the value lives.
    pub(super) fn load(&self, path: &Path) -> Option<Load> {
        let Path::Remote(route, _) = path else {
            return None;
        };
        route.flows.fetch_add(1, Ordering::Relaxed);
        Some(Load {
            route: route.clone(),
            _need: self.mesh.need(&route.hub),
        })
    }

    /// The way that a flow took before, where the registry tells none because high availability is off
    /// here or at the other hub.
    pub(super) fn back(&self, load: &Load) -> Option<Path> {
        let link = self.mesh.leftover(&load.route.hub)?;
        Some(Path::Remote(load.route.clone(), link))
    }

    /// Whether there may be such ways.
    pub(super) fn has_ways_back(&self) -> bool {
        self.mesh.has_leftovers()
    }

    /// Whether a later process than `holder` has the agent's id now, so that it will not come back.
    pub(super) fn is_replaced(&self, holder: &Holder) -> bool {
        let routes = self.registry.routes();
        routes.is_superseded(&holder.agent_id, holder.instance)
    }

    /// Whether a link to `hub` is up.
    pub(super) fn reaches(&self, hub: &str) -> bool {
        self.mesh
            .link(hub)
            .or_else(|| self.mesh.leftover(hub))
            .is_some()
    }
}
