//! A Redis that goes away, freezes, forgets, or comes back older than it was.

use std::time::{Duration, Instant};

use nowconnect_proto::hello::Instance;
use nowconnect_testkit::anyhow::{Result, ensure};
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::wait::until;

use super::side::{Side, claim, holding};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_frozen_redis_delays_no_claim_for_more_than_a_second() -> Result<()> {
    let redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let b = Side::up("hub-b", &redis.url()).await?;
    let before = a.claim(claim("site-1", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    redis.signal(Signal::Stop).await?;
    let asked = Instant::now();
    let frozen = a.claim(claim("site-2", 2)).await?;
    assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    a.wait_down().await?;
    let asked = Instant::now();
    let down = a.claim(claim("site-1", 3)).await?;
    assert!(asked.elapsed() < SECOND / 2, "{:?}", asked.elapsed());
    assert!(down.epoch() > before.epoch());
    b.wait_down().await?;
    assert_eq!(b.exporters("ldap"), ["hub-a"], "the last that was known");
    redis.signal(Signal::Cont).await?;
    a.wait_up().await?;
    until("the claims to be published", async || {
        let routes = b.registry.routes();
        ensure!(routes.latest("site-1") == Some((down.epoch(), Instance(3))));
        ensure!(routes.latest("site-2") == Some((frozen.epoch(), Instance(2))));
        Ok(())
    })
    .await?;
    assert!(a.superseded.lock().is_empty());
    let joined = b.claim(holding(frozen.epoch(), claim("site-2", 2))).await?;
    assert_eq!(
        joined.epoch(),
        frozen.epoch(),
        "an answer that came too late counts for nothing"
    );
    Ok(())
}

#[tokio::test]
async fn a_redis_that_lost_everything_is_filled_again() -> Result<()> {
    let mut redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let b = Side::up("hub-b", &redis.url()).await?;
    let lease = a.claim(claim("site-1", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    redis.run(&["FLUSHALL"]).await?;
    let table = ["HEXISTS", "nowconnect:{hub:hub-a}", "site-1"];
    let flushed = Instant::now();
    until("the table to be written again", async || {
        ensure!(redis.run(&table).await? == "1");
        Ok(())
    })
    .await?;
    assert!(flushed.elapsed() < 5 * SECOND, "{:?}", flushed.elapsed());
    assert_eq!(b.exporters("ldap"), ["hub-a"]);
    redis.restart().await?;
    let joined = b.claim(holding(lease.epoch(), claim("site-1", 1))).await?;
    assert_eq!(joined.owner(), lease.owner());
    a.wait_up().await?;
    b.wait_up().await?;
    redis.run(&["FLUSHALL"]).await?;
    let rival = b.claim(claim("site-1", 2)).await?;
    assert!(rival.epoch() > lease.epoch());
    a.wait_superseded("site-1", rival.owner()).await
}

#[tokio::test]
async fn going_down_and_up_is_noticed_and_cuts_nothing() -> Result<()> {
    let mut redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let lease = a.claim(claim("site-1", 1)).await?;
    assert_eq!(a.metrics.mesh.registry_healthy.get(), 1);
    redis.kill().await?;
    let killed = Instant::now();
    a.wait_down().await?;
    assert!(killed.elapsed() < 10 * SECOND);
    assert_eq!(a.metrics.mesh.registry_healthy.get(), 0);
    redis.restart().await?;
    let started = Instant::now();
    a.wait_up().await?;
    assert!(started.elapsed() < 10 * SECOND);
    assert_eq!(a.metrics.mesh.registry_healthy.get(), 1);
    assert_eq!(a.registry.owner("site-1"), Some(lease.owner()));
    Ok(())
}

#[tokio::test]
async fn forgotten_scripts_are_sent_again() -> Result<()> {
    let redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    for instance in 0..3 {
        redis.run(&["SCRIPT", "FLUSH"]).await?;
        let lease = a.claim(claim("site-1", instance)).await?;
        let stored = ["HGET", "nowconnect:{agent:site-1}", "epoch"];
        assert_eq!(redis.run(&stored).await?, lease.epoch().to_string());
    }
    assert!(a.is_up());
    Ok(())
}

#[tokio::test]
async fn a_server_without_memory_is_as_good_as_none() -> Result<()> {
    let redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    redis.run(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    let lease = a.claim(claim("site-1", 1)).await?;
    let reason = a.wait_down().await?;
    assert!(reason.contains("OOM"), "{reason}");
    assert_eq!(a.registry.owner("site-1"), Some(lease.owner()));
    redis.run(&["CONFIG", "SET", "maxmemory", "0"]).await?;
    a.wait_up().await
}

#[tokio::test]
async fn a_replica_that_missed_the_latest_claim_is_corrected() -> Result<()> {
    let master = Redis::start().await?;
    let mut replica = Redis::plan().replica_of(master.addr()).start().await?;
    replica.wait_in_sync().await?;
    let (a, b) = (
        Side::up("hub-a", &master.url()).await?,
        Side::up("hub-b", &master.url()).await?,
    );
    let old = a.claim(claim("site-1", 1)).await?;
    until("the first claim to be replicated", async || {
        let stored = ["HGET", "nowconnect:{agent:site-1}", "epoch"];
        ensure!(replica.run(&stored).await? == old.epoch().to_string());
        Ok(())
    })
    .await?;
    replica.run(&["REPLICAOF", "NO", "ONE"]).await?;
    let new = b.claim(claim("site-1", 2)).await?;
    a.wait_superseded("site-1", new.owner()).await?;
    drop(old);
    // Both go over to the replica, which believes the old owner.
    a.share(&replica.url());
    b.share(&replica.url());
    a.wait_up().await?;
    b.wait_up().await?;
    a.wait_exporters_within(5 * SECOND, "ldap", &["hub-b"])
        .await?;
    let joined = a.claim(holding(new.epoch(), claim("site-1", 2))).await?;
    assert_eq!(joined.owner(), new.owner());
    let late = a.claim(claim("site-1", 1)).await?;
    assert!(late.epoch() > new.epoch());
    replica.kill().await
}

#[tokio::test]
async fn a_demoted_master_is_left_until_it_is_one_again() -> Result<()> {
    let redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let _lease = a.claim(claim("site-1", 1)).await?;
    redis.run(&["REPLICAOF", "127.0.0.1", "1"]).await?;
    let reason = a.wait_down().await?;
    assert!(
        reason.contains("READONLY") || reason.contains("read only"),
        "{reason}"
    );
    redis.run(&["REPLICAOF", "NO", "ONE"]).await?;
    let promoted = Instant::now();
    a.wait_up().await?;
    assert!(promoted.elapsed() < 5 * SECOND, "{:?}", promoted.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_restarted_hub_takes_its_table_over_and_its_ghost_writes_no_more() -> Result<()> {
    let redis = Redis::start().await?;
    let ghost = Side::up("hub-a", &redis.url()).await?;
    let b = Side::up("hub-b", &redis.url()).await?;
    let _old = ghost.claim(claim("old", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    let restarted = Side::up("hub-a", &redis.url()).await?;
    let new = restarted.claim(claim("new", 2)).await?;
    until("the table to be that of the new one", async || {
        let routes = b.registry.routes();
        ensure!(routes.latest("new") == Some((new.epoch(), Instance(2))));
        ensure!(routes.latest("old").is_none());
        Ok(())
    })
    .await?;
    let reason = ghost.wait_down().await?;
    assert!(reason.contains("replica_id_conflict"), "{reason}");
    let unheard = ghost.claim(claim("unheard", 3)).await?;
    assert!(unheard.epoch() > 0, "its own agents are served");
    let fields = redis.run(&["HKEYS", "nowconnect:{hub:hub-a}"]).await?;
    assert!(
        fields.contains("new") && !fields.contains("unheard"),
        "{fields}"
    );
    restarted.stop().await;
    ghost.wait_up().await?;
    until("the other one to be heard", async || {
        ensure!(b.registry.routes().latest("unheard").is_some());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_restart_is_known_from_its_ghost_also_when_the_clock_was_set_back() -> Result<()> {
    let redis = Redis::start().await?;
    let table = "nowconnect:{hub:hub-a}";
    // What a start that is gone wrote when the server's clock was in the year 2100.
    let nonce = "00004102444800000000-00000000";
    let fields = ["HSET", table, "#nonce", nonce, "#version", "7", "x", "{}"];
    redis.run(&fields).await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let _lease = a.claim(claim("site-1", 1)).await?;
    until("the table to be its own", async || {
        let fields = redis.run(&["HKEYS", table]).await?;
        ensure!(
            fields.contains("site-1") && !fields.contains('x'),
            "{fields}"
        );
        Ok(())
    })
    .await?;
    // One that lives is not disturbed for ever by the one that came later.
    redis.run(&fields).await?;
    let reason = a.wait_down().await?;
    assert!(reason.contains("replica_id_conflict"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn a_dead_hub_is_forgotten_when_its_lease_has_lapsed() -> Result<()> {
    let redis = Redis::start().await?;
    let b = Side::up("hub-b", &redis.url()).await?;
    let entry = r#"{"epoch":9,"instance":"00000000000000000000000000000009","connectors":["pg"]}"#;
    let table = "nowconnect:{hub:dead}";
    redis
        .run(&["HSET", table, "#nonce", "n", "#version", "1", "x", entry])
        .await?;
    redis
        .run(&["ZADD", "nowconnect:hubs", "99999999999999", "dead"])
        .await?;
    b.wait_exporters("pg", &["dead"]).await?;
    redis.run(&["PEXPIRE", table, "100"]).await?;
    b.wait_exporters("pg", &[]).await?;
    assert!(b.is_up());
    redis.run(&["ZADD", "nowconnect:hubs", "1", "dead"]).await?;
    until("the sweeper", async || {
        let hubs = redis.run(&["ZRANGE", "nowconnect:hubs", "0", "-1"]).await?;
        ensure!(hubs == "hub-b", "{hubs}");
        Ok(())
    })
    .await
}
