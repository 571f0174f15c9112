//! The log of a running process: its level, and a collector that stalls.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::raw_tunnel::RawTunnel;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::{until, within};
use nowconnect_testkit::{ports, program};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test]
async fn the_level_changes_live() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    hub.rewrite("observability.log_level", "ERROR")?;
    hub.reload().await?;
    // What the hub does is told at INFO; from here on, only mistakes are.
    hub.wait_metric(
        "nowconnect_config_reloads_total",
        &[("result", "applied")],
        |n| n >= 1.0,
    )
    .await?;
    let mark = hub.log().mark();
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100).await?;
    program::write(hub.file(), "nonsense")?;
    hub.reload().await?;
    hub.log().wait_event_since("config_rejected", mark).await?;
    ensure!(
        hub.log().events("flow_opened", mark).is_empty(),
        "{}",
        hub.log().tail()
    );
    Ok(())
}

/// A pipe that nobody reads fills at once when every frame is logged.
#[tokio::test]
async fn a_collector_that_stalls_holds_up_neither_flows_nor_the_end() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let port = ports::reserve()?;
    let map = format!("{port}={}", server.addr());
    let mut dev = lab
        .command(&[
            "dev",
            "--tunnel-port",
            "0",
            "--log-level",
            "TRACE",
            "--map",
            &map,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    until("the mapped port", async || {
        let mut client = TcpStream::connect(ports::local(port)).await?;
        echo(&mut client, Pattern(1), 0, 100).await
    })
    .await?;
    for _ in 0..1000 {
        let mut client = TcpStream::connect(ports::local(port)).await?;
        echo(&mut client, Pattern(1), 0, 100).await?;
    }
    let pid = dev.id().context("it has ended")?;
    program::succeed(Command::new("sh").args(["-c", &format!("kill -TERM {pid}")])).await?;
    let status = within("the end", dev.wait()).await??;
    assert!(status.success(), "{status:?}");

    let mut text = String::new();
    dev.stdout
        .take()
        .context("no stdout")?
        .read_to_string(&mut text)
        .await?;
    assert!(text.contains("flow_opened") && !text.contains('\x1b'));
    Ok(())
}

#[tokio::test]
async fn an_agent_that_offends_with_every_frame_does_not_fill_the_log() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let token = lab.issuer().token("old-1")?;
    let mut agent = RawTunnel::connect(hub.tunnel_addr()?, &token, "old-1", &["echo"]).await?;
    for flow in 0..500 {
        let cid = format!("00000000-0000-4000-8000-{flow:012}");
        agent.send_data(&cid, 0, b"for nobody").await?;
    }
    let offences = "nowconnect_protocol_errors_total";
    let known = [("interface", "tunnel"), ("kind", "unknown_flow")];
    hub.wait_metric(offences, &known, |n| n >= 500.0).await?;
    let lines = hub.log().events("protocol_error", Mark::default()).len();
    ensure!((1..10).contains(&lines), "{lines} lines");
    Ok(())
}
