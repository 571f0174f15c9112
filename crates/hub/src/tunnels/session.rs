//! One agent's tunnel from its HELLO to its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::session::{Link, LinkEvents};
use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::hello::{Body, Instance, Token, TokenAck, Update, UpdateAck};
use nowconnect_proto::{FlowId, Reason};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::Tunnels;
use super::gate::Gate;
use super::proofs::Presented;
use crate::auth::dpop::Target;
use crate::auth::{Identity, Reason as Refused, Rejection};
use crate::mesh::Shown;
use crate::metrics::Metrics;
use crate::registry::{Lease, Owner};

/// UPDATEs and TOKENs that may wait to be answered; an agent that sends more is not one of ours.
pub(super) const MAILBOX: usize = 16;
/// Between telling an agent that its token has ended and closing the tunnel: time for one that has
/// a new token to open another tunnel first. Not before the end, or an agent without a new token
/// would come back with the old one, over and over.
const EXPIRY_NOTICE: Duration = Duration::from_secs(5);
/// Longest sleep before the wall clock is looked at again, which may have been set.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// A living tunnel.
#[derive(Debug)]
pub struct Session {
    /// The agent, as its token names it.
    pub agent_id: Arc<str>,
    /// Which start of it.
    pub instance: Instance,
    /// Where it connected from.
    pub remote: IpAddr,
    /// The agent's own word for its version.
    pub version: String,
    /// Since when it is served.
    pub since: Instant,
    /// The certificate chain that its agent has shown.
    pub(super) certificate: Option<Shown>,
    link: Arc<Link>,
    lease: Lease,
    /// What the agent would export if its token granted everything.
    offers: Mutex<Vec<String>>,
    exports: ArcSwap<Vec<String>>,
    identity: Mutex<Identity>,
    /// The URL that the agent dialed, as far as that can be told.
    at: Option<Target>,
    /// The rules have changed.
    judge: Notify,
    /// What an agent may say with every frame is not worth a line each time.
    quiet: [Quiet; 2],
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) identity: Identity,
    pub(super) at: Option<Target>,
    pub(super) instance: Instance,
    pub(super) version: String,
    pub(super) offers: Vec<String>,
    pub(super) exports: Vec<String>,
    pub(super) remote: IpAddr,
    pub(super) certificate: Option<Shown>,
    pub(super) link: Arc<Link>,
    pub(super) lease: Lease,
}

