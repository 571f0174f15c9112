//! The admin API: shows what the hub does to those who run it, and does what they ask.
//!
//! It has a port of its own, on loopback unless configured otherwise. No browser has business here but
//! with the hub's own [`page`]: see [`access`]. Reading is GET, acting is POST, and every action is an
//! audit record.

mod access;
mod agent_orders;
mod attempts;
mod cluster;
mod explain;
mod flow_view;
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod merge;
mod mesh_view;
mod millis;
mod orders;
mod page;
mod path;
mod problem;
mod query;
mod recent;
mod report;
mod route;
mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http_body_util::{BodyExt as _, Limited};
use nowconnect_link::quiet::Quiet;
use nowconnect_proto::Cid;
use nowconnect_settings::Effective;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::config::HubConfig;
use crate::forward::Forward;
use crate::listener::Listener;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::pdp::Pdp;
use crate::policy::Policy;
use crate::probes::Probes;
use crate::registry::Registry;
use crate::router::Router;
use crate::server::{Answer, Call, Health, Respond, Stage, answer};
use crate::tunnels::Tunnels;

pub use access::{Token, TokenError};
pub use orders::{Order, Orders, Reloaded};
pub use recent::{KINDS, Recent};

use access::Refused;
use agent_orders::{Operator, Wish};
use attempts::Attempts;
use explain::Case;
use history::History;
use problem::Problem;
use query::Query;
use route::Route;

