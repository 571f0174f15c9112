//! Persistent connections with one exchange outstanding on each: rate and latency.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Sample, Subject, join, percentile};
use crate::failure::Result;

const WARM_UP: Duration = Duration::from_millis(300);

/// A connection that can ask again and again.
pub(super) trait Exchange: Send + 'static {
    /// Asks, and checks the answer.
    fn exchange(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Exchanges/s, p50 and p99 in microseconds, CPU seconds per 10,000 exchanges.
pub(super) async fn measure<E: Exchange>(
    subject: &Subject<'_>,
    connections: Vec<E>,
) -> Result<Sample> {
    let (connections, _) = drive(connections, WARM_UP).await?;
    let (before, start) = (subject.cpu()?, Instant::now());
    let (_, latencies) = drive(connections, subject.period).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let used = before.until(subject.cpu()?);
    let count = latencies.len() as f64;
    let (p50, p99) = (percentile(&latencies, 0.5), percentile(&latencies, 0.99));
    Ok(Sample {
        values: vec![
            count / elapsed,
            p50 * 1e6,
            p99 * 1e6,
            used.system / (count / 1e4),
        ],
        foreign_cores: used.foreign_cores,
    })
}

/// The connections again, and the sorted latencies of all of them in seconds.
async fn drive<E: Exchange>(connections: Vec<E>, period: Duration) -> Result<(Vec<E>, Vec<f64>)> {
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let until = Instant::now() + period;
            loop {
                let start = Instant::now();
                if start >= until {
                    return Ok((connection, latencies));
                }
                connection.exchange().await?;
                latencies.push(start.elapsed().as_secs_f64());
            }
        });
    }
    let (connections, latencies): (Vec<E>, Vec<Vec<f64>>) =
        join("exchanges", period, tasks).await?.into_iter().unzip();
    let mut latencies = latencies.concat();
    latencies.sort_by(f64::total_cmp);
    Ok((connections, latencies))
}
