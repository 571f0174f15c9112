//! Which hub owns which agent: a directory with fencing numbers.
//!
//! An agent's tunnel claims ownership for the hub it reached. Every claim of a running agent that
//! holds no tunnel yet gets an epoch above all earlier ones; further tunnels of the same running
//! agent join its epoch. The newest claim wins. The directory never cuts a tunnel: the living tunnel
//! is the truth, and a displaced one is told so by the session table.
//!
//! Every hub decides about its own tunnels, and can do so alone. Where hubs share a registry, it
//! settles claims between them and tells each what the others hold; while it does not answer, claims
//! are granted here and published when it is back. Losing it closes no tunnel.

mod ailing;
mod epoch;
#[doc(hidden)]
pub mod fuzzing;
mod own;
mod owner;
mod redis;
mod rivalry;
mod routes;
mod tables;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use nowconnect_link::tasks::Tasks;
use nowconnect_proto::hello::Instance;
use nowconnect_settings::Secret;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::{HaConfig, HaMode};
use crate::metrics::Metrics;
use ailing::Ailing;
use own::{Now, Own, RecordId};
use redis::{Store, Worker};
use routes::Entry;

pub use owner::Owner;
pub use redis::probe::{Node, Probed, probe};
pub use routes::{Route, Routes};

/// Flows that may wait for another hub's table to be read.
const REFRESHES: usize = 64;

/// What a tunnel's HELLO claims.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The agent, as its token names it.
    pub agent_id: Arc<str>,
    /// Which start of the agent.
    pub instance: Instance,
    /// The highest epoch that the agent was ever told; 0 for none.
    pub epoch_seen: u64,
    /// The epoch of its living tunnels, 0 when it has none; `None` for an agent that does not say.
    pub epoch_held: Option<u64>,
    /// What it exports.
    pub connectors: Vec<String>,
}

/// A claim was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Two living agents fight over the id; the one that is here stays for now.
    #[error("another living agent uses this id")]
    Conflict,
}

/// The registry that several hubs share.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    /// `ha.redis_url`.
    pub url: Secret,
    /// `ha.redis_ca`: CA certificates (PEM) that servers must chain to, in place of the system's.
    pub ca: Option<PathBuf>,
}

impl StoreConfig {
    /// The store that hubs share under this configuration; `None` where each is alone.
    pub fn of(config: &HaConfig) -> Option<Self> {
        let url = config.redis_url.clone()?;
        let ca = config.redis_ca.clone();
        (config.mode != HaMode::Off).then_some(Self { url, ca })
    }
}

/// How the shared registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryHealth {
    /// It answers and knows this hub's agents.
    Up,
    /// It does not, for this reason.
    Down(String),
}

type Superseded = Box<dyn Fn(&Arc<str>, Owner) + Send + Sync>;

