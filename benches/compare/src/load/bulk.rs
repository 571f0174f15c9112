//! Bulk transfer: as many bytes as go through in the period, every one checked at its receiver.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Sample, Subject, join};
use crate::chunks;
use crate::failure::{Context, Failure, Result};
use crate::wire::{CHUNK, Greeting, Job};

const WARM_UP: Duration = Duration::from_millis(300);

/// MB/s from the first connect to the last receipt, and CPU seconds per GB.
pub(super) async fn measure(subject: &Subject<'_>, up: bool, flows: usize) -> Result<Sample> {
    transfer(subject.entry, up, flows, WARM_UP).await?;
    let (before, start) = (subject.cpu()?, Instant::now());
    let bytes = transfer(subject.entry, up, flows, subject.period).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let used = before.until(subject.cpu()?);
    Ok(Sample {
        values: vec![bytes / elapsed / 1e6, used.system / (bytes / 1e9)],
        foreign_cores: used.foreign_cores,
    })
}

async fn transfer(entry: SocketAddr, up: bool, flows: usize, period: Duration) -> Result<f64> {
    let mut tasks = JoinSet::new();
    for seed in 0..flows as u32 {
        tasks.spawn_blocking(move || {
            if up {
                send(entry, seed, period)
            } else {
                receive(entry, seed, period)
            }
        });
    }
    let chunks: u64 = join("bulk transfer", period, tasks)
        .await?
        .into_iter()
        .sum();
    Ok((chunks * CHUNK as u64) as f64)
}

fn greet(entry: SocketAddr, greeting: Greeting) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(entry).context("connect")?;
    stream.set_nodelay(true)?;
    // A stalled system must not leave a thread behind.
    stream.set_read_timeout(Some(super::PATIENCE))?;
    stream.set_write_timeout(Some(super::PATIENCE))?;
    stream.write_all(&greeting.encode()).context("greeting")?;
    Ok(stream)
}

fn send(entry: SocketAddr, seed: u32, period: Duration) -> Result<u64> {
    let until = Instant::now() + period;
    let mut stream = greet(entry, Greeting::new(Job::Sink, seed))?;
    let sent = chunks::send(&mut stream, seed, until).context("send")?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).context("receipt")?;
    if u64::from_le_bytes(answer) == sent {
        return Ok(sent);
    }
    Err(Failure::new(
        "the receiver counted other chunks than were sent",
    ))
}

fn receive(entry: SocketAddr, seed: u32, period: Duration) -> Result<u64> {
    let argument = period.as_millis() as u64;
    let mut stream = greet(
        entry,
        Greeting {
            job: Job::Source,
            seed,
            argument,
        },
    )?;
    chunks::receive(&mut stream, seed).context("receive")
}
