//! Why a link to a peer did not come about, in words that tell what to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::dial::DialError;
use nowconnect_link::session::{CarrierError, GreetError};
use nowconnect_link::tls::CertificateFault;
use nowconnect_link::upgrade::{ReplyError, UpgradeError};
use nowconnect_proto::Reason;
use nowconnect_proto::hello::HelloError;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{error}{}", refused_ours(upgrade_io(.error)))]
    Upgrade {
        #[from]
        error: UpgradeError,
    },
    #[error(
        "it answered, but offers no way to prove who it is that ha.mesh.require_mtls allows: set \
         ha.mesh.tls there, and check that the URL leads to /mesh of a hub"
    )]
    NoProtocol,
    #[error("mutual TLS inside the WebSocket failed: {error}{}", refused_theirs(.error))]
    Tls { error: io::Error },
    #[error("no answer within {} s; it is overloaded, or something in between holds it up", .0.as_secs())]
    Timeout(Duration),
    #[error("{}", refusal(*.0))]
    Refused(Reason),
    #[error("{error}{}", refused_ours(carrier_io(.error)))]
    Carrier {
        #[from]
        error: CarrierError,
    },
    #[error("its answer: {0}; check the versions of both hubs")]
    Hello(#[from] HelloError),
    #[error("it sent {0} instead of HELLO_ACK; check that the URL leads to /mesh")]
    Unexpected(&'static str),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(
        "it would be dialed by wss://, but ha.mesh.tls or the system's CA certificates are missing"
    )]
    NoTls,
}

/// Two hubs answer to one replica id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// It is our own.
    #[error(
        "it calls itself {0} as this hub does: give every hub a replica_id of its own, and do not list a hub \
         among its own peers"
    )]
    Own(Arc<str>),
    /// Another one that we have dialed has it.
    #[error(
        "it calls itself {hub}, which {other} does too: give every hub a replica_id of its own, and list \
         each hub once"
    )]
    Dialed {
        /// The replica id.
        hub: Arc<str>,
        /// The other peer.
        other: Arc<str>,
    },
    /// One with another certificate has it.
    #[error("it calls itself {hub}, which belongs to a hub with a certificate for {other}")]
    Certificate {
        /// The replica id.
        hub: Arc<str>,
        /// Names of the other's certificate.
        other: String,
    },
    /// It has a link already, dialed by another URL.
    #[error("{hub} has dialed this hub as {other} too: list each hub once in ha.mesh.peers")]
    Twice {
        /// The replica id.
        hub: Arc<str>,
        /// The other URL.
        other: String,
    },
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
    /// How long the peer wants us to stay away at least.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upgrade {
                error: UpgradeError::Refused { retry_after, .. },
            } => *retry_after,
            Self::Refused(reason) => reason.rest(),
            Self::Conflict(_) => Reason::IdentityConflict.rest(),
            _ => None,
        }
    }
}

fn refusal(reason: Reason) -> String {
    let hint = match reason {
        Reason::AuthFailed => {
            "our certificate is not for the host of any of its ha.mesh.peers: see its log"
        }
        Reason::IdentityConflict => {
            "another hub has this replica_id, or this one reaches it by two URLs: give every hub a \
             replica_id of its own, and list each hub once, and not itself, in ha.mesh.peers"
        }
        Reason::NotActive => "its high availability is off",
        Reason::Draining | Reason::Shutdown => "it is about to stop",
        _ => "see its log",
    };
    format!("it refused: {reason}; {hint}")
}

pub(super) fn upgrade_io(error: &UpgradeError) -> Option<&io::Error> {
    match error {
        UpgradeError::Io(error) | UpgradeError::Reply(ReplyError::Io(error)) => Some(error),
        _ => None,
    }
}

fn carrier_io(error: &CarrierError) -> Option<&io::Error> {
    match error {
        CarrierError::Io(error) => Some(error),
        _ => None,
    }
}

/// With TLS 1.3 a server's verdict about our certificate comes after the handshake.
fn refused_ours(error: Option<&io::Error>) -> String {
    match error.and_then(CertificateFault::of_ours) {
        Some(fault) => format!("; it refused the certificate of ha.mesh.tls: {fault}"),
        None => String::new(),
    }
}

fn refused_theirs(error: &io::Error) -> String {
    if let Some(fault) = CertificateFault::of_io(error) {
        return format!("; the peer's certificate: {fault}");
    }
    refused_ours(Some(error))
}
