//! Where the agents of other hubs are, as far as this hub has heard.
//!
//! Routing reads this picture under a short lock; what changes it comes from elsewhere, so that no
//! flow waits for the registry to be opened.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nowconnect_proto::hello::Instance;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Owner;

/// Longest wait for a list to be read anew.
const REFRESH: Duration = Duration::from_secs(1);

/// A way to an agent: the hub that holds tunnels of it.
#[derive(Debug)]
pub struct Route {
    /// Replica id of the hub.
    pub hub: Arc<str>,
    /// The agent.
    pub agent_id: Arc<str>,
    /// Which start of it.
    pub instance: Instance,
    /// The fencing number that the hub holds it under.
    pub epoch: u64,
    /// What it exports there.
    pub connectors: Arc<[String]>,
    /// The name of the token that its tunnel stands on; hubs of earlier versions do not tell.
    pub token: Option<Arc<str>>,
    /// Those of the connectors whose targets the hub's probes find down.
    pub ailing: Arc<[String]>,
    /// Flows of this hub that go this way, for whoever shares them out to count.
    pub flows: Arc<AtomicUsize>,
}

impl Route {
    /// Whether the hub's probes find the connector's target down.
    pub fn is_ailing(&self, connector: &str) -> bool {
        self.ailing.iter().any(|ailing| ailing == connector)
    }

    fn owner(&self) -> Owner {
        Owner {
            epoch: self.epoch,
            instance: self.instance,
        }
    }
}

/// What a hub says of one of its agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) owner: Owner,
    pub(super) connectors: Arc<[String]>,
    pub(super) token: Option<Arc<str>>,
    pub(super) ailing: Arc<[String]>,
}

/// The agents of other hubs.
pub struct Routes {
    picture: RwLock<Picture>,
    changed: watch::Sender<u64>,
    /// Whoever can read another hub's list anew, while there is somebody.
    reader: Mutex<Option<mpsc::Sender<Refresh>>>,
}

/// An order to read a hub's list anew.
pub(super) struct Refresh {
    pub(super) hub: Arc<str>,
    /// Dropped when it is done, or will not be.
    pub(super) done: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Picture {
    /// Everything heard, also of owners that are not the latest.
    agents: HashMap<Arc<str>, Agent>,
    /// Routes of the latest owners only, by connector.
    exports: HashMap<Box<str>, Exporters>,
}

/// Routes in no order, of which any can be taken out without a look at the others: a hub that dies
/// takes all of its agents with it.
#[derive(Debug, Default)]
struct Exporters {
    routes: Vec<Arc<Route>>,
    /// Where each of them is, by its address.
    places: HashMap<usize, usize>,
}

impl Exporters {
    fn add(&mut self, route: &Arc<Route>) {
        self.places.insert(address(route), self.routes.len());
        self.routes.push(route.clone());
    }

    fn remove(&mut self, route: &Arc<Route>) {
        let Some(at) = self.places.remove(&address(route)) else {
            return;
        };
        self.routes.swap_remove(at);
        if let Some(moved) = self.routes.get(at) {
            self.places.insert(address(moved), at);
        }
    }

    /// Up to `most` of them from all over the list, other ones at each `turn`.
    fn some(&self, turn: usize, most: usize) -> Vec<Arc<Route>> {
        let len = self.routes.len();
        let count = len.min(most);
        let places = (0..count).map(|n| (turn % len + n * len / count) % len);
        places.map(|at| self.routes[at].clone()).collect()
    }
}

fn address(route: &Arc<Route>) -> usize {
    Arc::as_ptr(route).addr()
}

#[derive(Debug, Default)]
struct Agent {
    /// Whether this hub has tunnels of it.
    is_here: bool,
    /// The latest owner that had tunnels here, remembered while others list the agent: what they
    /// say of earlier owners is outdated also when those tunnels are gone.
    here: Option<Owner>,
    /// One per hub.
    routes: Vec<Arc<Route>>,
}

impl Agent {
    fn latest_elsewhere(&self) -> Option<Owner> {
        self.routes.iter().map(|route| route.owner()).max()
    }

    fn latest(&self) -> Option<Owner> {
        self.here.max(self.latest_elsewhere())
    }

