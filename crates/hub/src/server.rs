//! The HTTP surface: `/tunnel` for agents, `/mesh` for other hubs, health and metrics for those who run the hub.
//!
//! Strangers reach this port. Until an agent has shown a token, a connection is bounded in number,
//! in time and in bytes, and whatever is not one of the few exact paths is not found.

pub(crate) mod answer;
mod connection;
mod health;
mod mesh;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use nowconnect_link::tls::{LiveServerConfig, LiveTrust};
use nowconnect_link::upgrade::{Refusal, has_body};
use tokio::net::TcpListener;

use crate::listener::{BindError, Inherited, Who};
use crate::mesh::{Mesh, Shown};
use crate::metrics::{Format, Metrics};
use crate::probes::Probes;
use crate::tunnels::Tunnels;

pub(crate) use answer::Answer;
pub(crate) use connection::{CurrentTls, Doorman};
pub(crate) use health::{Health, Stage};
pub(crate) use mesh::MeshSurface;

/// What answers HTTP requests on one port.
#[derive(Debug)]
pub(crate) struct Surface {
    /// The text of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The state of `/readyz`.
    pub health: Arc<Health>,
    /// What `/readyz?verbose` adds.
    pub probes: Arc<Probes>,
    /// Takes agents in; `None` on a port that serves only metrics and health.
    pub tunnels: Option<Arc<Tunnels>>,
    /// Takes other hubs in, unless they have a port of their own; `None` on the second port too.
    pub mesh: Option<Arc<Mesh>>,
}

/// TLS of the port for agents and peers.
#[derive(Debug)]
pub(crate) struct PortTls {
    /// What a connection begins with. It takes any client certificate.
    pub(crate) server: Arc<LiveServerConfig>,
    /// Who vouches for agents.
    pub(crate) agents: Arc<LiveTrust>,
}

/// A request with what is known about its connection.
pub(crate) struct Call {
    pub(crate) request: Request<Incoming>,
    pub(crate) peer: SocketAddr,
    /// TLS ends here.
    pub(crate) over_tls: bool,
    /// Certificates that the client has shown. It holds the key of the first; whether that means
    /// anything, the path must judge.
    pub(crate) certificates: Option<Shown>,
    /// Too many strangers are here already.
    pub(crate) busy: bool,
}

/// Whatever answers the requests of a port.
pub(crate) trait Respond: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, call: Call) -> impl Future<Output = Answer> + Send;

    /// Where requests that are none are counted.
    fn metrics(&self) -> &Metrics;

    /// Whether `peer` is an ingress, whose many connections are those of others.
    fn is_proxy(&self, _peer: IpAddr) -> bool {
        false
    }

    /// A connection ended before there was a request.
    fn tls_failed(&self, peer: SocketAddr, error: &io::Error) {
        tracing::debug!(event = "tls_failed", %peer, %error);
    }
}

impl Respond for Surface {
    async fn answer(&self, mut call: Call) -> Answer {
        let path = call.request.uri().path();
        match (path, &self.tunnels) {
            ("/tunnel", Some(_)) if call.busy => answer::unavailable("busy", 5),
            ("/tunnel", Some(tunnels)) => tunnels
                .receive(
                    &mut call.request,
                    call.peer,
                    call.over_tls,
                    call.certificates,
                )
                .await
                .unwrap_or_else(Refusal::into_response),
            ("/mesh", Some(_)) => self.join(call).await,
            ("/healthz" | "/readyz" | "/metrics", _) => self.read_only(&call.request),
            _ => answer::closing(StatusCode::NOT_FOUND, "not_found"),
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.tunnels
            .as_ref()
            .is_some_and(|tunnels| tunnels.is_proxy(peer))
    }
}

impl Surface {
    async fn join(&self, mut call: Call) -> Answer {
        match &self.mesh {
            Some(_) if call.busy => answer::unavailable("busy", 5),
            Some(mesh) if !mesh.has_port() => mesh
                .receive(&mut call.request, call.peer, call.certificates)
                .await
                .unwrap_or_else(Refusal::into_response),
            _ => answer::closing(StatusCode::NOT_FOUND, "not_found"),
        }
    }

    fn read_only(&self, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return answer::method_not_allowed("GET, HEAD");
        }
        // Whoever takes such a body for the next request, or the other way round, is led astray.
        if has_body(request.headers()) {
            let errors = &self.metrics.tunnels.protocol_errors;
            errors.with(["http", "unexpected_body"]).inc();
            return answer::closing(StatusCode::BAD_REQUEST, "unexpected_body");
        }
        match request.uri().path() {
            "/healthz" => answer::json(StatusCode::OK, &serde_json::json!({ "status": "ok" })),
            "/readyz" => {
                let query = request.uri().query().unwrap_or_default();
                let asks = |wanted: &[&str]| query.split('&').any(|pair| wanted.contains(&pair));
                let (status, mut report) = self.health.readiness(asks(&["strict=1"]));
                if asks(&["verbose", "verbose=1"]) {
                    report["probes"] = self.probes.summary();
                }
                answer::json(status, &report)
            }
            _ => self.measurements(request),
        }
    }

    fn measurements(&self, request: &Request<Incoming>) -> Answer {
        let accept = request.headers().get(http::header::ACCEPT);
        let format = Format::negotiate(accept.and_then(|value| value.to_str().ok()));
        let text = match &self.tunnels {
            // Anybody reaches this port.
            Some(_) => self.metrics.render_shared(format),
            None => self.metrics.render(format).map(Into::into),
        };
        match text {
            Ok(text) => answer::body(StatusCode::OK, format.content_type(), text),
            Err(_) => answer::closing(StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

/// A port that is bound and serves nobody yet.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Bound {
    /// Binds `address` for `who`, unless it is `inherited`.
    ///
    /// # Errors
    /// See [`Inherited::listen`].
    pub(crate) fn new(
        who: Who<'_>,
        address: SocketAddr,
        inherited: &Inherited,
    ) -> Result<Self, BindError> {
        let socket = inherited.listen(who, address)?;
        let address = socket.local_addr().unwrap_or(address);
        Ok(Self { socket, address })
    }

    /// The address that it is bound to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
