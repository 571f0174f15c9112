//! High availability is taken back to `off` under flows that cross: they outlive every path that breaks
//! from then on, and the links go with the last of them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy};
use nowconnect_testkit::http::get;
use nowconnect_testkit::lab::{Hub, Lab, Pair, finish};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use tokio::net::TcpStream;

const RESUMES: &str = "nowconnect_flow_resumes_total";
const PIECE: usize = 1000;
/// Long enough to find a path, short enough to wait for its end.
const GRACE: [(&str, u64); 1] = [("limits.resume_grace_ms", 8000)];

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

async fn go(hub: &mut Hub, mode: &str) -> Result<()> {
    let mark = hub.log().mark();
    hub.rewrite("ha.mode", mode)?;
    hub.reload().await?;
    let changed = hub.log().wait_event_since("ha_mode_changed", mark).await?;
    ensure!(changed.text("to") == mode, "{changed:?}");
    Ok(())
}

/// Echoes of one client, byte after byte.
struct Client {
    socket: TcpStream,
    done: u64,
}

impl Client {
    async fn of(hub: &Hub) -> Result<Self> {
        let socket = hub.connect("echo").await?;
        let mut client = Self { socket, done: 0 };
        client.goes_on().await?;
        Ok(client)
    }

    async fn goes_on(&mut self) -> Result<()> {
        echo(&mut self.socket, Pattern(1), self.done, PIECE).await?;
        self.done += PIECE as u64;
        Ok(())
    }
}

async fn wait_links(hub: &Hub, count: f64) -> Result<()> {
    let up = [("state", "established")];
    hub.wait_metric("nowconnect_mesh_links", &up, |links| links == count)
        .await?;
    Ok(())
}

/// Nothing crosses any more: no link is left, and none is made.
async fn all_over(pair: &Pair) -> Result<()> {
    for hub in [&pair.a, &pair.b] {
        wait_links(hub, 0.0).await?;
    }
    until("the links to be gone", async || {
        let live = (pair.to_a.live(), pair.to_b.live());
        ensure!(live == (0, 0), "{live:?}");
        let refused = get(pair.a.tunnel_addr()?, "/mesh").await?;
        ensure!(refused.status == 503, "{refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_outlive_cuts_of_a_link_between_hubs_that_are_off() -> Result<()> {
    let mut pair = Pair::start_with(lab()?, "active", &GRACE).await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut idle = Client::of(&pair.b).await?;
    let running = pair.b.transfers(4, 8_000_000).await?;
    pair.bulk.wait_accepted(4).await?;
    go(&mut pair.a, "off").await?;
    go(&mut pair.b, "off").await?;
    let kept = pair.b.log().wait_event("mesh_link_kept").await?;
    ensure!(kept.text("direction") == "outbound", "{kept:?}");
    pair.to_a.cut_in_turn(6, |_| 2_000_000).await?;
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 4, "no target was dialled again");
    pair.b.turns_away("echo").await?;
    idle.goes_on().await?;

    // One flow that says nothing is enough to have a link.
    let before = pair.to_a.accepted();
    pair.to_a.cut(Cut::Reset);
    let lost = Instant::now();
    pair.to_a.wait_accepted(before + 1).await?;
    idle.goes_on().await?;
    let paused = lost.elapsed();
    ensure!(paused < Duration::from_secs(4), "{paused:?}");
    let shown = pair.b.mesh().await?;
    assert_eq!(shown["links"][0]["kept_for_flows"], 1, "{shown}");
    wait_links(&pair.b, 1.0).await?;
    assert_eq!(pair.echo.accepted(), 1);
    assert!(pair.b.metric(RESUMES, &[("result", "resumed")]).await? >= 6.0);

    drop(idle);
    pair.b.log().wait_event("mesh_link_released").await?;
    all_over(&pair).await
}

/// The link is down at the very moment, and the agent's tunnel breaks too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_wait_when_the_hubs_go_off_go_on() -> Result<()> {
    let mut pair = Pair::start_with(lab()?, "active", &GRACE).await?;
    let tunnel = FaultProxy::start(pair.a.tunnel_addr()?).await?;
    let agent = pair.agent(&[], "first").via(tunnel.addr());
    let _agent = agent.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut client = Client::of(&pair.b).await?;
    pair.to_a.refuse();
    pair.to_a.cut(Cut::Reset);
    wait_links(&pair.b, 0.0).await?;
    go(&mut pair.a, "off").await?;
    go(&mut pair.b, "off").await?;
    pair.to_a.heal();
    client.goes_on().await?;

    // Under a later epoch, which nobody tells.
    let before = tunnel.accepted();
    tunnel.cut(Cut::Reset);
    tunnel.wait_accepted(before + 1).await?;
    client.goes_on().await?;
    assert_eq!(pair.echo.accepted(), 1);
    drop(client);
    all_over(&pair).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_outlive_cuts_whichever_hub_is_off() -> Result<()> {
    let mut pair = Pair::start_with(lab()?, "active", &GRACE).await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut client = Client::of(&pair.b).await?;
    for (a, b) in [("off", "active"), ("active", "off"), ("shadow", "shadow")] {
        go_both(&mut pair, a, b).await?;
        let before = pair.to_a.accepted();
        pair.to_a.cut(Cut::Reset);
        pair.to_a.wait_accepted(before + 1).await?;
        client.goes_on().await?;
    }
    // Back on, the agent is found by new clients, and the old one has noticed nothing.
    go_both(&mut pair, "active", "active").await?;
    pair.wait_linked().await?;
    pair.wait_routes(&pair.b, 1).await?;
    Client::of(&pair.b).await?;
    client.goes_on().await?;
    assert_eq!(pair.echo.accepted(), 2);
    Ok(())
}

async fn go_both(pair: &mut Pair, a: &str, b: &str) -> Result<()> {
    for (hub, mode) in [(&mut pair.a, a), (&mut pair.b, b)] {
        if hub.config()["ha"]["mode"] != mode {
            go(hub, mode).await?;
        }
    }
    Ok(())
}
