//! Why a probe failed, in words that name the fault and the next step.

use nowconnect_proto::Reason;

/// What stood in the way of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    /// Label of `nowconnect_probe_failures_total`, and `reason` in the log.
    pub reason: &'static str,
    /// The same in words.
    pub detail: String,
    /// Says nothing about the target: the way to the agent was lost, or this hub could not ask.
    pub of_path: bool,
}

impl Fault {
    /// A fault of the target, or of the agent's way to it.
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            of_path: false,
        }
    }

    /// A fault that says nothing about the target.
    pub(super) fn of_path(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            of_path: true,
            ..Self::new(reason, detail)
        }
    }

    /// No answer in time.
    pub(super) fn late(what: &str, millis: u128) -> Self {
        let detail = format!(
            "{what} within {millis} ms (timeout_ms): the target or its network is overloaded, or drops what it gets"
        );
        Self::new("timeout", detail)
    }

    /// The target ended the connection before it had answered.
    pub(super) fn closed(what: &str) -> Self {
        let detail = format!(
            "the target closed the connection {what}: is the probe's type right for what listens there?"
        );
        Self::new("closed", detail)
    }

    /// What the end of a flow says that was to carry a probe.
    pub(super) fn of_end(reason: Reason) -> Self {
        let detail = match reason {
            Reason::ConnectFailed => {
                "the agent cannot connect to the target: nothing listens there, or a firewall refuses; \
                 target_failed in the agent's log has the address"
            }
            Reason::ConnectTimeout => {
                "the agent's connection to the target was not answered in time: the host is down, or a \
                 firewall drops it; target_failed in the agent's log has the address"
            }
            Reason::DnsFailed => {
                "the agent cannot resolve the target's name: see its targets.<name>.host and its DNS"
            }
            Reason::UnknownConnector => "the agent has no target for the connector",
            Reason::Limit => "the agent has as many flows as it may (its limits.max_inflight_cids)",
            Reason::LocalResource => "the agent has run out of ports, descriptors or memory",
            Reason::Denied => "the agent refuses",
            Reason::SocketReset => "the target reset the connection",
            Reason::Finished => "the target closed the connection",
            other => {
                return Self::of_path("path", format!("the way to the agent was lost: {other}"));
            }
        };
        Self::new(reason.name(), detail)
    }
}
