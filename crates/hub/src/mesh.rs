//! Links between hubs: who may join, one link dialed to each peer and one taken from each.
//!
//! The hub that dials opens flows, the hub that accepts answers them; a pair of hubs has two links,
//! so that nobody has to decide between two that were dialed at once.

mod credentials;
mod dial;
mod failure;
mod guest;
mod inbound;
mod labels;
mod leaving;
mod links;
mod meter;
mod needs;
mod orders;
mod outbound;
mod peer;
mod proof;
mod questions;
mod refused;
mod review;
mod status;
mod terms;
pub(crate) mod visit;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

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

use crate::config::HubConfig;
use crate::metrics::Metrics;
use crate::policy::KeyedGate;

pub use failure::Conflict;
pub use needs::Need;
pub use outbound::State;
pub use peer::Peer;
pub use proof::{Proof, Shown};
pub(crate) use questions::MAX_ANSWER;
pub use questions::{Question, Unanswered};
pub use status::{LinkStatus, PeerStatus};

use credentials::Credentials;
use links::Links;
use meter::LinkMeter;
use needs::Needs;
use orders::Losses;
use outbound::Outbound;
use questions::Asked;
use terms::Terms;

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

/// All links with other hubs.
pub struct Mesh {
    terms: ArcSwap<Terms>,
    credentials: ArcSwap<Credentials>,
    outbound: Mutex<Vec<Arc<Outbound>>>,
    links: Links,
    needs: Needs,
    losses: Mutex<Losses>,
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
    /// Broken files do not keep a hub from going off.
    credentials: Result<Credentials, TlsError>,
}

impl Prepared {
    /// Reads what `config` says about the mesh, and the files that it names. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`MeshError`].
    pub fn load(config: &HubConfig) -> Result<Self, MeshError> {
        let terms = Terms::of(config)?;
        let credentials = match Credentials::load(&config.ha.mesh) {
            Err(error) if terms.on => return Err(error.into()),
            loaded => loaded,
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
            needs: Needs::default(),
            losses: Mutex::default(),
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
    /// wanted any more open no new flows and close when the last one has ended. Where high availability
    /// goes off, links to peers are kept, and made anew, for as long as flows cross them. A hub whose
    /// certificate fits none of the peers any more, or that the CAs do not vouch for any more, is cut
    /// off at once.
    pub fn commit(self: &Arc<Self>, prepared: Prepared) {
        let Prepared { terms, credentials } = prepared;
        // First: nobody takes certificates for forgotten meanwhile.
        let mut outbound = self.outbound.lock();
        if terms.on && !terms.require_mtls {
            tracing::warn!(
                event = "mesh_unprotected",
                detail = "ha.mesh.require_mtls is false: any host that reaches /mesh can join the mesh and reach \
                    every agent; for development only",
                audit = true,
            );
        }
        let (on, require_mtls) = (terms.on, terms.require_mtls);
        let wanted = terms.peers.clone();
        self.take_credentials(credentials);
        self.terms.store(Arc::new(terms));
        let why = if on {
            Reason::Removed
        } else {
            Reason::NotActive
        };
        outbound.retain(|running| {
            let stays = running.require_mtls == require_mtls
                && wanted.iter().any(|peer| peer.url == running.url);
            match (stays, on) {
                (true, true) => running.run(),
                (true, false) => running.finish(self),
                (false, _) => running.leave(why),
            }
            stays
        });
        if self.leaving.lock().is_some() {
            return;
        }
        for peer in wanted.iter().filter(|_| on) {
            if !outbound.iter().any(|running| running.url == peer.url) {
                outbound.push(Outbound::start(self, peer, require_mtls));
            }
        }
        drop(outbound);
        self.review_all();
    }

    fn take_credentials(&self, credentials: Result<Credentials, TlsError>) {
        match credentials {
            Ok(credentials) => {
                let before = self.credentials.swap(Arc::new(credentials));
                if before.differ_from(&self.credentials.load()) {
                    self.note_certificates_changed();
                }
            }
            Err(error) => self.credentials.load().keep_for(&error),
        }
    }

    /// Whether peers may dial: high availability is on, or flows that cross may need their path anew.
    pub fn is_open(&self) -> bool {
        let terms = self.terms.load();
        terms.on
            || self.links.has_inbound()
            || self.losses.lock().are_recent(Instant::now(), terms.grace)
    }

    /// Forgets certificates when high availability is off and no flow crosses any more. To be called
    /// from time to time.
    pub fn rest(&self) {
        let outbound = self.outbound.lock();
        if outbound.is_empty() && !self.is_open() && !self.credentials.load().are_none() {
            self.credentials.store(Arc::new(Credentials::none()));
        }
    }

    /// The keeper of a link has nothing to keep any more, unless it is wanted again.
    fn dismiss(&self, keeper: &Arc<Outbound>) -> bool {
        let mut outbound = self.outbound.lock();
        let over = keeper.is_over(self);
        if over {
            outbound.retain(|one| !Arc::ptr_eq(one, keeper));
        }
        over
    }

    /// Counts a flow of this hub that goes over `hub`, for as long as the value lives.
    pub fn need(&self, hub: &Arc<str>) -> Need {
        self.needs.note(hub)
    }

    /// The link to `hub` for flows that have crossed it before, where the registry does not tell the way
    /// any more: high availability is off here or there.
    pub fn leftover(&self, hub: &str) -> Option<Arc<Link>> {
        self.links.leftover(hub, self.terms.load().on)
    }

    /// Whether there may be any such link.
    pub fn has_leftovers(&self) -> bool {
        self.links.has_leftover(self.terms.load().on)
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

    /// A peer that has proven to be one of `hosts` has come.
    fn hear_of(&self, hosts: &[Arc<str>]) {
        for peer in &*self.outbound.lock() {
            peer.hear_of(hosts);
        }
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
            tracing::warn!(
                event = "protocol_error",
                interface = "mesh",
                %hub,
                kind,
                suppressed,
                audit = true,
            );
        }
    }
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
