//! A slow path between agent and hub: nobody who says little waits behind those who say much.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::fault_proxy::Way;
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// 1 Mbit/s.
const RATE: u64 = 125_000;
const BULK_FLOWS: u32 = 64;
const ROUNDS: u32 = 110;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Round trips of 64 bytes through `RATE`, while `BULK_FLOWS` fill one direction.
async fn round_trips_beside_bulk(way: Way) -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (source, sink) = (Target::source(9).await?, Target::sink().await?);
    let connectors = [
        ("echo", server.addr()),
        ("source", source.addr()),
        ("sink", sink.addr()),
    ];
    let (hub, proxy, _agent) = lab.faulty_site(&connectors).await?;
    proxy.rate(RATE);

    let mut client = hub.connect("echo").await?;
    let mut bulk = JoinSet::new();
    for _ in 0..BULK_FLOWS {
        let mut socket = match way {
            Way::Up => hub.connect("source").await?,
            Way::Down => hub.connect("sink").await?,
        };
        bulk.spawn(async move {
            let mut bytes = vec![0; 65_536];
            match way {
                Way::Up => while socket.read(&mut bytes).await? > 0 {},
                Way::Down => loop {
                    socket.write_all(&bytes).await?;
                },
            }
            anyhow::Ok(())
        });
    }
    match way {
        Way::Up => source.wait_accepted(64).await?,
        Way::Down => sink.wait_accepted(64).await?,
    }

    let (began, carried) = (Instant::now(), proxy.bytes(way));
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        let turn = echo(&mut client, Pattern(1), u64::from(round) * 64, 64);
        within("an answer", turn).await??;
        times.push(start.elapsed());
        // People pause: the rounds are to sample the whole time, not its first second.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rate = (proxy.bytes(way) - carried) as f64 / began.elapsed().as_secs_f64();
    times.sort();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{way:?}: median {median:?}, p99 {p99:?}, bulk {rate:.0} bytes/s");
    assert!(
        p99 < Duration::from_secs(1),
        "median {median:?}, p99 {p99:?}"
    );
    assert!(rate > RATE as f64 * 0.85, "the path was left idle: {rate}");
    ensure!(proxy.accepted() == 1, "the tunnel was given up");
    ensure!(
        bulk.is_empty() || bulk.try_join_next().is_none(),
        "a bulk flow ended"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_an_interactive_flow_beside_bulk_downloads_on_a_slow_path() -> Result<()> {
    round_trips_beside_bulk(Way::Up).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_an_interactive_flow_beside_bulk_uploads_on_a_slow_path() -> Result<()> {
    round_trips_beside_bulk(Way::Down).await
}
