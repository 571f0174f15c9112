//! A peer dials: whether it is let in, before anything is upgraded.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use nowconnect_link::upgrade::{Offer, Refusal};

use super::guest::Guest;
use super::proof::{Proof, Shown, prove};
use super::refused::{HA_OFF, OFF};
use super::terms::Terms;
use super::{Mesh, PLAIN, SEALED};
use crate::forwarded::sender;

/// Links in their handshake at a time, from one address.
const STRANGERS_PER_ADDRESS: usize = 32;

impl Mesh {
    /// Answers a request for `/mesh`: 101 and a link of its own, or why not. `shown` is what the
    /// client of the connection has shown, judged by nobody yet.
    ///
    /// # Errors
    /// The answer to send instead.
    pub async fn receive(
        self: &Arc<Self>,
        request: &mut Request<Incoming>,
        peer: SocketAddr,
        shown: Option<Shown>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let terms = self.terms.load_full();
        let remote = sender(peer, request.headers(), &terms.trusted_proxies);
        let answer = self.admit(request, &terms, remote, shown);
        answer.inspect_err(|refusal| {
            self.note_refused(refusal.reason(), refusal.detail(), &remote);
        })
    }

    fn admit(
        self: &Arc<Self>,
        request: &mut Request<Incoming>,
        terms: &Arc<Terms>,
        remote: IpAddr,
        shown: Option<Shown>,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let later = |reason, detail, seconds| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail)
                .retry_after(Duration::from_secs(seconds))
        };
        if !self.is_open() {
            return Err(later(HA_OFF, OFF, 5));
        }
        if self.leaving.lock().is_some() {
            return Err(later("draining", "this hub is about to stop", 1));
        }
        let offer = Offer::from_request(request)?;
        let (protocol, proven) = self.choose(&offer, terms, shown)?;
        let places = (
            self.strangers.clone().try_acquire_owned(),
            self.places.take(remote, STRANGERS_PER_ADDRESS),
        );
        let (Ok(stranger), Some(place)) = places else {
            let detail = "too many links are in their handshake";
            return Err(later("busy", detail, 5));
        };
        let (response, pending) = offer.accept(request, Some(protocol));
        let guest = Guest {
            mesh: self.clone(),
            terms: terms.clone(),
            remote,
        };
        let places = (stranger, place);
        let serve = async move { guest.serve(pending, proven, places).await };
        self.tasks.spawn("mesh_inbound", serve);
        Ok(response)
    }

    /// How the other hub is to prove who it is, and what it has proven already.
    fn choose(
        &self,
        offer: &Offer,
        terms: &Terms,
        shown: Option<Shown>,
    ) -> Result<(&'static str, Proof), Refusal> {
        let credentials = self.credentials.load();
        let mutual = credentials.mutual.as_ref();
        let proven = mutual.map(|mutual| prove(mutual, terms, shown, SystemTime::now()));
        let unproven = match proven {
            Some(Ok(proof)) if offer.choose(&[PLAIN]).is_some() => return Ok((PLAIN, proof)),
            Some(Err(unproven)) => Some(unproven),
            _ => None,
        };
        if !terms.require_mtls && offer.choose(&[PLAIN]).is_some() {
            return Ok((PLAIN, Proof::default()));
        }
        if mutual.is_some() && offer.choose(&[SEALED]).is_some() {
            return Ok((SEALED, Proof::default()));
        }
        match unproven {
            Some(unproven) if offer.choose(&[PLAIN]).is_some() => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                unproven.fault.code(),
                unproven.to_string(),
            )),
            _ => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "no_mesh_subprotocol",
                "this path is for hubs of the mesh alone",
            )),
        }
    }

    /// Whether the sender of a connection is a proxy that stands for many.
    pub(crate) fn is_proxy(&self, peer: IpAddr) -> bool {
        let terms = self.terms.load();
        let mut proxies = terms.trusted_proxies.iter();
        proxies.any(|network| network.contains(&peer.to_canonical()))
    }
}
