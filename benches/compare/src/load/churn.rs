//! Short connections: connect, one small echo, close; as many as go through in the period.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Sample, Subject, join, percentile};
use crate::echo::Echo;
use crate::failure::Result;
use crate::sockets;
use crate::wire::REQUEST;

const WARM_UP: Duration = Duration::from_millis(300);

/// Connections/s, p99 of a whole turn in milliseconds, CPU seconds per 10,000 connections.
pub(super) async fn measure(subject: &Subject<'_>, workers: usize) -> Result<Sample> {
    // Gives every connection a payload of its own.
    let counter = Arc::new(AtomicU32::new(0));
    drive(subject.entry, workers, &counter, WARM_UP).await?;
    let (before, start) = (subject.cpu()?, Instant::now());
    let turns = drive(subject.entry, workers, &counter, subject.period).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let used = before.until(subject.cpu()?);
    let count = turns.len() as f64;
    Ok(Sample {
        values: vec![
            count / elapsed,
            percentile(&turns, 0.99) * 1e3,
            used.system / (count / 1e4),
        ],
        foreign_cores: used.foreign_cores,
    })
}

/// Seconds of every turn, sorted.
async fn drive(
    entry: SocketAddr,
    workers: usize,
    counter: &Arc<AtomicU32>,
    period: Duration,
) -> Result<Vec<f64>> {
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let counter = Arc::clone(counter);
        tasks.spawn(async move {
            let until = Instant::now() + period;
            let mut turns = Vec::new();
            while Instant::now() < until {
                let seed = counter.fetch_add(1, Ordering::Relaxed);
                let start = Instant::now();
                let mut echo = Echo::over(sockets::connect(entry).await, seed)?;
                echo.exchange(REQUEST).await?;
                drop(echo);
                turns.push(start.elapsed().as_secs_f64());
            }
            Ok(turns)
        });
    }
    let mut turns: Vec<f64> = join("churn", period, tasks).await?.concat();
    turns.sort_by(f64::total_cmp);
    Ok(turns)
}
