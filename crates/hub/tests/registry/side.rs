//! One hub's registry, as a test sees it.

use std::sync::Arc;
use std::time::Duration;

use nowconnect_hub::metrics::Metrics;
use nowconnect_hub::registry::{
    Claim, ClaimError, Lease, Owner, Registry, RegistryHealth, StoreConfig,
};
use nowconnect_link::tasks::Tasks;
use nowconnect_proto::hello::Instance;
use nowconnect_settings::Secret;
use nowconnect_testkit::anyhow::{Result, bail, ensure};
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::wait::{until, until_within};
use parking_lot::Mutex;

/// A hub as far as the registry knows it.
pub(crate) struct Side {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) superseded: Arc<Mutex<Vec<(String, Owner)>>>,
    tasks: Tasks,
}

impl Side {
    /// A hub that shares nothing.
    pub(crate) fn alone(hub: &str) -> Self {
        let (metrics, tasks) = (Metrics::new(), Tasks::new());
        let registry = Registry::new(hub.into(), metrics.clone(), tasks.clone());
        let superseded = Arc::<Mutex<Vec<_>>>::default();
        let told = superseded.clone();
        registry.on_superseded(move |id, owner| told.lock().push((id.to_string(), owner)));
        Self {
            registry,
            metrics,
            superseded,
            tasks,
        }
    }

    /// A hub that shares the registry at `url`, and reaches it.
    pub(crate) async fn up(hub: &str, url: &str) -> Result<Self> {
        let side = Self::alone(hub);
        side.share(url);
        side.wait_up().await?;
        Ok(side)
    }

    /// Two hubs that share a registry.
    pub(crate) async fn two() -> Result<(Redis, Self, Self)> {
        let redis = Redis::start().await?;
        let a = Self::up("hub-a", &redis.url()).await?;
        let b = Self::up("hub-b", &redis.url()).await?;
        Ok((redis, a, b))
    }

    pub(crate) fn share(&self, url: &str) {
        let url = Secret::new(url);
        self.registry.configure(Some(StoreConfig { url, ca: None }));
    }

    /// Ends as a process does that is told to.
    pub(crate) async fn stop(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.registry.health() == Some(RegistryHealth::Up)
    }

    pub(crate) async fn wait_up(&self) -> Result<()> {
        until("the registry to be up", async || {
            match self.registry.health() {
                Some(RegistryHealth::Up) => Ok(()),
                other => bail!("{other:?}"),
            }
        })
        .await
    }

    /// Waits until the registry is down; returns why.
    pub(crate) async fn wait_down(&self) -> Result<String> {
        until("the registry to be down", async || {
            match self.registry.health() {
                Some(RegistryHealth::Down(reason)) => Ok(reason),
                other => bail!("{other:?}"),
            }
        })
        .await
    }

    pub(crate) async fn claim(&self, claim: Claim) -> Result<Lease, ClaimError> {
        self.registry.claim(claim).await
    }

    /// The hubs that `connector` is exported on elsewhere.
    pub(crate) fn exporters(&self, connector: &str) -> Vec<String> {
        let routes = self.registry.routes().exporters(connector);
        let mut hubs: Vec<_> = routes.iter().map(|route| route.hub.to_string()).collect();
        hubs.sort();
        hubs
    }

    /// Waits until exactly these hubs are known to export `connector`.
    pub(crate) async fn wait_exporters(&self, connector: &str, hubs: &[&str]) -> Result<()> {
        until("the routes", async || {
            let found = self.exporters(connector);
            ensure!(found == hubs, "{found:?} and not {hubs:?}");
            Ok(())
        })
        .await
    }

    /// The same, within a time that is part of what is promised.
    pub(crate) async fn wait_exporters_within(
        &self,
        time: Duration,
        connector: &str,
        hubs: &[&str],
    ) -> Result<()> {
        until_within(time, "the routes", async || {
            let found = self.exporters(connector);
            ensure!(found == hubs, "{found:?} and not {hubs:?}");
            Ok(())
        })
        .await
    }

    /// Waits until this hub knows that its agent has a later owner elsewhere.
    pub(crate) async fn wait_superseded(&self, agent_id: &str, by: Owner) -> Result<()> {
        let told = (agent_id.to_owned(), by);
        until("to be superseded", async || {
            let superseded = self.superseded.lock();
            ensure!(superseded.contains(&told), "{superseded:?}");
            Ok(())
        })
        .await
    }
}

/// A claim of a process that has no tunnel yet.
pub(crate) fn claim(agent_id: &str, instance: u128) -> Claim {
    Claim {
        agent_id: agent_id.into(),
        instance: Instance(instance),
        epoch_seen: 0,
        epoch_held: Some(0),
        connectors: vec!["ldap".into()],
    }
}

/// A claim of a process that has tunnels under this epoch.
pub(crate) fn holding(epoch: u64, claim: Claim) -> Claim {
    Claim {
        epoch_seen: epoch,
        epoch_held: Some(epoch),
        ..claim
    }
}
