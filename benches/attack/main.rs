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
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

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
    TlsHandshakes,
    TlsHellos,
    TlsFlood,
}

impl Attack {
    /// On a hub that speaks plain HTTP.
    const PLAIN: [Self; 6] = [
        Self::SilentSockets,
        Self::SilentClients,
        Self::PingFlood,
        Self::UnknownFlood,
        Self::JwtStorm,
        Self::OpenAndReset,
    ];
    /// On one in which TLS ends.
    const TLS: [Self; 3] = [Self::TlsHandshakes, Self::TlsHellos, Self::TlsFlood];

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
            Self::TlsHandshakes => "300 full TLS handshakes a second, from 250 addresses",
            Self::TlsHellos => "2000 ClientHellos a second that nobody goes on with, the same",
            Self::TlsFlood => "ClientHellos over 64 connections, as fast as they are answered",
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
    async fn start(binary: &str, over_tls: bool) -> Result<Self> {
        let lab = Lab::new(std::path::absolute(binary)?)?;
        let servers = [Target::source(1).await?, Target::echo().await?];
        let connectors = [("bulk", servers[0].addr()), ("echo", servers[1].addr())];
        let (hub, agent) = if over_tls {
            lab.certificates()?;
            let file = |name| lab.path(name).display().to_string();
            let hub = lab.hub_for(&connectors);
            let hub = hub.set("tunnel.tls.cert_file", file("server.crt"));
            let hub = hub.set("tunnel.tls.key_file", file("server.key"));
            let hub = hub.start().await?;
            let agent = lab.agent_for(&connectors);
            let agent = agent.url(&format!("wss://{}/tunnel", hub.tunnel_addr()?));
            let agent = agent.env("NC_CA_BUNDLE", &file("ca.pem")).start().await?;
            (hub, agent)
        } else {
            lab.site(&connectors).await?
        };
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

/// A client of the hub that never goes on with an earlier session.
fn tls_client(site: &Site) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(site.lab.path("ca.pem"))? {
        roots.add(ca?)?;
    }
    let mut config =
        ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The first bytes of a handshake: the attacker computes nothing when it sends them again.
fn client_hello(client: Arc<ClientConfig>) -> Result<Vec<u8>> {
    let mut connection = rustls::ClientConnection::new(client, "localhost".try_into()?)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
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
        Attack::TlsHandshakes => {
            let connector = TlsConnector::from(tls_client(site)?);
            let name: ServerName<'static> = "localhost".try_into()?;
            paced(300, move |number| {
                let (connector, name) = (connector.clone(), name.clone());
                async move {
                    if let Ok(socket) = connect_from(address(number), to).await {
                        let _ = connector.connect(name, socket).await;
                    }
                }
            })
            .await
        }
        Attack::TlsHellos => {
            let hello: Arc<[u8]> = client_hello(tls_client(site)?)?.into();
            paced(2000, move |number| {
                greet(address(number), to, hello.clone())
            })
            .await
        }
        Attack::TlsFlood => {
            let hello: Arc<[u8]> = client_hello(tls_client(site)?)?.into();
            let mut flood = JoinSet::new();
            for number in 0..64 {
                let hello = hello.clone();
                flood.spawn(async move {
                    loop {
                        greet(address(number), to, hello.clone()).await;
                    }
                });
            }
            flood.join_all().await;
            Ok(())
        }
    }
}

/// Begins a handshake and leaves when the hub has done its work, which it has when it answers.
async fn greet(from: [u8; 4], to: SocketAddr, hello: Arc<[u8]>) {
    if let Ok(mut socket) = connect_from(from, to).await {
        let _ = socket.write_all(&hello).await;
        let _ = socket.read(&mut [0; 1]).await;
        let _ = socket.set_zero_linger();
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

/// Starts the honest flows, and attacks beside them.
async fn honest(binary: &str, over_tls: bool, attacks: &[Attack]) -> Result<()> {
    let site = Arc::new(Site::start(binary, over_tls).await?);
    let moved = Arc::new(Moved::default());
    let mut flows = JoinSet::new();
    let lost = Arc::new(AtomicBool::new(false));
    for _ in 0..BULK_FLOWS {
        let flow = bulk(site.hub.connect("bulk").await?, moved.clone());
        flows.spawn(watch(flow, lost.clone()));
    }
    for _ in 0..REQUEST_FLOWS {
        let flow = requests(site.hub.connect("echo").await?, moved.clone());
        flows.spawn(watch(flow, lost.clone()));
    }
    measure(&moved).await;
    for &kind in attacks {
        compare(&site, kind, &moved).await?;
    }
    anyhow::ensure!(!lost.load(Ordering::Relaxed), "an honest flow was lost");
    Ok(())
}

/// Prints what honest flows move without and with an attack.
async fn compare(site: &Arc<Site>, kind: Attack, moved: &Moved) -> Result<()> {
    let (mut without, mut with, mut ticks) = ([0.0; 2], [0.0; 2], [0; 3]);
    for _ in 0..ROUNDS {
        let quiet = measure(moved).await;
        let victim = site.clone();
        let attacker = tokio::spawn(async move { attack(kind, &victim).await });
        let before = [site.hub.cpu_ticks()?, site.agent.cpu_ticks()?, own_ticks()];
        let loud = measure(moved).await;
        let after = [site.hub.cpu_ticks()?, site.agent.cpu_ticks()?, own_ticks()];
        anyhow::ensure!(
            !attacker.is_finished(),
            "{}: {:?}",
            kind.name(),
            attacker.await
        );
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
    let cores = ticks.map(|n| n as f64 / 100.0 / (ROUNDS as f64 * (ROUND + SETTLE).as_secs_f64()));
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
    Ok(())
}

/// `attack BINARY [plain|tls]`
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let binary = args.next().context("usage: attack BINARY [plain|tls]")?;
    let only = args.next();
    println!(
        "| attack | MB/s without, with | ratio | requests/s without, with | ratio | cores: hub | agent | this |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let wanted = |kind| only.as_deref().is_none_or(|only| only == kind);
    if wanted("plain") {
        honest(&binary, false, &Attack::PLAIN).await?;
    }
    if wanted("tls") {
        honest(&binary, true, &Attack::TLS).await?;
    }
    Ok(())
}

async fn watch(flow: impl Future<Output = Result<()>>, lost: Arc<AtomicBool>) {
    if let Err(error) = flow.await {
        eprintln!("{error:#}");
        lost.store(true, Ordering::Relaxed);
    }
}
