//! Several hubs and one Redis that works.

use std::time::Duration;

use nowconnect_hub::registry::{Claim, ClaimError};
use nowconnect_proto::hello::Instance;
use nowconnect_testkit::anyhow::{Result, ensure};
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::wait::until;

use super::side::{Side, claim, holding};

/// Where `hub-a` publishes its agents.
const TABLE: &str = "nowconnect:{hub:hub-a}";
/// An agent that nobody has.
const GHOST: &str =
    r#"{"epoch":9,"instance":"00000000000000000000000000000009","connectors":["pg"]}"#;

#[tokio::test]
async fn routes_follow_what_others_hold() -> Result<()> {
    let redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let early = a.claim(claim("early", 1)).await?;
    let b = Side::up("hub-b", &redis.url()).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    let mut changed = b.registry.routes().changed();
    changed.mark_unchanged();
    let lease = a.claim(claim("site-1", 2)).await?;
    changed.changed().await?;
    until("both routes", async || {
        let routes = b.registry.routes().of_instance("site-1", Instance(2));
        ensure!(routes.len() == 1 && routes[0].epoch == lease.epoch());
        Ok(())
    })
    .await?;
    lease.update(vec!["pg".into()]);
    b.wait_exporters("pg", &["hub-a"]).await?;
    drop(early);
    b.wait_exporters("ldap", &[]).await?;
    a.stop().await;
    b.wait_exporters("pg", &[]).await?;
    assert_eq!(
        redis.run(&["ZRANGE", "nowconnect:hubs", "0", "-1"]).await?,
        "hub-b"
    );
    Ok(())
}

#[tokio::test]
async fn an_agent_may_have_tunnels_on_several_hubs() -> Result<()> {
    let (redis, a, b) = Side::two().await?;
    let c = Side::up("hub-c", &redis.url()).await?;
    let first = a.claim(claim("site-1", 1)).await?;
    let second = b.claim(holding(first.epoch(), claim("site-1", 1))).await?;
    assert_eq!(first.owner(), second.owner());
    c.wait_exporters("ldap", &["hub-a", "hub-b"]).await?;
    a.wait_exporters("ldap", &["hub-b"]).await?;
    drop(first);
    c.wait_exporters("ldap", &["hub-b"]).await?;
    assert!(b.superseded.lock().is_empty() && a.superseded.lock().is_empty());
    Ok(())
}

#[tokio::test]
async fn the_newest_claim_wins_and_a_late_release_undoes_nothing() -> Result<()> {
    let (redis, a, b) = Side::two().await?;
    let c = Side::up("hub-c", &redis.url()).await?;
    let old = a.claim(claim("site-1", 1)).await?;
    c.wait_exporters("ldap", &["hub-a"]).await?;
    let new = b.claim(claim("site-1", 2)).await?;
    assert!(new.epoch() > old.epoch());
    a.wait_superseded("site-1", new.owner()).await?;
    c.wait_exporters("ldap", &["hub-b"]).await?;
    drop(old);
    // Whatever comes after it on the same way has seen the release too.
    let marker = a.claim(claim("marker", 3)).await?;
    c.wait_exporters("ldap", &["hub-a", "hub-b"]).await?;
    let latest = c.registry.routes().latest("site-1");
    assert_eq!(latest, Some((new.epoch(), Instance(2))));
    assert!(b.superseded.lock().is_empty());
    drop(marker);
    Ok(())
}

#[tokio::test]
async fn rivals_on_different_hubs_are_damped() -> Result<()> {
    let redis = Redis::start().await?;
    let sides = [
        Side::up("hub-a", &redis.url()).await?,
        Side::up("hub-b", &redis.url()).await?,
    ];
    let mut held = Vec::new();
    for turn in 0..4u128 {
        let side = &sides[turn as usize % 2];
        held.push(side.claim(claim("site-1", turn)).await?);
    }
    let remembered = async || -> Result<Vec<u64>> {
        let record = ["HGET", "nowconnect:{agent:site-1}", "rivals"];
        let times = redis.run(&record).await?;
        Ok(times
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?)
    };
    let before = remembered().await?;
    let refused = sides[0].claim(claim("site-1", 9)).await;
    assert_eq!(refused.err(), Some(ClaimError::Conflict));
    let after = remembered().await?;
    assert_eq!(after.len(), 3);
    let newest = before.last().copied();
    assert!(
        after.iter().all(|time| Some(*time) >= newest),
        "trying keeps the incumbent: {before:?}, then {after:?}"
    );
    Ok(())
}

