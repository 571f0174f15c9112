//! Why a flow or a link ended: one list for the wire, the logs, the metrics and version 1's `err`.

use std::fmt;
use std::time::Duration;

/// How long a peer stays away that would only do harm by coming back at once.
const REST: Duration = Duration::from_secs(5);

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $name:literal;)+) => {
        /// Why a flow or a link ended. Numbers are the wire's, names are those of logs, metric
        /// labels and version 1's `err`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
            /// A code that a newer peer sent and this version does not know.
            Unknown(u16),
        }

        impl Reason {
            /// Every reason this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            #[must_use]
            pub fn code(self) -> u16 {
                match self { $(Self::$variant => $code,)+ Self::Unknown(code) => code }
            }

            /// The reason behind a number of the wire.
            #[must_use]
            pub fn from_code(code: u16) -> Self {
                match code { $($code => Self::$variant,)+ other => Self::Unknown(other) }
            }

            /// The name in logs, metric labels and version 1.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ Self::Unknown(_) => "unknown" }
            }

            /// The reason behind a name; what is not known becomes [`Reason::Unspecified`].
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name { $($name => Self::$variant,)+ _ => Self::Unspecified }
            }
        }
    };
}

reasons! {
    /// Nothing more is known.
    Unspecified = 0, "unspecified";
    /// Both directions ended with FIN.
    Finished = 1, "finished";

    /// The target refused the connection or could not be reached.
    ConnectFailed = 16, "connect_failed";
    /// The target did not answer within the connect timeout.
    ConnectTimeout = 17, "timeout";
    /// The target's name did not resolve.
    DnsFailed = 18, "dns_failed";
    /// The agent does not export this connector.
    UnknownConnector = 19, "unknown_connector";
    /// Policy or the flow's secret says no.
    Denied = 20, "denied";
    /// A limit on flows was reached.
    Limit = 21, "limit";
    /// This machine ran out of ports, descriptors or memory.
    LocalResource = 22, "local_resource";
    /// No living agent exports the connector.
    NoAgent = 23, "no_agent_for_connector";
    /// The hub takes no flows of other hubs: its high availability is not active.
    NotActive = 24, "not_active";
    /// A bound of the link between two hubs was reached.
    Backpressure = 25, "backpressure";
    /// The policy decision point of the hub in between said no, or nothing.
    PdpDenied = 26, "pdp_denied";

    /// The socket of the sending end was reset or failed.
    SocketReset = 32, "socket_reset";
    /// Nothing moved for the idle timeout.
    IdleTimeout = 33, "idle_timeout";
    /// The path was lost and no other came within the grace.
    ResumeExpired = 34, "resume_expired";
    /// The other end does not know this flow.
    UnknownFlow = 35, "unknown_flow";
    /// The agent process that held the flow is gone.
    AgentRestarted = 36, "agent_restarted";
    /// A frame named an epoch that is no longer current.
    StaleEpoch = 37, "stale_epoch";
    /// A version 1 queue ran over.
    QueueOverflow = 38, "queue_overflow";
    /// A version 1 WebSocket broke, and its flows with it.
    WsBroken = 39, "ws_broken";
    /// The listener or connector was removed from the configuration.
    Removed = 40, "removed";

    /// Malformed or forbidden on the wire.
    ProtocolError = 64, "protocol_error";
    /// Data beyond the granted credit.
    BeyondCredit = 65, "beyond_credit";
    /// Data or another FIN after FIN.
    AfterFin = 66, "after_fin";
    /// Bytes are missing between two frames.
    OffsetGap = 67, "offset_gap";
    /// An acknowledgement of bytes that were never sent.
    BadAck = 68, "bad_ack";
    /// More pings, credit and other frames that move nothing than any flow needs.
    Flood = 69, "flood";

    /// The process is draining before it stops.
    Draining = 96, "draining";
    /// The process stops now.
    Shutdown = 97, "shutdown";
    /// A newer claim took this agent's place.
    Superseded = 98, "superseded";
    /// The token expired and was not renewed.
    TokenExpired = 99, "token_expired";
    /// The peer did not answer in time.
    PingTimeout = 100, "ping_timeout";
    /// The peer took no bytes for too long.
    WriteStalled = 101, "write_stalled";
    /// The peer closed the connection.
    PeerClosed = 102, "peer_closed";
    /// The connection failed.
    ConnectionLost = 103, "connection_lost";
    /// The handshake did not finish in time.
    HandshakeTimeout = 104, "handshake_timeout";
    /// The identity or its token was refused.
    AuthFailed = 105, "auth_failed";
    /// Two living agents use one identity; the incumbent stays.
    IdentityConflict = 106, "identity_conflict";
    /// An operator asked for it.
    Operator = 107, "operator";
    /// The link used up its flow numbers.
    FlowIdsExhausted = 108, "flow_ids_exhausted";
    /// The flow goes on over another path.
    Moved = 109, "moved";
    /// The token is not taken any more: its key was withdrawn, or the rules have changed.
    TokenRevoked = 110, "token_revoked";
}

impl Reason {
    /// Whether a refusal with this reason says that no byte reached a target, so that another agent
    /// may be tried.
    #[must_use]
    pub fn allows_another_agent(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::DnsFailed
                | Self::UnknownConnector
                | Self::Limit
                | Self::LocalResource
                | Self::NoAgent
                | Self::NotActive
                | Self::Backpressure
                | Self::PdpDenied
                | Self::Draining
                | Self::StaleEpoch
        )
    }

    /// Whether a refusal with this reason speaks of the path, which is of the hub in between or of this
    /// tunnel, and not of the agent.
    #[must_use]
    pub fn is_of_path(self) -> bool {
        matches!(
            self,
            Self::StaleEpoch
                | Self::NoAgent
                | Self::NotActive
                | Self::Backpressure
                | Self::Draining
        )
    }

    /// How long to stay away from a peer that ended a link for this reason.
    #[must_use]
    pub fn rest(self) -> Option<Duration> {
        let rests = matches!(
            self,
            Self::Superseded | Self::IdentityConflict | Self::NotActive
        );
        rests.then_some(REST)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(code) => write!(f, "unknown({code})"),
            known => f.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire_and_has_one_name() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), reason);
            assert_eq!(Reason::from_name(reason.name()), reason);
        }
        assert_eq!(Reason::from_code(9999), Reason::Unknown(9999));
        assert_eq!(Reason::Unknown(9999).code(), 9999);
    }
}
