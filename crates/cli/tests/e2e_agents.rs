//! Agents and hubs come, go and come back; several agents share a connector.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, read_to_end};
use nowconnect_testkit::wait::{DEADLINE, until_within};
use tokio::io::AsyncReadExt;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test]
async fn flows_of_an_agent_that_was_killed_end_when_it_is_back_and_new_ones_work() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, mut agent) = lab.site(&[("echo", server.addr())]).await?;
    let first = hub.log().wait_event("agent_connected").await?;
    let mut old = hub.connect("echo").await?;
    echo(&mut old, Pattern(1), 0, 1000).await?;
    agent.restart().await?;
    let start = Instant::now();
    read_to_end(&mut old).await?;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "not after the grace: {:?}",
        start.elapsed()
    );
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;

    let epoch = first.number("epoch");
    let higher = hub
        .log()
        .wait_event_where("agent_connected", Default::default(), |event| {
            event.number("epoch") > epoch
        });
    higher.await?;
    hub.wait_agents(1).await
}

#[tokio::test]
async fn an_agent_finds_its_hub_again_and_waits_for_one_that_is_not_there_yet() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, mut agent) = lab.site(&[("echo", server.addr())]).await?;
    hub.restart().await?;
    hub.wait_agents(1).await?;
    agent.wait_ready().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 1000).await?;

    hub.process().kill().await?;
    agent.respawn().await?;
    agent.process().check_alive()?;
    hub.restart().await?;
    agent.wait_ready().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 1000).await
}

#[tokio::test]
async fn an_agent_with_several_hub_addresses_uses_one_that_answers() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let dead = ports::local(ports::reserve()?);
    let urls = format!("ws://{dead}/tunnel,ws://{}/tunnel", hub.tunnel_addr()?);
    let agent = lab
        .agent("site-1")
        .target("echo", server.addr())
        .env("NC_AGENT_URL", &urls);
    let _agent = agent.start().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 1000).await
}

#[tokio::test]
async fn every_connector_leads_to_its_own_target() -> Result<()> {
    let lab = lab()?;
    let targets = [
        Target::source(1).await?,
        Target::source(2).await?,
        Target::source(3).await?,
    ];
    let names = ["one", "two", "three"];
    let connectors: Vec<_> = names
        .iter()
        .zip(&targets)
        .map(|(n, t)| (*n, t.addr()))
        .collect();
    let (hub, _agent) = lab.site(&connectors).await?;
    for (name, number) in [("three", 3), ("one", 1), ("two", 2), ("one", 1)] {
        let mut bytes = vec![0; 100_000];
        hub.connect(name).await?.read_exact(&mut bytes).await?;
        Pattern(number).check(0, &bytes)?;
    }
    Ok(())
}

#[tokio::test]
async fn flows_go_to_the_agent_that_has_the_fewest() -> Result<()> {
    let (lab, one, two) = (lab()?, Target::echo().await?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let _one = lab.attach(&hub, &[("echo", one.addr())]).await?;
    let mut clients = Vec::new();
    for stream in 0..4 {
        clients.push(hub.connect("echo").await?);
        echo(&mut clients[stream], Pattern(1), 0, 10).await?;
    }
    let _two = lab
        .agent("site-2")
        .to(&hub)
        .target("echo", two.addr())
        .start()
        .await?;
    for stream in 4..10 {
        clients.push(hub.connect("echo").await?);
        echo(&mut clients[stream], Pattern(1), 0, 10).await?;
    }
    assert_eq!((one.accepted(), two.accepted()), (5, 5));
    Ok(())
}

#[tokio::test]
async fn a_refusing_agent_is_passed_over_while_the_client_waits() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let nobody = ports::local(ports::reserve()?);
    let _bad = lab.attach(&hub, &[("echo", nobody)]).await?;
    let _good = lab
        .agent("site-2")
        .to(&hub)
        .target("echo", server.addr())
        .start()
        .await?;
    for stream in 0..20 {
        echo(&mut hub.connect("echo").await?, Pattern(stream), 0, 1000).await?;
    }
    assert_eq!(server.accepted(), 20);
    Ok(())
}

#[tokio::test]
async fn a_second_process_with_the_same_id_takes_over_at_once_and_a_fight_is_damped() -> Result<()>
{
    let (lab, one, two) = (lab()?, Target::echo().await?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let mut first = lab.attach(&hub, &[("echo", one.addr())]).await?;
    let second = lab.agent("site-1").instance("site-1-twin").to(&hub);
    let second = second.target("echo", two.addr()).start().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 10).await?;
    // They displace each other, more slowly each time, until the hub has had enough.
    until_within(2 * DEADLINE, "the conflict to be reported", async || {
        let conflicts = hub
            .metric("nowconnect_agent_identity_conflicts_total", &[])
            .await?;
        ensure!(conflicts >= 1.0);
        Ok(())
    })
    .await?;
    // Whoever has won, clients are served and both processes live.
    for _ in 0..10 {
        echo(&mut hub.connect("echo").await?, Pattern(2), 0, 10).await?;
    }
    drop(second);
    first.wait_ready().await?;
    echo(&mut hub.connect("echo").await?, Pattern(3), 0, 10).await
}

/// Each hub knows agents from its own registry only; the agent carries the epoch from one to the
/// other.
#[tokio::test]
async fn an_agent_serves_several_hubs_under_one_epoch() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let mut a = lab.hub("hub-a").listener("echo").start().await?;
    let mut b = lab.hub("hub-b").listener("echo").start().await?;
    let urls = [a.tunnel_addr()?, b.tunnel_addr()?].map(|addr| format!("ws://{addr}/tunnel"));
    let agent = lab.agent_for(&[("echo", server.addr())]);
    let _agent = agent.url(&urls.join(",")).start().await?;
    let epoch = epoch_at(&a).await?;
    assert_eq!(epoch_at(&b).await?, epoch);
    let mut client = b.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;

    a.process().kill().await?;
    echo(&mut client, Pattern(1), 100, 100).await?;
    echo(&mut b.connect("echo").await?, Pattern(2), 0, 100).await?;
    a.restart().await?;
    assert_eq!(epoch_at(&a).await?, epoch, "it joins the other");
    echo(&mut a.connect("echo").await?, Pattern(3), 0, 100).await?;

    for hub in [&mut a, &mut b] {
        hub.process().kill().await?;
    }
    for hub in [&mut a, &mut b] {
        hub.restart().await?;
    }
    let next = epoch_at(&a).await?;
    assert!(next > epoch, "{next:?} after {epoch:?}");
    assert_eq!(epoch_at(&b).await?, next);
    Ok(())
}

/// Under which epoch this start of the hub took its agent.
async fn epoch_at(hub: &Hub) -> Result<Option<u64>> {
    let event = hub.log().wait_event("agent_connected").await?;
    Ok(event.number("epoch"))
}
