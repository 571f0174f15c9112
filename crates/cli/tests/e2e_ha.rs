//! Several hubs as one: clients of any hub reach the agent, and flows outlive the hub that owns its
//! tunnel.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy};
use nowconnect_testkit::lab::{Lab, Pair, finish};
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::wait::until;
use serde_json::json;

const CROSSED: &str = "nowconnect_cross_hub_flows_total";
const RESUMES: &str = "nowconnect_flow_resumes_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_the_other_hub_reaches_the_agent() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    finish(pair.b.transfers(8, 5_000_000).await?).await?;
    assert_eq!(pair.b.metric(CROSSED, &[]).await?, 8.0);
    assert_eq!(pair.a.metric(CROSSED, &[]).await?, 0.0);
    finish(pair.a.transfers(2, 1_000_000).await?).await?;
    assert_eq!(pair.bulk.accepted(), 10);
    for hub in [&pair.a, &pair.b] {
        hub.wait_idle("bulk").await?;
        assert_eq!(hub.metric("nowconnect_rst_sent_total", &[]).await?, 0.0);
    }
    Ok(())
}

/// The agent has one tunnel and must find the other hub first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_outlive_the_owner_of_their_agent() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a, &pair.b], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(20, 4_000_000).await?;
    pair.bulk.wait_accepted(20).await?;
    pair.a.process().signal(Signal::Kill).await?;
    let killed = Instant::now();
    finish(running).await?;
    ensure!(
        killed.elapsed() < Duration::from_secs(20),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(pair.bulk.accepted(), 20, "no target was dialled again");
    assert!(pair.b.metric(RESUMES, &[("result", "resumed")]).await? >= 1.0);
    pair.b.wait_idle("bulk").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_over_the_mesh_survive_cuts_of_the_tunnel() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let proxy = FaultProxy::start(pair.a.tunnel_addr()?).await?;
    let agent = pair.agent(&[], "first").via(proxy.addr());
    let _agent = agent.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(4, 8_000_000).await?;
    proxy.cut_in_turn(8, |_| 2_000_000).await?;
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 4, "no target was dialled again");
    pair.b.wait_idle("bulk").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_survive_cuts_of_the_link_between_the_hubs() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(4, 8_000_000).await?;
    pair.to_a.cut_in_turn(8, |_| 2_000_000).await?;
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 4, "no target was dialled again");
    pair.b.wait_idle("bulk").await?;
    // The owner keeps nothing of them.
    until("nothing to be forwarded", async || {
        let mesh = pair.a.mesh().await?;
        ensure!(mesh["forwarded_flows"] == 0, "{mesh}");
        Ok(())
    })
    .await
}

/// With a tunnel to each hub, clients of both go the short way, and when a tunnel is lost its clients
/// go on over the other hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_move_to_the_other_hub_when_their_tunnel_is_gone() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let proxy = FaultProxy::start(pair.b.tunnel_addr()?).await?;
    let urls = [pair.a.tunnel_addr()?, proxy.addr()].map(|addr| format!("ws://{addr}/tunnel"));
    let agent = pair.agent(&[], "all").set("tunnel.urls", json!(urls));
    let _agent = agent.start().await?;
    pair.a.wait_agents(1).await?;
    pair.b.wait_agents(1).await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(4, 8_000_000).await?;
    pair.bulk.wait_accepted(4).await?;
    assert_eq!(pair.b.metric(CROSSED, &[]).await?, 0.0);
    proxy.refuse();
    proxy.cut(Cut::Reset);
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 4, "no target was dialled again");
    assert_eq!(pair.b.metric(CROSSED, &[]).await?, 4.0);
    // New ones go that way as well.
    finish(pair.b.transfers(1, 100_000).await?).await?;
    proxy.heal();
    pair.b.wait_agents(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_started_again_ends_its_old_flows_at_once() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let mut agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(3, 50_000_000).await?;
    pair.bulk.wait_accepted(3).await?;
    let epoch = pair.b.mesh().await?["routes"][0]["epoch"].as_u64();
    let restarted = Instant::now();
    agent.restart().await?;
    let ended = running.join_all().await;
    assert!(ended.iter().all(Result::is_err), "{ended:?}");
    assert!(
        restarted.elapsed() < Duration::from_secs(15),
        "{:?}",
        restarted.elapsed()
    );
    pair.b.wait_idle("bulk").await?;
    until("the route to the new process", async || {
        let mesh = pair.b.mesh().await?;
        ensure!(mesh["routes"][0]["epoch"].as_u64() > epoch, "{mesh}");
        Ok(())
    })
    .await?;
    finish(pair.b.transfers(1, 100_000).await?).await
}