    /// The routes to the latest owner.
    fn current(&self) -> impl Iterator<Item = &Arc<Route>> {
        let latest = self.latest();
        self.routes
            .iter()
            .filter(move |route| Some(route.owner()) == latest)
    }
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            picture: RwLock::default(),
            changed: watch::Sender::new(0),
            reader: Mutex::default(),
        }
    }

    /// Every route to the latest owner of its agent, by agent and hub.
    pub fn all(&self) -> Vec<Arc<Route>> {
        let picture = self.picture.read();
        let mut all: Vec<_> = picture
            .agents
            .values()
            .flat_map(Agent::current)
            .cloned()
            .collect();
        drop(picture);
        all.sort_by(|a, b| (&a.agent_id, &a.hub).cmp(&(&b.agent_id, &b.hub)));
        all
    }

    /// Routes to the agents that export `connector` elsewhere: to the latest owner of each id, one
    /// per hub that holds it.
    pub fn exporters(&self, connector: &str) -> Vec<Arc<Route>> {
        self.some_exporters(connector, 0, usize::MAX)
    }

    /// Up to `most` of [`Routes::exporters`], spread over all of them; other ones at each `turn`.
    pub fn some_exporters(&self, connector: &str, turn: usize, most: usize) -> Vec<Arc<Route>> {
        let picture = self.picture.read();
        let exporters = picture.exports.get(connector);
        exporters.map_or_else(Vec::new, |exporters| exporters.some(turn, most))
    }

    /// Routes to this running agent, unless it has been superseded.
    pub fn of_instance(&self, agent_id: &str, instance: Instance) -> Vec<Arc<Route>> {
        let picture = self.picture.read();
        let Some(agent) = picture.agents.get(agent_id) else {
            return Vec::new();
        };
        agent
            .current()
            .filter(|route| route.instance == instance)
            .cloned()
            .collect()
    }

    /// The latest owner of an agent's id on other hubs, as epoch and instance.
    pub fn latest(&self, agent_id: &str) -> Option<(u64, Instance)> {
        self.owner(agent_id)
            .map(|owner| (owner.epoch, owner.instance))
    }

    /// Whether the id of this running agent is known to belong to a later one, here or elsewhere.
    pub fn is_superseded(&self, agent_id: &str, instance: Instance) -> bool {
        let picture = self.picture.read();
        let latest = picture.agents.get(agent_id).and_then(Agent::latest);
        latest.is_some_and(|latest| latest.instance != instance)
    }

    /// Reads anew what `hub` says, because it denied what its list said. Takes up to a second; does
    /// nothing while the registry does not answer or has just been read.
    pub async fn refresh(&self, hub: &str) {
        let (done, wait) = oneshot::channel();
        let hub = hub.into();
        let sent = {
            let reader = self.reader.lock();
            let reader = reader.as_ref();
            reader.is_some_and(|reader| reader.try_send(Refresh { hub, done }).is_ok())
        };
        if sent {
            let _ = timeout(REFRESH, wait).await;
        }
    }

    /// Whom refreshes go to from now on.
    pub(super) fn set_reader(&self, reader: Option<mpsc::Sender<Refresh>>) {
        *self.reader.lock() = reader;
    }

    /// Marked whenever a route came or went.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn owner(&self, agent_id: &str) -> Option<Owner> {
        let picture = self.picture.read();
        picture.agents.get(agent_id)?.latest_elsewhere()
    }

    /// Who has tunnels of the agent on this hub.
    pub(super) fn set_here(&self, agent_id: &Arc<str>, here: Option<Owner>) {
        self.alter(agent_id, |agent| {
            agent.is_here = here.is_some();
            // An earlier owner may come back when the later one is gone.
            agent.here = here.or(agent.here);
        });
    }

    /// What `hub` says of the agent from now on; `None`: that it has no tunnels of it.
    pub(super) fn set(&self, hub: &Arc<str>, agent_id: &Arc<str>, entry: Option<&Entry>) {
        self.alter(agent_id, |agent| {
            let before = agent.routes.iter().position(|route| route.hub == *hub);
            let before = before.map(|at| agent.routes.swap_remove(at));
            let Some(entry) = entry else { return };
            // Other connectors of the same tunnels: the flows over them are the same ones too.
            let flows = before.filter(|route| route.owner() == entry.owner);
            agent.routes.push(Arc::new(Route {
                hub: hub.clone(),
                agent_id: agent_id.clone(),
                instance: entry.owner.instance,
                epoch: entry.owner.epoch,
                connectors: entry.connectors.clone(),
                token: entry.token.clone(),
                ailing: entry.ailing.clone(),
                flows: flows.map_or_else(Arc::default, |route| route.flows.clone()),
            }));
        });
    }

    fn alter(&self, agent_id: &Arc<str>, change: impl FnOnce(&mut Agent)) {
        let picture = &mut *self.picture.write();
        let agent = picture.agents.entry(agent_id.clone()).or_default();
        let before: Vec<_> = agent.current().cloned().collect();
        change(agent);
        let after: Vec<_> = agent.current().cloned().collect();
        if !agent.is_here && agent.routes.is_empty() {
            picture.agents.remove(agent_id);
        }
        let same = |(one, other)| Arc::ptr_eq(one, other);
        if before.len() == after.len() && before.iter().zip(&after).all(same) {
            return;
        }
        for route in &before {
            retract(&mut picture.exports, route);
        }
        for route in &after {
            export(&mut picture.exports, route);
        }
        self.changed.send_modify(|version| *version += 1);
    }
}

fn export(exports: &mut HashMap<Box<str>, Exporters>, route: &Arc<Route>) {
    for connector in route.connectors.iter() {
        let exporters = exports.entry(connector.as_str().into()).or_default();
        exporters.add(route);
    }
}

