//! A request for `/tunnel`: who is let in, and what the others hear.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use nowconnect_link::upgrade::{Offer, Refusal};
use rustls_pki_types::CertificateDer;

use super::Tunnels;
use super::newcomer::Newcomer;
use super::proofs::Presented;
use super::shedder::Shed;
use super::terms::Terms;
use crate::auth::dpop::{ALGORITHMS, Target};
use crate::auth::{Identity, Rejection};
use crate::forwarded::{sender, url};
use crate::mesh::Shown;
use crate::policy::{Client, KeyedSlot};

/// The subprotocol of version 2; an agent that does not offer it speaks version 1.
const SUBPROTOCOL: &str = "nowconnect.v2";

/// Tunnels that one agent may have here at a time, those in their handshake included.
const TUNNELS_PER_AGENT: usize = 16;

impl Tunnels {
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
        let place = self.place(&identity, remote)?;
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

    /// A place among the tunnels of one agent, its own until dropped.
    fn place(&self, identity: &Identity, remote: IpAddr) -> Result<KeyedSlot<Arc<str>>, Refusal> {
        let agent_id = &identity.agent_id;
        if let Some(place) = self
            .places
            .take(agent_id.as_str().into(), TUNNELS_PER_AGENT)
        {
            return Ok(place);
        }
        self.gate.count_rejection("too_many_tunnels");
        if let Some(suppressed) = self.pass("too_many_tunnels") {
            tracing::warn!(
                event = "too_many_tunnels",
                %agent_id,
                %remote,
                suppressed,
                audit = true,
            );
        }
        let busy = StatusCode::TOO_MANY_REQUESTS;
        let refusal = Refusal::new(busy, "too_many_tunnels", "this agent has enough of them");
        Err(refusal.retry_after(Duration::from_secs(5)))
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
}
