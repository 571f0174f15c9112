//! Many connections that do nothing: what one costs in resident memory at both ends together,
//! before its first byte and after some.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Sample, Subject, join};
use crate::echo::Echo;
use crate::failure::{Context, Failure, Result};
use crate::process::{Process, resident_kib};
use crate::sockets;
use crate::wire::{Greeting, Job};

/// Connections being opened, or used, at one time.
const AT_ONCE: usize = 64;
const ECHO: usize = 64;
/// For opening, or using, all of them; some systems slow down a great deal.
const STAGE: Duration = Duration::from_secs(240);
/// Memory counts as settled once it stayed within [`STEADY_KIB`] for this long.
const STEADY: Duration = Duration::from_secs(2);
const STEADY_KIB: u64 = 512;
const SETTLING: Duration = Duration::from_secs(15);

/// KiB per connection that has never carried a byte, and that has echoed some; KiB of the
/// processes before the first.
pub(super) async fn measure(subject: &Subject<'_>) -> Result<Sample> {
    let count = subject.idle_connections;
    let times = subject.cpu()?;
    let before = settled(subject.processes).await?;
    let connections = open(subject.entry, count).await?;
    all_arrived(subject.target, count).await?;
    let fresh = settled(subject.processes).await?;
    let connections = echo(connections).await.context("first use")?;
    let used = settled(subject.processes).await?;
    // Memory saved by losing connections would not be saved.
    echo(connections).await.context("second use")?;
    let foreign_cores = times.until(subject.cpu()?).foreign_cores;
    let each = |kib: f64| (kib - before) / count as f64;
    Ok(Sample {
        values: vec![each(fresh), each(used), before],
        foreign_cores,
    })
}

async fn open(entry: SocketAddr, count: usize) -> Result<Vec<Echo>> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for seed in 0..count {
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits.acquire().await.context("permit")?;
            Echo::over(sockets::connect(entry).await, seed as u32)
        });
    }
    join("opening", STAGE, tasks).await
}

async fn echo(connections: Vec<Echo>) -> Result<Vec<Echo>> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits.acquire().await.context("permit")?;
            connection.exchange(ECHO).await?;
            Ok(connection)
        });
    }
    join("echoes", STAGE, tasks).await
}

/// Waits until the target itself has `count` connections: what the kernel accepted on the tunnel's
/// behalf costs the tunnel nothing yet.
async fn all_arrived(target: SocketAddr, count: usize) -> Result<()> {
    let deadline = Instant::now() + STAGE;
    loop {
        let mut stream = sockets::connect(target).await.context("target")?;
        stream
            .write_all(&Greeting::new(Job::Count, 0).encode())
            .await
            .context("target")?;
        // The one that asks counts too.
        let arrived = stream.read_u64_le().await.context("target")? as usize - 1;
        if arrived >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text = format!("only {arrived} of {count} connections reached the target");
            return Err(Failure::new(text));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn settled(processes: &[Process]) -> Result<f64> {
    let deadline = Instant::now() + SETTLING;
    let mut last = resident_kib(processes)?;
    let mut since = Instant::now();
    while since.elapsed() < STEADY && Instant::now() < deadline {
        sleep(Duration::from_millis(250)).await;
        let now = resident_kib(processes)?;
        if now.abs_diff(last) > STEADY_KIB {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(resident_kib(processes)? as f64)
}
