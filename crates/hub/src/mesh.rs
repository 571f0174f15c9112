//! Links between hubs: who may join, one link dialed to each peer and one taken from each.
//!
//! The hub that dials opens flows, the hub that accepts answers them; a pair of hubs has two links,
//! so that nobody has to decide between two that were dialed at once.

mod credentials;
mod dial;
mod failure;
mod inbound;
mod links;
mod meter;
mod outbound;
mod questions;
mod status;
mod terms;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::Uri;
use nowconnect_link::counters::Engine;
use nowconnect_link::dial::WsUrlError;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::relayed::Relayed;
use nowconnect_link::session::{self, Link, LinkClosed, LinkConfig, Role};
use nowconnect_link::shards::Shards;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::TlsError;
use nowconnect_proto::frame::Open;
use nowconnect_proto::mesh_hello::MeshHello;
use nowconnect_proto::{Cid, FlowId, Reason};
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::HubConfig;
use crate::metrics::{Metrics, PeerMetrics};
use crate::policy::KeyedGate;

pub use inbound::{Proof, Shown};
pub use links::Conflict;
pub use outbound::State;
pub(crate) use questions::MAX_ANSWER;
pub use questions::{Question, Unanswered};
pub use status::{LinkStatus, PeerStatus};

use credentials::{Credentials, Tended};
use inbound::prove;
use links::Links;
use meter::LinkMeter;
use outbound::Outbound;
use questions::Asked;
use terms::{Terms, canonical};

/// The subprotocol whose connection proves who the peers are, or that needs no proof.
const PLAIN: &str = "nowconnect.mesh.v1";
/// The same with mutual TLS inside the WebSocket.
const SEALED: &str = "nowconnect.mesh.v1.tls";

/// From the end of dialing, or the accepted upgrade, to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a hub that is refused may take to hear why.
const GOODBYE: Duration = Duration::from_secs(1);
/// Links in their handshake at a time: the other side may still be anybody.
const STRANGERS: usize = 256;
/// Between looks at whether the last flow of a link that is left has ended.
const LAST_FLOW_POLL: Duration = Duration::from_millis(250);
/// The flows of a link that is left may take as long as they need.
const NO_DEADLINE: Duration = Duration::from_millis(u32::MAX as u64);
/// Stands in labels for hubs that are none of the configured peers, while no certificate is demanded.
const UNCONFIGURED: &str = "unconfigured";

/// Why the mesh cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A certificate or key.
    #[error("ha.mesh.tls: {0}")]
    Tls(#[from] TlsError),
    /// A URL.
    #[error("ha.mesh.peers: {0}: {1}")]
    Peer(Uri, WsUrlError),
}

/// What the hub's forwarding is told. Calls must not block.
pub trait MeshEvents: Send + Sync {
    /// A peer opens or resumes a flow on a link that it dialed. Answer with
    /// [`Link::bind`] or [`Link::refuse`], now or later.
    fn on_open(&self, link: &Arc<Link>, peer: &Arc<Peer>, id: FlowId, open: Open);

    /// [`Mesh::link`] has a link to `hub` now.
    fn link_up(&self, hub: &str);

    /// A hub asks something, on a link in either direction.
    fn on_question(&self, question: Question);

    /// It has none any more. Flows that the link carried go on over it for a while, if it is only
    /// leaving, or have lost their path.
    fn link_down(&self, hub: &str, closed: &LinkClosed);
}

/// Tries the way to the peer at `url`, as far as both have proven who they are and no further: links
/// stay as they are. `true` when the proof went through an ingress, inside the WebSocket.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn knock(config: &HubConfig, url: &Uri) -> Result<bool, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let url = url
        .clone()
        .try_into()
        .map_err(|error: WsUrlError| text(&error))?;
    let terms = Terms::of(config).map_err(|error| text(&error))?;
    let mesh = config.ha.mesh.clone();
    let credentials = tokio::task::spawn_blocking(move || Credentials::load(&mesh)).await;
    let credentials = credentials.map_err(|error| text(&error))?;
    let credentials = credentials.map_err(|error| text(&error))?;
    let knocked = dial::knock(&url, &terms, &credentials).await;
    knocked.map_err(|error| text(&error))
}

/// A hub that has dialed this one.
#[derive(Debug)]
pub struct Peer {
    /// Its replica id.
    pub hub: Arc<str>,
    /// What stands for it in labels and logs: the host of its URL.
    pub label: Arc<str>,
    /// Who its certificate has proven it to be.
    pub proof: Proof,
    /// Where it dialed from.
    pub remote: IpAddr,
    /// Whether it answers questions.
    pub answers: bool,
    /// What it sends of a new flow unasked, in bytes.
    pub first_window: u32,
    /// What is measured of it.
    pub metrics: Arc<PeerMetrics>,
}

