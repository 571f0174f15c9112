//! What would become of a client, step by step: the rules of a flow's opening, asked and not applied.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use nowconnect_settings::is_name;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Scope;
use crate::metrics::ListenerError;
use crate::pdp::{Pass, Question, Refused};
use crate::policy::{Admission, Count, Door, Standing};
use crate::router::Candidate;

/// Agents that the decision point is asked about at most.
const MOST_ASKED: usize = 16;

/// Whose way is to be explained.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    connector: String,
    client: IpAddr,
    #[serde(default)]
    listener: Option<String>,
    #[serde(default)]
    agent: Option<String>,
}

impl Case {
    /// Reads a request's body.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let case: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let names = [
            Some(&case.connector),
            case.listener.as_ref(),
            case.agent.as_ref(),
        ];
        match names.iter().flatten().all(|name| is_name(name)) {
            true => Ok(case),
            false => Err("names have 1 to 64 letters, digits, '.', '_' and '-'".into()),
        }
    }
}

/// The steps so far. After the first no, the rest is told but decides nothing.
#[derive(Default)]
struct Report {
    steps: Vec<Value>,
    reason: Option<&'static str>,
}

impl Report {
    fn step(&mut self, name: &str, no: Option<&'static str>, detail: String, more: Value) {
        let result = if no.is_some() { "no" } else { "ok" };
        self.push(name, result, detail, more);
        self.reason = self.reason.or(no);
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.push(name, "skipped", why.to_owned(), Value::Null);
    }

    fn push(&mut self, name: &str, result: &str, detail: String, more: Value) {
        self.steps
            .push(json!({ "step": name, "result": result, "detail": detail, "more": more }));
    }

    fn finish(self, case: &Case, chosen: Option<&Candidate>) -> Value {
        let denied = self.reason.is_some();
        json!({
            "connector": case.connector,
            "client": case.client.to_canonical(),
            "verdict": if denied { "denied" } else { "allowed" },
            "reason": self.reason,
            "agent_id": chosen.map(|one| &*one.agent_id),
            "hub": chosen.and_then(|one| one.hub.as_deref()),
            "steps": self.steps,
        })
    }
}

/// Explains; asks the decision point, and changes nothing.
pub(super) async fn explain(scope: &Scope, case: &Case) -> Value {
    let mut report = Report::default();
    let Some(door) = listener(scope, case, &mut report) else {
        return report.finish(case, None);
    };
    let standing = scope.policy.standing(case.client, &door);
    networks(&standing, &door, &mut report);
    limits(&standing, &door, &mut report);
    let candidates = agents(scope, case, &mut report);
    scopes(scope, case, &mut report);
    let chosen = decide(scope, case, &door, &candidates, &mut report).await;
    let chosen = chosen.filter(|_| report.reason.is_none());
    report.finish(case, chosen)
}

/// The listener that was named, or else the first that would let the client in.
fn listener(scope: &Scope, case: &Case, report: &mut Report) -> Option<Arc<Door>> {
    let all: Vec<_> = scope
        .listeners
        .lock()
        .iter()
        .map(|one| (one.door(), one.address()))
        .collect();
    let leads = |door: &Door| *door.connector == *case.connector;
    let found = match &case.listener {
        Some(name) => all.iter().find(|(door, _)| *door.name == **name),
        None => {
            let admits = |door: &Door| scope.policy.allows(case.client, door);
            let admitted = all.iter().find(|(door, _)| leads(door) && admits(door));
            admitted.or_else(|| all.iter().find(|(door, _)| leads(door)))
        }
    };
    let others: Vec<_> = all
        .iter()
        .filter(|(door, _)| leads(door))
        .map(|(door, _)| &*door.name)
        .collect();
    let more = json!({ "listeners_of_connector": others });
    let Some((door, address)) = found else {
        let detail = match &case.listener {
            Some(name) => format!("there is no listener {name}"),
            None => format!("no listener leads to {}", case.connector),
        };
        report.step("listener", Some("no_listener"), detail, more);
        return None;
    };
    let detail = format!("{} on {address} leads to {}", door.name, door.connector);
    let wrong = (!leads(door)).then_some("other_connector");
    report.step("listener", wrong, detail, more);
    wrong.is_none().then(|| door.clone())
}

fn networks(standing: &Standing, door: &Door, report: &mut Report) {
    let own = format!("allow_cidrs of {}", door.name);
    let lists = [
        ("security.allow_cidrs", standing.hub),
        (&own, standing.listener),
    ];
    let told = lists.map(|(key, admission)| match admission {
        Admission::Everyone => format!("{key} is empty"),
        Admission::Within(network) => format!("{network} of {key}"),
        Admission::Nowhere => format!("in no network of {key}"),
    });
    let blocked = lists
        .iter()
        .any(|(_, admission)| *admission == Admission::Nowhere);
    let shown = |admission| match admission {
        Admission::Within(network) => json!(network.to_string()),
        Admission::Everyone => json!("everyone"),
        Admission::Nowhere => Value::Null,
    };
    let more = json!({ "hub": shown(standing.hub), "listener": shown(standing.listener) });
    let no = blocked.then(|| ListenerError::CidrBlocked.as_str());
    report.step("networks", no, told.join("; "), more);
}