impl Session {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        parts.lease.name_token(parts.identity.token_id.clone());
        Arc::new(Self {
            agent_id: parts.identity.agent_id.as_str().into(),
            instance: parts.instance,
            remote: parts.remote,
            version: parts.version,
            since: Instant::now(),
            certificate: parts.certificate,
            link: parts.link,
            lease: parts.lease,
            offers: Mutex::new(parts.offers),
            exports: ArcSwap::from_pointee(parts.exports),
            identity: Mutex::new(parts.identity),
            at: parts.at,
            judge: Notify::new(),
            quiet: Default::default(),
        })
    }

    /// The link that carries its flows.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// [`Session::since`] on the wall clock.
    pub(super) fn since_time(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.since.elapsed()).unwrap_or(now)
    }

    /// The fencing number of this hub's ownership of the agent.
    pub fn epoch(&self) -> u64 {
        self.lease.epoch()
    }

    /// The owner of the agent's id that this tunnel belongs to.
    pub fn owner(&self) -> Owner {
        self.lease.owner()
    }

    /// Tells the agent that a later owner has its id, and closes the tunnel.
    pub(super) fn supersede(&self) {
        self.link.go_away(Reason::Superseded, Duration::ZERO);
        self.link.close(Reason::Superseded);
    }

    /// The connectors that are routed to it.
    pub fn exports(&self) -> Arc<Vec<String>> {
        self.exports.load_full()
    }

    /// Whether the agent offers `connector`, be it granted or not.
    pub fn offers(&self, connector: &str) -> bool {
        self.offers.lock().iter().any(|offer| offer == connector)
    }

    /// The name of the token that it stands on.
    pub fn token_id(&self) -> Option<Arc<str>> {
        self.identity.lock().token_id.clone()
    }

    /// When its token ends.
    pub fn token_expires(&self) -> SystemTime {
        self.identity.lock().expires_at
    }

    pub(super) fn set_exports(&self, exports: Vec<String>) {
        self.exports.store(Arc::new(exports));
    }

    /// Answers what the agent asks and watches its token, until the tunnel ends.
    pub(super) async fn attend(
        self: &Arc<Self>,
        tunnels: &Tunnels,
        mut mail: mpsc::Receiver<Frame>,
    ) {
        let mut end = None;
        let mut keys = tunnels.gate().key_changes();
        // What changed since the token was shown, and the exports were sorted, is not told again.
        self.judge_token(tunnels.gate());
        self.judge_exports(tunnels);
        loop {
            let now = Instant::now();
            let left = self.token_remaining();
            if end.is_none() && left.is_zero() {
                let reason = self.token_end();
                self.link.go_away(reason, EXPIRY_NOTICE);
                end = Some((now + EXPIRY_NOTICE, reason));
            }
            let nap = match end {
                Some((end, reason)) if end <= now => return self.link.close(reason),
                Some((end, _)) => end - now,
                None => left.min(CLOCK_CHECK),
            };
            tokio::select! {
                frame = mail.recv() => match frame {
                    Some(frame) => self.answer(tunnels, frame).await,
                    None => return,
                },
                () = tokio::time::sleep(nap) => {}
                () = self.judge.notified() => self.judge_token(tunnels.gate()),
                changed = keys.changed() => {
                    if changed.is_err() {
                        // The keys come from elsewhere now, and may have come already.
                        keys = tunnels.gate().key_changes();
                    }
                    self.judge_token(tunnels.gate());
                }
            }
        }
    }

    /// Why the token is over; says so when nobody has.
    fn token_end(&self) -> Reason {
        if self.identity.lock().is_revoked() {
            return Reason::TokenRevoked;
        }
        tracing::warn!(
            event = "token_expired",
            agent_id = %self.agent_id,
            remote = %self.remote,
            token_id = self.token_id().as_deref(),
            audit = true,
        );
        Reason::TokenExpired
    }

    fn token_remaining(&self) -> Duration {
        self.identity.lock().remaining(SystemTime::now())
    }

    /// A token that would not be taken any more, as its key was withdrawn or the rules ask for
    /// another, is over.
    fn judge_token(&self, gate: &Gate) {
        let mut identity = self.identity.lock();
        if identity.is_revoked() || gate.upholds(&identity) {
            return;
        }
        identity.revoke();
        let reason = match gate.proofs().uphold(&identity) {
            true => "rules_or_keys_changed",
            false => Refused::DpopRequired.code(),
        };
        tracing::warn!(
            event = "token_revoked",
            agent_id = %self.agent_id,
            remote = %self.remote,
            token_id = identity.token_id.as_deref(),
            reason,
            audit = true,
        );
    }

    /// Looks at the token and at the exports again: the rules have changed.
    pub(super) fn rules_changed(self: &Arc<Self>, tunnels: &Tunnels) {
        self.judge.notify_one();
        self.judge_exports(tunnels);
    }

    /// Exports what the rules in force and the token allow of what the agent offers, and tells the
    /// agent when that has changed.
    fn judge_exports(self: &Arc<Self>, tunnels: &Tunnels) {
        let before = self.exports();
        let answer = self.export(tunnels);
        if *before != answer.accepted
            && let Ok(body) = answer.encode()
        {
            self.link.send(Frame::UpdateAck(body.into()));
        }
    }

    fn export(self: &Arc<Self>, tunnels: &Tunnels) -> UpdateAck {
        // Held to the end: of two that judge at once, who knows the later rules has the last word.
        let offers = self.offers.lock();
        let (accepted, rejected) = tunnels.gate().sort(&self.identity.lock(), offers.clone());
        if *self.exports() != accepted {
            tunnels.directory().reexport(self, accepted.clone());
            self.lease.update(accepted.clone());
            if let Some(suppressed) = self.quiet[0].pass() {
                tracing::info!(
                    event = "agent_updated",
                    agent_id = %self.agent_id,
                    connectors = %accepted.join(","),
                    rejected = rejected.len(),
                    suppressed,
                    audit = true,
                );
            }
        }
        UpdateAck { accepted, rejected }
    }

    async fn answer(self: &Arc<Self>, tunnels: &Tunnels, frame: Frame) {
        let answered = match frame {
            Frame::Update(body) => Update::decode(&body)
                .and_then(|update| {
                    *self.offers.lock() = update.connectors;
                    self.export(tunnels).encode()
                })
                .map(|body| Frame::UpdateAck(body.into())),
            Frame::Token(body) => match Token::decode(&body) {
                Ok(token) => self
                    .renew(tunnels, token)
                    .await
                    .encode()
                    .map(|b| Frame::TokenAck(b.into())),
                Err(error) => Err(error),
            },
            Frame::GoAway { reason, .. } => {
                tracing::info!(event = "agent_leaving", agent_id = %self.agent_id, %reason);
                return self.link.leave();
            }
            _ => return self.violated(tunnels.metrics(), "unexpected_frame"),
        };
        match answered {
            Ok(answer) => self.link.send(answer),
            Err(error) => {
                tracing::debug!(event = "bad_body", agent_id = %self.agent_id, %error);
                self.violated(tunnels.metrics(), "bad_body");
            }
        }
    }

    fn violated(&self, metrics: &Metrics, kind: &str) {
        metrics.tunnels.protocol_errors.with(["tunnel", kind]).inc();
        self.link.close(Reason::ProtocolError);
    }

    async fn renew(self: &Arc<Self>, tunnels: &Tunnels, token: Token) -> TokenAck {
        let gate = tunnels.gate();
        let presented =
            Presented::with_renewal(&token.token, token.proof.as_deref(), self.at.as_ref());
        let identity = match gate.judge(&presented, &tunnels.registry).await {
            Ok(identity) if identity.agent_id != *self.agent_id => {
                return self.refuse(tunnels, "agent_id_mismatch", "");
            }
            Ok(identity) if !self.is_same_key(&identity) => {
                return self.refuse(tunnels, Refused::DpopKeyChanged.code(), "");
            }
            Ok(identity) => identity,
            Err(Rejection { reason, detail }) => {
                let wants_nonce = reason.challenge() == Some("use_dpop_nonce");
                if !reason.is_step() {
                    self.refuse(tunnels, reason.code(), &detail);
                }
                return TokenAck::Refused {
                    error: reason.code().to_owned(),
                    nonce: wants_nonce.then(|| gate.proofs().nonce()),
                };
            }
        };
        let expires = identity.expires_at.duration_since(SystemTime::UNIX_EPOCH);
        self.lease.name_token(identity.token_id.clone());
        let was = std::mem::replace(&mut *self.identity.lock(), identity).token_id;
        self.judge_exports(tunnels);
        if let Some(suppressed) = self.quiet[1].pass() {
            tracing::info!(
                event = "token_renewed",
                agent_id = %self.agent_id,
                token_id = self.token_id().as_deref(),
                was = was.as_deref(),
                suppressed,
                audit = true,
            );
        }
        TokenAck::Renewed {
            expires_at: expires.unwrap_or_default().as_secs(),
        }
    }

    /// A tunnel whose agent has proven to hold a key stays with that key.
    fn is_same_key(&self, renewed: &Identity) -> bool {
        let identity = self.identity.lock();
        !identity.proven || identity.proof_key == renewed.proof_key
    }

    fn refuse(&self, tunnels: &Tunnels, code: &'static str, detail: &str) -> TokenAck {
        tunnels.gate().count_rejection(code);
        if let Some(suppressed) = tunnels.pass(code) {
            tracing::warn!(
                event = "jwt_rejected",
                agent_id = %self.agent_id,
                remote = %self.remote,
                reason = code,
                detail,
                renewal = true,
                suppressed,
                audit = true,
            );
        }
        TokenAck::Refused {
            error: code.to_owned(),
            nonce: None,
        }
    }
}

