//! Agents of the older generation, which speak JSON.

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::raw_tunnel::{RawTunnel, payload};
use nowconnect_testkit::target::{self, Target};
use nowconnect_testkit::transfer::{End, echo, read_to_end, reset};
use nowconnect_testkit::wait::within;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const OVERFLOWS: &str = "nowconnect_queue_overflow_total";
const ERRORS: &str = "nowconnect_protocol_errors_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// A scripted agent `old-1` that exports `svc`.
async fn old_agent(lab: &Lab, hub: &Hub) -> Result<RawTunnel> {
    let token = lab.issuer().token("old-1")?;
    RawTunnel::connect(hub.tunnel_addr()?, &token, "old-1", &["svc"]).await
}

/// A client and the cid under which the agent hears of it.
async fn open(hub: &Hub, agent: &mut RawTunnel) -> Result<(TcpStream, String)> {
    let client = hub.connect("svc").await?;
    let open = agent.receive_type("OPEN").await?;
    ensure!(open["connector"] == "svc", "{open}");
    let cid = open["cid"].as_str().context("cid")?.to_owned();
    ensure!(
        cid.len() == 36 && cid.matches('-').count() == 4,
        "not a UUID: {cid}"
    );
    Ok((client, cid))
}

#[tokio::test]
async fn our_own_agent_speaks_version_1_when_told_to() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let half = Target::answer_after_end(1000).await?;
    let connectors = [("echo", server.addr()), ("half", half.addr())];
    let hub = lab.hub_for(&connectors).start().await?;
    let agent = lab.agent_for(&connectors).to(&hub).env("NC_PROTOCOL", "1");
    let _agent = agent.start().await?;
    let mut client = hub.connect("echo").await?;
    for round in 0..20 {
        echo(&mut client, Pattern(1), round * 50_000, 50_000).await?;
    }
    reset(client)?;
    assert_eq!(server.wait_end(0).await?, target::End::Reset);
    let mut client = hub.connect("half").await?;
    client.write_all(b"question").await?;
    client.shutdown().await?;
    let (answer, end) = read_to_end(&mut client).await?;
    assert_eq!((answer.len(), end), (1000, End::Finished));
    Ok(())
}

#[tokio::test]
async fn a_flow_goes_by_the_book() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("svc").start().await?;
    let mut agent = old_agent(&lab, &hub).await?;
    let (mut client, cid) = open(&hub, &mut agent).await?;
    let sent = Pattern(1).bytes(0, 200_000);
    client.write_all(&sent).await?;
    client.shutdown().await?;
    let (mut received, mut seq) = (Vec::new(), 0);
    loop {
        let frame = agent.receive().await?;
        assert_eq!(frame["cid"], cid.as_str());
        if frame["t"] == "FIN" {
            assert_eq!(frame["dir"], "c2a");
            break;
        }
        assert_eq!((&frame["t"], &frame["seq"]), (&json!("DATA"), &json!(seq)));
        received.extend(payload(&frame)?);
        seq += 1;
    }
    assert!(received == sent);
    for (seq, at) in (0..10).zip((0..).step_by(1000)) {
        agent
            .send_data(&cid, seq, &Pattern(2).bytes(at, 1000))
            .await?;
    }
    agent
        .send(&json!({ "t": "FIN", "cid": cid, "dir": "a2c" }))
        .await?;
    let (answer, end) = read_to_end(&mut client).await?;
    assert_eq!((answer.len(), end), (10_000, End::Finished));
    Pattern(2).check(0, &answer)?;
    hub.wait_idle("svc").await
}

/// An agent of version 1 has no word for a target that has accepted.
#[tokio::test]
async fn a_target_that_speaks_first_answers_its_probe() -> Result<()> {
    let lab = lab()?;
    let probe = json!({ "type": "tcp", "interval_sec": 300, "timeout_ms": 60_000 });
    let hub = lab.hub("hub-a").listener("svc");
    let hub = hub.set("probes", json!({ "svc": probe })).start().await?;
    let mut agent = old_agent(&lab, &hub).await?;
    let open = agent.receive_type("OPEN").await?;
    let cid = open["cid"].as_str().context("cid")?;
    agent.send_data(cid, 0, b"220 here I am").await?;
    let labels = [("agent", "old-1"), ("connector", "svc")];
    hub.wait_metric("nowconnect_probe_up", &labels, |up| up == 1.0)
        .await?;
    Ok(())
}

#[tokio::test]
async fn resets_cross_in_both_directions() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("svc").start().await?;
    let mut agent = old_agent(&lab, &hub).await?;
    let (mut client, cid) = open(&hub, &mut agent).await?;
    agent
        .send(&json!({ "t": "RST", "cid": cid, "err": "connect_failed" }))
        .await?;
    read_to_end(&mut client).await?;

    let (mut client, cid) = open(&hub, &mut agent).await?;
    agent.send_data(&cid, 0, b"hello").await?;
    client.read_exact(&mut [0; 5]).await?;
    agent
        .send(&json!({ "t": "RST", "cid": cid, "err": "target_reset" }))
        .await?;
    assert_eq!(read_to_end(&mut client).await?.1, End::Reset);

    let (client, cid) = open(&hub, &mut agent).await?;
    agent.send_data(&cid, 0, b"hello").await?;
    reset(client)?;
    let rst = agent.receive_type("RST").await?;
    assert!(
        rst["cid"] == cid.as_str() && rst["err"].is_string(),
        "{rst}"
    );
    hub.wait_idle("svc").await
}

