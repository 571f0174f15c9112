//! Hubs whose registry dies, freezes, forgets or lies: flows and agents do not notice, and everything
//! is known again soon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy, Way};
use nowconnect_testkit::http::get;
use nowconnect_testkit::lab::{Hub, Lab, Pair, finish, peers};
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::{until, until_within};
use serde_json::json;

const HEALTHY: &str = "nowconnect_registry_healthy";
const MISMATCHES: &str = "nowconnect_owner_epoch_mismatch_total";
/// After what time the registry knows everything again, and then some for a busy machine.
const RECOVERY: Duration = Duration::from_secs(8);

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// The epoch of the only route that `hub` knows.
async fn epoch(hub: &Hub) -> Result<u64> {
    let mesh = hub.mesh().await?;
    let epoch = mesh["routes"][0]["epoch"].as_u64();
    epoch.with_context(|| mesh.to_string())
}

/// Waits until `hub` knows a route whose epoch is above `before`.
async fn wait_epoch_above(hub: &Hub, before: u64) -> Result<()> {
    until("a route with a higher epoch", async || {
        let now = epoch(hub).await?;
        ensure!(now > before, "{now} is not above {before}");
        Ok(())
    })
    .await
}

/// Waits until Redis has the agent in the table of the hub with this name.
async fn wait_published(redis: &Redis, hub: &str) -> Result<()> {
    let key = format!("nowconnect:{{hub:{hub}}}");
    until_within(RECOVERY, "the hub's table", async || {
        let known = redis.run(&["HEXISTS", &key, "site-1"]).await?;
        ensure!(known == "1", "no agent in {key}");
        Ok(())
    })
    .await
}

async fn wait_down(hub: &Hub, since: Mark) -> Result<()> {
    hub.log().wait_event_since("registry_down", since).await?;
    hub.wait_metric(HEALTHY, &[], |value| value == 0.0).await?;
    hub.wait_status("degraded").await?;
    let told = get(hub.http_addr()?, "/readyz").await?;
    ensure!(
        told.status == 200 && told.body.contains("registry: "),
        "{told:?}"
    );
    let strict = get(hub.http_addr()?, "/readyz?strict=1").await?;
    ensure!(strict.status == 503, "{strict:?}");
    Ok(())
}

