//! One agent takes next to nothing of what clients of another hub send and ask for: memory stays bounded,
//! and other agents behind the same link hardly notice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::fault_proxy::{FaultProxy, Way};
use nowconnect_testkit::lab::{Agent, Hub, Lab, Pair, finish};
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::Transfer;
use nowconnect_testkit::wait::until;
use serde_json::json;
use socket2::SockRef;
use tokio::task::JoinSet;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

const BUDGET_MB: u64 = 64;
const PER_LINK: u64 = 8 << 20;
/// What may be held besides payload.
const SLACK: u64 = 16 << 20;
const SLOW_FLOWS: u32 = 500;

/// How long the same transfers take, the best of some tries; `after` each.
async fn time(hub: &Hub, mut after: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..4 {
        let start = Instant::now();
        finish(hub.transfers(4, 20_000_000).await?).await?;
        best = best.min(start.elapsed());
        after()?;
    }
    Ok(best)
}

/// An agent at the first hub that takes next to nothing.
struct Slow {
    straw: FaultProxy,
    _target: Target,
    _agent: Agent,
}

impl Slow {
    async fn join(pair: &mut Pair) -> Result<Self> {
        pair.b.add_listener("slow", "slow")?;
        let mark = pair.b.log().mark();
        pair.b.reload().await?;
        let log = pair.b.log();
        log.wait_event_since("config_reloaded", mark).await?;
        let straw = FaultProxy::start(pair.a.tunnel_addr()?).await?;
        let target = Target::bulk().await?;
        let agent = pair.lab.agent("slow-1").target("slow", target.addr());
        let agent = agent.set("tunnel.ping_timeout_sec", 120).via(straw.addr());
        Ok(Self {
            straw,
            _target: target,
            _agent: agent.start().await?,
        })
    }

    /// Many clients of `hub` begin at once, and have got so many bytes through.
    async fn crowd(&self, hub: &Hub, bytes: u64) -> Result<JoinSet<Result<()>>> {
        let mut clients = Vec::new();
        for _ in 0..SLOW_FLOWS {
            let client = hub.connect("slow").await?;
            // What waits in this kernel is at the cost of everybody's sockets.
            SockRef::from(&client).set_send_buffer_size(32 * 1024)?;
            clients.push(client);
        }
        let all = f64::from(SLOW_FLOWS);
        let open = [("connector", "slow")];
        hub.wait_metric("nowconnect_open_latency_seconds_count", &open, |n| n == all)
            .await?;
        self.straw.rate(500_000);
        let passed = self.straw.bytes(Way::Down);
        let mut crowd = JoinSet::new();
        for (stream, client) in (1..).zip(clients) {
            let (up, down) = (50_000_000, 16 * 1024);
            crowd.spawn(Transfer { stream, up, down }.run(client));
        }
        until("the crowd to fill the straw", async || {
            let more = self.straw.bytes(Way::Down) - passed;
            ensure!(more > bytes, "{more} bytes");
            Ok(())
        })
        .await?;
        Ok(crowd)
    }
}

