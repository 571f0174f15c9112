//! What hubs have told, each about itself, as one answer to an operator.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::agent_orders::Wish;
use super::cluster::Part;
use super::problem::Problem;
use super::query::Query;
use super::route::Route;
use super::{Admin, history, merge, path};
use crate::server::{Answer, answer};

impl Admin {
    /// What all hubs that are asked say, as one answer.
    pub(super) async fn report(
        &self,
        route: Route<'_>,
        path: &str,
        query: &Query,
        by: &str,
    ) -> Result<Answer, Problem> {
        let method = match route.takes(&Method::GET) {
            true => Method::GET,
            false => Method::POST,
        };
        let parts = self.ask_all(&method, route, path, query, by).await?;
        let merged = match route {
            Route::Status => merge::status(&parts, self.known_agents()),
            Route::Agents => merge::agents(&parts, query),
            Route::Flows => merge::flows(&parts, query),
            Route::Flow(_) => merge::flow(&parts),
            Route::Connectors => merge::connectors(&parts),
            Route::Path(connector) => {
                let mut merged = path::paths(&parts, &self.rules.load().replica_id, query);
                merged["connector"] = connector.into();
                merged
            }
            Route::Events => merge::events(&parts, query),
            Route::History => {
                let found: Vec<_> = parts.iter().filter_map(Part::found).collect();
                json!({ "period_sec": history::PERIOD_SEC, "samples": history::merge(&found) })
            }
            Route::Disconnect(agent_id) => followed(Wish::Disconnect, agent_id, &parts),
            Route::Move(agent_id) => followed(Wish::Move, agent_id, &parts),
            _ => json!({}),
        };
        let hubs = parts.iter().map(|part| match route {
            Route::Status | Route::Mesh | Route::History => part.whole(),
            Route::Agents | Route::Flows => part.with(&["total"]),
            Route::Connectors => part.with(&["is_cut"]),
            Route::Disconnect(_) | Route::Move(_) => part.with(&["tunnels", "untold"]),
            Route::Path(_) => part.with(&["mode", "status", "tunnels_total", "routes_total"]),
            _ => part.with(&[]),
        });
        let here = self.rules.load().replica_id.clone();
        let mut report = merge::envelope(&here, query, hubs.collect());
        if let (Some(report), Value::Object(merged)) = (report.as_object_mut(), merged) {
            report.extend(merged);
        }
        let status = verdict(route, &report);
        if let Some((code, detail)) = missing(route, status) {
            report["error"] = code.into();
            report["detail"] = detail.into();
        }
        Ok(answer::json(status, &report))
    }
}

fn followed(wish: Wish, agent_id: &str, parts: &[Part]) -> Value {
    json!({
        "agent_id": agent_id,
        "action": wish.as_str(),
        "tunnels": merge::sum(parts, "/tunnels"),
        "untold": merge::sum(parts, "/untold"),
    })
}

/// Something that was looked for by its name and is nowhere is not found, unless a hub that may have
/// it did not answer.
fn verdict(route: Route<'_>, report: &Value) -> StatusCode {
    let is_there = match route {
        Route::Flow(_) => report["flow"].is_object() || report["passing"].is_object(),
        Route::Disconnect(_) | Route::Move(_) => report["tunnels"] != 0 || report["untold"] != 0,
        _ => true,
    };
    let all_answered = merge::list(&report["hubs"])
        .iter()
        .all(|hub| hub["answered"] == true);
    match (is_there, all_answered) {
        (true, _) => StatusCode::OK,
        (false, true) => StatusCode::NOT_FOUND,
        (false, false) => StatusCode::GATEWAY_TIMEOUT,
    }
}

fn missing(route: Route<'_>, status: StatusCode) -> Option<(&'static str, &'static str)> {
    Some(match (status, route) {
        (StatusCode::OK, _) => return None,
        (StatusCode::GATEWAY_TIMEOUT, _) => (
            "not_all_answered",
            "no hub that answered has it, and not all did: see `hubs`",
        ),
        (_, Route::Flow(_)) => ("unknown_flow", "no flow of this name is open"),
        _ => ("unknown_agent", "no agent of this id is connected"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hub_tells_overflows_nothing() {
        let parts = [
            Part::of("hub-a", json!({ "tunnels": 1, "untold": 0 })),
            Part::of("hub-b", json!({ "tunnels": u64::MAX, "untold": -1 })),
            Part::of("hub-c", json!("tunnels")),
        ];
        let report = followed(Wish::Move, "site-1", &parts);
        assert_eq!(report["tunnels"], u64::MAX);
        assert_eq!(report["untold"], 0);
    }
}