async fn wait_up(hub: &Hub, since: Mark) -> Result<()> {
    hub.log().wait_event_since("registry_up", since).await?;
    hub.wait_metric(HEALTHY, &[], |value| value == 1.0).await?;
    hub.wait_status("ready").await?;
    for name in ["registry_down", "registry_up"] {
        let told = hub.log().events(name, since).len();
        ensure!(told == 1, "{told} times {name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_is_killed_and_comes_back_empty() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let mut agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let before = epoch(&pair.b).await?;
    let marks = [pair.a.log().mark(), pair.b.log().mark()];
    let (mut across, mut local) = (pair.b.connect("echo").await?, pair.a.connect("echo").await?);
    echo(&mut across, Pattern(1), 0, 1000).await?;
    echo(&mut local, Pattern(2), 0, 1000).await?;
    let running = [
        pair.b.transfers(4, 10_000_000).await?,
        pair.a.transfers(2, 10_000_000).await?,
    ];
    pair.bulk.wait_accepted(6).await?;

    pair.redis.kill().await?;
    for (hub, mark) in [&pair.a, &pair.b].into_iter().zip(marks) {
        wait_down(hub, mark).await?;
        // New ones go by what was known.
        finish(hub.transfers(2, 500_000).await?).await?;
    }
    echo(&mut across, Pattern(1), 1000, 1000).await?;
    echo(&mut local, Pattern(2), 1000, 1000).await?;
    for running in running {
        finish(running).await?;
    }
    assert_eq!(pair.bulk.accepted(), 10, "no target was dialled again");

    pair.redis.restart().await?;
    let restarted = Instant::now();
    wait_published(&pair.redis, "hub-a").await?;
    eprintln!("published again after {:?}", restarted.elapsed());
    for (hub, mark) in [&pair.a, &pair.b].into_iter().zip(marks) {
        wait_up(hub, mark).await?;
    }
    assert_eq!(epoch(&pair.b).await?, before);
    echo(&mut across, Pattern(1), 2000, 1000).await?;
    finish(pair.b.transfers(2, 500_000).await?).await?;
    agent.restart().await?;
    wait_epoch_above(&pair.b, before).await
}

/// A server that is there and says nothing is worse than one that is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_registry_keeps_no_agent_waiting() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let gate = FaultProxy::start(pair.a.tunnel_addr()?).await?;
    gate.hold();
    let mark = pair.a.log().mark();
    let mut agent = pair.agent(&[], "first").via(gate.addr()).spawn()?;
    gate.wait_accepted(1).await?;
    pair.redis.signal(Signal::Stop).await?;
    let opened = Instant::now();
    gate.heal();
    pair.a
        .log()
        .wait_event_since("agent_connected", mark)
        .await?;
    let waited = opened.elapsed();
    eprintln!("served {waited:?} after its HELLO could pass");
    ensure!(waited < Duration::from_secs(4), "{waited:?}");
    agent.wait_ready().await?;
    finish(pair.a.transfers(1, 500_000).await?).await?;
    wait_down(&pair.a, mark).await?;
    pair.redis.signal(Signal::Cont).await?;
    wait_up(&pair.a, mark).await?;
    // What was granted without the registry is known to all now.
    wait_published(&pair.redis, "hub-a").await?;
    pair.wait_routes(&pair.b, 1).await?;
    finish(pair.b.transfers(2, 500_000).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_forgets_everything_is_filled_again() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let mut agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut last = epoch(&pair.b).await?;
    let mark = pair.b.log().mark();
    let mut across = pair.b.connect("echo").await?;
    echo(&mut across, Pattern(1), 0, 1000).await?;
    let forget = [["FLUSHALL", "SYNC"], ["SCRIPT", "FLUSH"]];
    for (round, command) in forget.iter().enumerate() {
        pair.redis.run(command).await?;
        wait_published(&pair.redis, "hub-a").await?;
        finish(pair.b.transfers(1, 100_000).await?).await?;
        assert_eq!(epoch(&pair.b).await?, last, "after {command:?}");
        echo(&mut across, Pattern(1), 1000 * (round as u64 + 1), 1000).await?;
    }
    for command in forget {
        pair.redis.run(&command).await?;
        agent.restart().await?;
        wait_epoch_above(&pair.b, last).await?;
        last = epoch(&pair.b).await?;
        finish(pair.b.transfers(1, 100_000).await?).await?;
    }
    assert_eq!(pair.a.metric(HEALTHY, &[]).await?, 1.0);
    assert!(pair.b.log().events("registry_down", mark).is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_was_demoted_is_used_again_once_it_is_master() -> Result<()> {
    let (pair, master) = (Pair::start(lab()?, "active").await?, Redis::start().await?);
    let mut agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let before = epoch(&pair.b).await?;
    let marks = [pair.a.log().mark(), pair.b.log().mark()];
    let running = pair.b.transfers(2, 10_000_000).await?;
    let port = master.addr().port().to_string();
    pair.redis.run(&["REPLICAOF", "127.0.0.1", &port]).await?;
    pair.redis.wait_in_sync().await?;
    for (hub, mark) in [&pair.a, &pair.b].into_iter().zip(marks) {
        wait_down(hub, mark).await?;
    }
    finish(running).await?;
    finish(pair.b.transfers(2, 500_000).await?).await?;
    pair.redis.run(&["REPLICAOF", "NO", "ONE"]).await?;
    for (hub, mark) in [&pair.a, &pair.b].into_iter().zip(marks) {
        wait_up(hub, mark).await?;
    }
    wait_published(&pair.redis, "hub-a").await?;
    assert_eq!(epoch(&pair.b).await?, before);
    agent.restart().await?;
    wait_epoch_above(&pair.b, before).await
}

/// Every lease lapses at once, since the server stands still for longer than any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_lapse_together_close_nothing() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let before = epoch(&pair.b).await?;
    let marks = [pair.a.log().mark(), pair.b.log().mark()];
    let mut across = pair.b.connect("echo").await?;
    echo(&mut across, Pattern(1), 0, 1000).await?;
    pair.redis.signal(Signal::Stop).await?;
    // What is tried is the time itself: a lease is good for 15 s.
    tokio::time::sleep(Duration::from_secs(17)).await;
    echo(&mut across, Pattern(1), 1000, 1000).await?;
    finish(pair.b.transfers(2, 500_000).await?).await?;
    pair.redis.signal(Signal::Cont).await?;
    wait_published(&pair.redis, "hub-a").await?;
    for (hub, mark) in [&pair.a, &pair.b].into_iter().zip(marks) {
        wait_up(hub, mark).await?;
        for event in ["agent_disconnected", "mesh_link_down"] {
            ensure!(hub.log().events(event, mark).is_empty(), "{event}");
        }
    }
    pair.wait_routes(&pair.b, 1).await?;
    assert_eq!(epoch(&pair.b).await?, before);
    echo(&mut across, Pattern(1), 2000, 1000).await?;
    finish(pair.b.transfers(2, 500_000).await?).await
}

/// The clock of the registry's machine is set: ahead, so that every lease lapses and epochs could run
/// away, and back again, so that they could fall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_whose_clock_jumps_moves_no_epoch_back() -> Result<()> {
    let redis = Redis::plan().own_clock().start().await?;
    let pair = Pair::start_on(redis, lab()?, "active", &[]).await?;
    let mut agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let marks = [pair.a.log().mark(), pair.b.log().mark()];
    let mut across = pair.b.connect("echo").await?;
    echo(&mut across, Pattern(1), 0, 1000).await?;
    let mut last = epoch(&pair.b).await?;
    for (round, hours) in [1, 0, -3, 0].into_iter().enumerate() {
        pair.redis.shift_clock(hours * 3600).await?;
        wait_published(&pair.redis, "hub-a").await?;
        pair.wait_routes(&pair.b, 1).await?;
        assert_eq!(epoch(&pair.b).await?, last, "the tunnel is the same");
        echo(&mut across, Pattern(1), 1000 * (round as u64 + 1), 1000).await?;
        finish(pair.b.transfers(1, 100_000).await?).await?;
    }
    for (hub, mark) in [&pair.a, &pair.b].into_iter().zip(marks) {
        let gone = hub.log().events("agent_disconnected", mark);
        ensure!(gone.is_empty(), "{gone:?}");
    }
    for hours in [1, 0, -3] {
        pair.redis.shift_clock(hours * 3600).await?;
        agent.restart().await?;
        wait_epoch_above(&pair.b, last).await?;
        last = epoch(&pair.b).await?;
        finish(pair.b.transfers(1, 100_000).await?).await?;
    }
    Ok(())
}

/// The agent has moved, and the hub of a client has not heard of it: the hub that had the agent
/// refuses by epoch, and the client is served after one look into the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outdated_route_costs_a_client_one_more_look() -> Result<()> {
    let (lab, redis, server) = (lab()?, Redis::start().await?, Target::echo().await?);
    let plans = ["hub-a", "hub-b", "hub-c"].map(|name| lab.hub(name).listener("echo"));
    let plans = peers(plans.into(), "active", &redis.url());
    let [a, b, c] = <[_; 3]>::try_from(plans).map_err(|_| anyhow::anyhow!("three"))?;
    let news = FaultProxy::start(redis.addr()).await?;
    let b = b.set("ha.redis_url", format!("redis://{}", news.addr()));
    let (a, b, c) = (a.start().await?, b.start().await?, c.start().await?);
    for hub in [&a, &b, &c] {
        hub.wait_status("ready").await?;
    }
    let door = FaultProxy::start(a.tunnel_addr()?).await?;
    let urls = [door.addr(), c.tunnel_addr()?].map(|addr| format!("ws://{addr}/tunnel"));
    let agent = lab.agent("site-1").target("echo", server.addr());
    let agent = agent.set("tunnel.urls", json!(urls));
    let _agent = agent.set("tunnel.mode", "first").start().await?;
    a.wait_agents(1).await?;
    until("the route", async || {
        let mesh = b.mesh().await?;
        ensure!(mesh["routes"][0]["hub"] == "hub-a", "{mesh}");
        Ok(())
    })
    .await?;
    echo(&mut b.connect("echo").await?, Pattern(1), 0, 1000).await?;

    // Just after it has looked by itself, which it will not do again for two seconds.
    let asked = news.bytes(Way::Up);
    until("a look into the registry", async || {
        ensure!(news.bytes(Way::Up) > asked);
        Ok(())
    })
    .await?;
    news.hold();
    door.refuse();
    door.cut(Cut::Reset);
    c.wait_agents(1).await?;
    let client = tokio::spawn(async move {
        let mut client = b.connect("echo").await?;
        echo(&mut client, Pattern(2), 0, 1000).await?;
        anyhow::Ok(b)
    });
    a.wait_metric(MISMATCHES, &[], |value| value == 1.0).await?;
    news.heal();
    let b = client.await??;
    echo(&mut b.connect("echo").await?, Pattern(3), 0, 1000).await?;
    assert_eq!(a.metric(MISMATCHES, &[]).await?, 1.0, "it knows now");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_hub_of_the_same_name_is_told_from_the_first() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mark = pair.a.log().mark();
    let twin = pair.lab.hub("twin").listener("bulk");
    let twin = twin.member("active", &pair.redis.url());
    let mut twin = twin.set("ha.replica_id", "hub-a").start().await?;
    pair.a
        .log()
        .wait_event_since("replica_id_conflict", mark)
        .await?;
    pair.a.wait_status("degraded").await?;
    let told = get(pair.a.http_addr()?, "/readyz").await?;
    ensure!(told.body.contains("replica_id_conflict"), "{told:?}");
    finish(pair.a.transfers(2, 500_000).await?).await?;
    // The name is free again when the other has left.
    twin.signal(Signal::Term).await?;
    ensure!(twin.process().wait_exit().await?.success());
    pair.a.log().wait_event_since("registry_up", mark).await?;
    pair.a.wait_status("ready").await?;
    pair.wait_routes(&pair.b, 1).await?;
    finish(pair.b.transfers(2, 500_000).await?).await
}
