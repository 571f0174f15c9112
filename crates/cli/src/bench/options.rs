//! Options that every kind of load has.

use std::time::Duration;

use anyhow::anyhow;

use super::load::Pace;
use crate::duration;
use crate::failure::Failure;

/// Where to
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Name or address of a hub's listener, or of the server itself
    #[arg(
        long,
        value_name = "HOST",
        env = "NC_HOST",
        default_value = "127.0.0.1"
    )]
    pub(super) host: String,
    /// Its port
    #[arg(long, value_name = "PORT", env = "NC_PORT")]
    port: Option<u16>,
}

impl Target {
    pub(super) fn port(&self) -> Result<u16, Failure> {
        self.port
            .ok_or_else(|| Failure::usage(anyhow!("say which port: --port PORT or NC_PORT")))
    }

    /// The port, or the usual one of the service.
    pub(super) fn port_or(&self, usual: u16) -> u16 {
        self.port.unwrap_or(usual)
    }
}

/// How much
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// Workers, each with one request under way at most [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=20_000))]
    concurrency: Option<u16>,
    /// Requests that each worker begins per second, by the clock; 0: as fast as answers come
    #[arg(long, value_name = "N", value_parser = rate)]
    rps_per_worker: Option<f64>,
    /// How long: seconds, or a number with a unit (90s, 5m)
    #[arg(long, value_name = "TIME", default_value = "30", value_parser = seconds)]
    duration: Duration,
    /// For one request: seconds, or a number with a unit
    #[arg(long, value_name = "TIME", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

impl Load {
    /// What was asked for, or these.
    pub(super) fn pace(&self, per_second: f64, workers: u16) -> Pace {
        Pace {
            workers: usize::from(self.concurrency.unwrap_or(workers)),
            per_second: self.rps_per_worker.unwrap_or(per_second),
            duration: self.duration,
            timeout: self.timeout,
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("write requests per second, 0.001 to 1000000, or 0 for no limit".into()),
    }
}

/// A bare number is seconds, as in the tool that this one stands in for.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => duration::parse(text)?,
    };
    match time {
        Duration::ZERO => Err("it must be longer than nothing".into()),
        time if time > Duration::from_secs(7 * 86_400) => Err("at most 7 days".into()),
        time => Ok(time),
    }
}
