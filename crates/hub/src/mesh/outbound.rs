//! The link that this hub keeps to one peer, for as long as it is configured or flows cross it.

mod attempt;
mod standing;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nowconnect_link::dial::WsUrl;
use nowconnect_link::session::Link;
use nowconnect_link::tls::CertificateFault;
use nowconnect_proto::Reason;
use nowconnect_proto::backoff::Backoff;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Mesh;
use super::failure::Failure;
use super::leaving::{LAST_FLOW_POLL, log_kept};
use super::orders::{Crossing, Next, Order};
use super::peer::note_untrusted;
use super::proof::Shown;
use super::terms::{Configured, canonical};
use crate::metrics::PeerMetrics;

/// Bound of the first delay after a link that had lived.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Bound of the delays while flows wait for the link: they do so for their grace.
const URGENT: Duration = Duration::from_secs(1);

/// A configured peer, as the dialing side knows it.
pub(super) struct Outbound {
    pub(super) url: WsUrl,
    pub(super) label: Arc<str>,
    pub(super) metrics: Arc<PeerMetrics>,
    /// Certificates were demanded when it was started.
    pub(super) require_mtls: bool,
    order: watch::Sender<Order>,
    /// Flows have come to wait for the link.
    hurry: Notify,
    status: Mutex<Status>,
}

/// The states of a link, as metrics call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// An attempt is under way.
    Connecting,
    /// It takes flows.
    Established,
    /// It waits for the next attempt.
    Backoff,
    /// It is not wanted.
    Closed,
}

/// What is known about the link now.
pub(super) struct Status {
    pub(super) state: State,
    pub(super) since: SystemTime,
    pub(super) hub: Option<Arc<str>>,
    pub(super) link: Option<Arc<Link>>,
    pub(super) error: Option<String>,
    /// Since when it is kept for the flows that cross it alone.
    kept: Option<Instant>,
    /// The certificate that the peer of the link has shown.
    certificate: Option<Shown>,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Established => "established",
            Self::Backoff => "backoff",
            Self::Closed => "closed",
        }
    }
}

impl Outbound {
    /// Begins to keep a link to `peer`.
    pub(super) fn start(mesh: &Arc<Mesh>, peer: &Configured, require_mtls: bool) -> Arc<Self> {
        let outbound = Arc::new(Self {
            url: peer.url.clone(),
            label: peer.label.clone(),
            metrics: Arc::new(mesh.metrics.peer(&peer.label)),
            require_mtls,
            order: watch::Sender::new(Order::Run),
            hurry: Notify::new(),
            status: Mutex::new(Status {
                state: State::Connecting,
                since: SystemTime::now(),
                hub: None,
                link: None,
                error: None,
                kept: None,
                certificate: None,
            }),
        });
        outbound.metrics.set_state(State::Connecting.as_str());
        let stop = mesh.tasks.token();
        let keep = outbound.clone().keep(mesh.clone());
        mesh.tasks
            .spawn("mesh_peer", stop.run_until_cancelled_owned(keep));
        outbound
    }

    /// Keeps the link up.
    pub(super) fn run(&self) {
        self.status.lock().kept = None;
        self.turn_to(Order::Run);
    }

    /// Keeps the link up for the flows that cross it, until the last has ended.
    pub(super) fn finish(&self, mesh: &Mesh) {
        let mut status = self.status.lock();
        if let Some(hub) = status.hub.clone().filter(|_| status.kept.is_none()) {
            let flows = mesh.needs.of(&hub);
            if flows > 0 {
                status.kept = Some(Instant::now());
                log_kept("outbound", &self.label, &hub, flows);
            }
        }
        drop(status);
        self.turn_to(Order::Finish);
    }

    /// For how many flows the link is kept, where it is for nothing else.
    pub(super) fn kept_for(&self, mesh: &Mesh) -> Option<usize> {
        if *self.order.borrow() != Order::Finish {
            return None;
        }
        let hub = self.status.lock().hub.clone()?;
        Some(mesh.needs.of(&hub))
    }

    /// Opens no new flows; closes the link when those there are have ended.
    pub(super) fn leave(&self, reason: Reason) {
        self.turn_to(Order::Leave(reason));
    }

    fn turn_to(&self, wanted: Order) {
        self.order.send_if_modified(|order| {
            let change = matches!(order, Order::Run | Order::Finish) && *order != wanted;
            if change {
                *order = wanted;
            }
            change
        });
    }

    /// The peer has dialed us and proven to be one of `hosts`: it is there, so no attempt has to wait.
    pub(super) fn hear_of(&self, hosts: &[Arc<str>]) {
        let host = canonical(self.url.host());
        let waits = self.status().state == State::Backoff;
        if waits && hosts.iter().any(|one| **one == *host) {
            self.hurry.notify_one();
        }
    }

    /// Closes the link.
    pub(super) fn close(&self, reason: Reason) {
        self.order.send_replace(Order::Close(reason));
    }