/// This hub's own agents, the routes to those of others, and the registry that all of them share.
pub struct Registry {
    hub: Arc<str>,
    own: Mutex<Own>,
    ailing: Ailing,
    routes: Routes,
    superseded: OnceLock<Superseded>,
    store: ArcSwapOption<Store>,
    /// The task of the present store, or of the last one.
    worker: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Registry {
    /// A registry for `hub` alone; its tasks are `tasks`.
    pub fn new(hub: Arc<str>, metrics: Arc<Metrics>, tasks: Tasks) -> Arc<Self> {
        // Alone, the registry is this process.
        metrics.mesh.registry_healthy.set(1);
        Arc::new(Self {
            hub,
            own: Mutex::default(),
            ailing: Ailing::default(),
            routes: Routes::new(),
            superseded: OnceLock::new(),
            store: ArcSwapOption::empty(),
            worker: Mutex::default(),
            metrics,
            tasks,
        })
    }

    /// The name of this hub.
    pub fn hub(&self) -> &Arc<str> {
        &self.hub
    }

    /// Calls `tell` with agent and new owner whenever an agent with tunnels here is found to have a
    /// later owner elsewhere. For one caller; called outside of all locks.
    pub fn on_superseded(&self, tell: impl Fn(&Arc<str>, Owner) + Send + Sync + 'static) {
        let _ = self.superseded.set(Box::new(tell));
    }

    /// Shares the registry with other hubs through `store`, or with none. May be called again at
    /// any time: tunnels stay, and what is here is told to the new store. Inside a runtime only.
    pub fn configure(self: &Arc<Self>, store: Option<StoreConfig>) {
        let mut worker = self.worker.lock();
        let before = self.store.load_full();
        if before.as_ref().map(|before| &before.config) == store.as_ref() {
            return;
        }
        if let Some(before) = before {
            before.stop.cancel();
        }
        let Some(config) = store else {
            self.store.store(None);
            self.routes.set_reader(None);
            self.metrics.mesh.registry_healthy.set(1);
            return;
        };
        self.metrics.mesh.registry_healthy.set(0);
        let store = Store::new(config, self.tasks.token());
        let (reader, refreshes) = mpsc::channel(REFRESHES);
        self.routes.set_reader(Some(reader));
        let work = Worker::new(self.clone(), store.clone(), refreshes);
        self.store.store(Some(store));
        let before = worker.take();
        *worker = Some(self.tasks.spawn("registry", async move {
            // It takes its leave first, and what it knew with it.
            if let Some(before) = before {
                let _ = before.await;
            }
            work.run().await;
        }));
    }

    /// How the shared registry is; `None` when it is not shared.
    pub fn health(&self) -> Option<RegistryHealth> {
        self.store.load().as_ref().map(|store| store.health())
    }

    /// Where the agents of other hubs are.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Grants `claim` unless two living agents fight over the id. Takes up to a second: where the
    /// shared registry does not answer, this hub decides alone.
    ///
    /// # Errors
    /// [`ClaimError::Conflict`].
    pub async fn claim(self: &Arc<Self>, claim: Claim) -> Result<Lease, ClaimError> {
        let elsewhere = self.routes.owner(&claim.agent_id);
        let (here, floor) = {
            let own = self.own.lock();
            (own.owner(&claim.agent_id), own.floor(&claim.agent_id))
        };
        if let Some(store) = self.store.load_full()
            && let Some(verdict) = store
                .claim(&self.hub, &claim, here.max(elsewhere), floor)
                .await
        {
            return Ok(self.enter(claim, verdict?));
        }
        let owner = self.own.lock().judge(&claim, elsewhere, Now::read())?;
        Ok(self.enter(claim, owner))
    }

    fn enter(self: &Arc<Self>, claim: Claim, owner: Owner) -> Lease {
        let Claim {
            agent_id,
            connectors,
            ..
        } = claim;
        let record = self.alter(&agent_id, |own| own.enter(&agent_id, owner, connectors));
        Lease {
            agent_id,
            owner,
            record,
            registry: self.clone(),
        }
    }

    /// Whether a proof of possession was not shown to any hub before, which all that share a registry
    /// agree on; `None` when there is none, or it does not answer or may have forgotten.
    pub async fn is_first_use(&self, proof: &str) -> Option<bool> {
        let store = self.store.load_full()?;
        store.is_first_use(proof).await
    }

    /// The latest owner of the agent whose tunnels end here.
    pub fn owner(&self, agent_id: &str) -> Option<Owner> {
        self.own.lock().owner(agent_id)
    }

    /// What the agent exports here.
    pub fn connectors(&self, agent_id: &str) -> Arc<[String]> {
        let own = self.own.lock();
        let connectors = own.get(agent_id).map(|record| record.connectors.clone());
        connectors.unwrap_or_default()
    }

    /// The connectors of an agent with tunnels here whose targets are down from now on. All hubs are
    /// told; who is routed to them is for the router to say.
    pub fn set_ailing(&self, agent_id: &Arc<str>, connectors: Vec<String>) {
        if self.ailing.set(agent_id, connectors)
            && let Some(store) = &*self.store.load()
        {
            store.note(agent_id);
        }
    }

    /// Whether the target of a connector of an agent with tunnels here is down.
    pub fn is_ailing(&self, agent_id: &str, connector: &str) -> bool {
        self.ailing.of(agent_id).iter().any(|one| one == connector)
    }

    /// A later owner of the agent's id than `owner` on another hub.
    pub(crate) fn successor(&self, agent_id: &str, owner: Owner) -> Option<Owner> {
        self.routes.owner(agent_id).filter(|other| *other > owner)
    }

    /// Another hub says this of one of its agents.
    fn learn(&self, hub: &Arc<str>, agent_id: &Arc<str>, entry: Option<&Entry>) {
        let before = self.routes.owner(agent_id);
        self.routes.set(hub, agent_id, entry);
        if let Some(before) = before {
            let clock = SystemTime::now();
            self.own.lock().note_epoch(agent_id, before.epoch, clock);
        }
        let Some(Entry { owner, .. }) = entry else {
            return;
        };
        let here = self.own.lock().owner(agent_id);
        if here.is_some_and(|here| here < *owner)
            && let Some(tell) = self.superseded.get()
        {
            tell(agent_id, *owner);
        }
    }

    fn alter<T>(&self, agent_id: &Arc<str>, change: impl FnOnce(&mut Own) -> T) -> T {
        let mut own = self.own.lock();
        let done = change(&mut own);
        self.routes.set_here(agent_id, own.owner(agent_id));
        drop(own);
        if let Some(store) = &*self.store.load() {
            store.note(agent_id);
        }
        done
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("hub", &self.hub)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

/// A granted claim. Dropping it withdraws exactly this claim, so a late drop cannot undo a newer one.
#[derive(Debug)]
pub struct Lease {
    agent_id: Arc<str>,
    owner: Owner,
    /// `None`: a later owner was here before this claim was granted.
    record: Option<RecordId>,
    registry: Arc<Registry>,
}

impl Lease {
    /// The fencing number of the ownership.
    pub fn epoch(&self) -> u64 {
        self.owner.epoch
    }

    /// Who owns the agent by this lease.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Publishes the name of the token that the tunnel stands on.
    pub fn name_token(&self, token: Option<Arc<str>>) {
        self.alter(|own, id| own.name_token(&self.agent_id, id, token));
    }

    /// Publishes other connectors under the same ownership.
    pub fn update(&self, connectors: Vec<String>) {
        self.alter(|own, id| own.update(&self.agent_id, id, connectors));
    }

    fn alter(&self, change: impl FnOnce(&mut Own, RecordId)) {
        if let Some(id) = self.record {
            self.registry.alter(&self.agent_id, |own| change(own, id));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.alter(|own, id| own.leave(&self.agent_id, id, SystemTime::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Arc<Registry> {
        Registry::new("hub-a".into(), Metrics::new(), Tasks::new())
    }

    fn claim(instance: u128) -> Claim {
        Claim {
            agent_id: "site-1".into(),
            instance: Instance(instance),
            epoch_seen: 0,
            epoch_held: None,
            connectors: vec!["ldap".into()],
        }
    }

    fn epoch(registry: &Registry) -> Option<u64> {
        registry.owner("site-1").map(|owner| owner.epoch)
    }

    #[tokio::test]
    async fn every_new_ownership_is_above_the_last() {
        let registry = registry();
        let mut last = 0;
        for instance in 0..4 {
            let lease = registry.claim(claim(instance)).await.expect("granted");
            assert!(lease.epoch() > last);
            last = lease.epoch();
        }
        let reported = Claim {
            epoch_seen: last + 1000,
            ..claim(9)
        };
        let lease = registry.claim(reported).await.expect("granted");
        assert_eq!(lease.epoch(), last + 1001);
    }

    #[tokio::test]
    async fn tunnels_of_one_running_agent_share_an_epoch_until_the_last_is_gone() {
        let registry = registry();
        let first = registry.claim(claim(1)).await.expect("granted");
        let second = registry.claim(claim(1)).await.expect("granted");
        assert_eq!(first.epoch(), second.epoch());
        let held = first.epoch();
        drop(first);
        assert_eq!(epoch(&registry), Some(held));
        drop(second);
        assert_eq!(epoch(&registry), None);
        let back = registry.claim(claim(1)).await.expect("granted");
        assert!(back.epoch() > held);
    }

    #[tokio::test]
    async fn a_displaced_lease_withdraws_nothing_of_its_successor() {
        let registry = registry();
        let old = registry.claim(claim(1)).await.expect("granted");
        let new = registry.claim(claim(2)).await.expect("granted");
        old.update(vec!["stale".into()]);
        drop(old);
        assert_eq!(registry.owner("site-1"), Some(new.owner()));
        assert_eq!(*registry.connectors("site-1"), ["ldap"]);
    }
}
