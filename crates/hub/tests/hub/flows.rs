//! Clients and the agents that serve them.

use nowconnect_proto::Reason;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::raw_tunnel::{RawTunnel, payload};
use nowconnect_testkit::transfer::{self, End};
use nowconnect_testkit::{anyhow, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, Process};
use crate::rig::{Rig, echo, is_reset};

#[tokio::test]
async fn a_client_without_an_agent_is_reset() {
    let rig = Rig::start().await;
    let (bytes, end) = transfer::read_to_end(&mut rig.client().await)
        .await
        .unwrap();
    assert!(bytes.is_empty());
    assert_eq!(end, End::Reset);
    let labels = [("connector", "echo"), ("type", "no_agent")];
    rig.wait_metric("nowconnect_listener_errors_total", &labels, 1.0)
        .await;
    assert_eq!(rig.hub.router().count(), 0);
}

#[tokio::test]
async fn bytes_reach_the_target_and_come_back() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 300_000).await;
    let echo = [("connector", "echo")];
    rig.wait_metric("nowconnect_tcp_active_connections", &echo, 1.0)
        .await;
    client.shutdown().await.unwrap();
    let (_, end) = transfer::read_to_end(&mut client).await.unwrap();
    assert_eq!(end, End::Finished);
    rig.wait_flows(0).await;
    let scrape = rig.scrape().await;
    for direction in ["c2a", "a2c"] {
        let labels = [("connector", "echo"), ("direction", direction)];
        assert_eq!(
            scrape.get("nowconnect_tcp_bytes_total", &labels),
            Some(300_000.0)
        );
    }
    assert_eq!(
        scrape.get("nowconnect_tcp_active_connections", &echo),
        Some(0.0)
    );
    assert_eq!(
        scrape.get("nowconnect_open_latency_seconds_count", &echo),
        Some(1.0)
    );
    assert_eq!(
        scrape.get("nowconnect_connection_duration_seconds_count", &echo),
        Some(1.0)
    );
}

#[tokio::test]
async fn the_next_agent_is_tried_until_one_accepts() {
    let rig = Rig::start().await;
    let mut refusing = Vec::new();
    for n in 0..3 {
        let process = Process::new(&format!("site-{n}"), n).await;
        process.refuse(Reason::ConnectFailed);
        let tunnel = rig.tunnel(&process).await;
        refusing.push((process, tunnel));
    }
    let (_, end) = transfer::read_to_end(&mut rig.client().await)
        .await
        .unwrap();
    assert_eq!(end, End::Reset, "nobody accepts");
    assert!(refusing.iter().all(|(process, _)| process.asked() == 1));
    let labels = [("connector", "echo"), ("type", "refused")];
    rig.wait_metric("nowconnect_listener_errors_total", &labels, 1.0)
        .await;

    let willing = Process::new("site-9", 9).await;
    let _tunnel = rig.tunnel(&willing).await;
    for n in 0..8 {
        transfer::echo(&mut rig.client().await, Pattern(n), 0, 1000)
            .await
            .unwrap();
    }
    assert_eq!(willing.asked(), 8);
}

#[tokio::test]
async fn flows_spread_over_the_agents_of_a_connector() {
    let rig = Rig::start().await;
    let (a, b) = (
        Process::new("site-1", 1).await,
        Process::new("site-2", 2).await,
    );
    let _tunnels = (rig.tunnel(&a).await, rig.tunnel(&b).await);
    let mut clients = Vec::new();
    for n in 0..10 {
        let mut client = rig.client().await;
        transfer::echo(&mut client, Pattern(n), 0, 10)
            .await
            .unwrap();
        clients.push(client);
    }
    assert_eq!((a.flows(), b.flows()), (5, 5));
}

#[tokio::test]
async fn a_flow_goes_on_when_its_agent_comes_back() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 1000).await;
    agent.cut().await;
    rig.wait_metric("nowconnect_agents_connected", &[], 0.0)
        .await;
    client
        .write_all(&Pattern(1).bytes(1000, 1000))
        .await
        .unwrap();
    assert_eq!(rig.hub.router().orphans().count(), 1);
    let agent = rig.tunnel(&process).await;
    let mut back = vec![0; 1000];
    client.read_exact(&mut back).await.unwrap();
    Pattern(1).check(1000, &back).unwrap();
    rig.wait_metric(
        "nowconnect_flow_resumes_total",
        &[("result", "resumed")],
        1.0,
    )
    .await;

    // A second tunnel takes over at once.
    let _second = rig.tunnel(&process).await;
    agent.cut().await;
    echo(&mut client, 2000, 1000).await;
    assert_eq!(process.asked(), 1);
}

/// A client that the only agent leaves waiting for an answer.
async fn unanswered(rig: &Rig) -> (Process, Agent, TcpStream) {
    let silent = Process::new("site-1", 1).await;
    silent.fall_silent();
    let tunnel = rig.tunnel(&silent).await;
    let client = rig.client().await;
    wait::until("an OPEN", async || {
        anyhow::ensure!(silent.asked() == 1, "none");
        Ok(())
    })
    .await
    .unwrap();
    (silent, tunnel, client)
}

