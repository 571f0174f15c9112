//! Several hubs as one.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{AgentPlan, Hub, HubPlan, Lab};
use crate::fault_proxy::FaultProxy;
use crate::redis::Redis;
use crate::target::Target;
use crate::transfer::Transfer;
use crate::wait::until;
use crate::{http, ports};

/// Makes hubs peers of each other: they share the registry at `redis_url`, are in `mode`, and dial each
/// other without TLS.
#[must_use]
pub fn peers<'a>(plans: Vec<HubPlan<'a>>, mode: &str, redis_url: &str) -> Vec<HubPlan<'a>> {
    let urls: Vec<_> = plans.iter().map(HubPlan::mesh_url).collect();
    let with_peers = plans.into_iter().enumerate().map(|(own, plan)| {
        let others = urls.iter().enumerate().filter(|(at, _)| *at != own);
        let others: Vec<_> = others.map(|(_, url)| url.as_str()).collect();
        plan.member(mode, redis_url)
            .set("ha.mesh.peers", json!(others))
            .set("ha.mesh.require_mtls", false)
            .set("ha.mesh.connect_backoff_max_sec", 1)
    });
    with_peers.collect()
}

fn mesh_url(addr: SocketAddr) -> String {
    format!("ws://{addr}/mesh")
}

impl HubPlan<'_> {
    /// Where it will serve `/tunnel` and `/mesh`.
    ///
    /// # Errors
    /// When it has no port.
    pub fn tunnel_addr(&self) -> Result<SocketAddr> {
        let port = self.config()["tunnel"]["port"].as_u64();
        Ok(ports::local(u16::try_from(port.context("tunnel.port")?)?))
    }

    /// Where other hubs dial it, without TLS.
    #[must_use]
    pub fn mesh_url(&self) -> String {
        self.tunnel_addr().map(mesh_url).unwrap_or_default()
    }

    /// Turns high availability on.
    #[must_use]
    pub fn member(self, mode: &str, redis_url: &str) -> Self {
        let name = self.name().to_owned();
        self.set("ha.enabled", true)
            .set("ha.mode", mode)
            .set("ha.replica_id", name)
            .set("ha.redis_url", redis_url)
    }
}

/// Two hubs that share a registry and keep a link each way, with a listener for bulk transfers and one
/// for echoes each.
#[derive(Debug)]
pub struct Pair {
    /// Where they live.
    pub lab: Lab,
    /// What they share.
    pub redis: Redis,
    /// The first.
    pub a: Hub,
    /// The second.
    pub b: Hub,
    /// Between the first and what they share.
    pub a_to_redis: FaultProxy,
    /// On the link that the second keeps to the first.
    pub to_a: FaultProxy,
    /// On the link that the first keeps to the second.
    pub to_b: FaultProxy,
    /// What stands behind the connector `bulk`.
    pub bulk: Target,
    /// What stands behind the connector `echo`.
    pub echo: Target,
}

impl Pair {
    /// Starts both and waits until their links are up.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start(lab: Lab, mode: &str) -> Result<Self> {
        Self::start_with(lab, mode, &[]).await
    }

    /// The same with more keys in both configurations.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start_with(lab: Lab, mode: &str, more: &[(&str, u64)]) -> Result<Self> {
        Self::start_on(Redis::start().await?, lab, mode, more).await
    }

    /// The same with this registry.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start_on(
        redis: Redis,
        lab: Lab,
        mode: &str,
        more: &[(&str, u64)],
    ) -> Result<Self> {
        let (bulk, echo) = (Target::bulk().await?, Target::echo().await?);
        let plans = ["hub-a", "hub-b"].map(|name| {
            let plan = lab.hub(name).listener("bulk").listener("echo");
            more.iter()
                .fold(plan, |plan, (key, value)| plan.set(key, *value))
        });
        let mut plans = peers(plans.into(), mode, &redis.url()).into_iter();
        let (Some(a), Some(b)) = (plans.next(), plans.next()) else {
            bail!("there are two");
        };
        let a_to_redis = FaultProxy::start(redis.addr()).await?;
        let a = a.set("ha.redis_url", format!("redis://{}", a_to_redis.addr()));
        // What each dials goes through a proxy in front of the other.
        let to_a = FaultProxy::start(a.tunnel_addr()?).await?;
        let to_b = FaultProxy::start(b.tunnel_addr()?).await?;
        let a = a.set("ha.mesh.peers", json!([mesh_url(to_b.addr())]));
        let b = b.set("ha.mesh.peers", json!([mesh_url(to_a.addr())]));
        let (mut a, mut b) = (a.spawn()?, b.spawn()?);
        a.wait_ready().await?;
        b.wait_ready().await?;
        let pair = Self {
            lab,
            redis,
            a,
            b,
            a_to_redis,
            to_a,
            to_b,
            bulk,
            echo,
        };
        pair.wait_linked().await?;
        Ok(pair)
    }

    /// Waits until each hub has a link to the other.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_linked(&self) -> Result<()> {
        for hub in [&self.a, &self.b] {
            let up = [("state", "established")];
            hub.wait_metric("nowconnect_mesh_links", &up, |links| links >= 1.0)
                .await?;
        }
        Ok(())
    }

    /// An agent for `bulk` and `echo` that knows these hubs, the first of them before the others.
    #[must_use]
    pub fn agent(&self, hubs: &[&Hub], mode: &str) -> AgentPlan<'_> {
        let urls: Vec<_> = hubs
            .iter()
            .filter_map(|hub| Some(format!("ws://{}/tunnel", hub.tunnel_addr().ok()?)))
            .collect();
        self.lab
            .agent("site-1")
            .target("bulk", self.bulk.addr())
            .target("echo", self.echo.addr())
            .set("tunnel.urls", json!(urls))
            .set("tunnel.mode", mode)
    }

    /// Waits until `hub` knows from the registry of so many ways to agents elsewhere.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_routes(&self, hub: &Hub, count: usize) -> Result<()> {
        until("routes", async || {
            let mesh = hub.mesh().await?;
            let routes = mesh["routes"].as_array().map_or(0, Vec::len);
            ensure!(routes == count, "{mesh}");
            Ok(())
        })
        .await
    }
}

/// Waits for [`Hub::transfers`] to end well.
///
/// # Errors
/// Those of the transfers.
pub async fn finish(running: JoinSet<Result<()>>) -> Result<()> {
    running.join_all().await.into_iter().collect()
}

impl Hub {
    /// Starts transfers through its listener `bulk`, about `bytes` each way; each checks every byte
    /// at both ends.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn transfers(&self, flows: u32, bytes: u64) -> Result<JoinSet<Result<()>>> {
        let mut running = JoinSet::new();
        for stream in 1..=flows {
            let (up, down) = (bytes, bytes + u64::from(stream));
            let client = self.connect("bulk").await?;
            running.spawn(Transfer { stream, up, down }.run(client));
        }
        Ok(running)
    }

    /// What its admin API tells of its own part of the mesh.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn mesh(&self) -> Result<Value> {
        let answer = http::get(self.admin_addr()?, "/api/v1/mesh?scope=hub").await?;
        ensure!(answer.status == 200, "{answer:?}");
        let mut answer: Value = serde_json::from_str(&answer.body)?;
        Ok(answer["hubs"][0].take())
    }

    /// Waits until `/readyz` tells this status.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_status(&self, status: &str) -> Result<()> {
        until(status, async || {
            let answer = http::get(self.http_addr()?, "/readyz").await?;
            let told: Value = serde_json::from_str(&answer.body)?;
            ensure!(told["status"] == status, "{told}");
            Ok(())
        })
        .await
    }
}
