//! The link that this hub keeps to one peer, for as long as it is configured or flows cross it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use nowconnect_link::dial::WsUrl;
use nowconnect_link::session::{Carrier, Link, LinkClosed, LinkEvents, Role, start};
use nowconnect_link::tls::CertificateFault;
use nowconnect_proto::backoff::Backoff;
use nowconnect_proto::frame::Open;
use nowconnect_proto::mesh_hello::MeshHello;
use nowconnect_proto::{FlowId, Frame, Reason};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::dial::{self, Reached, Way};
use super::failure::{Conflict, Failure, rest_after};
use super::leaving::{LAST_FLOW_POLL, NO_DEADLINE, is_orderly, log_down, log_kept, see_off};
use super::links::Dialed;
use super::meter::LinkMeter;
use super::orders::{Crossing, Next, Order};
use super::peer::note_untrusted;
use super::proof::Shown;
use super::questions::{self, Asker};
use super::terms::{Configured, Terms, canonical};
use super::{Mesh, link_config};
use crate::metrics::PeerMetrics;

/// Bound of the first delay after a link that had lived.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Bound of the delays while flows wait for the link: they do so for their grace.
const URGENT: Duration = Duration::from_secs(1);
/// GOAWAYs that may wait to be looked at; there is no use in more than one.
const GOAWAYS: usize = 4;

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

/// A link that stands.
struct Up {
    link: Arc<Link>,
    hub: Arc<str>,
    version: String,
    sealed: bool,
    answers: bool,
    certificate: Option<Shown>,
    driver: JoinHandle<LinkClosed>,
    goaways: mpsc::Receiver<Reason>,
    started: Instant,
}

/// A link that nobody looks after must not stay.
impl Drop for Up {
    fn drop(&mut self) {
        self.link.close(Reason::Unspecified);
    }
}

/// Why a link is not the current one any more.
enum End {
    Lost(LinkClosed),
    /// The peer wants no new flows on it.
    Leaving(Reason),
    /// We do not want it any more.
    Unwanted,
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

    /// Makes a link, on the thread that has the fewest.
    async fn attempt(self: &Arc<Self>, mesh: &Arc<Mesh>) -> Result<Up, Failure> {
        let (outbound, of) = (self.clone(), mesh.clone());
        let terms = mesh.terms.load_full();
        let shard = mesh.shards.least_loaded();
        let attempt = mesh.tasks.spawn_on(shard, "mesh_dial", async move {
            let credentials = of.credentials.load_full();
            let resumes = outbound.crossing(&of).waits();
            let reached = dial::reach(&outbound.url, &terms, &credentials, resumes).await?;
            outbound.begin(&of, &terms, reached).await
        });
        // It does not end by itself, unless the hub stops.
        let ended = |_| Failure::Refused(Reason::Shutdown);
        let up = attempt.await.map_err(ended)??;
        let host = canonical(self.url.host()).into();
        let dialed = Dialed {
            hub: &up.hub,
            label: &self.label,
            host,
            answers: up.answers,
        };
        let entered = mesh.links.enter_outbound(dialed, &up.link);
        if let Err(conflict) = entered {
            up.link.close(Reason::IdentityConflict);
            return Err(conflict.into());
        }
        tracing::info!(
            event = "mesh_link_up",
            direction = "outbound",
            peer = %self.label,
            hub = %up.hub,
            url = %self.url,
            version = up.version,
            sealed = up.sealed,
            audit = true,
        );
        Ok(up)
    }

    async fn begin(
        &self,
        mesh: &Arc<Mesh>,
        terms: &Terms,
        reached: Reached,
    ) -> Result<Up, Failure> {
        let Reached {
            way,
            hello,
            certificate,
        } = reached;
        if hello.hub == *terms.hub {
            way.close(Reason::IdentityConflict).await;
            return Err(Conflict::Own(terms.hub.clone()).into());
        }
        mesh.count_handshake("out", "in");
        let mut up = match way {
            Way::Open(carrier) => self.start_link(mesh, terms, *carrier, hello, false),
            Way::Sealed(carrier) => self.start_link(mesh, terms, *carrier, hello, true),
        };
        up.certificate = certificate;
        Ok(up)
    }

