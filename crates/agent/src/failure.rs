//! Why an attempt to reach a hub failed, in words that tell what to do.

use std::time::Duration;

use nowconnect_link::dial::DialError;
use nowconnect_link::session::{CarrierError, GreetError};
use nowconnect_link::upgrade::UpgradeError;
use nowconnect_proto::Reason;
use nowconnect_proto::hello::HelloError;

use crate::proof::ProofError;
use crate::token::TokenError;
use crate::uplink::UplinkError;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No token to present.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// CA certificates or proxies cannot be used.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No proof to show with the token.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The hub, or something in front of it, does not let us in.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// No answer.
    #[error(
        "no answer within {} s; the hub is overloaded, or something in between holds it up",
        .0.as_secs()
    )]
    Timeout(Duration),
    /// The hub ended the handshake, with its reason.
    #[error("{}", refusal(*.0))]
    Refused(Reason),
    /// The connection ended, or what came is not our protocol.
    #[error("{0}; check that the URL leads to a hub")]
    Carrier(#[from] CarrierError),
    /// What came is not the answer to a HELLO.
    #[error("the hub's answer: {0}; check the versions of hub and agent")]
    Hello(#[from] HelloError),
    /// Something else came in place of the answer.
    #[error("the hub sent {0} instead of HELLO_ACK; check the versions of hub and agent")]
    Unexpected(&'static str),
    /// The hub granted an epoch that is over.
    #[error(
        "the hub granted epoch {epoch}, but other tunnels stand under {held} already; check that \
         the hubs share one registry"
    )]
    Stale {
        /// What it granted.
        epoch: u64,
        /// What others have granted.
        held: u64,
    },
    /// The process is about to end.
    #[error("the agent is stopping")]
    Stopping,
}

impl From<GreetError> for Failure {
    fn from(error: GreetError) -> Self {
        match error {
            GreetError::Refused(reason) => Self::Refused(reason),
            GreetError::Unexpected(frame) => Self::Unexpected(frame),
            GreetError::Carrier(error) => error.into(),
        }
    }
}

impl Failure {
    /// Label of `nowconnect_agent_connect_failures_total{reason}`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Token(_) => "token_file",
            Self::Proof(_) => "dpop_key_file",
            Self::Uplink(_) => "configuration",
            Self::Stopping => "stopping",
            Self::Dial(error) => error.kind().as_str(),
            Self::Upgrade(UpgradeError::Refused { status, .. }) => match status.as_u16() {
                401 => "unauthorized",
                403 => "forbidden",
                429 | 503 => "busy",
                _ => "upgrade",
            },
            Self::Upgrade(_) => "upgrade",
            Self::Timeout(_) => "handshake_timeout",
            Self::Refused(reason) => reason.name(),
            Self::Stale { .. } => Reason::StaleEpoch.name(),
            Self::Carrier(CarrierError::Io(_) | CarrierError::Closed(_)) => "closed",
            Self::Carrier(_) | Self::Hello(_) | Self::Unexpected(_) => "protocol",
        }
    }

    /// How long the hub wants us to stay away at least.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upgrade(UpgradeError::Refused { retry_after, .. }) => *retry_after,
            Self::Refused(reason) => reason.rest(),
            _ => None,
        }
    }
}

fn refusal(reason: Reason) -> String {
    let hint = match reason {
        Reason::AuthFailed | Reason::Denied => {
            "check the token, and that its agent_id and connectors are those of this agent"
        }
        Reason::IdentityConflict | Reason::Superseded => {
            "another agent with this agent_id is running: give each an id and a token of its own"
        }
        Reason::TokenExpired => "renew the token file",
        Reason::TokenRevoked => "get a token by the keys and rules that the hub has now",
        Reason::Draining | Reason::Shutdown => "it is about to stop, another one may take over",
        _ => "see the hub's log",
    };
    format!("the hub refused: {reason}; {hint}")
}
