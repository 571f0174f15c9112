//! Who takes more than a fair share meets a bound, and the others do not notice.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::http;
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports::connect_from;
use nowconnect_testkit::program;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, read_to_end, reset};
use nowconnect_testkit::wait::{until, within};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

const REFUSED: &str = "nowconnect_listener_errors_total";
const SHED: &str = "nowconnect_handshakes_shed_total";
/// A flood fills the kernel's queue of new connections for moments; a client that meets one of them
/// tries again after 1 s, and after 2 s more.
const SOON: Duration = Duration::from_secs(4);
/// Somebody else than the clients and agents on 127.0.0.1.
const STRANGER: [u8; 4] = [127, 0, 0, 9];

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Connects and leaves, over and over, until it is dropped.
fn flood(to: SocketAddr) -> JoinSet<()> {
    let mut flood = JoinSet::new();
    for _ in 0..4 {
        flood.spawn(async move {
            loop {
                // What becomes of it is not its business.
                if let Ok(socket) = connect_from(STRANGER, to).await {
                    let _ = reset(socket);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    flood
}

/// The longest time in which a new client was served, of so many one after the other.
async fn slowest(hub: &Hub, listener: &str, clients: usize) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..clients {
        let start = Instant::now();
        let mut client = hub.connect(listener).await?;
        echo(&mut client, Pattern(1), 0, 1000).await?;
        slowest = slowest.max(start.elapsed());
        reset(client)?;
    }
    Ok(slowest)
}

/// Connects once more until one is refused for this reason.
async fn connect_until_refused(hub: &Hub, listener: &str, why: &str) -> Result<()> {
    until(why, async || {
        drop(hub.connect(listener).await?);
        let refused = hub.metric(REFUSED, &[("type", why)]).await?;
        ensure!(refused >= 1.0, "nobody was refused");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_too_fast_keeps_nobody_out() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("limits.max_opens_per_sec_per_client", 50);
    let mut hub = hub.set("limits.max_opens_per_sec", 200).start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let start = Instant::now();
    let flood = flood(hub.listener_addr("echo")?);
    let by_client = [("type", "max_opens_client")];
    hub.wait_metric(REFUSED, &by_client, |value| value >= 1000.0)
        .await?;
    let slowest = slowest(&hub, "echo", 20).await?;
    ensure!(slowest < SOON, "served after {slowest:?}");
    drop(flood);
    let (reached, seconds) = (server.accepted(), start.elapsed().as_secs() as usize);
    let most = 20 + 50 * (seconds + 2);
    ensure!(reached <= most, "{reached} of at most {most}");
    let event = hub.log().wait_event("connection_refused").await?;
    assert_eq!(event.text("reason"), "max_opens_client");
    ensure!(
        event.text("client").starts_with("127.0.0.9:"),
        "{}",
        event.json()
    );
    let total = hub.metric(REFUSED, &[("type", "max_opens_total")]).await?;
    assert_eq!(total, 0.0, "it takes nothing from the others");

    // Without a limit of its own it would.
    hub.rewrite("limits.max_opens_per_sec_per_client", 0)?;
    hub.rewrite("limits.max_opens_per_sec", 1)?;
    hub.reload().await?;
    hub.log().wait_event("config_reloaded").await?;
    connect_until_refused(&hub, "echo", "max_opens_total").await
}

#[tokio::test]
async fn a_listener_has_a_rate_of_its_own() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let slow = json!({ "max_opens_per_sec": 1 });
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.listener_with("slow", "echo", slow).start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    slowest(&hub, "slow", 1).await?;
    connect_until_refused(&hub, "slow", "max_opens_listener").await?;
    slowest(&hub, "echo", 10).await?;
    until("the next second", async || slowest(&hub, "slow", 1).await).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_hub_serves_those_whom_it_let_in() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("limits.max_conn_total", 20).start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = hub.connect("echo").await?;
        echo(&mut client, Pattern(1), 0, 100).await?;
        clients.push(client);
    }
    let _flood = flood(hub.listener_addr("echo")?);
    let labels = [("type", "max_conn_total")];
    hub.wait_metric(REFUSED, &labels, |value| value >= 1000.0)
        .await?;
    for client in &mut clients {
        let start = Instant::now();
        echo(client, Pattern(1), 100, 1000).await?;
        ensure!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
    let ready = http::get(hub.tunnel_addr()?, "/readyz").await?;
    assert_eq!(ready.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_in_haste_do_not_hammer_a_target() -> Result<()> {
    let (lab, server, other) = (lab()?, Target::echo().await?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").listener("other");
    let hub = hub.start().await?;
    let agent = lab.agent("site-1").to(&hub).target("echo", server.addr());
    let agent = agent.target("other", other.addr());
    let agent = agent.set("limits.max_dials_per_sec", 10).start().await?;
    let start = Instant::now();
    let flood = flood(hub.listener_addr("echo")?);
    let opened = "nowconnect_tcp_connections_total";
    let labels = [("connector", "echo")];
    hub.wait_metric(opened, &labels, |value| value >= 1000.0)
        .await?;
    let elsewhere = slowest(&hub, "other", 5).await?;
    ensure!(elsewhere < SOON, "served after {elsewhere:?}");
    drop(flood);
    let (reached, seconds) = (server.accepted(), start.elapsed().as_secs() as usize);
    ensure!(reached <= 10 * (seconds + 2), "{reached} in {seconds} s");
    // Nothing of those who left stands before those who stay.
    until("the target to be reached", async || {
        slowest(&hub, "echo", 1).await
    })
    .await?;
    hub.wait_idle("echo").await?;
    until("the agent to forget them", async || {
        let active = agent.metrics().await?;
        let active = active.sum("nowconnect_tcp_active_connections", &[]);
        ensure!(active == 0.0, "{active} are left");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn agents_that_come_at_once_are_let_in_one_after_the_other() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("limits.max_handshakes_per_sec", 2).start().await?;
    let mut agents = Vec::new();
    for number in 0..10 {
        let agent = lab.agent(&format!("site-{number}")).to(&hub);
        agents.push(agent.target("echo", server.addr()).spawn()?);
    }
    hub.wait_agents(10).await?;
    hub.wait_metric(SHED, &[("reason", "rate")], |value| value >= 1.0)
        .await?;
    let shed = hub.log().wait_event("handshakes_shed").await?;
    ensure!(shed.number("retry_after_sec") >= Some(1), "{}", shed.json());
    slowest(&hub, "echo", 5).await?;
    Ok(())
}

/// What the hub answers to an upgrade with this token.
async fn answer(source: [u8; 4], hub: &Hub, token: &str) -> Result<String> {
    let mut socket = connect_from(source, hub.tunnel_addr()?).await?;
    let request = format!(
        "GET /tunnel HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let (answer, _) = read_to_end(&mut socket).await?;
    Ok(String::from_utf8_lossy(&answer).to_lowercase())
}

#[tokio::test]
async fn bad_tokens_keep_no_agent_out() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("limits.max_handshakes_per_sec", 50).start().await?;
    let good = lab.issuer().token("site-1")?;
    let (start, _) = good.rsplit_once('.').unwrap_or_default();
    let forged = format!("{start}.AAAA");
    let mut shed = 0;
    for _ in 0..200 {
        let answer = answer(STRANGER, &hub, &forged).await?;
        match answer.split(' ').nth(1) {
            Some("401") => {}
            Some("429") => {
                ensure!(answer.contains("retry-after: 1"), "{answer}");
                shed += 1;
            }
            _ => anyhow::bail!("{answer}"),
        }
    }
    ensure!(shed >= 100, "{shed} of 200");
    let counted = hub.metric(SHED, &[("reason", "failures")]).await?;
    assert_eq!(counted, f64::from(shed));
    assert_eq!(hub.metric(SHED, &[("reason", "rate")]).await?, 0.0);
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    slowest(&hub, "echo", 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_hub_without_descriptors_pauses_and_recovers() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut before = hub.connect("echo").await?;
    echo(&mut before, Pattern(1), 0, 1000).await?;
    let limit = hub.open_files()? + 8;
    let mut prlimit = Command::new(program::find("prlimit", "util-linux")?);
    let (pid, limit) = (hub.pid().to_string(), format!("--nofile={limit}"));
    program::succeed(prlimit.args(["--pid", &pid, &limit])).await?;
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(hub.connect("echo").await?);
    }
    let failed = hub.log().wait_event("accept_failed").await?;
    assert_eq!(failed.text("listener"), "echo");
    let ticks = hub.cpu_ticks()?;
    // Measuring takes time, not waiting for something.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = hub.cpu_ticks()? - ticks;
    ensure!(spent < 50, "{spent} of 200 ticks were spent on nothing");
    echo(&mut before, Pattern(1), 1000, 100_000).await?;
    drop(clients);
    let errors = "nowconnect_listener_accept_errors_total";
    hub.wait_metric(errors, &[("connector", "echo")], |value| value >= 1.0)
        .await?;
    until("service to be back", async || {
        slowest(&hub, "echo", 3).await
    })
    .await?;
    echo(&mut before, Pattern(1), 101_000, 1000).await?;
    hub.process().check_alive()
}

#[tokio::test]
async fn the_announced_client_is_named_when_it_is_turned_away() -> Result<()> {
    let lab = lab()?;
    let ten = json!({ "proxy_protocol": "any", "allow_cidrs": ["10.0.0.0/8"] });
    let hub = lab.hub("hub-a").listener_with("pp", "echo", ten);
    let hub = hub.set("tunnel.trusted_proxies", json!(["127.0.0.1/32"]));
    let hub = hub.start().await?;
    let mut client: TcpStream = hub.connect("pp").await?;
    client
        .write_all(b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 389\r\n")
        .await?;
    within("the refusal", read_to_end(&mut client)).await??;
    let event = hub.log().wait_event("cidr_blocked").await?;
    assert_eq!(event.text("client"), "192.0.2.1:40000");
    let stranger = connect_from(STRANGER, hub.listener_addr("pp")?).await?;
    let event = hub.log().wait_event("connection_refused").await?;
    ensure!(
        event.text("client").starts_with("127.0.0.9:"),
        "{}",
        event.json()
    );
    assert_eq!(event.text("reason"), "proxy_untrusted");
    drop(stranger);
    Ok(())
}
