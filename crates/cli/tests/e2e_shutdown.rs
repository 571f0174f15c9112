//! Stopping in good order, and the admin API that asks for it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::http::{self, get};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::target::{self, Target};
use nowconnect_testkit::transfer::{echo, read_to_end};
use nowconnect_testkit::wait::until;
use serde_json::Value;
use tokio::net::TcpStream;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test]
async fn a_hub_that_is_told_to_stop_lets_flows_finish() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    hub.signal(Signal::Term).await?;
    let (http, listener) = (hub.http_addr()?, hub.listener_addr("echo")?);
    until("the hub to drain", async || {
        let ready = get(http, "/readyz").await?;
        ensure!(
            ready.status == 503 && ready.body.contains("draining"),
            "{ready:?}"
        );
        ensure!(TcpStream::connect(listener).await.is_err(), "still accepts");
        Ok(())
    })
    .await?;
    assert_eq!(get(http, "/healthz").await?.status, 200);
    echo(&mut client, Pattern(1), 1000, 1000).await?;
    let start = Instant::now();
    drop(client);
    let status = hub.process().wait_exit().await?;
    assert!(status.success(), "{status:?}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "it waited for nothing"
    );
    assert_eq!(server.wait_end(0).await?, target::End::Finished(2000));
    Ok(())
}

#[tokio::test]
async fn flows_that_do_not_finish_get_no_more_than_the_drain_timeout() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let connectors = [("echo", server.addr())];
    let mut hub = lab
        .hub_for(&connectors)
        .set("limits.drain_timeout_sec", 2)
        .start()
        .await?;
    let _agent = lab.agent_for(&connectors).to(&hub).start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    let start = Instant::now();
    hub.signal(Signal::Term).await?;
    let status = hub.process().wait_exit().await?;
    let took = start.elapsed();
    assert!(
        status.success() && (1900..8000).contains(&took.as_millis()),
        "{status:?}, {took:?}"
    );
    read_to_end(&mut client).await.map(drop)
}

#[tokio::test]
async fn a_second_signal_stops_the_hub_now() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    let http = hub.http_addr()?;
    hub.signal(Signal::Term).await?;
    until("the hub to drain", async || {
        ensure!(get(http, "/readyz").await?.status == 503);
        Ok(())
    })
    .await?;
    let start = Instant::now();
    hub.signal(Signal::Term).await?;
    hub.process().wait_exit().await?;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn an_agent_that_is_told_to_stop_leaves_in_good_order() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, mut agent) = lab.site(&[("echo", server.addr())]).await?;
    agent.signal(Signal::Term).await?;
    let status = agent.process().wait_exit().await?;
    assert!(status.success(), "{status:?}");
    hub.wait_agents(0).await?;
    hub.turns_away("echo").await?;
    hub.log()
        .wait_event("no_agent_for_connector")
        .await
        .map(drop)
}

#[tokio::test]
async fn the_command_line_shows_reloads_and_drains_a_running_hub() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    let url = format!("http://{}", hub.admin_addr()?);

    let table = lab.run(&["status", "--url", &url]).await?;
    ensure!(
        table.status.success() && table.stdout.contains("site-1"),
        "{table:?}"
    );
    let json = lab.run(&["status", "--url", &url, "--json"]).await?;
    let status: Value = serde_json::from_str(&json.stdout)?;
    ensure!(status.to_string().contains("site-1"), "{status}");
    let flows = get(hub.admin_addr()?, "/api/v1/flows").await?;
    ensure!(
        flows.status == 200 && flows.body.contains("echo"),
        "{flows:?}"
    );
    let config = get(hub.admin_addr()?, "/api/v1/config").await?;
    ensure!(config.status == 200, "{config:?}");

    let mark = hub.log().mark();
    let done = lab.run(&["reload", "--url", &url]).await?;
    ensure!(done.status.success(), "{done:?}");
    hub.log().wait_event_since("config_reloaded", mark).await?;
    hub.rewrite("limits.max_conn_total", "many")?;
    let done = lab.run(&["reload", "--url", &url]).await?;
    ensure!(
        done.status.code() == Some(1),
        "a rejected reload must fail: {done:?}"
    );
    ensure!(format!("{done:?}").contains("max_conn_total"), "{done:?}");

    drop(client);
    let done = lab.run(&["drain", "--url", &url]).await?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(hub.process().wait_exit().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_page_in_a_browser_cannot_drain_the_hub() -> Result<()> {
    let lab = lab()?;
    let mut hub = lab.hub("hub-a").listener("echo").start().await?;
    let admin = hub.admin_addr()?;
    assert_ne!(
        get(admin, "/api/v1/drain").await?.status,
        200,
        "GET must change nothing"
    );
    let foreign = [("Origin", "https://evil.example")];
    let answer = http::request(admin, "POST", "/api/v1/drain", &foreign, "").await?;
    assert_eq!(answer.status, 403, "{answer:?}");
    let rebound = [("Host", "evil.example")];
    let answer = http::request(admin, "POST", "/api/v1/drain", &rebound, "").await?;
    assert_ne!(answer.status, 200, "{answer:?}");
    hub.process().check_alive()
}
