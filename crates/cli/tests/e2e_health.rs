//! What probes and scrapers see.

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::http::{self, get};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::metrics::Scrape;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::{until, within};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Every metric of the contract that a hub without a mesh has from the start.
const FAMILIES: &str = "
    nowconnect_owner_epoch_mismatch_total nowconnect_cid_dedup_dropped_total
    nowconnect_flow_resumes_total nowconnect_agent_identity_conflicts_total
    nowconnect_shadow_decisions_total nowconnect_cross_hub_flows_total nowconnect_registry_healthy
    nowconnect_ha_mode nowconnect_mesh_frames_total nowconnect_mesh_backpressure_total
    nowconnect_tcp_connections_total nowconnect_tcp_active_connections nowconnect_tcp_bytes_total
    nowconnect_listener_errors_total nowconnect_listener_accept_errors_total
    nowconnect_queue_overflow_total nowconnect_inbound_queue_size nowconnect_fin_sent_total
    nowconnect_fin_recv_total nowconnect_rst_sent_total nowconnect_rst_recv_total
    nowconnect_agents_connected nowconnect_auth_failures_total nowconnect_protocol_errors_total
    nowconnect_flow_blocked_seconds_total nowconnect_pdp_decisions_total
    nowconnect_pdp_allow_total nowconnect_pdp_deny_total nowconnect_pdp_errors_total
    nowconnect_config_reloads_total nowconnect_build_info
    nowconnect_connection_duration_seconds_count nowconnect_open_latency_seconds_count
    nowconnect_write_drain_seconds_count";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test]
async fn an_agent_says_ok_until_it_is_acknowledged_and_ready_after() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let mut hub = lab.hub("hub-a").listener("echo").start().await?;
    let addr = hub.tunnel_addr()?;
    hub.process().kill().await?;
    let mut agent = lab
        .agent("site-1")
        .target("echo", server.addr())
        .via(addr)
        .spawn()?;
    let health = agent.health_addr();
    until("the health port", async || {
        Ok(TcpStream::connect(health).await?)
    })
    .await?;
    assert_eq!(get(health, "/healthz").await?.status, 200);
    assert_eq!(get(health, "/readyz").await?.status, 503);
    assert_eq!(said(health).await?.trim(), "OK");
    hub.restart().await?;
    agent.wait_ready().await?;
    assert_eq!(said(health).await?.trim(), "READY");
    let ready = get(health, "/readyz").await?;
    assert!(ready.status == 200 && ready.body.contains('1'), "{ready:?}");
    assert_eq!(get(health, "/nothing").await?.status, 404);
    assert!(agent.metrics().await?.families().count() > 0);
    Ok(())
}

/// What a probe hears that connects and says nothing.
async fn said(addr: std::net::SocketAddr) -> Result<String> {
    let mut text = String::new();
    let mut probe = TcpStream::connect(addr).await?;
    within("the health port to answer", probe.read_to_string(&mut text)).await??;
    Ok(text)
}

#[tokio::test]
async fn a_hub_answers_probes_on_both_ports() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    for addr in [hub.tunnel_addr()?, hub.http_addr()?] {
        let alive = get(addr, "/healthz").await?;
        assert_eq!(
            (alive.status, alive.body.trim()),
            (200, r#"{"status":"ok"}"#)
        );
        let ready = get(addr, "/readyz").await?;
        let body: Value = serde_json::from_str(&ready.body)?;
        assert_eq!(
            (ready.status, &body["status"], &body["mode"]),
            (200, &"ready".into(), &"off".into())
        );
        assert!(body["reasons"].is_array(), "{body}");
        assert_eq!(get(addr, "/metrics").await?.status, 200);
        assert_eq!(get(addr, "/nothing").await?.status, 404);
        assert_eq!(
            http::request(addr, "POST", "/healthz", &[], "x")
                .await?
                .status,
            405
        );
    }
    assert_ne!(
        get(hub.tunnel_addr()?, "/api/v1/status").await?.status,
        200,
        "admin API in public"
    );
    Ok(())
}

#[tokio::test]
async fn every_metric_is_there_from_the_start_with_help() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let scrape = hub.metrics().await?;
    for name in FAMILIES.split_whitespace() {
        ensure!(scrape.get(name, &[]).is_some(), "{name} is missing");
    }
    for family in scrape
        .families()
        .filter(|name| name.starts_with("nowconnect_"))
    {
        ensure!(
            scrape.help(family).is_some_and(|help| help.len() > 5),
            "{family} has no help"
        );
    }
    assert_eq!(
        scrape.get("nowconnect_tcp_connections_total", &[("connector", "echo")]),
        Some(0.0)
    );
    assert_eq!(
        scrape.get("nowconnect_ha_mode", &[("mode", "off")]),
        Some(1.0)
    );

    let accept = ("Accept", "application/openmetrics-text; version=1.0.0");
    let open = http::request(hub.http_addr()?, "GET", "/metrics", &[accept], "").await?;
    let kind = open.header("content-type").context("content type")?;
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(open.body.trim_end().ends_with("# EOF"));
    Ok(())
}

#[tokio::test]
async fn counters_follow_the_traffic() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 12_345).await?;
    let echo = ("connector", "echo");
    let active = hub
        .metric("nowconnect_tcp_active_connections", &[echo])
        .await?;
    assert_eq!(active, 1.0);
    drop(client);
    hub.wait_idle("echo").await?;
    let scrape: Scrape = hub.metrics().await?;
    for direction in ["c2a", "a2c"] {
        let labels = [echo, ("direction", direction)];
        assert_eq!(
            scrape.get("nowconnect_tcp_bytes_total", &labels),
            Some(12_345.0)
        );
    }
    assert_eq!(
        scrape.sum("nowconnect_connection_duration_seconds_count", &[echo]),
        1.0
    );
    assert_eq!(
        scrape.sum("nowconnect_open_latency_seconds_count", &[echo]),
        1.0
    );
    assert!(scrape.sum("nowconnect_tunnel_uptime_seconds", &[("agent", "site-1")]) > 0.0);
    assert!(scrape.sum("nowconnect_token_expiry_seconds", &[("agent", "site-1")]) > 60.0);
    Ok(())
}

/// Asks as a probe of a container does.
async fn health(addr: std::net::SocketAddr) -> Result<(bool, String)> {
    let mut probe = tokio::process::Command::new(env!("CARGO_BIN_EXE_nowconnect"));
    probe
        .arg("health")
        .env("NC_HEALTH_URL", format!("http://{addr}"));
    let output = probe.output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(said)?))
}

#[tokio::test]
async fn the_health_command_tells_who_is_ready() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let mut hub = lab.hub("hub-a").listener("echo").start().await?;
    for addr in [hub.tunnel_addr()?, hub.http_addr()?] {
        assert_eq!(health(addr).await?, (true, "ready\n".to_owned()));
    }
    let admin = health(hub.admin_addr()?).await?;
    assert!(!admin.0 && admin.1.contains("not from a hub"), "{admin:?}");
    let addr = hub.tunnel_addr()?;
    let agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    assert_eq!(
        health(agent.health_addr()).await?,
        (true, "ready\n".to_owned())
    );
    hub.process().kill().await?;
    let gone = health(addr).await?;
    assert!(!gone.0 && gone.1.lines().count() == 1, "{gone:?}");
    until("the agent to miss its hub", async || {
        let (ready, said) = health(agent.health_addr()).await?;
        ensure!(!ready && said.lines().count() == 1, "{said}");
        Ok(())
    })
    .await
}
