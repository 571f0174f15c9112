//! Agents: who they are, what they export, and the tunnels that they keep open.

mod directory;
mod gate;
mod newcomer;
mod proofs;
mod session;
mod shedder;
mod terms;
mod uptime;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use nowconnect_link::counters::Engine;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::{CertificateFault, LiveTrust};
use nowconnect_link::upgrade::{Offer, Refusal};
use nowconnect_proto::Reason;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::time::interval;

use crate::auth::dpop::{ALGORITHMS, Target};
use crate::auth::{Identity, Rejection, Verifier};
use crate::config::HubConfig;
use crate::forwarded::{sender, url};
use crate::mesh::Shown;
use crate::metrics::Metrics;
use crate::policy::{Client, KeyedGate};
use crate::registry::{Owner, Registry};

pub use directory::Directory;
pub use gate::Gate;
pub use session::Session;

use newcomer::Newcomer;
use proofs::Presented;
use shedder::{Shed, Shedder};
use terms::Terms;

/// The subprotocol of version 2; an agent that does not offer it speaks version 1.
const SUBPROTOCOL: &str = "nowconnect.v2";

/// Between looks at whether the last flow of a tunnel that is left has ended.
const LAST_FLOW_POLL: Duration = Duration::from_secs(1);
/// The flows of a tunnel that is left may take as long as they need.
const NO_DEADLINE: Duration = Duration::from_millis(u32::MAX as u64);

/// Tunnels that one agent may have here at a time, those in their handshake included.
const TUNNELS_PER_AGENT: usize = 16;

type Arrival = Box<dyn Fn(&Arc<Session>) + Send + Sync>;

/// Every tunnel of this hub.
pub struct Tunnels {
    terms: ArcSwap<Terms>,
    gate: Gate,
    places: KeyedGate<Arc<str>>,
    shedder: Mutex<Shedder>,
    since: Instant,
    registry: Arc<Registry>,
    directory: Directory,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    arrival: OnceLock<Arrival>,
    /// Who vouches for the certificates of agents.
    trust: OnceLock<Arc<LiveTrust>>,
    /// Set once: tunnels that come from then on are told to go elsewhere.
    leaving: Mutex<Option<Reason>>,
    /// Why an agent's last tunnel ended, by its metric label, which bounds it.
    endings: Mutex<HashMap<String, &'static str>>,
    quiet: Mutex<HashMap<&'static str, Quiet>>,
}

