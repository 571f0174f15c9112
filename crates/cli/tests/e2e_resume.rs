//! The path breaks, the flow does not: every byte exactly once, sockets open, whatever the tunnel
//! goes through.

use std::time::{Duration, Instant};

use anyhow::Result;
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy, Way};
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::target::{self, Target};
use nowconnect_testkit::transfer::{End, Transfer, echo, read_to_end, reset};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

const RESUMES: &str = "nowconnect_flow_resumes_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Starts bulk transfers; each checks every byte at both ends.
async fn transfers(hub: &Hub, flows: u32, bytes: u64) -> Result<JoinSet<Result<()>>> {
    let mut running = JoinSet::new();
    for stream in 1..=flows {
        let client = hub.connect("bulk").await?;
        running.spawn(
            Transfer {
                stream,
                up: bytes,
                down: bytes + u64::from(stream),
            }
            .run(client),
        );
    }
    Ok(running)
}

async fn finish(running: JoinSet<Result<()>>) -> Result<()> {
    running.join_all().await.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_cut_20_times_in_mid_transfer_loses_and_doubles_nothing() -> Result<()> {
    let (lab, bulk) = (lab()?, Target::bulk().await?);
    let (hub, proxy, _agent) = lab.faulty_site(&[("bulk", bulk.addr())]).await?;
    let running = transfers(&hub, 4, 12_000_000).await?;
    proxy.cut_in_turn(20, |_| 2_000_000).await?;
    finish(running).await?;
    let resumed = hub.metric(RESUMES, &[("result", "resumed")]).await?;
    assert!(resumed >= 20.0, "resumed {resumed}");
    assert_eq!(bulk.accepted(), 4, "no target was dialled again");
    assert!(
        bulk.ends()
            .iter()
            .all(|end| matches!(end, target::End::Finished(_)))
    );
    hub.wait_idle("bulk").await
}

/// Early cuts break the handshake and the attaching, late ones the stream, at any place in a frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_cut_at_any_byte_resumes() -> Result<()> {
    let (lab, bulk) = (lab()?, Target::bulk().await?);
    let (hub, proxy, _agent) = lab.faulty_site(&[("bulk", bulk.addr())]).await?;
    let running = transfers(&hub, 3, 6_000_000).await?;
    // Golden-ratio steps spread over three decades: 1 byte to 700 KB.
    let bytes = |cut: usize| 10f64.powf((cut as f64 * 0.618).fract() * 5.85) as u64;
    proxy.cut_in_turn(24, bytes).await?;
    finish(running).await?;
    hub.wait_idle("bulk").await
}

#[tokio::test]
async fn idle_and_half_closed_flows_survive_a_cut() -> Result<()> {
    let (lab, server, half) = (
        lab()?,
        Target::echo().await?,
        Target::answer_after_end(9).await?,
    );
    let connectors = [("echo", server.addr()), ("half", half.addr())];
    let (hub, proxy, mut agent) = lab.faulty_site(&connectors).await?;
    let mut idle = hub.connect("echo").await?;
    echo(&mut idle, Pattern(1), 0, 100).await?;
    let mut talker = hub.connect("half").await?;
    talker.write_all(b"question").await?;
    half.wait_accepted(1).await?;

    proxy.refuse();
    proxy.cut(Cut::Reset);
    hub.log().wait_event("agent_disconnected").await?;
    // An end that comes while there is no path arrives when there is one; so does a reset.
    talker.shutdown().await?;
    proxy.heal();
    agent.wait_ready().await?;
    let (answer, end) = read_to_end(&mut talker).await?;
    assert_eq!((answer.len(), end), (9, End::Finished));
    assert_eq!(half.wait_end(0).await?, target::End::Finished(8));
    echo(&mut idle, Pattern(1), 100, 100).await?;

    proxy.refuse();
    proxy.cut(Cut::Reset);
    reset(idle)?;
    proxy.heal();
    assert_eq!(server.wait_end(0).await?, target::End::Reset);
    Ok(())
}

/// Neither end waits for the grace, which is longer than a test may last.
#[tokio::test]
async fn a_reset_that_was_lost_with_its_path_arrives_over_the_next() -> Result<()> {
    let (lab, server, angry) = (lab()?, Target::echo().await?, Target::resetter(5).await?);
    let connectors = [("echo", server.addr()), ("angry", angry.addr())];
    let hub = lab.hub_for(&connectors);
    let hub = hub.set("limits.resume_grace_ms", 600_000).start().await?;
    let proxy = FaultProxy::start(hub.tunnel_addr()?).await?;
    let agent = lab.agent_for(&connectors).via(proxy.addr()).start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;
    let mut victim = hub.connect("angry").await?;
    angry.wait_accepted(1).await?;

    proxy.swallow(Way::Down);
    reset(client)?;
    // The client is gone for the hub, and its reset is on a path that brings nothing.
    hub.wait_idle("echo").await?;
    proxy.cut(Cut::Reset);
    assert_eq!(server.wait_end(0).await?, target::End::Reset);

    proxy.swallow(Way::Up);
    let before = agent.log().mark();
    victim.write_all(b"hello").await?;
    agent.log().wait_event_since("flow_closed", before).await?;
    proxy.cut(Cut::Reset);
    assert_eq!(read_to_end(&mut victim).await?.1, End::Reset);
    hub.wait_idle("angry").await
}

