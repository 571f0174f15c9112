//! How a link ends: seen off once its last flow has ended, and what the log says of it.

use std::time::Duration;

use nowconnect_link::session::{Link, LinkClosed};
use nowconnect_proto::Reason;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between looks at whether the last flow of a link that is left has ended.
pub(super) const LAST_FLOW_POLL: Duration = Duration::from_millis(250);
/// The flows of a link that is left may take as long as they need.
pub(super) const NO_DEADLINE: Duration = Duration::from_millis(u32::MAX as u64);

/// Closes a link that takes no new flows when it has none and is not needed, or when the hub stops.
pub(super) async fn see_off(
    link: &Link,
    stop: &CancellationToken,
    mut needed: impl FnMut() -> bool,
) {
    while (link.active_flows() > 0 || needed()) && !link.is_closed() {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(LAST_FLOW_POLL) => {}
        }
    }
    link.close(Reason::Finished);
}

pub(super) fn log_down(
    direction: &str,
    peer: &str,
    hub: &str,
    closed: &LinkClosed,
    lived: Duration,
) {
    let (reason, detail) = (closed.reason.name(), closed.detail.as_str());
    let duration_ms = lived.as_millis() as u64;
    // tracing wants the level to be known when this is compiled.
    macro_rules! log {
        ($log:path) => {
            $log!(
                event = "mesh_link_down",
                direction,
                peer,
                hub,
                reason,
                detail,
                duration_ms,
                audit = true
            )
        };
    }
    if is_orderly(closed.reason) {
        log!(tracing::info);
    } else {
        log!(tracing::warn);
    }
}

/// High availability is off, and the link stays for the flows that cross it.
pub(super) fn log_kept(direction: &str, peer: &str, hub: &str, flows: usize) {
    tracing::info!(
        event = "mesh_link_kept",
        direction,
        peer,
        hub,
        flows,
        detail = "high availability is off; flows that cross already go on over it until they end",
        audit = true,
    );
}

/// Whether links end for `reason` in the course of events, and not by a fault.
pub(super) fn is_orderly(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Finished
            | Reason::Removed
            | Reason::NotActive
            | Reason::Draining
            | Reason::Shutdown
            | Reason::Superseded
            | Reason::Denied
    )
}
