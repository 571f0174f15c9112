//! The admin API: shows what the hub does to those who run it, and does what they ask.
//!
//! It has a port of its own, on loopback unless configured otherwise. No browser has business here:
//! see [`access`]. Reading is GET, acting is POST, and every action is an audit record.

mod access;
mod explain;
mod mesh_view;
mod orders;
mod page;
mod route;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use nowconnect_link::quiet::Quiet;
use nowconnect_proto::Reason;
use nowconnect_settings::Effective;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::timeout;

use crate::config::HubConfig;
use crate::forward::Forward;
use crate::listener::Listener;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::pdp::Pdp;
use crate::policy::Policy;
use crate::registry::Registry;
use crate::router::Router;
use crate::server::{Answer, Call, Health, Respond, Stage, answer};
use crate::tunnels::Tunnels;

pub use access::{Token, TokenError};
pub use orders::{Order, Orders, Reloaded};

use access::Refused;
use explain::Case;
use page::Page;
use route::Route;

/// Bytes of the largest body that is read.
const MAX_BODY_BYTES: usize = 4096;
/// How long it may take to come.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// The description of this API.
const OPENAPI: &str = include_str!("admin/openapi.json");

/// The parts of the hub that it shows and acts on.
pub struct Scope {
    /// Readiness.
    pub health: Arc<Health>,
    /// Agents.
    pub tunnels: Arc<Tunnels>,
    /// Where the agents of all hubs are.
    pub registry: Arc<Registry>,
    /// Links to other hubs.
    pub mesh: Arc<Mesh>,
    /// Flows of other hubs.
    pub forward: Arc<Forward>,
    /// Flows.
    pub router: Arc<Router>,
    /// Who may connect.
    pub policy: Arc<Policy>,
    /// Who decides about each flow.
    pub pdp: Arc<Pdp>,
    /// Ports for clients.
    pub listeners: Arc<Mutex<Vec<Listener>>>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Answers requests to the admin API.
pub struct Admin {
    scope: Scope,
    rules: ArcSwap<Rules>,
    shown: ArcSwap<Shown>,
    orders: orders::Sender,
    /// Whether the port speaks TLS.
    tls: bool,
    started: Instant,
    quiet: Quiet,
}

/// What a reload may change.
struct Rules {
    replica_id: String,
    drain_timeout: Duration,
    token: Option<Token>,
}

impl Rules {
    fn new(config: &HubConfig, token: Option<Token>) -> Self {
        Self {
            replica_id: config.ha.replica_id.clone(),
            drain_timeout: config.limits.drain_timeout,
            token,
        }
    }
}

/// The configuration in effect, as it may be shown.
#[derive(Default)]
struct Shown {
    config: Option<Effective>,
    needs_restart: Vec<&'static str>,
}

impl Admin {
    /// The API over `scope`, and the orders that it takes in.
    pub fn new(
        scope: Scope,
        config: &HubConfig,
        token: Option<Token>,
        tls: bool,
    ) -> (Arc<Self>, Orders) {
        let (sender, orders) = orders::channel();
        let admin = Self {
            scope,
            rules: ArcSwap::from_pointee(Rules::new(config, token)),
            shown: ArcSwap::default(),
            orders: sender,
            tls,
            started: Instant::now(),
            quiet: Quiet::default(),
        };
        (Arc::new(admin), orders)
    }

    /// Puts another configuration and token in force.
    pub fn set_rules(&self, config: &HubConfig, token: Option<Token>) {
        self.rules.store(Arc::new(Rules::new(config, token)));
    }

    /// Shows `effective` from now on, except that the keys in `needs_restart` keep their values.
    pub fn show(&self, mut effective: Effective, needs_restart: Vec<&'static str>) {
        if let Some(running) = &self.shown.load().config {
            for key in &needs_restart {
                effective.keep(running, key);
            }
        }
        self.shown.store(Arc::new(Shown {
            config: Some(effective),
            needs_restart,
        }));
    }