impl Tunnels {
    /// No tunnels yet; their tasks are `tasks`.
    pub fn new(
        config: &HubConfig,
        gate: Gate,
        registry: Arc<Registry>,
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Arc<Self> {
        let tunnels = Arc::new(Self {
            terms: ArcSwap::from_pointee(Terms::of(config)),
            gate,
            places: KeyedGate::default(),
            shedder: Mutex::default(),
            since: Instant::now(),
            registry,
            directory: Directory::default(),
            arrival: OnceLock::new(),
            trust: OnceLock::new(),
            engine,
            metrics,
            tasks,
            leaving: Mutex::new(None),
            endings: Mutex::default(),
            quiet: Mutex::default(),
        });
        uptime::show(&tunnels);
        let weak = Arc::downgrade(&tunnels);
        tunnels.registry.on_superseded(move |agent_id, owner| {
            if let Some(tunnels) = weak.upgrade() {
                tunnels.superseded(agent_id, owner);
            }
        });
        tunnels
    }

    /// Who is let in.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The tunnels that are open.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Calls `tell` with every tunnel that is open from now on, once it can be found. For one caller.
    pub fn on_arrival(&self, tell: impl Fn(&Arc<Session>) + Send + Sync + 'static) {
        let _ = self.arrival.set(Box::new(tell));
    }

    /// Judges the certificates of agents by `trust`, where they must have one. For one caller.
    pub(crate) fn judge_certificates_by(&self, trust: Arc<LiveTrust>) {
        let _ = self.trust.set(trust);
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// How long flows wait for a path.
    pub fn resume_grace(&self) -> Duration {
        self.terms.load().resume_grace
    }

    /// Puts other rules in force: those for connectors at once, the rest for tunnels that come from
    /// now on.
    pub fn set_rules(&self, config: &HubConfig, verifier: Verifier) {
        self.terms.store(Arc::new(Terms::of(config)));
        self.gate.set_rules(verifier, &config.security);
        for session in self.directory.sessions() {
            session.rules_changed(self);
        }
    }

    /// Closes the tunnels of agents that could not open them any more with the certificate that they
    /// have shown: other CAs vouch for agents now.
    pub(crate) fn review_certificates(&self) {
        for session in self.directory.sessions() {
            self.review_certificate(&session);
        }
    }

    fn review_certificate(&self, session: &Session) {
        let shown = session.certificate.as_deref();
        if let Err(fault) = self.judge_certificate(shown, session.since_time()) {
            self.gate.count_rejection("client_certificate");
            let detail = format!("{fault}, since tunnel.tls.client_ca has changed");
            tracing::warn!(
                event = "agent_refused",
                agent_id = %session.agent_id,
                remote = %session.remote,
                reason = fault.code(),
                detail,
                audit = true,
            );
            session.link().close(Reason::AuthFailed);
        }
    }

    /// Whether what an agent has shown `at` is enough.
    fn judge_certificate(
        &self,
        shown: Option<&[CertificateDer<'static>]>,
        at: SystemTime,
    ) -> Result<(), CertificateFault> {
        if !self.terms.load().certificates {
            return Ok(());
        }
        let (Some(trust), Some(chain)) = (self.trust.get(), shown) else {
            return Err(CertificateFault::Missing);
        };
        let judged = trust.current().judge_client(chain, at);
        judged.map_err(|error| CertificateFault::of(&error).unwrap_or(CertificateFault::Other))
    }

    /// Answers a request for `/tunnel`: 101 and a session of its own, or why not. `over_tls` says
    /// whether TLS ends here, `shown` is what the client has shown there, judged by nobody yet.
    pub(crate) async fn receive(
        self: &Arc<Self>,
        request: &mut Request<Incoming>,
        peer: SocketAddr,
        over_tls: bool,
        shown: Option<Shown>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let terms = self.terms.load_full();
        let remote = sender(peer, request.headers(), &terms.trusted_proxies);
        let offer = Offer::from_request(request)
            .inspect_err(|refusal| self.note_no_upgrade(refusal, &remote))?;
        self.welcome(shown.as_deref(), &remote)?;
        let at = Target::parse(&url(peer, request, over_tls, &terms.trusted_proxies));
        let presented = Presented::with_upgrade(request.headers(), at.as_ref())
            .map_err(|rejection| self.reject(&rejection, &remote))?;
        let identity = self.identify(&presented, remote, &terms).await?;
        let place = self
            .places
            .take(identity.agent_id.as_str().into(), TUNNELS_PER_AGENT);
        let Some(place) = place else {
            self.gate.count_rejection("too_many_tunnels");
            if let Some(suppressed) = self.pass("too_many_tunnels") {
                let agent_id = &identity.agent_id;
                tracing::warn!(
                    event = "too_many_tunnels",
                    %agent_id,
                    %remote,
                    suppressed,
                    audit = true,
                );
            }
            let busy = StatusCode::TOO_MANY_REQUESTS;
            let refusal = Refusal::new(busy, "too_many_tunnels", "this agent has enough of them")
                .retry_after(Duration::from_secs(5));
            return Err(refusal);
        };
        let protocol = offer.choose(&[SUBPROTOCOL]);
        let (response, pending) = offer.accept(request, protocol);
        let newcomer = Newcomer {
            tunnels: self.clone(),
            terms,
            identity,
            at,
            remote,
            certificate: shown,
        };
        self.tasks.spawn("tunnel", async move {
            newcomer.serve(pending).await;
            drop(place);
        });
        Ok(response)
    }

    /// Whose token this is. Only so many are judged in a second; the others hear when to come back.
    async fn identify(
        &self,
        presented: &Presented<'_>,
        remote: IpAddr,
        terms: &Terms,
    ) -> Result<Identity, Refusal> {
        let client = Client::from(remote);
        if let Some(rate) = terms.max_handshakes_per_sec {
            let judged =
                self.shedder
                    .lock()
                    .admit(client, self.since.elapsed(), rate, rand::random());
            judged.map_err(|shed| self.shed(shed, remote))?;
        }
        let judged = self.gate.judge(presented, &self.registry).await;
        judged.map_err(|rejection| {
            if rejection.reason.is_offence() {
                self.shedder
                    .lock()
                    .note_failed(client, self.since.elapsed());
            }
            self.reject(&rejection, &remote)
        })
    }

    fn shed(&self, shed: Shed, remote: IpAddr) -> Refusal {
        let reason = shed.reason();
        self.metrics.tunnels.handshakes_shed.with([reason]).inc();
        let (status, wait, detail) = match shed {
            Shed::Rate(wait) => {
                let detail = "too many agents come at once (limits.max_handshakes_per_sec)";
                (StatusCode::SERVICE_UNAVAILABLE, wait, detail)
            }
            Shed::Failures(wait) => {
                let detail = "too many bad tokens came from this address a moment ago";
                (StatusCode::TOO_MANY_REQUESTS, wait, detail)
            }
        };
        if let Some(suppressed) = self.pass(reason) {
            tracing::warn!(
                event = "handshakes_shed",
                %remote,
                reason,
                retry_after_sec = wait.as_secs(),
                suppressed,
                audit = true,
            );
        }
        Refusal::new(status, "busy", detail).retry_after(wait)
    }

    /// Whether the sender of a connection is a proxy that stands for many.
    pub(crate) fn is_proxy(&self, peer: IpAddr) -> bool {
        let terms = self.terms.load();
        let mut proxies = terms.trusted_proxies.iter();
        proxies.any(|network| network.contains(&peer.to_canonical()))
    }

    /// A request for `/tunnel` that no agent of ours would send.
    fn note_no_upgrade(&self, refusal: &Refusal, remote: &dyn std::fmt::Display) {
        let (reason, detail) = (refusal.reason(), refusal.detail());
        let errors = &self.metrics.tunnels.protocol_errors;
        errors.with(["tunnel", reason]).inc();
        if let Some(suppressed) = self.pass(reason) {
            tracing::warn!(event = "tunnel_refused", %remote, reason, detail, suppressed, audit = true);
        }
    }

    fn welcome(
        &self,
        shown: Option<&[CertificateDer<'static>]>,
        remote: &dyn std::fmt::Display,
    ) -> Result<(), Refusal> {
        if self.leaving.lock().is_some() {
            let busy = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal::new(busy, "draining", "this hub is about to stop")
                .retry_after(Duration::from_secs(1)));
        }
        let Err(fault) = self.judge_certificate(shown, SystemTime::now()) else {
            return Ok(());
        };
        self.gate.count_rejection("client_certificate");
        if let Some(suppressed) = self.pass(fault.code()) {
            tracing::warn!(
                event = "agent_refused",
                %remote,
                reason = fault.code(),
                detail = %fault,
                suppressed,
                audit = true,
            );
        }
        let detail = format!("this hub wants a client certificate besides the token, but {fault}");
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "client_certificate",
            detail,
        ))
    }

    /// Whether an agent's offence is logged: one of a kind per second, and how many were not.
    fn pass(&self, offence: &'static str) -> Option<u64> {
        self.quiet.lock().entry(offence).or_default().pass()
    }

    fn reject(&self, rejection: &Rejection, remote: &dyn std::fmt::Display) -> Refusal {
        let code = rejection.reason.code();
        self.note_rejection(rejection, remote);
        if rejection.reason.is_temporary() {
            return Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code,
                rejection.reason.hint(),
            )
            .retry_after(Duration::from_secs(5));
        }
        self.challenge(rejection)
    }

