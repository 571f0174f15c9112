//! From an accepted upgrade to a session: HELLO, the claim, the answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::meter::Bounds;
use nowconnect_link::session::{Carrier, LinkClosed, LinkConfig, NoHello, Peer, Role, start};
use nowconnect_link::stream::Stream;
use nowconnect_link::upgrade::{Pending, Upgraded};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::{self, Mask};
use nowconnect_proto::Reason;
use nowconnect_proto::frame::Frame;
use nowconnect_proto::hello::{Body, Hello, HelloAck, Instance, Rejected, UpdateAck};
use nowconnect_proto::json_v1::bridge::{self, Bridge, BridgeConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::session::{MAILBOX, Mailbox, Parts, Session};
use super::{Terms, Tunnels};
use crate::auth::Identity;
use crate::auth::dpop::Target;
use crate::mesh::Shown;
use crate::registry::{Claim, ClaimError, Lease};

/// How long an agent may take to say HELLO.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// How long one that is refused may take to hear why.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);
/// A version 1 agent has answered or given up dialing a target within this, in milliseconds.
const V1_CONSENT_MS: u64 = 5_000;

/// An agent whose token is good and who has said nothing yet.
pub(super) struct Newcomer {
    pub(super) tunnels: Arc<Tunnels>,
    pub(super) terms: Arc<Terms>,
    pub(super) identity: Identity,
    /// The URL that it dialed, as far as that can be told.
    pub(super) at: Option<Target>,
    pub(super) remote: IpAddr,
    /// What the client of its connection has shown.
    pub(super) certificate: Option<Shown>,
}

/// Why a newcomer does not become a session.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("no HELLO within {} s", HELLO_DEADLINE.as_secs())]
    Late,
    #[error(transparent)]
    NoHello(#[from] NoHello),
    #[error("HELLO names another agent than the token")]
    OtherAgent,
    #[error("the token grants none of the {0} connectors")]
    NothingGranted(usize),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl Turned {
    /// What the agent is told.
    fn reason(&self) -> Reason {
        match self {
            Self::Late => Reason::HandshakeTimeout,
            Self::NoHello(why) => why.reason(),
            Self::OtherAgent => Reason::AuthFailed,
            Self::NothingGranted(_) => Reason::Denied,
            Self::Claim(ClaimError::Conflict) => Reason::IdentityConflict,
        }
    }
}

/// A HELLO that was judged.
struct Admitted {
    hello: Hello,
    exports: Vec<String>,
    rejected: Vec<Rejected>,
    lease: Lease,
}

impl Newcomer {
    /// The task of one tunnel, from here to its end.
    pub(super) async fn serve(self, pending: Pending) {
        let upgraded = match pending.complete::<Stream>().await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                let agent_id = &self.identity.agent_id;
                tracing::debug!(event = "upgrade_failed", %agent_id, remote = %self.remote, %error);
                return;
            }
        };
        let mut carrier = self.carrier(upgraded);
        match self.greet(&mut carrier).await {
            Ok(admitted) => self.attend(carrier, admitted).await,
            Err(turned) => self.turn_away(carrier, &turned).await,
        }
    }

    fn carrier(&self, upgraded: Upgraded<Stream>) -> Carrier<Stream> {
        let terms = &self.terms;
        let wire = match upgraded.protocol {
            Some(_) => Wire::V2 {
                max_payload: terms.max_payload as usize,
            },
            None => Wire::v1(Bridge::new(BridgeConfig {
                role: bridge::Role::Hub,
                instance: Instance(uuid::Uuid::new_v4().as_u128()),
                max_payload: terms.max_payload,
                queue_depth: terms.queue_depth,
                queue_bytes: terms.queue_bytes,
                consent_ms: V1_CONSENT_MS,
                ping_ms: (millis(terms.ping_interval), millis(terms.ping_timeout)),
            })),
        };
        let max_payload = terms.max_payload as usize;
        let Upgraded { io, leftover, .. } = upgraded;
        Carrier::new(
            io,
            leftover,
            ws::Role::Server,
            Mask::None,
            wire,
            max_payload,
        )
    }

    async fn greet(&self, carrier: &mut Carrier<Stream>) -> Result<Admitted, Turned> {
        let hello: Hello = timeout(HELLO_DEADLINE, carrier.receive_hello())
            .await
            .map_err(|_| Turned::Late)??;
        if hello.agent_id != self.identity.agent_id {
            return Err(Turned::OtherAgent);
        }
        let wanted = hello.connectors.len();
        let (exports, rejected) = self
            .tunnels
            .gate()
            .sort(&self.identity, hello.connectors.clone());
        if exports.is_empty() && wanted > 0 {
            return Err(Turned::NothingGranted(wanted));
        }
        let claim = Claim {
            agent_id: hello.agent_id.as_str().into(),
            instance: hello.instance,
            epoch_seen: hello.epoch_seen,
            epoch_held: hello.epoch_held,
            connectors: exports.clone(),
        };
        let lease = self.tunnels.registry.claim(claim).await?;
        let ack = self
            .acknowledgement(lease.epoch())
            .encode()
            .map_err(NoHello::Hello)?;
        // Written only once the directory knows the tunnel: an agent that is told it is ready can
        // be reached.
        carrier.queue(Frame::HelloAck(ack.into()));
        Ok(Admitted {
            hello,
            exports,
            rejected,
            lease,
        })
    }

    fn acknowledgement(&self, epoch: u64) -> HelloAck {
        let terms = &self.terms;
        HelloAck {
            hub: terms.hub.clone(),
            epoch,
            initial_window: self.tunnels.engine.budget.first_window(),
            max_payload: terms.max_payload,
            ping_interval_ms: millis(terms.ping_interval),
            ping_timeout_ms: millis(terms.ping_timeout),
            resume_grace_ms: millis(terms.resume_grace),
            features: Vec::new(),
        }
    }

    async fn turn_away(&self, mut carrier: Carrier<Stream>, turned: &Turned) {
        let reason = turned.reason();
        let metrics = &self.tunnels.metrics.tunnels;
        match turned {
            Turned::Claim(ClaimError::Conflict) => {
                metrics.identity_conflicts.inc();
            }
            Turned::OtherAgent => self.tunnels.gate().count_rejection("agent_id_mismatch"),
            Turned::NothingGranted(_) => self.tunnels.gate().count_rejection("nothing_granted"),
            Turned::Late => {
                let kind = "hello_timeout";
                metrics.protocol_errors.with(["tunnel", kind]).inc();
            }
            _ if reason == Reason::Flood => {
                metrics.protocol_errors.with(["tunnel", "flood"]).inc();
            }
            _ if reason == Reason::ProtocolError => {
                metrics.protocol_errors.with(["tunnel", "bad_hello"]).inc();
            }
            _ => {}
        }
        if let Some(suppressed) = self.tunnels.pass(reason.name()) {
            tracing::warn!(
                event = "agent_refused",
                agent_id = %self.identity.agent_id,
                remote = %self.remote,
                reason = reason.name(),
                detail = %turned,
                token_id = self.identity.token_id.as_deref(),
                suppressed,
                audit = true,
            );
        }
        // The agent hears why if it listens; if not, the connection is closed all the same.
        let _ = timeout(GOODBYE_DEADLINE, carrier.close(reason)).await;
    }

    async fn attend(self, carrier: Carrier<Stream>, admitted: Admitted) {
        let Admitted {
            hello,
            exports,
            rejected,
            lease,
        } = admitted;
        let Self {
            tunnels,
            terms,
            identity,
            at,
            remote,
            certificate,
        } = self;
        let version = if carrier.is_v1() { 1 } else { 2 };
        let (control, mail) = mpsc::channel(MAILBOX);
        let mailbox = Mailbox::new(
            identity.agent_id.as_str().into(),
            tunnels.metrics.clone(),
            control,
        );
        let config = LinkConfig {
            role: Role::Opener,
            peer: Peer {
                name: identity.agent_id.as_str().into(),
                first_window: hello.initial_window,
                max_payload: hello.max_payload.min(terms.max_payload) as usize,
            },
            ping_interval: terms.ping_interval,
            ping_timeout: terms.ping_timeout,
            bounds: Bounds::NONE,
            meter: None,
        };
        let (link, driver) = start(carrier, &config, &tunnels.engine, Arc::new(mailbox));
        report_rejected(&tunnels, &link, &identity.agent_id, &exports, rejected);
        let parts = Parts {
            identity,
            at,
            instance: hello.instance,
            version: hello.version,
            offers: hello.connectors,
            exports,
            remote,
            certificate,
            link,
            lease,
        };
        let stay = Stay::begin(tunnels, Session::new(parts), version);
        let session = stay.session.clone();
        let closed = {
            let mut driver = std::pin::pin!(driver);
            tokio::select! {
                closed = &mut driver => closed,
                () = session.attend(&stay.tunnels, mail) => driver.await,
            }
        };
        stay.end(&closed);
    }
}