    /// Whether its port speaks TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    async fn serve(&self, call: &mut Call) -> Result<Answer, Refused> {
        let request = &call.request;
        access::check_origin(request, self.tls)?;
        if let Some(token) = &self.rules.load().token {
            access::check_token(request, token)?;
        }
        let path = request.uri().path().to_owned();
        let Some(route) = Route::parse(&path) else {
            let detail = "the paths are in /api/v1/openapi.json";
            return Ok(answer::explained(
                StatusCode::NOT_FOUND,
                "not_found",
                detail,
            ));
        };
        if !route.takes(request.method()) {
            return Ok(answer::method_not_allowed(route.methods()));
        }
        Ok(match route {
            Route::Status => found(&self.status()),
            Route::Agents => found(&view::agents(&self.scope)),
            Route::Flows => match Page::parse(request.uri().query().unwrap_or_default()) {
                Ok(page) => found(&view::flows(&self.scope, &page)),
                Err(detail) => answer::explained(StatusCode::BAD_REQUEST, "bad_query", &detail),
            },
            Route::Mesh => found(&mesh_view::describe(&self.scope)),
            Route::Config => self.config(),
            Route::Explain => self.explain(call).await,
            Route::OpenApi => answer::body(StatusCode::OK, "application/json", OPENAPI),
            Route::Disconnect(agent_id) => self.disconnect(agent_id, call.peer),
            Route::Reload => self.reload(call.peer).await,
            Route::Drain => self.drain(call.peer),
        })
    }

    fn status(&self) -> serde_json::Value {
        let (_, mut status) = self.scope.health.readiness(false);
        let shown = self.shown.load();
        view::describe(&self.scope, &mut status);
        status["replica_id"] = self.rules.load().replica_id.as_str().into();
        status["version"] = env!("CARGO_PKG_VERSION").into();
        status["uptime_sec"] = self.started.elapsed().as_secs().into();
        status["needs_restart"] = json!(shown.needs_restart);
        status
    }

    fn config(&self) -> Answer {
        let shown = self.shown.load();
        found(&json!({ "config": shown.config, "needs_restart": shown.needs_restart }))
    }

    async fn explain(&self, call: &mut Call) -> Answer {
        let body = Limited::new(call.request.body_mut(), MAX_BODY_BYTES).collect();
        let case = match timeout(BODY_DEADLINE, body).await {
            Ok(Ok(body)) => Case::parse(&body.to_bytes()),
            _ => Err(format!("a body of up to {MAX_BODY_BYTES} bytes is needed")),
        };
        match case {
            Ok(case) => found(&explain::explain(&self.scope, &case).await),
            Err(detail) => answer::explained(StatusCode::BAD_REQUEST, "bad_request", &detail),
        }
    }

    fn disconnect(&self, agent_id: &str, peer: SocketAddr) -> Answer {
        let mut sessions = self.scope.tunnels.directory().sessions();
        sessions.retain(|session| *session.agent_id == *agent_id);
        tracing::info!(
            event = "admin_action",
            action = "disconnect",
            agent_id = agent_id.get(..64).unwrap_or(agent_id),
            tunnels = sessions.len(),
            %peer,
            audit = true,
        );
        if sessions.is_empty() {
            let detail = "no agent of this id is connected to this hub";
            return answer::explained(StatusCode::NOT_FOUND, "unknown_agent", detail);
        }
        for session in &sessions {
            session.link().close(Reason::Operator);
        }
        found(&json!({ "agent_id": agent_id, "tunnels": sessions.len() }))
    }

    async fn reload(&self, peer: SocketAddr) -> Answer {
        tracing::info!(event = "admin_action", action = "reload", %peer, audit = true);
        match self.orders.reload().await {
            Ok(Ok(needs_restart)) => {
                found(&json!({ "result": "applied", "needs_restart": needs_restart }))
            }
            Ok(Err(problem)) => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                answer::explained(status, "config_rejected", &problem)
            }
            Err(not_taken) => not_taken.into_answer(),
        }
    }

    fn drain(&self, peer: SocketAddr) -> Answer {
        tracing::info!(event = "admin_action", action = "drain", %peer, audit = true);
        if self.scope.health.stage() != Stage::Draining
            && let Err(not_taken) = self.orders.drain()
        {
            return not_taken.into_answer();
        }
        let report = json!({
            "status": "draining",
            "flows": self.scope.router.count(),
            "agents": self.scope.tunnels.directory().agents(),
            "drain_timeout_sec": self.rules.load().drain_timeout.as_secs(),
        });
        answer::json(StatusCode::ACCEPTED, &report)
    }
}

fn found(report: &serde_json::Value) -> Answer {
    answer::json(StatusCode::OK, report)
}

impl Respond for Admin {
    async fn answer(&self, mut call: Call) -> Answer {
        if call.busy {
            return answer::unavailable("busy", 5);
        }
        self.serve(&mut call).await.unwrap_or_else(|refused| {
            if let Some(suppressed) = self.quiet.pass() {
                tracing::warn!(
                    event = "admin_refused",
                    reason = refused.code,
                    peer = %call.peer,
                    suppressed,
                    audit = true,
                );
            }
            refused.into_answer()
        })
    }

    fn metrics(&self) -> &Metrics {
        &self.scope.metrics
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}