/// Between two samples of the history.
pub const SAMPLE_PERIOD: Duration = Duration::from_secs(history::PERIOD_SEC);

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
    /// Whether targets are well.
    pub probes: Arc<Probes>,
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
    recent: ArcSwap<Recent>,
    history: History,
    orders: orders::Sender,
    /// Whether the port speaks TLS.
    tls: bool,
    started: Instant,
    attempts: Attempts,
    quiet: Mutex<HashMap<&'static str, Quiet>>,
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
            recent: ArcSwap::default(),
            history: History::default(),
            orders: sender,
            tls,
            started: Instant::now(),
            attempts: Attempts::default(),
            quiet: Mutex::default(),
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

    /// Shows the events that are kept in `recent` from now on.
    pub fn show_events(&self, recent: Arc<Recent>) {
        self.recent.store(recent);
    }

    /// Takes a sample for the history; to be called every [`SAMPLE_PERIOD`].
    pub fn sample(&self) {
        self.history.sample(&self.scope);
    }

    /// The keys in which `effective` differs from what is shown.
    pub fn differences(&self, effective: &Effective) -> Vec<String> {
        let shown = self.shown.load();
        let shown = shown.config.as_ref();
        shown.map_or_else(Vec::new, |shown| shown.differences(effective))
    }

    /// Whether its port speaks TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Refuses who may not ask; answers with a file of the page, for which nobody needs the token.
    fn admit(&self, call: &Call) -> Result<Option<Answer>, Refused> {
        access::check_origin(&call.request, self.tls)?;
        let rules = self.rules.load();
        let file = page::file(&call.request, rules.token.is_some());
        if let (None, Some(token)) = (&file, &rules.token) {
            self.check_token(call, token)?;
        }
        Ok(file)
    }

    async fn serve(&self, call: &mut Call) -> Result<Answer, Refused> {
        let request = &call.request;
        if let Some(file) = self.admit(call)? {
            return Ok(file);
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
        let query = match Query::parse(request.uri().query().unwrap_or_default(), route) {
            Ok(query) => query,
            Err(detail) => return Ok(Problem::bad_query(&detail).into_answer()),
        };
        Ok(match route {
            Route::Config => self.config(),
            Route::Explain => self.explain(call).await,
            Route::OpenApi => answer::body(StatusCode::OK, "application/json", OPENAPI),
            Route::Reload => self.reload().await,
            Route::Drain => self.drain(),
            _ => self
                .report(route, &path, &query, &call.peer.to_string())
                .await
                .unwrap_or_else(Problem::into_answer),
        })
    }

    /// What this hub says to a request that is about itself alone. `asker` is the hub that passed it
    /// on.
    fn part(
        &self,
        route: Route<'_>,
        query: &Query,
        by: &str,
        asker: Option<&str>,
    ) -> Result<Value, Problem> {
        let rules = self.rules.load();
        let (scope, here) = (&self.scope, rules.replica_id.as_str());
        let operator = Operator { by, via: asker };
        Ok(match route {
            Route::Status => self.status(),
            Route::Agents => view::agents(scope, query),
            Route::Flows => flow_view::flows(scope, here, query)
                .map_err(|detail| Problem::bad_query(&detail))?,
            Route::Flow(cid) => {
                let cid = cid.parse::<Cid>();
                let cid = cid.map_err(|_| Problem::bad_query("a flow is named by a UUID"))?;
                flow_view::one(scope, here, cid)
            }
            Route::Mesh => {
                let mut shown = mesh_view::describe(scope);
                // Hubs know the same routes: each asks the registry.
                if let (Some(_), Some(shown)) = (asker, shown.as_object_mut()) {
                    shown.remove("routes");
                }
                shown
            }
            Route::Connectors => view::connectors(scope),
            Route::Path(connector) => path::part(scope, connector),
            Route::Events => {
                let recent = self.recent.load();
                json!({ "events": recent.since(query.since(), query.limit(), here) })
            }
            Route::History => json!({ "samples": self.history.since(query.since()) }),
            Route::Disconnect(agent_id) => self.follow(Wish::Disconnect, agent_id, operator),
            Route::Move(agent_id) => self.follow(Wish::Move, agent_id, operator),
            Route::Config | Route::Explain | Route::OpenApi | Route::Reload | Route::Drain => {
                json!({})
            }
        })
    }

    /// Refuses who does not show the token, and who has shown too many others.
    fn check_token(&self, call: &Call, token: &Token) -> Result<(), Refused> {
        let (headers, address) = (call.request.headers(), call.peer.ip());
        if !headers.contains_key(AUTHORIZATION) {
            return Err(Refused::TOKEN);
        }
        if self.attempts.are_used_up(address) {
            return Err(Refused::ATTEMPTS);
        }
        access::check_token(&call.request, token).inspect_err(|_| self.attempts.count(address))
    }

    /// Records what was asked and what became of it, unless somebody only looked.
    fn record(&self, call: &Call, outcome: &Result<Answer, Refused>) {
        let route = Route::parse(call.request.uri().path());
        let action = route.map_or("none", Route::name);
        let agent_id = route.and_then(Route::agent_id);
        match outcome {
            Ok(answer) if route.is_some_and(Route::acts) => tracing::info!(
                event = "admin_action",
                action,
                agent_id,
                peer = %call.peer,
                by = if self.rules.load().token.is_some() { "token" } else { "loopback" },
                status = answer.status().as_u16(),
                result = if answer.status().is_success() { "done" } else { "refused" },
                audit = true,
            ),
            Ok(_) => {}
            Err(refused) => {
                let pass = self.quiet.lock().entry(refused.code).or_default().pass();
                if let Some(suppressed) = pass {
                    tracing::warn!(
                        event = "admin_refused",
                        action,
                        agent_id,
                        peer = %call.peer,
                        reason = refused.code,
                        suppressed,
                        audit = true,
                    );
                }
            }
        }
    }

    fn status(&self) -> Value {
        let (_, mut status) = self.scope.health.readiness(false);
        let shown = self.shown.load();
        view::describe(&self.scope, &mut status);
        status["version"] = env!("CARGO_PKG_VERSION").into();
        status["uptime_sec"] = self.started.elapsed().as_secs().into();
        status["needs_restart"] = json!(shown.needs_restart);
        status
    }

    /// Different agents with tunnels here or, as far as is known here, at other hubs.
    fn known_agents(&self) -> usize {
        let routes = self.scope.registry.routes().all();
        let mut agents: Vec<_> = routes.iter().map(|route| route.agent_id.clone()).collect();
        let sessions = self.scope.tunnels.directory().sessions();
        agents.extend(sessions.iter().map(|session| session.agent_id.clone()));
        agents.sort_unstable();
        agents.dedup();
        agents.len()
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

    async fn reload(&self) -> Answer {
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

    fn drain(&self) -> Answer {
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

fn found(report: &Value) -> Answer {
    answer::json(StatusCode::OK, report)
}

impl Respond for Admin {
    async fn answer(&self, mut call: Call) -> Answer {
        if call.busy {
            return answer::unavailable("busy", 5);
        }
        let outcome = self.serve(&mut call).await;
        self.record(&call, &outcome);
        outcome.unwrap_or_else(Refused::into_answer)
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
