//! One attempt at a link: dialed, entered among the links, and told of.

use std::sync::{Arc, Weak};
use std::time::Instant;

use nowconnect_link::session::{Carrier, Link, LinkEvents, Role, start};
use nowconnect_proto::frame::Open;
use nowconnect_proto::mesh_hello::MeshHello;
use nowconnect_proto::{FlowId, Frame, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::Outbound;
use super::standing::Up;
use crate::mesh::dial::{self, Reached, Way};
use crate::mesh::failure::{Conflict, Failure};
use crate::mesh::links::Dialed;
use crate::mesh::meter::LinkMeter;
use crate::mesh::questions::{self, Asker};
use crate::mesh::terms::{Terms, canonical};
use crate::mesh::{Mesh, link_config};

/// GOAWAYs that may wait to be looked at; there is no use in more than one.
const GOAWAYS: usize = 4;

impl Outbound {
    /// Makes a link, on the thread that has the fewest.
    pub(super) async fn attempt(self: &Arc<Self>, mesh: &Arc<Mesh>) -> Result<Up, Failure> {
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