impl Peer {
    /// Whether both have proven who they are, and are not the same.
    fn is_other_than(&self, names: &[Arc<str>]) -> bool {
        let proven = &self.proof.names;
        let differ = !proven.iter().any(|name| names.contains(name));
        !proven.is_empty() && !names.is_empty() && differ
    }
}

/// All links with other hubs.
pub struct Mesh {
    terms: ArcSwap<Terms>,
    credentials: ArcSwap<Credentials>,
    outbound: Mutex<Vec<Arc<Outbound>>>,
    links: Links,
    asked: Asked,
    events: RwLock<Option<Weak<dyn MeshEvents>>>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    shards: Shards,
    /// Set once: hubs that dial from then on are told to come back later.
    leaving: Mutex<Option<Reason>>,
    strangers: Arc<Semaphore>,
    places: KeyedGate<IpAddr>,
    quiet: Mutex<HashMap<&'static str, Quiet>>,
}

/// Another configuration that is good and not yet in force.
#[derive(Debug)]
pub struct Prepared {
    terms: Terms,
    credentials: Credentials,
}

impl Prepared {
    /// Reads what `config` says about the mesh, and the files that it names. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub fn load(config: &HubConfig) -> Result<Self, MeshError> {
        let terms = Terms::of(config)?;
        let credentials = if terms.on {
            Credentials::load(&config.ha.mesh)?
        } else {
            Credentials::none()
        };
        Ok(Self { terms, credentials })
    }
}

impl Mesh {
    /// A mesh that dials nobody before [`Mesh::commit`]. Links that are dialed live on `shards`;
    /// their tasks are `tasks`.
    pub fn new(
        prepared: &Prepared,
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
        tasks: Tasks,
        shards: Shards,
    ) -> Arc<Self> {
        let off = Terms {
            on: false,
            ..prepared.terms.clone()
        };
        Arc::new(Self {
            terms: ArcSwap::from_pointee(off),
            credentials: ArcSwap::from_pointee(Credentials::none()),
            outbound: Mutex::default(),
            links: Links::default(),
            asked: Asked::default(),
            events: RwLock::new(None),
            engine,
            metrics,
            tasks,
            shards,
            leaving: Mutex::new(None),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            places: KeyedGate::default(),
            quiet: Mutex::default(),
        })
    }

    /// Who is told of links and of flows that peers open; until then flows are refused.
    pub fn set_events(&self, events: Weak<dyn MeshEvents>) {
        *self.events.write() = Some(events);
    }

    /// Puts another configuration in force. Links to peers that stay are kept; those that are not
    /// wanted any more open no new flows and close when the last one has ended. A hub whose
    /// certificate fits none of the peers any more, or that the CAs do not vouch for any more, is cut
    /// off at once.
    pub fn commit(self: &Arc<Self>, prepared: Prepared) {
        let Prepared { terms, credentials } = prepared;
        if terms.on && !terms.require_mtls {
            tracing::warn!(
                event = "mesh_unprotected",
                detail = "ha.mesh.require_mtls is false: any host that reaches /mesh can join the mesh and reach \
                    every agent; for development only",
                audit = true,
            );
        }
        let (on, require_mtls) = (terms.on, terms.require_mtls);
        let wanted = if on { terms.peers.clone() } else { Vec::new() };
        let before = self.credentials.swap(Arc::new(credentials));
        if before.differ_from(&self.credentials.load()) {
            self.note_certificates_changed();
        }
        self.terms.store(Arc::new(terms));
        let why = if on {
            Reason::Removed
        } else {
            Reason::NotActive
        };
        let mut outbound = self.outbound.lock();
        outbound.retain(|running| {
            let stays = running.require_mtls == require_mtls
                && wanted.iter().any(|peer| peer.url == running.url);
            if !stays {
                running.leave(why);
            }
            stays
        });
        if self.leaving.lock().is_some() {
            return;
        }
        for peer in &wanted {
            if !outbound.iter().any(|running| running.url == peer.url) {
                outbound.push(Outbound::start(self, peer, require_mtls));
            }
        }
        drop(outbound);
        self.review_all();
    }

    /// Whether links may stay under the configuration and the certificates in force.
    fn review_all(&self) {
        for inward in self.links.inbound() {
            self.review(&inward.link, &inward.peer, inward.since);
        }
        for outbound in &*self.outbound.lock() {
            self.review_outbound(outbound);
        }
    }