/// Takes what the link's driver hears and must not wait for.
pub(super) struct Mailbox {
    agent_id: Arc<str>,
    metrics: Arc<Metrics>,
    control: mpsc::Sender<Frame>,
    /// An agent may offend with every frame that it sends: not each is worth a line.
    quiet: Quiet,
    /// The link was told to close; what else was on its way is no further offence.
    closing: AtomicBool,
}

impl Mailbox {
    pub(super) fn new(
        agent_id: Arc<str>,
        metrics: Arc<Metrics>,
        control: mpsc::Sender<Frame>,
    ) -> Self {
        Self {
            agent_id,
            metrics,
            control,
            quiet: Quiet::default(),
            closing: AtomicBool::new(false),
        }
    }

    fn count(&self, kind: &str) {
        let errors = &self.metrics.tunnels.protocol_errors;
        errors.with(["tunnel", kind]).inc();
        if let Some(suppressed) = self.quiet.pass() {
            tracing::warn!(
                event = "protocol_error",
                interface = "tunnel",
                agent_id = %self.agent_id,
                kind,
                suppressed,
                audit = true,
            );
        }
    }

    fn violated(&self, link: &Link, kind: &str) {
        if !self.closing.swap(true, Ordering::Relaxed) {
            self.count(kind);
            link.close(Reason::ProtocolError);
        }
    }
}

impl LinkEvents for Mailbox {
    fn on_open(&self, link: &Arc<Link>, _: FlowId, _: Open) {
        // Agents answer; a hub that let them open would be a way into the cloud.
        self.violated(link, "open_from_agent");
    }

    fn on_control(&self, link: &Arc<Link>, frame: Frame) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(frame) {
            self.violated(link, "control_flood");
        }
    }

    fn on_protocol_error(&self, _: &Arc<Link>, kind: &'static str) {
        // The link closes itself when it must; what concerns one flow ends one flow.
        self.count(kind);
    }
}
