//! How a hub ends: in what order it lets go of clients, agents and peers.

use std::time::Duration;

use nowconnect_proto::Reason;
use tokio::time::{sleep, timeout};

use super::Hub;
use crate::server::Stage;

/// How long resets may take to reach agents when the drain is over.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long agents may take to open a tunnel elsewhere when they are told to.
const MOVE: Duration = Duration::from_secs(5);
const MOVE_POLL: Duration = Duration::from_millis(50);
/// How long tasks may take to end after they were told to.
const WIND_DOWN: Duration = Duration::from_secs(5);

impl Hub {
    /// Lets flows end, moves agents elsewhere, and stops. Takes up to `limits.drain_timeout_sec`
    /// and a few seconds.
    pub async fn drain(&self) {
        let grace = self.config.lock().await.limits.drain_timeout;
        self.health.enter(Stage::Draining);
        self.orders.lock().await.close();
        tracing::info!(
            event = "drain_started",
            flows = self.router.count(),
            agents = self.tunnels.directory().agents(),
            timeout_ms = grace.as_millis() as u64,
            audit = true,
        );
        self.close_listeners().await;
        self.tunnels.send_away(Reason::Draining, grace);
        let finished = timeout(grace, self.router.idle()).await.is_ok();
        let _ = timeout(MOVE.min(grace), self.agents_moved()).await;
        tracing::info!(
            event = "drain_ended",
            finished,
            flows = self.router.count(),
            audit = true
        );
        self.stop().await;
    }

    /// Waits until every agent has a tunnel at another hub, if there are any: clients there must not
    /// find it missing.
    async fn agents_moved(&self) {
        while self.mesh.is_up()
            && !self.tunnels.directory().sessions().iter().all(|session| {
                let routes = self.registry.routes();
                !routes
                    .of_instance(&session.agent_id, session.instance)
                    .is_empty()
            })
        {
            sleep(MOVE_POLL).await;
        }
        self.mesh.send_away(Reason::Draining, Duration::ZERO);
    }

    async fn close_listeners(&self) {
        let listeners = std::mem::take(&mut *self.listeners.lock());
        for listener in listeners {
            listener.close().await;
        }
    }

    /// Ends now: flows are reset, tunnels closed.
    pub async fn stop(&self) {
        self.health.enter(Stage::Draining);
        self.orders.lock().await.close();
        self.close_listeners().await;
        self.router.end(|_| Some(Reason::Shutdown));
        let _ = timeout(LAST_WORDS, self.router.all_over()).await;
        self.tunnels.close(Reason::Shutdown);
        self.mesh.close(Reason::Shutdown);
        self.tasks.shutdown(WIND_DOWN).await;
        tracing::info!(
            event = "hub_stopped",
            version = env!("CARGO_PKG_VERSION"),
            hub = %self.registry.hub(),
            audit = true,
        );
    }
}