#[tokio::test]
async fn an_unanswered_flow_of_a_lost_agent_goes_to_another_at_once() {
    let rig = Rig::start().await;
    let (_silent, tunnel, mut client) = unanswered(&rig).await;
    let other = Process::new("site-2", 2).await;
    let _tunnel = rig.tunnel(&other).await;
    tunnel.cut().await;
    echo(&mut client, 0, 1000).await;
    assert_eq!(other.asked(), 1);
    assert_eq!(rig.hub.router().orphans().count(), 0);
}

#[tokio::test]
async fn an_unanswered_flow_goes_to_whoever_comes_first() {
    for (agent_id, instance) in [("site-2", 2), ("site-1", 3)] {
        let rig = Rig::start().await;
        let (_silent, tunnel, mut client) = unanswered(&rig).await;
        tunnel.cut().await;
        rig.wait_metric("nowconnect_agents_connected", &[], 0.0)
            .await;
        let next = Process::new(agent_id, instance).await;
        let _tunnel = rig.tunnel(&next).await;
        echo(&mut client, 0, 1000).await;
        assert_eq!(next.asked(), 1);
    }
}

#[tokio::test]
async fn a_flow_with_bytes_under_way_waits_for_its_own_agent() {
    let rig = Rig::start().await;
    let (silent, tunnel, mut client) = unanswered(&rig).await;
    let sent = Pattern(1).bytes(0, 100);
    client.write_all(&sent).await.unwrap();
    rig.wait_metric(
        "nowconnect_tcp_bytes_total",
        &[("connector", "echo"), ("direction", "c2a")],
        100.0,
    )
    .await;
    let other = Process::new("site-2", 2).await;
    let _other = rig.tunnel(&other).await;
    tunnel.cut().await;
    rig.wait_metric("nowconnect_agents_connected", &[], 1.0)
        .await;
    silent.speak();
    let _back = rig.tunnel(&silent).await;
    let mut echoed = [0; 100];
    client.read_exact(&mut echoed).await.unwrap();
    Pattern(1).check(0, &echoed).unwrap();
    assert_eq!((silent.asked(), other.asked()), (2, 0));
}

#[tokio::test]
async fn a_restarted_agent_ends_its_old_flows_at_once() {
    let rig = Rig::start().await;
    let agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let (mut one, mut two) = (rig.client().await, rig.client().await);
    echo(&mut one, 0, 10).await;
    echo(&mut two, 0, 10).await;
    let _restarted = rig.tunnel(&Process::new("site-1", 2).await).await;
    for client in [&mut one, &mut two] {
        is_reset(client).await;
    }
    rig.wait_flows(0).await;
    rig.wait_metric(
        "nowconnect_flow_resumes_total",
        &[("result", "refused")],
        2.0,
    )
    .await;
    assert_eq!(agent.closed().await.reason, Reason::Superseded);
}

#[tokio::test]
async fn a_flow_without_a_path_ends_with_the_grace() {
    let rig = Rig::start_with(|config| {
        config.limits.resume_grace = std::time::Duration::from_millis(200);
    })
    .await;
    let agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 10).await;
    agent.cut().await;
    is_reset(&mut client).await;
    rig.wait_flows(0).await;
    assert_eq!(rig.hub.router().orphans().count(), 0);
    rig.wait_metric(
        "nowconnect_flow_resumes_total",
        &[("result", "expired")],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn an_idle_flow_ends() {
    let rig = Rig::start_with(|config| {
        config.listeners[0].idle_timeout = Some(std::time::Duration::from_millis(300));
    })
    .await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 10).await;
    is_reset(&mut client).await;
    rig.wait_flows(0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_seen() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let (mut read, mut write) = rig.client().await.into_split();
    let sent = Pattern(1).bytes(0, 32 << 20);
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    wait::until("bytes to wait", async || {
        let waiting = rig.scrape().await.sum("nowconnect_inbound_queue_size", &[]);
        anyhow::ensure!(waiting > 0.0, "none do");
        Ok(())
    })
    .await
    .unwrap();
    let mut back = Vec::new();
    wait::within("the echo", read.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    Pattern(1).check(0, &back).unwrap();
    writing.await.unwrap();
    rig.wait_flows(0).await;
    let scrape = rig.scrape().await;
    assert_eq!(scrape.sum("nowconnect_inbound_queue_size", &[]), 0.0);
    assert!(scrape.sum("nowconnect_write_drain_seconds_count", &[]) >= 1.0);
}

#[tokio::test]
async fn a_version_1_agent_serves_clients() {
    let rig = Rig::start().await;
    let token = rig.issuer.token("old-1").unwrap();
    let mut agent = RawTunnel::connect(rig.http(), &token, "old-1", &["echo"])
        .await
        .unwrap();
    let mut client = rig.client().await;
    client.write_all(b"hello").await.unwrap();
    let open = agent.receive_type("OPEN").await.unwrap();
    let cid = open["cid"].as_str().unwrap().to_owned();
    let data = agent.receive_type("DATA").await.unwrap();
    assert_eq!(payload(&data).unwrap(), b"hello");
    agent.send_data(&cid, 0, b"world").await.unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"world");
    drop(agent);
    is_reset(&mut client).await;
}
