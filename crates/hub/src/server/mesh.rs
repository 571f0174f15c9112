//! The port that peers have to themselves.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use nowconnect_link::upgrade::Refusal;

use super::{Answer, Call, Respond, answer};
use crate::mesh::Mesh;
use crate::metrics::Metrics;

/// What answers on `ha.mesh.listen`.
#[derive(Debug)]
pub(crate) struct MeshSurface {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Respond for MeshSurface {
    async fn answer(&self, mut call: Call) -> Answer {
        match call.request.uri().path() {
            "/mesh" if call.busy => answer::unavailable("busy", 5),
            "/mesh" => self
                .mesh
                .receive(&mut call.request, call.peer, call.certificates)
                .await
                .unwrap_or_else(Refusal::into_response),
            _ => answer::closing(StatusCode::NOT_FOUND, "not_found"),
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.mesh.is_proxy(peer)
    }

    fn tls_failed(&self, peer: SocketAddr, error: &io::Error) {
        self.mesh.note_tls_failed(peer, error);
    }
}
