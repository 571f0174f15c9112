//! The load: every case as a function that drives one running system and returns its figures.

mod bulk;
mod burst;
mod churn;
mod closed_loop;
mod half_close;
mod idle;
mod ldap;
mod requests;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use ldap::Search;

use crate::failure::{Context, Failure, Result};
use crate::process::{CpuTimes, Process};

/// How long a stage of a case may take beyond its planned time before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done to a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Bulk { up: bool, flows: usize },
    Requests { connections: usize },
    Churn { workers: usize },
    Idle,
    Burst { connections: usize },
    HalfClose { tries: usize },
    Ldap { connections: usize },
}

/// A running system as the load sees it.
pub(crate) struct Subject<'a> {
    pub(crate) entry: SocketAddr,
    /// Where the tunnel leads to.
    pub(crate) target: SocketAddr,
    /// Whose CPU time and memory count.
    pub(crate) processes: &'a [Process],
    /// How long a timed stage lasts.
    pub(crate) period: Duration,
    pub(crate) idle_connections: usize,
    /// What an LDAP search must return.
    pub(crate) search: Option<&'a Search>,
}

/// The figures of one measurement, in the order of the case's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) values: Vec<f64>,
    /// Cores that processes outside the run kept busy meanwhile.
    pub(crate) foreign_cores: f64,
}

impl Load {
    pub(crate) async fn measure(self, subject: &Subject<'_>) -> Result<Sample> {
        match self {
            Self::Bulk { up, flows } => bulk::measure(subject, up, flows).await,
            Self::Requests { connections } => requests::measure(subject, connections).await,
            Self::Churn { workers } => churn::measure(subject, workers).await,
            Self::Idle => idle::measure(subject).await,
            Self::Burst { connections } => burst::measure(subject, connections).await,
            Self::HalfClose { tries } => half_close::measure(subject, tries).await,
            Self::Ldap { connections } => ldap::measure(subject, connections).await,
        }
    }
}

impl Subject<'_> {
    fn cpu(&self) -> Result<CpuTimes> {
        CpuTimes::take(self.processes)
    }
}

/// Awaits all tasks; the first that fails fails the case.
async fn join<T: 'static>(
    what: &str,
    planned: Duration,
    tasks: JoinSet<Result<T>>,
) -> Result<Vec<T>> {
    let limit = planned + PATIENCE;
    let results = timeout(limit, tasks.join_all())
        .await
        .map_err(|_| Failure::new(format!("{what}: not done after {} s", limit.as_secs())))?;
    results
        .into_iter()
        .collect::<Result<Vec<T>>>()
        .context(what)
}

/// The value below which `share` of the sorted `values` lie (nearest rank).
fn percentile(values: &[f64], share: f64) -> f64 {
    let rank = (values.len() as f64 * share).ceil() as usize;
    values
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}
