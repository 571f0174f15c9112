//! What links to other hubs bring: flows for the agents here, and paths for flows that wait.

use std::sync::{Arc, Weak};

use nowconnect_link::session::{Link, LinkClosed};
use nowconnect_proto::FlowId;
use nowconnect_proto::frame::Open;

use crate::forward::Forward;
use crate::mesh::{MeshEvents, Peer};
use crate::router::Router;

/// Hears of the mesh.
#[derive(Debug)]
pub(super) struct Crossings {
    router: Weak<Router>,
    forward: Arc<Forward>,
}

impl Crossings {
    pub(super) fn new(router: &Arc<Router>, forward: Arc<Forward>) -> Arc<Self> {
        Arc::new(Self {
            router: Arc::downgrade(router),
            forward,
        })
    }

    pub(super) fn forward(&self) -> &Forward {
        &self.forward
    }
}

impl MeshEvents for Crossings {
    fn on_open(&self, link: &Arc<Link>, peer: &Arc<Peer>, id: FlowId, open: Open) {
        self.forward.open(link, peer, id, open);
    }

    fn link_up(&self, _: &str) {
        if let Some(router) = self.router.upgrade() {
            router.resume();
        }
    }

    // The flows that the link carried have heard of it themselves.
    fn link_down(&self, _: &str, _: &LinkClosed) {}
}