fn limits(standing: &Standing, door: &Door, report: &mut Report) {
    let own = format!("max_conn of {}", door.name);
    let counts = [
        (
            "limits.max_conn_total",
            standing.total,
            ListenerError::MaxConnTotal,
        ),
        (&own, standing.door, ListenerError::MaxConnListener),
        (
            "limits.max_conn_per_client",
            standing.client,
            ListenerError::MaxConnClient,
        ),
    ];
    let of = |count: Count| match count.limit {
        Some(limit) => format!("{} of {limit}", count.held),
        None => format!("{}, no limit", count.held),
    };
    let told: Vec<_> = counts
        .iter()
        .map(|(key, count, _)| format!("{key}: {}", of(*count)))
        .collect();
    let full = counts.iter().find(|(_, count, _)| !count.has_room());
    let shown = |count: Count| json!({ "held": count.held, "limit": count.limit });
    let more = json!({
        "total": shown(standing.total),
        "listener": shown(standing.door),
        "client": shown(standing.client),
    });
    report.step(
        "limits",
        full.map(|(_, _, why)| why.as_str()),
        told.join("; "),
        more,
    );
}

/// Who could serve the connector, the first choice first.
fn agents(scope: &Scope, case: &Case, report: &mut Report) -> Vec<Candidate> {
    let mut all = scope.router.candidates(&case.connector);
    if let Some(agent) = &case.agent {
        all.retain(|one| *one.agent_id == **agent);
    }
    let able = all.iter().filter(|one| one.obstacle.is_none()).count();
    let local = all
        .iter()
        .any(|one| one.hub.is_none() && one.obstacle.is_none());
    let shown = all.iter().enumerate().map(|(at, one)| {
        let why_not = match &one.obstacle {
            Some(obstacle) => Some(obstacle.clone()),
            None if one.ailing => {
                Some("probes find its target down: it comes after all others".into())
            }
            None if at == 0 => None,
            None if local && one.hub.is_some() => Some("an agent of this hub comes first".into()),
            None => Some("another has no more flows".into()),
        };
        json!({
            "agent_id": &*one.agent_id,
            "hub": one.hub.as_deref(),
            "epoch": one.epoch,
            "flows": one.flows,
            "target_down": one.ailing,
            "why_not": why_not,
        })
    });
    let shown: Vec<_> = shown.collect();
    let whose = case.agent.as_deref().unwrap_or("any agent");
    let (connector, all_of) = (&case.connector, all.len());
    let detail =
        format!("ways to {whose} that exports {connector}: {able} of {all_of} can be used");
    let no = (able == 0).then(|| ListenerError::NoAgent.as_str());
    report.step("agents", no, detail, json!(shown));
    all.retain(|one| one.obstacle.is_none());
    all
}

/// Who offers the connector, but was not granted it by its token.
fn scopes(scope: &Scope, case: &Case, report: &mut Report) {
    let sessions = scope.tunnels.directory().sessions();
    let kept_out = sessions.iter().filter(|session| {
        session.offers(&case.connector) && !session.exports().contains(&case.connector)
    });
    let kept_out: BTreeSet<_> = kept_out.map(|session| &*session.agent_id).collect();
    let required = scope.tunnels.gate().requires_scopes();
    let detail = match (required, kept_out.len()) {
        (false, _) => "security.require_connector_scopes is off".to_owned(),
        (true, 0) => "required, and every agent here that offers it has it granted".to_owned(),
        (true, count) => format!("{count} agents here offer it without their token granting it"),
    };
    let more = json!({ "required": required, "not_granted": kept_out });
    report.step("scopes", None, detail, more);
}

/// Asks about the candidates one after the other, as for a client.
async fn decide<'a>(
    scope: &Scope,
    case: &Case,
    door: &Door,
    candidates: &'a [Candidate],
    report: &mut Report,
) -> Option<&'a Candidate> {
    if report.reason.is_some() {
        report.skip("pdp", "nobody would be asked");
        return None;
    }
    let no = ListenerError::PdpDenied.as_str();
    let mut asked = Vec::new();
    for candidate in candidates {
        let repeated = asked
            .iter()
            .any(|told: &Value| told["agent_id"] == *candidate.agent_id);
        if repeated || asked.len() == MOST_ASKED {
            continue;
        }
        let question = Question {
            agent_id: candidate.agent_id.clone(),
            connector: door.connector.clone(),
            client: Some(case.client.to_canonical()),
            listener: door.name.clone(),
            origin: None,
        };
        let (decision, mut told) = scope.pdp.explain(&question).await;
        if decision == Ok(Pass::Unasked) {
            report.step("pdp", None, "pdp.url is not set".into(), Value::Null);
            return Some(candidate);
        }
        told["agent_id"] = (*candidate.agent_id).into();
        asked.push(told);
        match decision {
            Ok(pass) => {
                report.step("pdp", None, grounds(pass, candidate), json!(asked));
                return Some(candidate);
            }
            Err(Refused::Denied) => {}
            Err(Refused::Failed) => {
                let detail = "no answer, and pdp.fail_open is not set".to_owned();
                report.step("pdp", Some(no), detail, json!(asked));
                return None;
            }
        }
    }
    let denied: Vec<_> = asked
        .iter()
        .filter_map(|told| told["agent_id"].as_str())
        .collect();
    let detail = format!("denied: {}", denied.join(", "));
    report.step("pdp", Some(no), detail, json!(asked));
    None
}

/// Why a client may go to this agent.
fn grounds(pass: Pass, candidate: &Candidate) -> String {
    let agent = &candidate.agent_id;
    let mut grounds = match pass {
        Pass::Cached => format!("an allow for {agent} is remembered"),
        Pass::FailedOpen => "no answer, and pdp.fail_open is set".to_owned(),
        _ => format!("{agent} is allowed"),
    };
    if let Some(hub) = &candidate.hub {
        grounds += &format!("; {hub} decides by its own configuration as well");
    }
    grounds
}
