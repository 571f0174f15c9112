//! Honest traffic through a hub while others attack it.
//!
//! Rounds alternate: one without the attack, one with it, several times in one run, so that what else the
//! machine does falls on both. Attackers are paced, because they share the processors with their victim; what
//! they and the honest ends used is printed beside each ratio.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nowconnect_testkit::issuer::{Issuer, claims};
use nowconnect_testkit::lab::{Agent, Hub, Lab};
use nowconnect_testkit::ports::connect_from;
use nowconnect_testkit::raw_ws::{RawWs, opcode, put_frame, v2};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::{anyhow, http};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_millis(300);
const BULK_FLOWS: usize = 2;
const REQUEST_FLOWS: usize = 8;

/// What somebody does to the hub.
#[derive(Clone, Copy)]
enum Attack {
    SilentSockets,
    SilentClients,
    PingFlood,
    UnknownFlood,
    JwtStorm,
    OpenAndReset,
}

impl Attack {
    const ALL: [Self; 6] = [
        Self::SilentSockets,
        Self::SilentClients,
        Self::PingFlood,
        Self::UnknownFlood,
        Self::JwtStorm,
        Self::OpenAndReset,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SilentSockets => {
                "2000 silent sockets at the tunnel port, opened again as they are closed"
            }
            Self::SilentClients => "1900 clients that connect and are silent",
            Self::PingFlood => "pings of an agent, as fast as it can, again after each close",
            Self::UnknownFlood => "unknown frames of an agent, the same",
            Self::JwtStorm => "500 bad tokens a second, from 250 addresses",
            Self::OpenAndReset => "500 clients a second that connect and reset",
        }
    }
}

#[derive(Default)]
struct Moved {
    bytes: AtomicU64,
    requests: AtomicU64,
}

struct Site {
    lab: Lab,
    hub: Hub,
    agent: Agent,
    _servers: [Target; 2],
}

impl Site {
    async fn start(binary: &str) -> Result<Self> {
        let lab = Lab::new(std::path::absolute(binary)?)?;
        let servers = [Target::source(1).await?, Target::echo().await?];
        let connectors = [("bulk", servers[0].addr()), ("echo", servers[1].addr())];
        let (hub, agent) = lab.site(&connectors).await?;
        Ok(Self {
            lab,
            hub,
            agent,
            _servers: servers,
        })
    }
}

