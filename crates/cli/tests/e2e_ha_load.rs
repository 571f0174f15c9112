//! Many flows across hubs: when their agent's hub is killed, and when they are opened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::lab::{Hub, Lab, Pair, peers};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

const FLOWS: u32 = 200;
const RESUMES: &str = "nowconnect_flow_resumes_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Sends and checks without end; a few times more once `killed` is set. Returns the longest wait
/// for an answer.
async fn pause_of(
    stream: u32,
    mut client: TcpStream,
    killed: watch::Receiver<bool>,
) -> Result<Duration> {
    const CHUNK: usize = 16 * 1024;
    let (mut longest, mut rounds_left) = (Duration::ZERO, 5);
    for round in 0.. {
        let sent = Instant::now();
        let offset = round * CHUNK as u64;
        let done = echo(&mut client, Pattern(stream), offset, CHUNK).await;
        done.with_context(|| format!("flow {stream}, round {round}"))?;
        longest = longest.max(sent.elapsed());
        if *killed.borrow() {
            rounds_left -= 1;
        }
        if rounds_left == 0 {
            break;
        }
    }
    Ok(longest)
}

/// An agent that knows two hubs, and clients at a third: one of the two is killed.
async fn kill_an_owner(mode: &str) -> Result<()> {
    let (lab, redis, server) = (lab()?, Redis::start().await?, Target::echo().await?);
    let plans = ["hub-a", "hub-b", "hub-c"].map(|name| lab.hub(name).listener("echo"));
    let mut hubs = Vec::new();
    for plan in peers(plans.into(), "active", &redis.url()) {
        hubs.push(plan.spawn()?);
    }
    let [mut a, mut b, mut c] = <[Hub; 3]>::try_from(hubs).ok().context("three")?;
    for hub in [&mut a, &mut b, &mut c] {
        hub.wait_ready().await?;
        hub.wait_status("ready").await?;
    }
    let urls = [a.tunnel_addr()?, b.tunnel_addr()?].map(|addr| format!("ws://{addr}/tunnel"));
    let agent = lab.agent("site-1").target("echo", server.addr());
    let agent = agent.set("tunnel.urls", json!(urls));
    let _agent = agent.set("tunnel.mode", mode).start().await?;
    let ways = if mode == "all" { 2 } else { 1 };
    until("the routes", async || {
        let mesh = c.mesh().await?;
        let routes = mesh["routes"].as_array().map_or(0, Vec::len);
        ensure!(routes == ways, "{mesh}");
        Ok(())
    })
    .await?;

    let (killed, mut running) = (watch::Sender::new(false), JoinSet::new());
    for stream in 1..=FLOWS {
        let client = c.connect("echo").await?;
        running.spawn(pause_of(stream, client, killed.subscribe()));
    }
    server.wait_accepted(FLOWS as usize).await?;
    a.process().signal(Signal::Kill).await?;
    killed.send_replace(true);
    let pauses = running.join_all().await.into_iter();
    let mut pauses = pauses.collect::<Result<Vec<_>>>()?;
    pauses.sort();
    let at = |percent: usize| pauses[(pauses.len() - 1) * percent / 100];
    let resumed = c.metric(RESUMES, &[("result", "resumed")]).await?;
    eprintln!(
        "tunnel.mode {mode}: longest pause p50 {:?}, p99 {:?}, most {:?}; {resumed} flows resumed",
        at(50),
        at(99),
        at(100)
    );
    ensure!(at(99) < Duration::from_secs(10), "{pauses:?}");
    assert_eq!(
        server.accepted(),
        FLOWS as usize,
        "no target was dialled again"
    );
    assert!(resumed >= f64::from(FLOWS / 4), "{resumed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_200_flows_outlive_a_hub_of_an_agent_with_two_tunnels() -> Result<()> {
    kill_an_owner("all").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_200_flows_outlive_the_hub_of_an_agent_with_one_tunnel() -> Result<()> {
    kill_an_owner("first").await
}

/// How many commands the server has run, those within scripts too.
async fn commands(redis: &Redis) -> Result<(u64, String)> {
    let stats = redis.run(&["INFO", "commandstats"]).await?;
    let calls = stats.lines().filter_map(|line| {
        let (_, rest) = line.split_once("calls=")?;
        rest.split(',').next()?.parse::<u64>().ok()
    });
    Ok((calls.sum(), stats))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_opening_a_flow_asks_redis_for_nothing() -> Result<()> {
    let opens = std::env::var("NC_TEST_OPENS").ok();
    let opens: u32 = opens.map_or(Ok(2000), |opens| opens.parse())?;
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    pair.redis.run(&["CONFIG", "RESETSTAT"]).await?;
    let start = Instant::now();
    for stream in 1..=opens {
        let mut client = pair.b.connect("echo").await?;
        echo(&mut client, Pattern(stream), 0, 100).await?;
    }
    let took = start.elapsed();
    let crossed = pair
        .b
        .metric("nowconnect_cross_hub_flows_total", &[])
        .await?;
    assert_eq!(crossed, f64::from(opens));
    let (ran, stats) = commands(&pair.redis).await?;
    eprintln!("{opens} opens in {took:?}, {ran} commands meanwhile");
    // Each hub looks after its table every 2.5 s at least, by no more than this many commands.
    let background = 2 * 25 * (took.as_secs_f64() / 2.5 + 2.0) as u64;
    ensure!(
        ran <= background,
        "{ran} commands, {background} expected:\n{stats}"
    );
    Ok(())
}