    /// What is known about the link now.
    pub(super) fn status(&self) -> parking_lot::MutexGuard<'_, Status> {
        self.status.lock()
    }

    fn enter(&self, state: State, change: impl FnOnce(&mut Status)) {
        let mut status = self.status.lock();
        change(&mut status);
        if status.state != state {
            (status.state, status.since) = (state, SystemTime::now());
        }
        self.metrics.set_state(state.as_str());
    }

    /// Closes the link when its peer had to prove who it is, and would not be taken for that any more.
    pub(super) fn review(&self, mesh: &Mesh) {
        let credentials = mesh.credentials.load();
        let mutual = credentials.mutual.as_ref();
        let Some(mutual) = mutual.filter(|_| mesh.terms.load().require_mtls) else {
            return;
        };
        let status = self.status.lock();
        let Some(link) = status.link.as_ref().filter(|link| !link.is_closed()) else {
            return;
        };
        let trust = mutual.trust.current();
        let chain = status.certificate.as_deref().unwrap_or_default();
        if let Err(error) = trust.judge_server(chain, &self.url.server_name(), status.since) {
            let fault = CertificateFault::of(&error).unwrap_or(CertificateFault::Other);
            note_untrusted("outbound", &self.label, fault.code(), &fault.to_string());
            link.close(Reason::Denied);
        }
    }

    /// Whether flows of this hub depend on the peer, as far as it has told who it is.
    fn crossing(&self, mesh: &Mesh) -> Crossing {
        let hub = self.status.lock().hub.clone();
        Crossing {
            needed: hub.as_ref().is_some_and(|hub| mesh.needs.of(hub) > 0),
            carried: hub.is_some_and(|hub| mesh.links.carries(&hub)),
        }
    }

    fn next(&self, mesh: &Mesh) -> Next {
        let order = *self.order.borrow();
        order.next(self.crossing(mesh))
    }

    /// Whether no link will be wanted any more.
    pub(super) fn is_over(&self, mesh: &Mesh) -> bool {
        self.next(mesh) == Next::Stop
    }

    /// Waits until a link that stands, or is being made, is not wanted.
    async fn unwanted(&self, mesh: &Mesh, order: &mut watch::Receiver<Order>) {
        loop {
            let now = *order.borrow_and_update();
            if !now.keeps(self.crossing(mesh).needed) {
                return;
            }
            if now == Order::Run {
                let _ = order.changed().await;
            } else {
                let _ = tokio::time::timeout(LAST_FLOW_POLL, order.changed()).await;
            }
        }
    }

    async fn keep(self: Arc<Self>, mesh: Arc<Mesh>) {
        let mut order = self.order.subscribe();
        let mut backoff = Backoff::new(BACKOFF_BASE, mesh.terms.load().backoff_max);
        while !mesh.dismiss(&self) {
            self.keep_up(&mesh, &mut order, &mut backoff).await;
        }
        let mut kept = None;
        self.enter(State::Closed, |status| {
            status.link = None;
            kept = status.kept.take().zip(status.hub.clone());
        });
        if let Some((since, hub)) = kept {
            tracing::info!(
                event = "mesh_link_released",
                peer = %self.label,
                %hub,
                kept_ms = since.elapsed().as_millis() as u64,
                detail = "the last flow that crossed it has ended",
                audit = true,
            );
        }
    }

    async fn keep_up(
        self: &Arc<Self>,
        mesh: &Arc<Mesh>,
        order: &mut watch::Receiver<Order>,
        backoff: &mut Backoff,
    ) {
        let started = Instant::now();
        let mut was_up = false;
        loop {
            match self.next(mesh) {
                Next::Dial => {}
                Next::Stop => return,
                Next::Wait => {
                    let _ = tokio::time::timeout(LAST_FLOW_POLL, order.changed()).await;
                    continue;
                }
            }
            self.enter(State::Connecting, |_| ());
            let attempt = tokio::select! {
                biased;
                () = self.unwanted(mesh, order) => return,
                attempt = self.attempt(mesh) => attempt,
            };
            match attempt {
                Ok(up) => {
                    backoff.note_connected(started.elapsed());
                    if std::mem::replace(&mut was_up, true) {
                        self.metrics.reconnects.inc();
                    }
                    let rest = self.serve(mesh, up, order).await;
                    backoff.note_lost(started.elapsed());
                    // What the peer said while there was a link does not concern flows that wait for one.
                    let rest = rest.filter(|_| !self.crossing(mesh).waits());
                    backoff.note_retry_after(rest.unwrap_or_default());
                }
                Err(failure) => {
                    self.note_failure(&failure);
                    backoff.note_retry_after(failure.retry_after().unwrap_or_default());
                }
            }
            if self.next(mesh) == Next::Dial {
                self.rest(mesh, order, backoff).await;
            }
        }
    }

    /// Waits until the next attempt is due.
    async fn rest(&self, mesh: &Mesh, order: &mut watch::Receiver<Order>, backoff: &mut Backoff) {
        let mut most = mesh.terms.load().backoff_max;
        if self.crossing(mesh).waits() {
            most = most.min(URGENT);
        }
        let delay = backoff.next_within(rand::random(), most);
        self.enter(State::Backoff, |_| ());
        tracing::debug!(event = "mesh_retry", peer = %self.label, in_ms = delay.as_millis() as u64);
        tokio::select! {
            () = self.unwanted(mesh, order) => {}
            () = self.hurry.notified() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    fn note_failure(&self, failure: &Failure) {
        self.metrics.errors.inc();
        let error = failure.to_string();
        let event = match failure {
            Failure::Conflict(_) | Failure::Refused(Reason::IdentityConflict) => {
                "mesh_peer_conflict"
            }
            _ => "mesh_link_failed",
        };
        let before = self.status.lock().error.replace(error.clone());
        // Said once: it may be the same for days.
        if before.as_ref() == Some(&error) {
            tracing::debug!(event, peer = %self.label, url = %self.url, error);
        } else {
            tracing::warn!(event, peer = %self.label, url = %self.url, error);
        }
    }
}