async fn bulk(mut client: TcpStream, moved: Arc<Moved>) -> Result<()> {
    let mut buf = vec![0; 256 * 1024];
    loop {
        let n = client.read(&mut buf).await?;
        anyhow::ensure!(n > 0, "a bulk flow ended");
        moved.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn requests(mut client: TcpStream, moved: Arc<Moved>) -> Result<()> {
    let mut buf = [7; 512];
    loop {
        client.write_all(&buf).await?;
        client.read_exact(&mut buf).await?;
        moved.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bytes and requests per second of the honest flows.
async fn measure(moved: &Moved) -> [f64; 2] {
    tokio::time::sleep(SETTLE).await;
    let read = || [&moved.bytes, &moved.requests].map(|count| count.load(Ordering::Relaxed));
    let (before, start) = (read(), Instant::now());
    tokio::time::sleep(ROUND).await;
    let (after, seconds) = (read(), start.elapsed().as_secs_f64());
    [0, 1].map(|n| (after[n] - before[n]) as f64 / seconds)
}

async fn flood(to: SocketAddr, token: String, frame: Vec<u8>) -> Result<()> {
    let mut message = Vec::new();
    put_frame(
        &mut message,
        true,
        0x80 | opcode::BINARY,
        &frame.repeat(2000),
    );
    let hello = json!({
        "agent_id": "evil", "instance": "00112233445566778899aabbccddeeff", "connectors": [],
        "version": "9", "epoch_seen": 0, "epoch_held": 0, "initial_window": 32768,
        "max_payload": 65536, "features": [],
    });
    loop {
        if let Ok(mut ws) = RawWs::tunnel(to, &token, Some("nowconnect.v2")).await {
            ws.binary(&v2(1, 0, hello.to_string().as_bytes())).await?;
            while ws.write(&message).await.is_ok() {}
        }
        // The hub wants no more; one of ours would wait for seconds.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn paced<F, Fut>(per_second: u64, deed: F) -> Result<()>
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / per_second));
    let mut running = JoinSet::new();
    for number in 0.. {
        tick.tick().await;
        running.spawn(deed(number));
        while running.try_join_next().is_some() {}
    }
    Ok(())
}

/// One of 250 addresses of this machine.
fn address(number: u64) -> [u8; 4] {
    [127, 0, 1, (number % 250) as u8 + 1]
}

/// So many sockets that say nothing, opened again when they are closed.
async fn silence(sockets: u64, to: SocketAddr) -> Result<()> {
    let mut holders = JoinSet::new();
    for number in 0..sockets {
        holders.spawn(async move {
            loop {
                if let Ok(mut socket) = connect_from(address(number), to).await {
                    let _ = socket.read(&mut [0; 1]).await;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    holders.join_all().await;
    Ok(())
}

async fn attack(kind: Attack, site: &Site) -> Result<()> {
    let to = site.hub.tunnel_addr()?;
    let echo = site.hub.listener_addr("echo")?;
    match kind {
        Attack::SilentSockets => silence(2000, to).await,
        Attack::SilentClients => silence(1900, echo).await,
        Attack::PingFlood => flood(to, site.lab.issuer().token("evil")?, v2(7, 0, &[1; 8])).await,
        Attack::UnknownFlood => flood(to, site.lab.issuer().token("evil")?, v2(0x7f, 0, b"")).await,
        Attack::JwtStorm => paced(500, move |number| async move {
            let header =
                json!({ "alg": "ES256", "kid": if number % 2 == 0 { "key-1" } else { "other" } });
            let token = Issuer::forge(&header, &claims("evil", 3600), &[1; 64]);
            let bearer = format!("Bearer {token}");
            let fields: String = http::upgrade_headers(&bearer)
                .into_iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            let request = format!("GET /tunnel HTTP/1.1\r\nHost: hub\r\n{fields}\r\n");
            if let Ok(mut socket) = connect_from(address(number), to).await {
                let _ = socket.write_all(request.as_bytes()).await;
                let _ = socket.read_to_end(&mut Vec::new()).await;
            }
        })
        .await,
        Attack::OpenAndReset => {
            paced(500, move |_| async move {
                if let Ok(socket) = TcpStream::connect(echo).await {
                    let _ = socket.set_zero_linger();
                }
            })
            .await
        }
    }
}

/// Ticks of 10 ms that this process has used, attackers and honest ends together.
fn own_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit_once(") ")
        .map(|(_, fields)| fields)
        .unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let binary = std::env::args().nth(1).context("usage: attack BINARY")?;
    let site = Arc::new(Site::start(&binary).await?);
    let moved = Arc::new(Moved::default());
    let mut flows = JoinSet::new();
    let lost = Arc::new(AtomicBool::new(false));
    for _ in 0..BULK_FLOWS {
        flows.spawn(watch(
            bulk(site.hub.connect("bulk").await?, moved.clone()),
            lost.clone(),
        ));
    }
    for _ in 0..REQUEST_FLOWS {
        flows.spawn(watch(
            requests(site.hub.connect("echo").await?, moved.clone()),
            lost.clone(),
        ));
    }
    measure(&moved).await;
    println!(
        "| attack | MB/s without, with | ratio | requests/s without, with | ratio | cores: hub | agent | this |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for kind in Attack::ALL {
        let (mut without, mut with, mut ticks) = ([0.0; 2], [0.0; 2], [0; 3]);
        for _ in 0..ROUNDS {
            let quiet = measure(&moved).await;
            let victim = site.clone();
            let attacker = tokio::spawn(async move { attack(kind, &victim).await });
            let before = [site.hub.cpu_ticks()?, site.agent.cpu_ticks()?, own_ticks()];
            let loud = measure(&moved).await;
            let after = [site.hub.cpu_ticks()?, site.agent.cpu_ticks()?, own_ticks()];
            attacker.abort();
            let _ = attacker.await;
            for n in 0..2 {
                without[n] += quiet[n] / ROUNDS as f64;
                with[n] += loud[n] / ROUNDS as f64;
            }
            for n in 0..3 {
                ticks[n] += after[n] - before[n];
            }
        }
        let cores =
            ticks.map(|n| n as f64 / 100.0 / (ROUNDS as f64 * (ROUND + SETTLE).as_secs_f64()));
        println!(
            "| {} | {:.0}, {:.0} | {:.2} | {:.0}, {:.0} | {:.2} | {:.2} | {:.2} | {:.2} |",
            kind.name(),
            without[0] / 1e6,
            with[0] / 1e6,
            with[0] / without[0],
            without[1],
            with[1],
            with[1] / without[1],
            cores[0],
            cores[1],
            cores[2]
        );
    }
    anyhow::ensure!(!lost.load(Ordering::Relaxed), "an honest flow was lost");
    Ok(())
}

async fn watch(flow: impl Future<Output = Result<()>>, lost: Arc<AtomicBool>) {
    if let Err(error) = flow.await {
        eprintln!("{error:#}");
        lost.store(true, Ordering::Relaxed);
    }
}
