//! Many clients at one moment, over a path with a round-trip time: who waits longest.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Sample, Subject, join, percentile};
use crate::echo::Echo;
use crate::failure::Result;
use crate::sockets;

const ECHO: usize = 64;

/// Milliseconds from the common start to the slowest first echo, and to the median one.
pub(super) async fn measure(subject: &Subject<'_>, connections: usize) -> Result<Sample> {
    let entry = subject.entry;
    let before = subject.cpu()?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for seed in 0..connections as u32 {
        tasks.spawn(async move {
            let mut echo = Echo::over(sockets::connect(entry).await, seed)?;
            echo.exchange(ECHO).await?;
            // Held open until all have answered.
            Ok((start.elapsed().as_secs_f64() * 1e3, echo))
        });
    }
    let answered = join("first echoes", Duration::ZERO, tasks).await?;
    let used = before.until(subject.cpu()?);
    let mut waits: Vec<f64> = answered.iter().map(|(wait, _)| *wait).collect();
    waits.sort_by(f64::total_cmp);
    Ok(Sample {
        values: vec![percentile(&waits, 1.0), percentile(&waits, 0.5)],
        foreign_cores: used.foreign_cores,
    })
}
