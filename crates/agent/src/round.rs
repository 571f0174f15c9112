//! One round over hubs: the first to acknowledge a tunnel wins.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use nowconnect_link::dial::WsUrl;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::AgentConfig;
use crate::failure::Failure;
use crate::tunnel::{Tunnel, Tunnels};

/// Head start of a hub on the next one: a hub that is silently gone must not cost its whole
/// deadline, and one that is there must not be asked in vain.
const HEAD_START: Duration = Duration::from_secs(2);

/// The hub that acknowledged.
#[derive(Debug)]
pub(crate) struct Won {
    pub(crate) tunnel: Tunnel,
    /// Its place in the list of URLs.
    pub(crate) at: usize,
}

/// Tries the hubs at `urls` in turn, beginning with the one at `first`. A hub is tried when the
/// one before has failed, or has had its head start.
///
/// # Errors
/// All have failed; none of them wants us back before this time.
pub(crate) async fn run(
    tunnels: &Arc<Tunnels>,
    config: &Arc<AgentConfig>,
    urls: &[Uri],
    first: usize,
) -> Result<Won, Duration> {
    let count = urls.len();
    let mut order = (0..count).map(|step| (first + step) % count);
    let mut attempts = JoinSet::new();
    let mut retry_after: Option<Duration> = None;
    loop {
        if let Some(at) = order.next()
            && let Ok(url) = WsUrl::try_from(urls[at].clone())
        {
            let (tunnels, config) = (Arc::clone(tunnels), Arc::clone(config));
            attempts.spawn(async move {
                let opened = tunnels.open(&url, &config).await;
                (at, url, opened)
            });
        }
        let ended = if order.len() > 0 {
            timeout(HEAD_START, attempts.join_next()).await
        } else {
            Ok(attempts.join_next().await)
        };
        match ended {
            Ok(Some(Ok((at, _, Ok(tunnel))))) => return Ok(Won { tunnel, at }),
            Ok(Some(Ok((_, url, Err(failure))))) => {
                note(tunnels, &url, &failure);
                let wait = failure.retry_after().unwrap_or_default();
                retry_after = Some(retry_after.map_or(wait, |shortest| shortest.min(wait)));
            }
            Ok(None) if order.len() == 0 => return Err(retry_after.unwrap_or_default()),
            // The head start is over, or an attempt was aborted.
            Ok(None | Some(Err(_))) | Err(_) => {}
        }
    }
}

fn note(tunnels: &Tunnels, url: &WsUrl, failure: &Failure) {
    let reason = failure.class();
    tunnels.metrics.connect_failures.with([reason]).inc();
    tracing::warn!(event = "tunnel_failed", %url, reason, error = %failure);
}
