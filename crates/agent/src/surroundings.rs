//! What all keepers share, and where their tunnels may lead.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use nowconnect_link::tasks::Tasks;
use tokio::sync::watch;

use crate::config::AgentConfig;
use crate::health::Readiness;
use crate::tunnel::Tunnels;

/// Bound of the first delay after a tunnel that had lived.
pub(crate) const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Bound of every later delay.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// To which hubs a keeper's tunnel may lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// To any that is configured.
    Any,
    /// To the one with this URL.
    Only(Uri),
}

impl Scope {
    pub(crate) fn urls(&self, config: &AgentConfig) -> Vec<Uri> {
        match self {
            Self::Any => config.tunnel.urls.clone(),
            Self::Only(url) => vec![url.clone()],
        }
    }
}

/// What all keepers share.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) config: watch::Receiver<Arc<AgentConfig>>,
    pub(crate) readiness: Arc<Readiness>,
    /// How long flows may go on when the agent stops.
    pub(crate) drain: watch::Receiver<Duration>,
    /// Keepers run as tasks of it; it tells when the agent stops.
    pub(crate) tasks: Tasks,
}