#[tokio::test]
async fn who_displaces_nobody_is_no_rival() -> Result<()> {
    let redis = Redis::start().await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let mut last = 0;
    for instance in 1..7 {
        let epoch = a.claim(claim("site-1", instance)).await?.epoch();
        assert!(epoch > last);
        last = epoch;
    }
    Ok(())
}

#[tokio::test]
async fn missed_notifications_are_made_up_for() -> Result<()> {
    let (redis, a, b) = Side::two().await?;
    let _one = a.claim(claim("one", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    // A change that nobody was told of.
    redis.run(&["HSET", TABLE, "ghost", GHOST]).await?;
    redis.run(&["HINCRBY", TABLE, "#version", "5"]).await?;
    b.registry.routes().refresh("hub-a").await;
    // Whoever reads it knows at once; the hub itself puts it right within its next renewal.
    b.wait_exporters_within(Duration::from_secs(8), "pg", &[])
        .await?;
    let _two = a
        .claim(Claim {
            connectors: vec!["smtp".into()],
            ..claim("two", 2)
        })
        .await?;
    b.wait_exporters("smtp", &["hub-a"]).await?;
    b.wait_exporters("pg", &[]).await?;
    Ok(())
}

#[tokio::test]
async fn a_refresh_reads_what_was_not_told() -> Result<()> {
    let (redis, a, b) = Side::two().await?;
    let _one = a.claim(claim("one", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    redis.run(&["HSET", TABLE, "ghost", GHOST]).await?;
    until("a refresh to show it", async || {
        b.registry.routes().refresh("hub-a").await;
        b.registry.routes().refresh("no-such-hub").await;
        ensure!(b.exporters("pg") == ["hub-a"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn hostile_data_is_left_out() -> Result<()> {
    let redis = Redis::start().await?;
    redis.run(&["SET", "nowconnect:hubs", "x"]).await?;
    redis
        .run(&["SET", "nowconnect:{agent:site-1}", "x"])
        .await?;
    redis.run(&["LPUSH", "nowconnect:{hub:hub-a}", "x"]).await?;
    let a = Side::up("hub-a", &redis.url()).await?;
    let b = Side::up("hub-b", &redis.url()).await?;
    for (hub, fields) in [
        ("hub-x", vec!["SET", "nowconnect:{hub:hub-x}", "x"]),
        (
            "hub-y",
            vec!["HSET", "nowconnect:{hub:hub-y}", "#nonce", "n"],
        ),
        (
            "hub-z",
            vec![
                "HSET",
                "nowconnect:{hub:hub-z}",
                "#nonce",
                "n",
                "#version",
                "1",
                "site-9",
                "{}",
                "a b",
                "[",
            ],
        ),
        ("bad name", vec!["PING"]),
    ] {
        redis.run(&fields).await?;
        redis
            .run(&["ZADD", "nowconnect:hubs", "99999999999999", hub])
            .await?;
    }
    for message in ["", "{", "[]", r#"{"hub":"hub-a"}"#] {
        redis
            .run(&["PUBLISH", "nowconnect:changes:0", message])
            .await?;
    }
    redis
        .run(&[
            "HSET",
            "nowconnect:{agent:far}",
            "epoch",
            "9007199254740991",
        ])
        .await?;
    let far = a.claim(claim("far", 1)).await?;
    assert!(far.epoch() < 1 << 52);
    drop(far);
    let _lease = a.claim(claim("site-1", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    assert!(a.is_up() && b.is_up());
    Ok(())
}

#[tokio::test]
async fn the_registry_may_change_while_tunnels_stay() -> Result<()> {
    let (one, other) = (Redis::start().await?, Redis::start().await?);
    let a = Side::up("hub-a", &one.url()).await?;
    let b = Side::up("hub-b", &one.url()).await?;
    let lease = a.claim(claim("site-1", 1)).await?;
    b.wait_exporters("ldap", &["hub-a"]).await?;
    b.registry.configure(None);
    assert_eq!(b.registry.health(), None);
    b.wait_exporters("ldap", &[]).await?;
    a.share(&other.url());
    b.share(&other.url());
    b.wait_exporters("ldap", &["hub-a"]).await?;
    assert_eq!(a.registry.owner("site-1"), Some(lease.owner()));
    until("the old registry to be left", async || {
        let keys = one.run(&["KEYS", "nowconnect:{hub:*"]).await?;
        ensure!(keys.is_empty(), "{keys}");
        Ok(())
    })
    .await
}