#[tokio::test]
async fn a_path_that_dies_in_silence_is_replaced_and_its_flows_resume() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let connectors = [("echo", server.addr())];
    let (hub, proxy) = quick_pings(&lab, &connectors).await?;
    let agent = lab.agent_for(&connectors).via(proxy.addr());
    let agent = agent
        .set("tunnel.ping_interval_sec", 1)
        .set("tunnel.ping_timeout_sec", 2);
    let _agent = agent.start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    for (round, ways) in [&[Way::Up, Way::Down][..], &[Way::Down], &[Way::Up]]
        .iter()
        .enumerate()
    {
        let start = Instant::now();
        ways.iter().for_each(|way| proxy.swallow(*way));
        echo(&mut client, Pattern(1), 1000 * (round as u64 + 1), 1000).await?;
        assert!(
            start.elapsed() < Duration::from_secs(12),
            "{ways:?}: {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

async fn quick_pings(
    lab: &Lab,
    connectors: &[(&str, std::net::SocketAddr)],
) -> Result<(Hub, FaultProxy)> {
    let hub = lab.hub_for(connectors).set("tunnel.ping_interval_sec", 1);
    let hub = hub.set("tunnel.ping_timeout_sec", 2).start().await?;
    let proxy = FaultProxy::start(hub.tunnel_addr()?).await?;
    Ok((hub, proxy))
}

#[tokio::test]
async fn a_pause_shorter_than_the_ping_timeout_costs_no_reconnect() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, proxy, _agent) = lab.faulty_site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    proxy.hold();
    let answered = echo(&mut client, Pattern(1), 1000, 100_000);
    let released = async {
        // The pause itself is the fault.
        tokio::time::sleep(Duration::from_secs(7)).await;
        proxy.heal();
        anyhow::Ok(())
    };
    tokio::try_join!(answered, released)?;
    assert_eq!(proxy.accepted(), 1, "the tunnel was given up");
    Ok(())
}

#[tokio::test]
async fn a_frozen_agent_is_noticed_and_its_flows_resume_when_it_thaws() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let connectors = [("echo", server.addr())];
    let (hub, proxy) = quick_pings(&lab, &connectors).await?;
    let agent = lab.agent_for(&connectors).via(proxy.addr()).start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    agent.signal(Signal::Stop).await?;
    hub.log().wait_event("agent_disconnected").await?;
    agent.signal(Signal::Cont).await?;
    echo(&mut client, Pattern(1), 1000, 1000).await
}

#[tokio::test]
async fn without_a_new_path_both_sockets_are_reset_when_the_grace_ends() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let connectors = [("echo", server.addr())];
    let hub = lab
        .hub_for(&connectors)
        .set("limits.resume_grace_ms", 2000)
        .start()
        .await?;
    let proxy = FaultProxy::start(hub.tunnel_addr()?).await?;
    let agent = lab
        .agent_for(&connectors)
        .via(proxy.addr())
        .set("limits.resume_grace_ms", 2000);
    let _agent = agent.start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    proxy.refuse();
    let start = Instant::now();
    proxy.cut(Cut::Reset);
    assert_eq!(read_to_end(&mut client).await?.1, End::Reset);
    let waited = start.elapsed();
    assert!((1500..8000).contains(&waited.as_millis()), "{waited:?}");
    assert_eq!(server.wait_end(0).await?, target::End::Reset);
    hub.wait_metric(RESUMES, &[("result", "expired")], |value| value == 1.0)
        .await?;
    hub.wait_idle("echo").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_slow_and_distant_path_carries_bulk_without_false_alarms() -> Result<()> {
    let (lab, bulk, server) = (lab()?, Target::bulk().await?, Target::echo().await?);
    let connectors = [("bulk", bulk.addr()), ("echo", server.addr())];
    let (hub, proxy) = quick_pings(&lab, &connectors).await?;
    let _agent = lab.agent_for(&connectors).via(proxy.addr()).start().await?;
    proxy.delay(Duration::from_millis(50));
    proxy.rate(1_000_000);
    let mut client = hub.connect("echo").await?;
    let running = transfers(&hub, 8, 700_000).await?;
    let mut worst = Duration::ZERO;
    for round in 0..10 {
        let start = Instant::now();
        echo(&mut client, Pattern(99), round * 100, 100).await?;
        worst = worst.max(start.elapsed());
    }
    finish(running).await?;
    assert_eq!(proxy.accepted(), 1, "a ping waited behind data");
    assert!(
        worst < Duration::from_secs(5),
        "an echo of 100 bytes took {worst:?}"
    );
    Ok(())
}