    /// 401 with what the agent can do about it (RFC 9449 sections 7.1 and 9).
    fn challenge(&self, rejection: &Rejection) -> Refusal {
        let reason = rejection.reason;
        let refusal = Refusal::new(StatusCode::UNAUTHORIZED, reason.code(), reason.hint());
        let challenge = match reason.challenge() {
            Some(error) => format!("DPoP error=\"{error}\", algs=\"{ALGORITHMS}\""),
            None if self.gate.proofs().are_required() => format!("DPoP algs=\"{ALGORITHMS}\""),
            None => return refusal,
        };
        let value = |text: String| HeaderValue::try_from(text);
        let mut headers = vec![(WWW_AUTHENTICATE, value(challenge))];
        if reason.challenge() == Some("use_dpop_nonce") {
            let nonce = self.gate.proofs().nonce();
            headers.push((HeaderName::from_static("dpop-nonce"), value(nonce)));
        }
        let headers = headers.into_iter();
        let headers = headers.filter_map(|(name, value)| Some((name, value.ok()?)));
        headers.fold(refusal, |refusal, (name, value)| {
            refusal.with_header(name, value)
        })
    }

    /// Counts and logs a token that was refused, unless the agent is only asked for a nonce.
    fn note_rejection(&self, rejection: &Rejection, remote: &dyn std::fmt::Display) {
        let code = rejection.reason.code();
        if rejection.reason.is_step() {
            return tracing::debug!(event = "dpop_nonce_demanded", remote = %remote);
        }
        self.gate.count_rejection(code);
        if let Some(suppressed) = self.pass(code) {
            tracing::warn!(
                event = "jwt_rejected",
                remote = %remote,
                reason = code,
                detail = %rejection.detail,
                hint = rejection.reason.hint(),
                suppressed,
                audit = true,
            );
        }
    }

