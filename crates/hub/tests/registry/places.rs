//! TLS, users, Sentinels, Cluster.

use std::time::Duration;

use nowconnect_hub::registry::StoreConfig;
use nowconnect_settings::Secret;
use nowconnect_testkit::anyhow::{Result, ensure};
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::redis::{Cluster, Redis, Sentinels};
use nowconnect_testkit::wait::until;

use super::side::{Side, claim, holding};

#[tokio::test]
async fn tls_and_a_user_with_few_rights() -> Result<()> {
    let redis = Redis::plan().tls().user("hub", "s3cret%40").start().await?;
    let side = Side::alone("hub-a");
    let store = |url: &str, ca| StoreConfig {
        url: Secret::new(url),
        ca,
    };
    let url = redis.url().replace('%', "%25");
    side.registry.configure(Some(store(&url, None)));
    let reason = side.wait_down().await?;
    until("an unknown CA to be refused", async || {
        let reason = side.wait_down().await?;
        ensure!(reason.contains("ertificate"), "{reason}");
        Ok(())
    })
    .await?;
    assert!(!reason.contains("s3cret"), "{reason}");
    let ca = Some(redis.ca_file());
    let wrong = url.replace("s3cret", "wrong");
    side.registry.configure(Some(store(&wrong, ca.clone())));
    until("a wrong password to be refused", async || {
        let reason = side.wait_down().await?;
        ensure!(reason.contains("WRONGPASS"), "{reason}");
        Ok(())
    })
    .await?;
    side.registry.configure(Some(store(&url, ca)));
    side.wait_up().await?;
    let lease = side.claim(claim("site-1", 1)).await?;
    let stored = ["HGET", "nowconnect:{agent:site-1}", "epoch"];
    assert_eq!(redis.run(&stored).await?, lease.epoch().to_string());
    side.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_server_that_repeats_the_login_gets_it_into_no_log() -> Result<()> {
    let redis = Redis::plan()
        .user("hubs", "a-secret-word")
        .option("rename-command", &["HELLO", ""])
        .start()
        .await?;
    let side = Side::alone("hub-a");
    side.share(&redis.url());
    until("the server's word", async || {
        let reason = side.wait_down().await?;
        ensure!(!reason.contains("a-secret-word"), "a secret");
        ensure!(reason.contains("unknown command 'HELLO'"), "{reason}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sentinels_lead_to_the_master_of_the_day() -> Result<()> {
    let mut servers = Sentinels::start().await?;
    let a = Side::up("hub-a", &servers.url()).await?;
    let b = Side::up("hub-b", &servers.url()).await?;
    let lease = a.claim(claim("site-1", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    servers.fail_over().await?;
    servers.wait_switched().await?;
    let table = ["HEXISTS", "nowconnect:{hub:hub-a}", "site-1"];
    until("the new master to be used", async || {
        ensure!(a.is_up() && b.is_up());
        let moved = b.claim(holding(lease.epoch(), claim("site-1", 1))).await?;
        ensure!(moved.owner() == lease.owner());
        ensure!(servers.replica.run(&table).await? == "1");
        Ok(())
    })
    .await?;
    // The old one is a replica now, and its death means nothing.
    servers.master.kill().await?;
    let next = b.claim(claim("site-1", 2)).await?;
    assert!(next.epoch() > lease.epoch());
    a.wait_superseded("site-1", next.owner()).await
}

#[tokio::test]
async fn a_frozen_master_is_replaced_and_not_gone_back_to() -> Result<()> {
    let servers = Sentinels::start().await?;
    let a = Side::up("hub-a", &servers.url()).await?;
    let reaches_the_new_one = async || {
        let epoch = a.claim(claim("site-1", 1)).await?.epoch().to_string();
        let stored = ["HGET", "nowconnect:{agent:site-1}", "epoch"];
        ensure!(servers.replica.run(&stored).await? == epoch, "{epoch}");
        Ok(())
    };
    servers.master.signal(Signal::Stop).await?;
    servers.wait_switched().await?;
    until("claims to reach the new master", reaches_the_new_one).await?;
    servers.master.signal(Signal::Cont).await?;
    // It takes itself for the master until the Sentinels tell it otherwise.
    until("the old one to be awake", async || {
        servers.master.run(&["PING"]).await
    })
    .await?;
    reaches_the_new_one().await
}

#[tokio::test]
async fn a_cluster_is_used_as_a_whole() -> Result<()> {
    let cluster = Cluster::start().await?;
    let a = Side::up("hub-a", &cluster.url()).await?;
    let b = Side::up("hub-b", &cluster.url()).await?;
    let mut leases = Vec::new();
    for agent in 0..12 {
        leases.push(a.claim(claim(&format!("site-{agent}"), agent)).await?);
    }
    until("every route", async || {
        ensure!(b.exporters("ldap").len() == 12);
        Ok(())
    })
    .await?;
    assert_eq!(cluster.keys("nowconnect:{agent:*").await?.len(), 12);
    for node in &cluster.nodes {
        let own = node.run(&["KEYS", "nowconnect:{agent:*"]).await?;
        assert!(!own.is_empty(), "spread over all nodes");
    }
    let rival = b.claim(claim("site-3", 99)).await?;
    a.wait_superseded("site-3", rival.owner()).await?;
    // A slot moves: the old node refers to the new one, and nothing is lost meanwhile.
    let key = "nowconnect:{agent:site-3}";
    let slot = cluster.nodes[0].run(&["CLUSTER", "KEYSLOT", key]).await?;
    let mut ids = Vec::new();
    for node in &cluster.nodes {
        ids.push(node.run(&["CLUSTER", "MYID"]).await?);
    }
    let from = (slot.parse::<usize>()? / 5461).min(2);
    let to = (from + 1) % 3;
    for (at, state, id) in [(to, "IMPORTING", &ids[from]), (from, "MIGRATING", &ids[to])] {
        cluster.nodes[at]
            .run(&["CLUSTER", "SETSLOT", &slot, state, id])
            .await?;
    }
    cluster.nodes[from].run(&["DEL", key]).await?;
    let during = b.claim(holding(rival.epoch(), claim("site-3", 99))).await?;
    assert_eq!(during.owner(), rival.owner());
    for at in [to, from] {
        cluster.nodes[at]
            .run(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[to]])
            .await?;
    }
    let after = b.claim(holding(rival.epoch(), claim("site-3", 99))).await?;
    assert_eq!(after.owner(), rival.owner());
    assert!(a.is_up() && b.is_up());
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_was_restarted_is_filled_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let a = Side::up("hub-a", &cluster.url()).await?;
    let lease = a.claim(claim("site-1", 1)).await?;
    for node in &mut cluster.nodes {
        node.restart().await?;
    }
    tokio::time::timeout(Duration::from_secs(20), a.wait_up()).await??;
    assert_eq!(a.registry.owner("site-1"), Some(lease.owner()));
    Ok(())
}