    /// Whether a link that this hub has dialed may stay.
    fn review_outbound(&self, outbound: &Outbound) {
        let credentials = self.credentials.load();
        let mutual = credentials.mutual.as_ref();
        if let Some(mutual) = mutual.filter(|_| self.terms.load().require_mtls) {
            outbound.review(&mutual.trust.current());
        }
    }

    /// Whether a link that a peer dialed, which was let in at `since`, may stay. That a certificate has
    /// ended in the meantime ends no link.
    fn review(&self, link: &Arc<Link>, peer: &Peer, since: SystemTime) {
        let terms = self.terms.load();
        let credentials = self.credentials.load();
        let mutual = credentials.mutual.as_ref();
        let proof = mutual.map(|mutual| prove(mutual, &terms, peer.proof.chain.clone(), since));
        let unproven = match proof {
            Some(Err(unproven)) => Some((unproven.fault.code(), unproven.to_string())),
            None => Some(("certificate_missing", "ha.mesh.tls is not set".to_owned())),
            Some(Ok(_)) => None,
        };
        if let Some((reason, detail)) = unproven.filter(|_| terms.on && terms.require_mtls) {
            note_untrusted("inbound", &peer.label, reason, &detail);
            link.close(Reason::Denied);
        } else if !terms.on && link.takes_flows() {
            link.go_away(Reason::NotActive, NO_DEADLINE);
            let (link, stop) = (link.clone(), self.tasks.token());
            self.tasks.spawn("mesh_leaving", async move {
                see_off(&link, &stop).await;
            });
        }
    }

    /// The link that takes flows for agents of `hub`, a replica id.
    pub fn link(&self, hub: &str) -> Option<Arc<Link>> {
        self.links.outbound(hub)
    }

    /// The flow of this name that passes through on a link that a peer dialed, and the peer's replica
    /// id.
    pub fn passing(&self, cid: Cid) -> Option<(Arc<str>, Arc<Relayed>)> {
        let inbound = self.links.inbound().into_iter();
        let mut found =
            inbound.filter_map(|one| Some((one.peer.hub.clone(), one.link.passing(cid)?)));
        found.next()
    }

    /// Whether there is a link with any hub, whoever dialed it.
    pub fn is_up(&self) -> bool {
        if !self.links.inbound().is_empty() {
            return true;
        }
        let outbound = self.outbound.lock();
        outbound
            .iter()
            .any(|peer| peer.status().state == State::Established)
    }