#[tokio::test]
async fn a_client_that_does_not_read_overflows_its_own_queue_only() -> Result<()> {
    let lab = lab()?;
    let hub = lab
        .hub("hub-a")
        .listener("svc")
        .set("limits.queue_depth_per_cid", 10);
    let hub = hub.start().await?;
    let mut agent = old_agent(&lab, &hub).await?;
    let (stalled, cid) = open(&hub, &mut agent).await?;
    let (mut reading, other) = open(&hub, &mut agent).await?;
    let chunk = vec![b'x'; 60_000];
    let mut seq = 0;
    // The kernel takes some megabytes before the hub's own queue fills.
    while hub.metric(OVERFLOWS, &[("connector", "svc")]).await? == 0.0 {
        ensure!(seq < 2000, "no overflow after {seq} frames");
        for _ in 0..20 {
            agent.send_data(&cid, seq, &chunk).await?;
            seq += 1;
        }
    }
    let rst = agent.receive_type("RST").await?;
    assert_eq!(
        (&rst["cid"], &rst["err"]),
        (&json!(cid), &json!("queue_overflow"))
    );
    agent.send_data(&other, 0, b"alive").await?;
    let mut bytes = [0; 5];
    within("the other flow", reading.read_exact(&mut bytes)).await??;
    assert_eq!(&bytes, b"alive");
    drop(stalled);
    Ok(())
}

#[tokio::test]
async fn flows_end_with_their_websocket() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("svc").start().await?;
    let mut agent = old_agent(&lab, &hub).await?;
    let (mut client, cid) = open(&hub, &mut agent).await?;
    agent.send_data(&cid, 0, b"hello").await?;
    client.read_exact(&mut [0; 5]).await?;
    drop(agent);
    assert_eq!(read_to_end(&mut client).await?.1, End::Reset);
    hub.wait_agents(0).await
}

#[tokio::test]
async fn a_greeting_that_does_not_fit_the_token_is_refused() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("svc").start().await?;
    let token = lab.issuer().token("old-1")?;
    let hello = |id: &str, connectors: Value| json!({ "t": "HELLO", "agent_id": id, "connectors": connectors, "ver": "1.5" });
    let many: Vec<String> = (0..100_000).map(|n| format!("c{n}")).collect();
    let bad = [
        hello("somebody-else", json!(["svc"])),
        hello("old-1", json!("svc")),
        hello("old-1", json!(["x".repeat(300)])),
        hello("old-1", json!(["new\nline"])),
        hello("old-1", json!(many)),
        json!({ "t": "HELLO" }),
        json!({ "t": "DATA", "cid": "x", "seq": 0, "b64": "" }),
        json!([1, 2, 3]),
    ];
    for frame in &bad {
        let mut agent = RawTunnel::dial(hub.tunnel_addr()?, &token).await?;
        // The hub may close before a long frame is through.
        let _ = agent.send(frame).await;
        agent.wait_closed().await?;
    }
    hub.wait_agents(0).await?;
    old_agent(&lab, &hub).await.map(drop)
}

#[tokio::test]
async fn a_broken_frame_is_counted_and_hurts_nobody_else() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("svc").start().await?;
    let cid = "11111111-2222-4333-8444-555555555555";
    let bad = [
        "no json".to_owned(),
        "[".repeat(30_000),
        json!({ "t": "DATA", "cid": cid, "seq": 0, "b64": "***" }).to_string(),
        format!(r#"{{"t":"DATA","cid":"{cid}","seq":18446744073709551616,"b64":""}}"#),
        json!({ "t": "FIN", "cid": cid, "dir": "sideways" }).to_string(),
        json!({ "t": "DATA", "cid": 5, "seq": 0, "b64": "" }).to_string(),
    ];
    for (count, text) in bad.iter().enumerate() {
        let mut agent = old_agent(&lab, &hub).await?;
        agent.send_text(text).await?;
        hub.wait_metric(ERRORS, &[], |value| value > count as f64)
            .await?;
    }
    // Frames for flows that nobody opened, and of unknown types, leave the tunnel up.
    let mut agent = old_agent(&lab, &hub).await?;
    agent
        .send(&json!({ "t": "WEATHER", "sky": "blue" }))
        .await?;
    agent.send_data(cid, 0, b"nobody asked").await?;
    let (mut client, cid) = open(&hub, &mut agent).await?;
    agent.send_data(&cid, 0, b"hello").await?;
    client.read_exact(&mut [0; 5]).await?;
    // A hole in the sequence ends the flow: its bytes cannot be trusted.
    agent.send_data(&cid, 5, b"later").await?;
    assert_eq!(read_to_end(&mut client).await?.1, End::Reset);
    Ok(())
}
