//! Tunnels that are left: they take no new flows, and live for those that they carry.

use std::time::Duration;

use nowconnect_link::session::LinkClosed;
use nowconnect_link::tasks::Tasks;
use nowconnect_proto::Reason;
use tokio::time::{MissedTickBehavior, interval};

use crate::tunnel::Tunnel;

/// How often a tunnel that we left is looked at: has it flows still?
const LOOK: Duration = Duration::from_secs(1);

/// Leaves a tunnel, as its hub wishes or the agent stops: whoever of the two has had enough closes
/// it.
pub(crate) fn leave(tasks: &Tasks, tunnel: Tunnel, reason: Reason) {
    see_off(tasks, tunnel, reason, false);
}

/// Leaves a tunnel for another one: its hub is told, and it ends with its last flow.
pub(crate) fn move_away(tasks: &Tasks, tunnel: Tunnel) {
    tunnel.link.go_away(Reason::Moved, Duration::MAX);
    see_off(tasks, tunnel, Reason::Moved, true);
}

fn see_off(tasks: &Tasks, mut tunnel: Tunnel, reason: Reason, ends_with_flows: bool) {
    tunnel.stand.leave();
    tracing::info!(event = "tunnel_leaving", url = %tunnel.url, hub = tunnel.ack.hub, %reason);
    let stop = tasks.token();
    tasks.spawn("leaving tunnel", async move {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once, and the hub may be opening a flow at this moment.
        looks.tick().await;
        let closed = loop {
            tokio::select! {
                biased;
                closed = &mut tunnel.driver => break closed,
                () = stop.cancelled() => {
                    tunnel.link.close(Reason::Shutdown);
                    break (&mut tunnel.driver).await;
                }
                _ = looks.tick(), if ends_with_flows => {
                    if tunnel.link.active_flows() == 0 {
                        tunnel.link.close(Reason::Moved);
                    }
                }
            }
        };
        if let Ok(closed) = closed {
            log_down(&tunnel, &closed);
        }
    });
}

/// A tunnel has ended.
pub(crate) fn log_down(tunnel: &Tunnel, closed: &LinkClosed) {
    let (url, error) = (&tunnel.url, &closed.detail);
    tracing::warn!(event = "tunnel_down", %url, reason = %closed.reason, error);
}