    /// Tells every agent, and those who come from now on, to go elsewhere within `deadline`.
    pub fn send_away(&self, reason: Reason, deadline: Duration) {
        *self.leaving.lock() = Some(reason);
        for session in self.directory.sessions() {
            session.link().go_away(reason, deadline);
        }
    }

    /// Tells an agent to make another tunnel, elsewhere if it can, and leaves this one to the flows
    /// that it carries.
    pub fn send_on(&self, session: &Arc<Session>) {
        let link = session.link().clone();
        // Who asks again and again is followed once.
        if !link.takes_flows() {
            return;
        }
        link.go_away(Reason::Operator, NO_DEADLINE);
        let stop = self.tasks.token();
        self.tasks.spawn("tunnel_leaving", async move {
            // Not at once: its agent may be about to make the other one.
            let mut looks = interval(LAST_FLOW_POLL);
            looks.tick().await;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = looks.tick() => {}
                }
                if link.is_closed() {
                    return;
                }
                if link.active_flows() == 0 {
                    return link.close(Reason::Operator);
                }
            }
        });
    }

    /// Closes every tunnel.
    pub fn close(&self, reason: Reason) {
        *self.leaving.lock() = Some(reason);
        for session in self.directory.sessions() {
            session.link().close(reason);
        }
    }

    /// A tunnel is open.
    fn arrive(&self, session: &Arc<Session>) {
        let displaced = self.directory.enter(session);
        for other in &displaced {
            self.supersede(other, session.owner());
        }
        if displaced.iter().any(|other| Arc::ptr_eq(other, session)) {
            return;
        }
        // A later owner that became known before this tunnel entered could not displace it.
        if let Some(by) = self.registry.successor(&session.agent_id, session.owner()) {
            return self.superseded(&session.agent_id, by);
        }
        // CAs may have changed since it was let in.
        self.review_certificate(session);
        if let Some(tell) = self.arrival.get() {
            tell(session);
        }
        let label = self.metrics.agent_label(&session.agent_id);
        if let Some(reason) = self.endings.lock().remove(label) {
            self.metrics.tunnels.reconnects.with([label, reason]).inc();
        }
        // Drain may have begun since this tunnel was let in.
        if let Some(reason) = *self.leaving.lock() {
            session.link().go_away(reason, Duration::ZERO);
        }
    }

    /// Another hub has a later owner of the agent's id.
    fn superseded(&self, agent_id: &Arc<str>, by: Owner) {
        for session in self.directory.displace(agent_id, by) {
            self.supersede(&session, by);
        }
    }

    fn supersede(&self, session: &Session, by: Owner) {
        tracing::info!(
            event = "agent_superseded",
            agent_id = %session.agent_id,
            remote = %session.remote,
            epoch = session.epoch(),
            by = by.epoch,
            audit = true,
        );
        session.supersede();
    }

    /// A tunnel is no more.
    fn depart(&self, session: &Arc<Session>, reason: Reason) {
        self.directory.leave(session);
        let label = self.metrics.agent_label(&session.agent_id).to_owned();
        self.endings.lock().insert(label, reason.name());
    }
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
