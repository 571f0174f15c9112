//! Who is an agent, seen by several hubs: two with one id, one behind a partition, one that is dead.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy};
use nowconnect_testkit::lab::{Hub, Lab, Pair, finish};
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::transfer::{End, echo, read_to_end};
use nowconnect_testkit::wait::until_within;
use serde_json::json;

const CONFLICTS: &str = "nowconnect_agent_identity_conflicts_total";
const RESUMES: &str = "nowconnect_flow_resumes_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

fn arrivals(pair: &Pair) -> usize {
    let at = |hub: &Hub| hub.log().events("agent_connected", Mark::default()).len();
    at(&pair.a) + at(&pair.b)
}

/// Who serves: the instance that holds the id at a hub.
async fn incumbent(hub: &Hub) -> Result<Option<String>> {
    let admin = hub.admin_addr()?;
    let told = nowconnect_testkit::http::get(admin, "/api/v1/agents?scope=hub").await?;
    let agents: serde_json::Value = serde_json::from_str(&told.body)?;
    let list = agents["agents"].as_array().context(agents.to_string())?;
    Ok(list.first().map(|agent| agent["instance"].to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_with_one_id_do_not_displace_each_other_for_ever() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let one = pair.agent(&[&pair.a], "first").instance("one").start();
    let _one = one.await?;
    let _two = pair.agent(&[&pair.b], "first").instance("two").spawn()?;
    let conflicts = async || {
        let (a, b) = (
            pair.a.metric(CONFLICTS, &[]).await?,
            pair.b.metric(CONFLICTS, &[]).await?,
        );
        anyhow::Ok(a + b)
    };
    until_within(Duration::from_secs(60), "a conflict", async || {
        let seen = conflicts().await?;
        ensure!(seen >= 1.0, "{seen}");
        Ok(())
    })
    .await?;
    let (arrived, before) = (
        arrivals(&pair),
        (incumbent(&pair.a).await?, incumbent(&pair.b).await?),
    );
    ensure!(
        before.0.is_some() != before.1.is_some(),
        "one of them has the id: {before:?}"
    );
    ensure!(arrived <= 5, "{arrived} arrivals for three displacements");
    // The other keeps trying, and clients of both hubs go to the one that stayed.
    let refused = conflicts().await?;
    for stream in 1.. {
        for hub in [&pair.a, &pair.b] {
            echo(&mut hub.connect("echo").await?, Pattern(stream), 0, 1000).await?;
        }
        if conflicts().await? >= refused + 2.0 {
            break;
        }
    }
    let after = (incumbent(&pair.a).await?, incumbent(&pair.b).await?);
    assert_eq!(after, before, "the incumbent stays");
    assert_eq!(arrivals(&pair), arrived);
    Ok(())
}

/// The first hub is cut off from everything but its clients, and its agent goes to the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_of_both_sides_survive_a_partition() -> Result<()> {
    let quick = [
        ("tunnel.ping_interval_sec", 1),
        ("tunnel.ping_timeout_sec", 2),
    ];
    let pair = Pair::start_with(lab()?, "active", &quick).await?;
    let door = FaultProxy::start(pair.a.tunnel_addr()?).await?;
    let urls = [door.addr(), pair.b.tunnel_addr()?].map(|addr| format!("ws://{addr}/tunnel"));
    let agent = pair.agent(&[], "first").set("tunnel.urls", json!(urls));
    let _agent = agent.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let (mut at_a, mut at_b) = (pair.a.connect("echo").await?, pair.b.connect("echo").await?);
    echo(&mut at_a, Pattern(1), 0, 1000).await?;
    echo(&mut at_b, Pattern(2), 0, 1000).await?;
    let running = [
        pair.a.transfers(3, 15_000_000).await?,
        pair.b.transfers(3, 15_000_000).await?,
    ];
    pair.bulk.wait_accepted(6).await?;
    let held = [&pair.to_a, &pair.to_b, &pair.a_to_redis];
    held.iter().for_each(|proxy| proxy.hold());
    door.refuse();
    door.cut(Cut::Reset);

    pair.b.wait_agents(1).await?;
    echo(&mut at_b, Pattern(2), 1000, 1000).await?;
    finish(pair.b.transfers(2, 500_000).await?).await?;
    for hub in [&pair.a, &pair.b] {
        hub.wait_status("degraded").await?;
    }
    pair.a.turns_away("echo").await?;

    held.iter().for_each(|proxy| proxy.heal());
    for running in running {
        finish(running).await?;
    }
    echo(&mut at_a, Pattern(1), 1000, 1000).await?;
    echo(&mut at_b, Pattern(2), 2000, 1000).await?;
    for hub in [&pair.a, &pair.b] {
        hub.wait_status("ready").await?;
        finish(hub.transfers(1, 500_000).await?).await?;
    }
    assert_eq!(pair.bulk.accepted(), 10, "no target was dialled again");
    assert_eq!(pair.echo.accepted(), 2, "no target was dialled again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_of_a_dead_agent_end_with_the_grace_on_every_hub() -> Result<()> {
    let pair = Pair::start_with(lab()?, "active", &[("limits.resume_grace_ms", 2000)]).await?;
    let mut agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let (mut at_a, mut at_b) = (pair.a.connect("echo").await?, pair.b.connect("echo").await?);
    echo(&mut at_a, Pattern(1), 0, 1000).await?;
    echo(&mut at_b, Pattern(2), 0, 1000).await?;
    agent.process().signal(Signal::Kill).await?;
    pair.wait_routes(&pair.b, 0).await?;
    for hub in [&pair.a, &pair.b] {
        hub.turns_away("echo").await?;
    }
    for client in [&mut at_a, &mut at_b] {
        let (bytes, end) = read_to_end(client).await?;
        ensure!(bytes.is_empty() && end == End::Reset, "{end:?}");
    }
    for hub in [&pair.a, &pair.b] {
        hub.wait_metric(RESUMES, &[("result", "expired")], |ended| ended == 1.0)
            .await?;
        hub.wait_idle("echo").await?;
    }
    agent.restart().await?;
    pair.wait_routes(&pair.b, 1).await?;
    for hub in [&pair.a, &pair.b] {
        echo(&mut hub.connect("echo").await?, Pattern(3), 0, 1000).await?;
    }
    Ok(())
}
