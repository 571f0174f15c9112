//! `nowconnect health`: asks a hub or an agent whether it is ready, for probes of containers that have no other program.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::time::timeout;

use crate::admin::{dialer, exchange, parse_url};
use crate::cells::{list, word};
use crate::failure::Failure;
use crate::runtime::block_on;

/// Probes give up soon as well.
const DEADLINE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  nowconnect health
  nowconnect health --strict --url http://127.0.0.1:8000
  NC_HEALTH_URL=http://127.0.0.1:8090 nowconnect health

A hub answers on tunnel.port and observability.metrics_port, an agent on health.port. Where the hub's
tunnel.port speaks TLS, ask observability.metrics_port, which does not. Exit codes: 0 ready, 1 not ready
or no answer within 5 s.";

/// Ask a hub or an agent whether it is ready
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Address of a hub's tunnel.port or observability.metrics_port, or of an agent's health.port
    #[arg(
        long,
        value_name = "URL",
        env = "NC_HEALTH_URL",
        default_value = "http://127.0.0.1:8765"
    )]
    url: String,
    /// Count a degraded hub as not ready
    #[arg(long)]
    strict: bool,
    /// CA certificates to trust for https:// besides the system's
    #[arg(long, value_name = "FILE")]
    ca_bundle: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let url = parse_url(&args.url).map_err(Failure::usage)?;
    let dialer = dialer(&url, args.ca_bundle.as_ref()).map_err(Failure::usage)?;
    let path = match args.strict {
        true => "/readyz?strict=1",
        false => "/readyz",
    };
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = path.parse().context("the path of the request")?;
    let asked = async { timeout(DEADLINE, exchange(&dialer, &url, request)).await };
    let (status, body) = block_on(asked)?
        .map_err(|_| anyhow!("no complete answer within {} s", DEADLINE.as_secs()))
        .flatten()
        .with_context(|| format!("no hub or agent answers at {}", args.url))?;
    println!("{}", verdict(status, &body)?);
    Ok(())
}

/// What `/readyz` says, on one line.
///
/// # Errors
/// It is not ready, or it is something else that answers.
fn verdict(status: StatusCode, body: &[u8]) -> anyhow::Result<String> {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    if !answer["status"].is_string() {
        bail!("{status} comes, but not from a hub or an agent");
    }
    let mut said = word(&answer["status"]);
    let reasons: Vec<_> = list(&answer["reasons"]).iter().map(word).collect();
    if !reasons.is_empty() {
        said = format!("{said}: {}", reasons.join("; "));
    }
    match status {
        StatusCode::OK => Ok(said),
        _ => bail!("{said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_one_line_and_goes_by_the_status() {
        let said = |status, body: &str| verdict(status, body.as_bytes());
        let ok = said(
            StatusCode::OK,
            r#"{"status":"ready","mode":"off","reasons":[]}"#,
        );
        assert_eq!(ok.unwrap(), "ready");
        let degraded = r#"{"status":"degraded","reasons":["registry: down","hub-b:\nlost"]}"#;
        let ok = said(StatusCode::OK, degraded).unwrap();
        assert!(ok.starts_with("degraded: registry: down; hub-b:") && !ok.contains('\n'));
        let strict = said(StatusCode::SERVICE_UNAVAILABLE, degraded).unwrap_err();
        assert!(strict.to_string().starts_with("degraded"));
        for stranger in ["<html>", "{}", "[1]", ""] {
            assert!(said(StatusCode::OK, stranger).is_err(), "{stranger}");
        }
    }
}
