//! What links to other hubs bring: flows for the agents here, and paths for flows that wait.

use std::sync::{Arc, OnceLock, Weak};

use nowconnect_link::session::{Link, LinkClosed};
use nowconnect_link::tasks::Tasks;
use nowconnect_proto::FlowId;
use nowconnect_proto::frame::Open;
use tokio::runtime::Handle;

use crate::admin::Admin;
use crate::forward::Forward;
use crate::mesh::{MeshEvents, Peer, Question};
use crate::router::Router;

/// Hears of the mesh.
#[derive(Debug)]
pub(super) struct Crossings {
    router: Weak<Router>,
    forward: Arc<Forward>,
    admin: OnceLock<Weak<Admin>>,
    /// Where questions are answered: not by the threads that move bytes.
    home: Handle,
    tasks: Tasks,
}

impl Crossings {
    pub(super) fn new(router: &Arc<Router>, forward: Arc<Forward>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            router: Arc::downgrade(router),
            forward,
            admin: OnceLock::new(),
            home: Handle::current(),
            tasks,
        })
    }

    /// Who answers the questions of other hubs.
    pub(super) fn set_admin(&self, admin: &Arc<Admin>) {
        let _ = self.admin.set(Arc::downgrade(admin));
    }

    pub(super) fn forward(&self) -> &Forward {
        &self.forward
    }
}

impl MeshEvents for Crossings {
    fn on_open(&self, link: &Arc<Link>, peer: &Arc<Peer>, id: FlowId, open: Open) {
        self.forward.open(link, peer, id, open);
    }

    fn on_question(&self, question: Question) {
        let Some(admin) = self.admin.get().and_then(Weak::upgrade) else {
            return;
        };
        if question.is_too_many {
            return admin.answer_peer(question);
        }
        self.tasks
            .spawn_on(&self.home, "mesh_question", async move {
                admin.answer_peer(question);
            });
    }

    fn link_up(&self, _: &str) {
        if let Some(router) = self.router.upgrade() {
            router.resume();
        }
    }

    // The flows that the link carried have heard of it themselves.
    fn link_down(&self, _: &str, _: &LinkClosed) {}
}