    fn start_link<S>(
        &self,
        mesh: &Arc<Mesh>,
        terms: &Terms,
        carrier: Carrier<S>,
        hello: MeshHello,
        sealed: bool,
    ) -> Up
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, goaways) = mpsc::channel(GOAWAYS);
        let hub: Arc<str> = hello.hub.as_str().into();
        let events = Arc::new(Events {
            mesh: Arc::downgrade(mesh),
            asker: Asker::new(&hub),
            goaways: sender,
        });
        let meter = LinkMeter::new(&mesh.metrics.mesh, &self.metrics);
        let config = link_config(terms, &hello, Role::Opener, meter);
        let (link, driver) = start(carrier, &config, &mesh.engine, events);
        Up {
            link,
            hub,
            answers: hello.answers(),
            version: hello.version,
            sealed,
            certificate: None,
            driver: mesh.tasks.spawn("mesh_link", driver),
            goaways,
            started: Instant::now(),
        }
    }

    /// Looks after the link until it is the current one no longer; returns how long to stay away.
    async fn serve(
        self: &Arc<Self>,
        mesh: &Arc<Mesh>,
        mut up: Up,
        order: &mut watch::Receiver<Order>,
    ) -> Option<Duration> {
        self.enter(State::Established, |status| {
            status.hub = Some(up.hub.clone());
            status.link = Some(up.link.clone());
            status.certificate = up.certificate.take();
            status.error = None;
        });
        self.review(mesh);
        mesh.tell(|events| events.link_up(&up.hub));
        let end = self.until_end(mesh, &mut up, order).await;
        let closed = match end {
            End::Lost(closed) => {
                mesh.links.leave_outbound(&up.hub, &up.link);
                self.note_down(&up, &closed);
                closed
            }
            // Flows that cross already may go on over it.
            End::Leaving(reason) => {
                let detail = "the peer takes no new flows on it".to_owned();
                LinkClosed { reason, detail }
            }
            End::Unwanted => {
                mesh.links.leave_outbound(&up.hub, &up.link);
                let reason = match *order.borrow() {
                    Order::Leave(reason) => reason,
                    Order::Finish | Order::Run => Reason::NotActive,
                    Order::Close(reason) => {
                        up.link.close(reason);
                        reason
                    }
                };
                up.link.go_away(reason, NO_DEADLINE);
                let detail = "it is not wanted any more".to_owned();
                LinkClosed { reason, detail }
            }
        };
        let LinkClosed { reason, detail } = &closed;
        let colon = if detail.is_empty() { "" } else { ": " };
        self.status.lock().error = Some(format!("{reason}{colon}{detail}"));
        mesh.tell(|events| events.link_down(&up.hub, &closed));
        if !up.driver.is_finished() {
            self.see_off(mesh, up);
        }
        rest_after(closed.reason)
    }

    /// Waits until the link is lost, or to be left.
    async fn until_end(&self, mesh: &Mesh, up: &mut Up, order: &mut watch::Receiver<Order>) -> End {
        loop {
            tokio::select! {
                biased;
                closed = &mut up.driver => return End::Lost(or_panic(closed)),
                () = self.unwanted(mesh, order) => return End::Unwanted,
                Some(reason) = up.goaways.recv() => {
                    if reason == Reason::NotActive {
                        mesh.links.note_idle(&up.hub, &up.link);
                    }
                    // Flows that cross already are all that a hub that is off keeps a link for.
                    if *self.order.borrow() != Order::Finish {
                        return End::Leaving(reason);
                    }
                }
            }
        }
    }

    /// Leaves a link to the flows that cross it, and closes it when they have ended.
    fn see_off(self: &Arc<Self>, mesh: &Arc<Mesh>, mut up: Up) {
        let (keeper, mesh) = (self.clone(), mesh.clone());
        let tasks = mesh.tasks.clone();
        tasks.spawn("mesh_leaving", async move {
            let (link, hub, stop) = (up.link.clone(), up.hub.clone(), mesh.tasks.token());
            // Some may wait for their agent just now.
            let needed = || mesh.needs.of(&hub) > 0 && mesh.links.is_current(&hub, &link);
            let closed = tokio::select! {
                biased;
                closed = &mut up.driver => closed,
                () = see_off(&link, &stop, needed) => (&mut up.driver).await,
            };
            mesh.links.leave_outbound(&hub, &link);
            keeper.note_down(&up, &or_panic(closed));
            if keeper.crossing(&mesh).waits() {
                keeper.hurry.notify_one();
            }
        });
    }

    fn note_down(&self, up: &Up, closed: &LinkClosed) {
        note_down(&self.label, &self.metrics, up, closed);
    }
}

fn note_down(label: &str, metrics: &PeerMetrics, up: &Up, closed: &LinkClosed) {
    if !is_orderly(closed.reason) {
        metrics.errors.inc();
    }
    log_down("outbound", label, &up.hub, closed, up.started.elapsed());
}

fn or_panic(closed: Result<LinkClosed, tokio::task::JoinError>) -> LinkClosed {
    closed.unwrap_or_else(|error| LinkClosed {
        reason: Reason::Unspecified,
        detail: error.to_string(),
    })
}

/// What the driver of a link that we dialed tells.
struct Events {
    mesh: Weak<Mesh>,
    asker: Asker,
    goaways: mpsc::Sender<Reason>,
}

impl LinkEvents for Events {
    fn on_open(&self, link: &Arc<Link>, _: FlowId, _: Open) {
        // It has links of its own to open flows on.
        self.on_protocol_error(link, "unexpected_frame");
        link.close(Reason::ProtocolError);
    }

    fn on_control(&self, link: &Arc<Link>, frame: Frame) {
        match frame {
            Frame::GoAway { reason, .. } => {
                link.leave();
                // Nobody reads a second one.
                let _ = self.goaways.try_send(reason);
            }
            frame => questions::heed(&self.mesh, link, &self.asker, frame),
        }
    }

    fn on_protocol_error(&self, link: &Arc<Link>, kind: &'static str) {
        if let Some(mesh) = self.mesh.upgrade() {
            mesh.count_offence(link, kind);
        }
    }
}
