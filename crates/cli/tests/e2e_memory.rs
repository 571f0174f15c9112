//! `limits.memory_budget_mb` bounds what flows make the processes hold, whoever stalls.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::lab::{Agent, Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, reset};
use nowconnect_testkit::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const FLOWS: usize = 2000;
const BUDGET_MB: u64 = 32;
/// A connection's share of a container's memory limit, in bytes (docs/sizing.md).
const PER_CONNECTION: u64 = 3789;
/// A process's share of it, less what an idle one has already, in bytes (the same place). In it are
/// the ends of buffers whose beginnings hold payload: the budget counts payload alone.
const PROCESS: u64 = 10 << 20;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// What the processes had before any flow.
struct Idle {
    hub: u64,
    agent: u64,
}

impl Idle {
    fn measure(hub: &Hub, agent: &Agent) -> Result<Self> {
        let (hub, agent) = (hub.resident_bytes()?, agent.resident_bytes()?);
        Ok(Self { hub, agent })
    }

    /// Neither has grown beyond what operators are told to give a container, where so many
    /// connections are allowed.
    fn check_growth(&self, hub: &Hub, agent: &Agent, connections: u64) -> Result<()> {
        let bound = (BUDGET_MB << 20) + connections * PER_CONNECTION + PROCESS;
        for (name, now, before) in [
            ("hub", hub.resident_bytes()?, self.hub),
            ("agent", agent.resident_bytes()?, self.agent),
        ] {
            let grown = now.saturating_sub(before);
            ensure!(
                grown < bound,
                "the {name} grew by {} KiB, bound {} KiB",
                grown >> 10,
                bound >> 10
            );
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_2000_clients_that_stop_reading_stay_within_the_budget() -> Result<()> {
    let (lab, source, server) = (lab()?, Target::source(4).await?, Target::echo().await?);
    let connectors = [("source", source.addr()), ("echo", server.addr())];
    let hub = lab
        .hub_for(&connectors)
        .set("limits.memory_budget_mb", BUDGET_MB);
    let hub = hub.set("limits.max_conn_total", 3000).start().await?;
    let agent = lab
        .agent_for(&connectors)
        .to(&hub)
        .set("limits.max_inflight_cids", 3000);
    let agent = agent
        .set("limits.memory_budget_mb", BUDGET_MB)
        .start()
        .await?;
    let idle = Idle::measure(&hub, &agent)?;

    let mut stalled = open_slowly(hub.listener_addr("source")?).await?;
    // In parts, each with a deadline of its own: a busy machine takes its time for all of them.
    for part in 1..=8 {
        source.wait_accepted(part * FLOWS / 8).await?;
    }
    for _ in 0..20 {
        echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100_000).await?;
        idle.check_growth(&hub, &agent, 3000)?;
    }

    // Nothing was lost while they stalled, and each can go on.
    for index in [0, FLOWS / 2, FLOWS - 1] {
        let mut bytes = vec![0; 200_000];
        let client = stalled.get_mut(index).context("a stalled client")?;
        within("a stalled flow", client.read_exact(&mut bytes)).await??;
        Pattern(4).check(0, &bytes)?;
    }
    drop(stalled);
    hub.wait_idle("source").await
}

async fn open_slowly(listener: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut clients = Vec::new();
    for _ in 0..FLOWS {
        let socket = TcpSocket::new_v4()?;
        // A small window, so that the bytes wait in the tunnel and not in this kernel.
        socket.set_recv_buffer_size(16 * 1024)?;
        clients.push(within("a client", socket.connect(listener)).await??);
    }
    Ok(clients)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_targets_that_stop_reading_stay_within_the_budget() -> Result<()> {
    let (lab, stalled, server) = (lab()?, Target::stalled().await?, Target::echo().await?);
    let connectors = [("stalled", stalled.addr()), ("echo", server.addr())];
    let hub = lab
        .hub_for(&connectors)
        .set("limits.memory_budget_mb", BUDGET_MB)
        .start()
        .await?;
    let agent = lab
        .agent_for(&connectors)
        .to(&hub)
        .set("limits.memory_budget_mb", BUDGET_MB);
    let agent = agent.start().await?;
    let idle = Idle::measure(&hub, &agent)?;
    let mut pushing = JoinSet::new();
    for _ in 0..300 {
        let client = hub.connect("stalled").await?;
        pushing.spawn(push_until_stalled(client));
    }
    let pushing = pushing
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100_000).await?;
    // Both allow the usual number, and keep shares of the budget for those that are not there.
    idle.check_growth(&hub, &agent, 2000)?;
    // Clients that give up are noticed although nobody can take what they have sent.
    pushing.into_iter().try_for_each(reset)?;
    hub.wait_idle("stalled").await
}

/// Writes until nobody takes more.
async fn push_until_stalled(mut client: TcpStream) -> Result<TcpStream> {
    socket2::SockRef::from(&client).set_send_buffer_size(4096)?;
    let chunk = vec![7; 64 * 1024];
    let mut total = 0;
    while let Ok(wrote) = timeout(Duration::from_secs(2), client.write(&chunk)).await {
        total += wrote?;
        ensure!(
            total < 64 << 20,
            "64 MiB went into a flow that nobody reads"
        );
    }
    Ok(client)
}