/// What flows were told that they may send fits all together, so none is taken off its path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_crowd_that_begins_behind_a_slow_agent_keeps_its_paths() -> Result<()> {
    let patient = [
        ("ha.mesh.per_link_max_inflight_bytes", PER_LINK),
        ("tunnel.ping_timeout_sec", 120),
    ];
    let mut pair = Pair::start_with(lab()?, "active", &patient).await?;
    let slow = Slow::join(&mut pair).await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut crowd = slow.crowd(&pair.b, 8_000_000).await?;
    let shed = [("reason", "reset")];
    let shed = pair
        .a
        .metric("nowconnect_mesh_backpressure_total", &shed)
        .await?;
    eprintln!("{shed} of {SLOW_FLOWS} flows were taken off their path");
    ensure!(crowd.try_join_next().is_none(), "a flow has ended");
    ensure!(shed == 0.0, "{shed} flows were taken off their path");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_an_agent_that_is_slow_costs_bounded_memory_and_others_little() -> Result<()> {
    let patient = [
        ("limits.memory_budget_mb", BUDGET_MB),
        ("ha.mesh.per_link_max_inflight_bytes", PER_LINK),
        ("tunnel.ping_timeout_sec", 120),
    ];
    let mut pair = Pair::start_with(lab()?, "active", &patient).await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    let slow = Slow::join(&mut pair).await?;
    let straw = &slow.straw;
    pair.wait_routes(&pair.b, 2).await?;
    let alone = time(&pair.b, || Ok(())).await?;
    let before = (pair.a.resident_bytes()?, pair.b.resident_bytes()?);

    let mut crowd = slow.crowd(&pair.b, 2_000_000).await?;
    let mut worst = (0, 0);
    let beside = time(&pair.b, || {
        worst.0 = worst.0.max(pair.a.resident_bytes()?);
        worst.1 = worst.1.max(pair.b.resident_bytes()?);
        Ok(())
    })
    .await?;
    let grown = (
        worst.0.saturating_sub(before.0),
        worst.1.saturating_sub(before.1),
    );
    eprintln!(
        "alone {alone:?}, beside the slow agent {beside:?}: {:.0} %; owner grew by {} KiB, origin by {} KiB",
        100.0 * alone.as_secs_f64() / beside.as_secs_f64(),
        grown.0 >> 10,
        grown.1 >> 10
    );
    ensure!(grown.0 < 2 * PER_LINK + SLACK, "the owner: {grown:?}");
    ensure!(grown.1 < (BUDGET_MB << 20) + SLACK, "the origin: {grown:?}");
    // Nobody of the crowd was hurt, or is done.
    ensure!(crowd.try_join_next().is_none(), "a slow flow has ended");
    ensure!(straw.accepted() == 1, "the slow tunnel was given up");
    crowd.shutdown().await;
    pair.b.wait_idle("slow").await?;
    finish(pair.b.transfers(1, 500_000).await?).await
}

/// The other hub stands still with a link full of bytes: it costs the link's bounds, agents of this hub
/// notice nothing, and the flows go on when it wakes up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_hub_that_freezes_with_a_full_link_costs_its_bounds() -> Result<()> {
    let bounds = [
        ("ha.mesh.per_link_max_inflight_bytes", PER_LINK),
        ("tunnel.ping_interval_sec", 5),
        ("tunnel.ping_timeout_sec", 5),
    ];
    let mut pair = Pair::start_with(lab()?, "active", &bounds).await?;
    let far = pair.agent(&[&pair.a], "first");
    let _far = far.set("tunnel.ping_timeout_sec", 60).start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let before = pair.b.resident_bytes()?;
    let (mark, accepted) = (pair.b.log().mark(), pair.bulk.accepted());
    let running = pair.b.transfers(16, 30_000_000).await?;
    pair.bulk.wait_accepted(accepted + 16).await?;
    pair.a.signal(Signal::Stop).await?;
    let frozen = Instant::now();

    let near = pair.lab.agent("near").target("near", pair.bulk.addr());
    let url = format!("ws://{}/tunnel", pair.b.tunnel_addr()?);
    let near = near.set("tunnel.urls", json!([url]));
    pair.b.add_listener("near", "near")?;
    pair.b.reload().await?;
    let _near = near.start().await?;
    pair.b.wait_agents(1).await?;
    let client = pair.b.connect("near").await?;
    let (up, down) = (50_000_000, 50_000_000);
    Transfer {
        stream: 99,
        up,
        down,
    }
    .run(client)
    .await?;

    pair.b
        .log()
        .wait_event_since("mesh_link_down", mark)
        .await?;
    let noticed = frozen.elapsed();
    let grown = pair.b.resident_bytes()?.saturating_sub(before);
    eprintln!("noticed after {noticed:?}; grew by {} KiB", grown >> 10);
    ensure!(noticed < Duration::from_secs(15), "{noticed:?}");
    ensure!(grown < 2 * PER_LINK + SLACK, "{grown} bytes");
    pair.a.signal(Signal::Cont).await?;
    finish(running).await
}