fn retract(exports: &mut HashMap<Box<str>, Exporters>, route: &Arc<Route>) {
    for connector in route.connectors.iter() {
        let Some(exporters) = exports.get_mut(connector.as_str()) else {
            continue;
        };
        exporters.remove(route);
        if exporters.routes.is_empty() {
            exports.remove(connector.as_str());
        }
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agents = self.picture.read().agents.len();
        f.debug_struct("Routes").field("agents", &agents).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn entry(epoch: u64, instance: u128, connectors: &[&str]) -> Entry {
        Entry {
            owner: owner(epoch, instance),
            connectors: connectors.iter().map(|name| (*name).to_owned()).collect(),
            token: None,
            ailing: Arc::default(),
        }
    }

    fn owner(epoch: u64, instance: u128) -> Owner {
        Owner {
            epoch,
            instance: Instance(instance),
        }
    }

    fn hubs(routes: &[Arc<Route>]) -> Vec<&str> {
        let mut hubs: Vec<_> = routes.iter().map(|route| &*route.hub).collect();
        hubs.sort_unstable();
        hubs
    }

    #[test]
    fn only_the_latest_owner_is_routed_to() {
        let (routes, a): (_, Arc<str>) = (Routes::new(), "site-1".into());
        routes.set(&"hub-b".into(), &a, Some(&entry(5, 1, &["ldap"])));
        routes.set(&"hub-c".into(), &a, Some(&entry(5, 1, &["ldap"])));
        assert_eq!(hubs(&routes.exporters("ldap")), ["hub-b", "hub-c"]);
        routes.set(&"hub-c".into(), &a, Some(&entry(6, 2, &["ldap", "pg"])));
        assert_eq!(hubs(&routes.exporters("ldap")), ["hub-c"]);
        assert_eq!(hubs(&routes.exporters("pg")), ["hub-c"]);
        assert_eq!(routes.latest("site-1"), Some((6, Instance(2))));
        assert!(routes.of_instance("site-1", Instance(1)).is_empty());
        routes.set(&"hub-c".into(), &a, None);
        assert_eq!(hubs(&routes.exporters("ldap")), ["hub-b"]);
        assert!(routes.exporters("pg").is_empty());
    }

    #[test]
    fn an_owner_here_hides_earlier_ones_elsewhere() {
        let (routes, a): (_, Arc<str>) = (Routes::new(), "site-1".into());
        routes.set(&"hub-b".into(), &a, Some(&entry(5, 1, &["ldap"])));
        routes.set_here(&a, Some(owner(5, 1)));
        assert_eq!(hubs(&routes.of_instance("site-1", Instance(1))), ["hub-b"]);
        assert!(!routes.is_superseded("site-1", Instance(1)));
        routes.set_here(&a, Some(owner(6, 2)));
        routes.set_here(&a, None);
        assert!(routes.exporters("ldap").is_empty(), "also when it has left");
        assert!(routes.is_superseded("site-1", Instance(1)));
        assert!(!routes.is_superseded("site-1", Instance(2)));
        routes.set_here(&a, Some(owner(5, 1)));
        assert_eq!(hubs(&routes.of_instance("site-1", Instance(1))), ["hub-b"]);
        routes.set_here(&a, None);
        routes.set(&"hub-b".into(), &a, None);
        assert!(routes.picture.read().agents.is_empty());
        assert!(!routes.is_superseded("site-1", Instance(1)));
    }

    #[test]
    fn some_of_many_are_all_different_and_none_that_left() {
        let (routes, hub): (_, Arc<str>) = (Routes::new(), "hub-b".into());
        let id = |n: usize| -> Arc<str> { format!("site-{n}").into() };
        for n in 0..100 {
            routes.set(&hub, &id(n), Some(&entry(5, n as u128, &["ldap"])));
        }
        for n in (0..100).step_by(3) {
            routes.set(&hub, &id(n), None);
        }
        for turn in [0, 1, 65, 66, usize::MAX] {
            for most in [1, 7, 64, 66, 99] {
                let some = routes.some_exporters("ldap", turn, most);
                let mut ids: Vec<_> = some.iter().map(|route| route.agent_id.clone()).collect();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), most.min(66), "{turn} {most}");
                let left = |route: &Arc<Route>| route.instance.0.is_multiple_of(3);
                assert!(!some.iter().any(left));
            }
        }
        assert!(routes.some_exporters("pg", 3, 4).is_empty());
    }

    #[test]
    fn other_connectors_keep_the_count_of_flows() {
        let (routes, a): (_, Arc<str>) = (Routes::new(), "site-1".into());
        routes.set(&"hub-b".into(), &a, Some(&entry(5, 1, &["ldap"])));
        routes.exporters("ldap")[0]
            .flows
            .fetch_add(3, Ordering::Relaxed);
        routes.set(&"hub-b".into(), &a, Some(&entry(5, 1, &["pg"])));
        assert!(routes.exporters("ldap").is_empty());
        assert_eq!(routes.exporters("pg")[0].flows.load(Ordering::Relaxed), 3);
        routes.set(&"hub-b".into(), &a, Some(&entry(6, 1, &["pg"])));
        assert_eq!(routes.exporters("pg")[0].flows.load(Ordering::Relaxed), 0);
    }
}
