//! A hub that was let in as far as the WebSocket: its handshake, and the link that becomes of it.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use nowconnect_link::session::{Carrier, Link, LinkEvents, NoHello, Role, start};
use nowconnect_link::stream::{Stream, TLS_WRITES, WsBytes};
use nowconnect_link::tls::CertificateFault;
use nowconnect_link::upgrade::{Pending, PendingError, Upgraded};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::{self, Mask};
use nowconnect_proto::frame::Open;
use nowconnect_proto::hello::Body;
use nowconnect_proto::mesh_hello::MeshHello;
use nowconnect_proto::{FlowId, Frame, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::failure::Conflict;
use super::leaving::{is_orderly, log_down};
use super::links::{Claim, Inward};
use super::meter::LinkMeter;
use super::peer::Peer;
use super::proof::{Proof, Shown, Unproven, prove};
use super::questions::{self, Asker};
use super::refused::{HA_OFF, OFF};
use super::terms::Terms;
use super::{GOODBYE, HANDSHAKE, Mesh, PLAIN, link_config};

type Sealed = TlsStream<WsBytes<Stream>>;

/// Why a dialing hub does not get its link after all.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error(transparent)]
    Pending(#[from] PendingError),
    #[error("no HELLO within {} s", HANDSHAKE.as_secs())]
    Late,
    #[error(transparent)]
    Unproven(#[from] Unproven),
    #[error("ha.mesh.tls was taken away while it was let in")]
    NoCertificates,
    #[error("TLS inside the WebSocket: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    NoHello(#[from] NoHello),
    #[error("{OFF}; only hubs whose flows wait to go on are let in")]
    Off,
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

impl Turned {
    /// What the dialing hub is told.
    fn reason(&self) -> Reason {
        match self {
            Self::Late => Reason::HandshakeTimeout,
            Self::Unproven(_) | Self::NoCertificates => Reason::AuthFailed,
            Self::Conflict(_) => Reason::IdentityConflict,
            Self::Off => Reason::NotActive,
            Self::Pending(_) | Self::Tls(_) => Reason::ConnectionLost,
            Self::NoHello(why) => why.reason(),
        }
    }

    /// What the log calls it.
    fn code(&self) -> &'static str {
        match self {
            Self::Unproven(unproven) => unproven.fault.code(),
            Self::Tls(error) => CertificateFault::of_io(error).map_or("tls", |fault| fault.code()),
            Self::Conflict(_) => "mesh_peer_conflict",
            Self::Off => HA_OFF,
            other => other.reason().name(),
        }
    }
}

/// A hub whose upgrade was accepted.
pub(super) struct Guest {
    pub(super) mesh: Arc<Mesh>,
    pub(super) terms: Arc<Terms>,
    pub(super) remote: IpAddr,
}

impl Guest {
    /// The task of one link, from here to its end. `places` are given back when the hub is known.
    pub(super) async fn serve<P>(self, pending: Pending, proven: Proof, places: P) {
        let deadline = Instant::now() + HANDSHAKE;
        let upgraded = match timeout_at(deadline, pending.complete::<Stream>()).await {
            Ok(Ok(upgraded)) => upgraded,
            Ok(Err(error)) => return self.note_turned(&error.into()),
            Err(_) => return self.note_turned(&Turned::Late),
        };
        if upgraded.protocol == Some(PLAIN) {
            let Upgraded { io, leftover, .. } = upgraded;
            let carrier = self.carrier(io, leftover);
            return self
                .attend(carrier, false, Ok(proven), deadline, places)
                .await;
        }
        let sealed = match timeout_at(deadline, self.unseal(upgraded)).await {
            Ok(Ok(sealed)) => sealed,
            Ok(Err(turned)) => return self.note_turned(&turned),
            Err(_) => return self.note_turned(&Turned::Late),
        };
        let proven = self.prove_sealed(&sealed);
        let carrier = self.carrier(sealed, BytesMut::new());
        self.attend(carrier, true, proven, deadline, places).await;
    }

    /// TLS inside the WebSocket, in which the other hub must show a certificate of the mesh CA.
    async fn unseal(&self, upgraded: Upgraded<Stream>) -> Result<Sealed, Turned> {
        let credentials = self.mesh.credentials.load_full();
        let mutual = credentials.mutual.as_ref().ok_or(Turned::NoCertificates)?;
        let bytes = WsBytes::new(upgraded, ws::Role::Server);
        let acceptor = TlsAcceptor::from(mutual.server.current());
        let accept = acceptor.accept_with(bytes, |tls| tls.set_buffer_limit(Some(TLS_WRITES)));
        let handshakes = self.mesh.shards.handshakes();
        handshakes
            .run(self.remote, accept)
            .await
            .map_err(Turned::Tls)
    }

    fn prove_sealed(&self, sealed: &Sealed) -> Result<Proof, Turned> {
        let shown = sealed.get_ref().1.peer_certificates().map(Shown::from);
        let credentials = self.mesh.credentials.load_full();
        let mutual = credentials.mutual.as_ref().ok_or(Turned::NoCertificates)?;
        match prove(mutual, &self.terms, shown, SystemTime::now()) {
            Err(_) if !self.terms.require_mtls => Ok(Proof::default()),
            proven => Ok(proven?),
        }
    }

    fn carrier<S>(&self, io: S, leftover: BytesMut) -> Carrier<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let max_payload = self.terms.max_payload as usize;
        let wire = Wire::V2 { max_payload };
        Carrier::new(
            io,
            leftover,
            ws::Role::Server,
            Mask::None,
            wire,
            max_payload,
        )
    }

    async fn attend<S, P>(
        self,
        mut carrier: Carrier<S>,
        sealed: bool,
        proven: Result<Proof, Turned>,
        deadline: Instant,
        places: P,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let greeted = match proven {
            Ok(proven) => timeout_at(deadline, self.greet(&mut carrier, proven))
                .await
                .unwrap_or(Err(Turned::Late)),
            Err(unproven) => {
                // It is saying HELLO: what nobody reads would make a reset of the goodbye.
                let _ = timeout(GOODBYE, carrier.receive()).await;
                Err(unproven)
            }
        };
        drop(places);
        match greeted {
            Ok((hello, peer, claim)) => self.link(carrier, &hello, peer, claim, sealed).await,
            Err(turned) => {
                self.note_turned(&turned);
                // It hears why if it listens; if not, the connection is closed all the same.
                let _ = timeout(GOODBYE, carrier.close(turned.reason())).await;
            }
        }
    }

    async fn greet<S>(
        &self,
        carrier: &mut Carrier<S>,
        proof: Proof,
    ) -> Result<(MeshHello, Peer, Claim), Turned>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello: MeshHello = carrier.receive_hello().await?;
        if !self.terms.on && !hello.resumes() {
            return Err(Turned::Off);
        }
        let hub: Arc<str> = hello.hub.as_str().into();
        if hub == self.terms.hub {
            return Err(Conflict::Own(hub).into());
        }
        let claim = Claim {
            hub: hub.clone(),
            instance: hello.instance,
            via: hello.via.clone(),
            proven: proof.names.clone(),
        };
        self.mesh.links.judge_inbound(&claim)?;
        let answer = self.terms.answer().encode().map_err(NoHello::Hello)?;
        self.mesh.count_handshake("in", "out");
        // Written by the driver, before anything else.
        carrier.queue(Frame::HelloAck(answer.into()));
        let label = self.mesh.label_of(&hub, &proof.names);
        let peer = Peer {
            metrics: self.mesh.peer_metrics(&label),
            remote: self.remote,
            first_window: self.terms.first_window,
            answers: hello.answers(),
            hub,
            label,
            proof,
        };
        Ok((hello, peer, claim))
    }

    async fn link<S>(
        self,
        carrier: Carrier<S>,
        hello: &MeshHello,
        peer: Peer,
        claim: Claim,
        sealed: bool,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mesh, peer) = (&self.mesh, Arc::new(peer));
        let events = Arc::new(Events {
            mesh: Arc::downgrade(mesh),
            asker: Asker::new(&peer.hub),
            peer: peer.clone(),
        });
        let meter = LinkMeter::new(&mesh.metrics.mesh, &peer.metrics);
        let config = link_config(&self.terms, hello, Role::Answerer, meter);
        let (link, driver) = start(carrier, &config, &mesh.engine, events);
        let since = SystemTime::now();
        let inward = Inward {
            link: link.clone(),
            peer: peer.clone(),
            claim,
            since,
        };
        match mesh.links.enter_inbound(inward) {
            Ok(Some(old)) => old.close(Reason::Superseded),
            Ok(None) => {}
            Err(conflict) => {
                self.note_turned(&conflict.into());
                link.close(Reason::IdentityConflict);
                driver.await;
                return;
            }
        }
        tracing::info!(
            event = "mesh_link_up",
            direction = "inbound",
            peer = %peer.label,
            hub = %peer.hub,
            remote = %self.remote,
            proven = %peer.proof.names.join(","),
            version = hello.version,
            sealed,
            audit = true,
        );
        mesh.hear_of(&peer.proof.names);
        // What was asked of all links since this one was let in.
        if let Some(reason) = *mesh.leaving.lock() {
            link.go_away(reason, Duration::ZERO);
        }
        mesh.review(&link, &peer, since);
        let begun = Instant::now();
        let closed = driver.await;
        mesh.links.leave_inbound(&peer.hub, &link);
        if !is_orderly(closed.reason) {
            peer.metrics.errors.inc();
            mesh.losses.lock().note(std::time::Instant::now());
        }
        log_down("inbound", &peer.label, &peer.hub, &closed, begun.elapsed());
    }

    fn note_turned(&self, turned: &Turned) {
        let kind = match turned.reason() {
            Reason::ProtocolError => Some("bad_hello"),
            Reason::Flood => Some("flood"),
            _ => None,
        };
        if let Some(kind) = kind {
            let errors = &self.mesh.metrics.tunnels.protocol_errors;
            errors.with(["mesh", kind]).inc();
        }
        self.mesh
            .note_refused(turned.code(), &turned.to_string(), &self.remote);
    }
}

/// What the driver of a link that a peer dialed tells.
struct Events {
    mesh: Weak<Mesh>,
    asker: Asker,
    peer: Arc<Peer>,
}

impl LinkEvents for Events {
    fn on_open(&self, link: &Arc<Link>, id: FlowId, open: Open) {
        let events = self.mesh.upgrade().and_then(|mesh| mesh.events());
        match events {
            Some(events) => events.on_open(link, &self.peer, id, open),
            None => link.refuse(id, Reason::NotActive),
        }
    }

    fn on_control(&self, link: &Arc<Link>, frame: Frame) {
        match frame {
            // The peer opens no more flows and closes the link when those there are have ended.
            Frame::GoAway { .. } => link.leave(),
            frame => questions::heed(&self.mesh, link, &self.asker, frame),
        }
    }

    fn on_protocol_error(&self, link: &Arc<Link>, kind: &'static str) {
        if let Some(mesh) = self.mesh.upgrade() {
            mesh.count_offence(link, kind);
        }
    }
}
