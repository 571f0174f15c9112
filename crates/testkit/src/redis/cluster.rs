//! Three masters that share the hash slots.

use anyhow::{Result, ensure};

use super::Redis;
use crate::ports;
use crate::wait::until;

/// A Redis Cluster without replicas.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts three nodes and waits until all slots are served.
    ///
    /// # Errors
    /// When Redis is not installed or the nodes do not find together.
    pub async fn start() -> Result<Self> {
        let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        let mut nodes = Vec::new();
        for (first, last) in slots {
            let bus = ports::reserve()?.to_string();
            let node = Redis::plan()
                .option("cluster-enabled", &["yes"])
                .option("cluster-port", &[&bus])
                .option("cluster-node-timeout", &["2000"])
                .start()
                .await?;
            node.run(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await?;
            nodes.push((node, bus));
        }
        let (seed, _) = &nodes[0];
        for (node, bus) in &nodes[1..] {
            let port = node.addr().port().to_string();
            seed.run(&["CLUSTER", "MEET", "127.0.0.1", &port, bus])
                .await?;
        }
        let nodes: Vec<_> = nodes.into_iter().map(|(node, _)| node).collect();
        until("the cluster to be whole", async || {
            for node in &nodes {
                let info = node.run(&["CLUSTER", "INFO"]).await?;
                ensure!(info.contains("cluster_state:ok"), "{info}");
                ensure!(info.contains("cluster_slots_ok:16384"), "{info}");
            }
            Ok(())
        })
        .await?;
        Ok(Self { nodes })
    }

    /// The URL of the registry.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.addr().to_string())
            .collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// What the nodes say that have the key, each slot being on one.
    ///
    /// # Errors
    /// When a node does not answer.
    pub async fn keys(&self, pattern: &str) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for node in &self.nodes {
            let found = node.run(&["KEYS", pattern]).await?;
            keys.extend(
                found
                    .lines()
                    .filter(|key| !key.is_empty())
                    .map(str::to_owned),
            );
        }
        keys.sort();
        Ok(keys)
    }
}