fn report_rejected(
    tunnels: &Tunnels,
    link: &nowconnect_link::session::Link,
    agent_id: &str,
    exports: &[String],
    rejected: Vec<Rejected>,
) {
    if rejected.is_empty() {
        return;
    }
    let names: Vec<_> = rejected.iter().map(|one| one.name.as_str()).collect();
    if let Some(suppressed) = tunnels.pass("not_in_token_scopes") {
        tracing::warn!(
            event = "connectors_rejected",
            agent_id,
            connectors = %names.join(","),
            reason = "not_in_token_scopes",
            suppressed,
            audit = true,
        );
    }
    let answer = UpdateAck {
        accepted: exports.to_vec(),
        rejected,
    };
    if let Ok(body) = answer.encode() {
        link.send(Frame::UpdateAck(body.into()));
    }
}

/// A session's time in the directory; it ends with this value, however the task ends.
struct Stay {
    tunnels: Arc<Tunnels>,
    session: Arc<Session>,
    reason: Reason,
}

impl Stay {
    fn begin(tunnels: Arc<Tunnels>, session: Arc<Session>, version: u8) -> Self {
        tracing::info!(
            event = "agent_connected",
            agent_id = %session.agent_id,
            instance = %session.instance,
            remote = %session.remote,
            epoch = session.epoch(),
            connectors = %session.exports().join(","),
            software = %session.version,
            protocol = version,
            token_id = session.token_id().as_deref(),
            audit = true,
        );
        tunnels.arrive(&session);
        Self {
            tunnels,
            session,
            reason: Reason::Unspecified,
        }
    }

    fn end(mut self, closed: &LinkClosed) {
        self.reason = closed.reason;
        tracing::info!(
            event = "agent_disconnected",
            agent_id = %self.session.agent_id,
            remote = %self.session.remote,
            epoch = self.session.epoch(),
            token_id = self.session.token_id().as_deref(),
            reason = closed.reason.name(),
            detail = %closed.detail,
            duration_ms = self.session.since.elapsed().as_millis() as u64,
            audit = true,
        );
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.tunnels.depart(&self.session, self.reason);
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