    /// What makes an active hub degraded: each peer that there is no link to.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for peer in &*self.outbound.lock() {
            let status = peer.status();
            if status.state != State::Established {
                let error = status.error.as_deref().unwrap_or("not connected yet");
                troubles.push(format!("mesh link to {} is down: {error}", peer.label));
            }
        }
        troubles
    }

    /// Whether peers have a port of their own.
    pub fn has_port(&self) -> bool {
        self.terms.load().has_port
    }

    /// What a connection to the port of the mesh begins with; `None` = no TLS.
    pub fn server_tls(&self) -> Option<Arc<ServerConfig>> {
        let credentials = self.credentials.load();
        credentials
            .mutual
            .as_ref()
            .map(|mutual| mutual.server.current())
    }

    /// Looks whether the files of certificates have changed, and goes on with those: links to hubs
    /// that the CAs do not vouch for any more are cut. Blocks on file I/O.
    pub fn tend(&self) {
        match self.credentials.load_full().tend() {
            Tended::Same => {}
            Tended::Changed => {
                self.note_certificates_changed();
                self.review_all();
            }
            Tended::Kept => self.metrics.tunnels.note_certificate("mesh", "rejected"),
        }
    }

    fn note_certificates_changed(&self) {
        self.metrics.tunnels.note_certificate("mesh", "applied");
        tracing::info!(event = "certificate_changed", r#use = "mesh", audit = true);
    }

    /// When this hub's certificate ends, and the first of the mesh CAs.
    pub fn expiry(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let credentials = self.credentials.load();
        let mutual = credentials.mutual.as_ref();
        let own = mutual.and_then(|mutual| mutual.server.expires());
        (own, mutual.and_then(|mutual| mutual.trust.trust_expires()))
    }

    /// Tells peers to open no more flows here, and those who dial from now on to come back later.
    /// Links that this hub has dialed stay, for the flows of its own clients.
    pub fn send_away(&self, reason: Reason, deadline: Duration) {
        *self.leaving.lock() = Some(reason);
        for inward in self.links.inbound() {
            inward.link.go_away(reason, deadline);
        }
    }

    /// Closes every link, for good.
    pub fn close(&self, reason: Reason) {
        *self.leaving.lock() = Some(reason);
        for peer in self.outbound.lock().drain(..) {
            peer.close(reason);
        }
        for inward in self.links.inbound() {
            inward.link.close(reason);
        }
    }

    fn events(&self) -> Option<Arc<dyn MeshEvents>> {
        self.events.read().as_ref()?.upgrade()
    }

    fn tell(&self, word: impl FnOnce(&dyn MeshEvents)) {
        if let Some(events) = self.events() {
            word(&*events);
        }
    }

    fn peer_metrics(&self, label: &str) -> Arc<PeerMetrics> {
        let outbound = self.outbound.lock();
        match outbound.iter().find(|peer| *peer.label == *label) {
            Some(peer) => peer.metrics.clone(),
            None => Arc::new(self.metrics.peer(label)),
        }
    }

    /// The label of the peer that `hub` is, which has proven `names`.
    fn label_of(&self, hub: &str, names: &[Arc<str>]) -> Arc<str> {
        let dialed = self.links.label(hub);
        let outbound = self.outbound.lock();
        let fits = |peer: &&Arc<Outbound>| {
            let host = canonical(peer.url.host());
            names.iter().any(|name| **name == *host)
        };
        let mut candidates = outbound.iter().filter(fits).map(|peer| peer.label.clone());
        if names.is_empty() {
            return dialed.unwrap_or_else(|| UNCONFIGURED.into());
        }
        let first = candidates.clone().next();
        candidates
            .find(|label| Some(label) == dialed.as_ref())
            .or(first)
            .unwrap_or_else(|| UNCONFIGURED.into())
    }

    /// HELLO went one way and HELLO_ACK the other, before the link was there to be measured.
    fn count_handshake(&self, hello: &'static str, answer: &'static str) {
        let frames = &self.metrics.mesh.frames;
        frames.with([hello, "M_HELLO"]).inc();
        frames.with([answer, "M_HELLO_ACK"]).inc();
    }

    fn count_offence(&self, link: &Link, kind: &'static str) {
        let errors = &self.metrics.tunnels.protocol_errors;
        errors.with(["mesh", kind]).inc();
        if let Some(suppressed) = self.quiet.lock().entry(kind).or_default().pass() {
            let hub = &link.peer().name;
            tracing::warn!(event = "protocol_error", interface = "mesh", %hub, kind, suppressed);
        }
    }
}

/// Closes a link that takes no new flows when the last one has ended, or when the hub stops.
async fn see_off(link: &Link, stop: &CancellationToken) {
    while link.active_flows() > 0 && !link.is_closed() {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LAST_FLOW_POLL) => {}
        }
    }
    link.close(Reason::Finished);
}

/// A peer of a standing link would not be let in any more.
fn note_untrusted(direction: &str, peer: &str, reason: &str, detail: &str) {
    tracing::warn!(
        event = "mesh_peer_untrusted",
        direction,
        peer,
        reason,
        detail,
        audit = true,
    );
}

fn log_down(direction: &str, peer: &str, hub: &str, closed: &LinkClosed, lived: Duration) {
    let (reason, detail) = (closed.reason.name(), closed.detail.as_str());
    let duration_ms = lived.as_millis() as u64;
    // tracing wants the level to be known when this is compiled.
    macro_rules! log {
        ($log:path) => {
            $log!(
                event = "mesh_link_down",
                direction,
                peer,
                hub,
                reason,
                detail,
                duration_ms,
                audit = true
            )
        };
    }
    if is_orderly(closed.reason) {
        log!(tracing::info);
    } else {
        log!(tracing::warn);
    }
}

/// Whether links end for `reason` in the course of events, and not by a fault.
fn is_orderly(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Finished
            | Reason::Removed
            | Reason::NotActive
            | Reason::Draining
            | Reason::Shutdown
            | Reason::Superseded
            | Reason::Denied
    )
}

fn link_config(terms: &Terms, hello: &MeshHello, role: Role, meter: Arc<LinkMeter>) -> LinkConfig {
    LinkConfig {
        role,
        peer: session::Peer {
            name: hello.hub.as_str().into(),
            first_window: hello.initial_window,
            max_payload: hello.max_payload.min(terms.max_payload) as usize,
        },
        ping_interval: terms.ping_interval,
        ping_timeout: terms.ping_timeout,
        bounds: terms.bounds,
        meter: Some(meter),
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh")
            .field("hub", &self.terms.load().hub)
            .field("peers", &self.outbound.lock().len())
            .finish_non_exhaustive()
    }
}