/// A hub that stood still and wakes up must not harm anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_stands_still_costs_a_pause() -> Result<()> {
    let quick = [
        ("tunnel.ping_interval_sec", 1),
        ("tunnel.ping_timeout_sec", 2),
    ];
    let pair = Pair::start_with(lab()?, "active", &quick).await?;
    let agent = pair.agent(&[&pair.a, &pair.b], "first");
    let agent = agent
        .set("tunnel.ping_interval_sec", 1)
        .set("tunnel.ping_timeout_sec", 2);
    let _agent = agent.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(4, 20_000_000).await?;
    pair.bulk.wait_accepted(4).await?;
    pair.a.signal(Signal::Stop).await?;
    pair.b.wait_agents(1).await?;
    finish(running).await?;
    finish(pair.b.transfers(2, 1_000_000).await?).await?;
    pair.a.signal(Signal::Cont).await?;
    pair.a.wait_agents(0).await?;
    pair.wait_linked().await?;
    // Its clients now go over the mesh to the hub that has the agent.
    pair.wait_routes(&pair.a, 1).await?;
    finish(pair.a.transfers(2, 1_000_000).await?).await?;
    finish(pair.b.transfers(2, 1_000_000).await?).await?;
    assert_eq!(pair.bulk.accepted(), 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_that_do_not_reach_each_other_serve_their_own_agents() -> Result<()> {
    let quick = [
        ("tunnel.ping_interval_sec", 1),
        ("tunnel.ping_timeout_sec", 1),
    ];
    let pair = Pair::start_with(lab()?, "active", &quick).await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(2, 20_000_000).await?;
    pair.bulk.wait_accepted(2).await?;
    for way in [&pair.to_a, &pair.to_b] {
        way.hold();
    }
    pair.b.wait_status("degraded").await?;
    pair.a.wait_status("degraded").await?;
    // The registry still names the owner, but nothing leads there.
    pair.b.turns_away("bulk").await?;
    finish(pair.a.transfers(2, 1_000_000).await?).await?;
    for way in [&pair.to_a, &pair.to_b] {
        way.heal();
    }
    finish(running).await?;
    pair.b.wait_status("ready").await?;
    pair.a.wait_status("ready").await?;
    finish(pair.b.transfers(2, 1_000_000).await?).await
}

/// In shadow mode nothing crosses: a flow whose tunnel is gone waits for it, though the agent has
/// another one at the other hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_shadow_mode_no_flow_moves_to_the_other_hub() -> Result<()> {
    let pair = Pair::start(lab()?, "shadow").await?;
    let proxy = FaultProxy::start(pair.b.tunnel_addr()?).await?;
    let urls = [pair.a.tunnel_addr()?, proxy.addr()].map(|addr| format!("ws://{addr}/tunnel"));
    let agent = pair.agent(&[], "all").set("tunnel.urls", json!(urls));
    let _agent = agent.start().await?;
    pair.b.wait_agents(1).await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(2, 8_000_000).await?;
    pair.bulk.wait_accepted(2).await?;
    proxy.refuse();
    proxy.cut(Cut::Reset);
    pair.b.wait_agents(0).await?;
    // A new client finds no agent here, and is told so.
    pair.b.turns_away("bulk").await?;
    let remote = [("decision", "remote")];
    let name = "nowconnect_shadow_decisions_total";
    pair.b
        .wait_metric(name, &remote, |count| count == 1.0)
        .await?;
    proxy.heal();
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 2);
    assert_eq!(pair.b.metric(CROSSED, &[]).await?, 0.0);
    let frames = [("dir", "out"), ("type", "M_OPEN")];
    let opens = pair
        .b
        .metric("nowconnect_mesh_frames_total", &frames)
        .await?;
    assert_eq!(opens, 0.0);
    Ok(())
}
