//! Any hub answers for all of them: it asks the others over the mesh.
//!
//! A question is a request to the admin API of the other hub about itself alone, so that a hub never
//! passes a question on. Whoever does not answer in time is named in the answer, with the reason.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Admin;
use super::problem::Problem;
use super::query::{Query, Scope};
use super::route::Route;
use crate::mesh::{MAX_ANSWER, PeerStatus, Question, Unanswered};

/// How long another hub may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that are kept of who asked another hub: an address.
const MAX_BY: usize = 64;

/// The body of QUERY.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    /// `GET` or `POST`.
    method: String,
    /// Path and query, without `/api/v1/`.
    path: String,
    /// Who asks the other hub: an address.
    by: String,
}

/// The body of ANSWER.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Told {
    Found {
        found: Value,
    },
    Refused {
        status: u16,
        error: String,
        detail: String,
    },
}

/// What one hub told, or why it did not.
#[derive(Debug)]
pub(super) struct Part {
    /// Its replica id, once it is known.
    pub(super) hub: Option<String>,
    /// How it is called in labels; `None` for this hub.
    peer: Option<String>,
    took: Duration,
    pub(super) told: Result<Value, Missing>,
}

/// Why a hub told nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) reason: String,
    pub(super) detail: String,
}

impl Missing {
    fn new(reason: &str, detail: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            detail: detail.into(),
        }
    }
}

impl From<Unanswered> for Missing {
    fn from(unanswered: Unanswered) -> Self {
        Self::new(unanswered.code(), unanswered.to_string())
    }
}

impl Part {
    pub(super) fn found(&self) -> Option<&Value> {
        self.told.as_ref().ok()
    }

    /// What is said about the hub itself in an answer.
    fn head(&self) -> Map<String, Value> {
        let missing = self.told.as_ref().err();
        let head = json!({
            "hub": self.hub,
            "peer": self.peer,
            "answered": missing.is_none(),
            "reason": missing.map(|missing| &missing.reason),
            "detail": missing.map(|missing| &missing.detail),
            "took_ms": super::millis::ms(Some(self.took)),
        });
        match head {
            Value::Object(head) => head,
            _ => Map::new(),
        }
    }

    /// The same with everything that the hub told.
    pub(super) fn whole(&self) -> Value {
        let mut shown = self.head();
        if let Some(Value::Object(told)) = self.found() {
            let news = told.iter().filter(|(key, _)| !shown.contains_key(*key));
            let news: Vec<_> = news
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            shown.extend(news);
        }
        Value::Object(shown)
    }

    /// The same with those `keys` of what the hub told.
    pub(super) fn with(&self, keys: &[&str]) -> Value {
        let mut shown = self.head();
        for key in keys {
            let value = self.found().and_then(|told| told.get(*key));
            shown.insert((*key).to_owned(), value.cloned().unwrap_or_default());
        }
        Value::Object(shown)
    }
}

impl Admin {
    /// What this hub and, unless the query is about this one alone, all others say to a request.
    ///
    /// # Errors
    /// This hub does not understand it.
    pub(super) async fn ask_all(
        &self,
        method: &Method,
        route: Route<'_>,
        path: &str,
        query: &Query,
        by: &str,
    ) -> Result<Vec<Part>, Problem> {
        let here = self.rules.load().replica_id.clone();
        let is_wanted = |hub: &str| match route {
            Route::Disconnect(_) | Route::Move(_) => query.wants("hub", Some(hub)),
            _ => true,
        };
        let mut parts = Vec::new();
        if is_wanted(&here) {
            let begun = Instant::now();
            let told = self.part(route, query, by, None)?;
            parts.push(Part {
                hub: Some(here),
                peer: None,
                took: begun.elapsed(),
                told: Ok(told),
            });
        }
        if query.scope() == Scope::Hub {
            return Ok(parts);
        }
        let asked = Asked {
            method: method.to_string(),
            path: format!(
                "{}?{}",
                path.trim_start_matches("/api/v1/"),
                query.for_a_peer()
            ),
            by: by.to_owned(),
        };
        let asked = Bytes::from(serde_json::to_vec(&asked).unwrap_or_default());
        let peers = self.scope.mesh.hubs();
        let peers = peers.iter().filter(|peer| {
            let unknown = peer.hub.is_none() && query.get("hub").is_none();
            unknown || peer.hub.as_deref().is_some_and(is_wanted)
        });
        let asking = peers.map(|peer| self.ask(peer, &asked));
        let mut others = join_all(asking).await;
        others.sort_by(|a, b| (&a.hub, &a.peer).cmp(&(&b.hub, &b.peer)));
        parts.extend(others);
        Ok(parts)
    }

    async fn ask(&self, peer: &PeerStatus, asked: &Bytes) -> Part {
        let begun = Instant::now();
        let told = match &peer.hub {
            Some(hub) => match self.scope.mesh.ask(hub, asked.clone(), PATIENCE).await {
                Ok(answer) => read(&answer),
                Err(Unanswered::LinkDown) => Err(down(peer)),
                Err(unanswered) => Err(unanswered.into()),
            },
            None => Err(down(peer)),
        };
        Part {
            hub: peer.hub.as_deref().map(str::to_owned),
            peer: Some(peer.peer.to_string()),
            took: begun.elapsed(),
            told,
        }
    }

    /// Answers another hub about this one.
    pub(crate) fn answer_peer(&self, question: Question) {
        let told = match question.is_too_many {
            true => Told::from(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "too many questions wait for answers",
            )),
            false => self.tell(&question.hub, &question.body),
        };
        let mut answer = serde_json::to_vec(&told).unwrap_or_default();
        if answer.len() > MAX_ANSWER {
            let detail =
                "its answer is too long: ask for less with a smaller limit, or the hub itself";
            let told = Told::from(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_long",
                detail,
            ));
            answer = serde_json::to_vec(&told).unwrap_or_default();
        }
        question.answer(answer.into());
    }

    fn tell(&self, hub: &str, body: &[u8]) -> Told {
        let refuse = |code, detail| Told::from(Problem::new(StatusCode::BAD_REQUEST, code, detail));
        let Ok(asked) = serde_json::from_slice::<Asked>(body) else {
            return refuse("bad_question", "the question is not of the known form");
        };
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let path = format!("/api/v1/{path}");
        let route = Route::parse(&path).filter(|route| route.is_of_cluster());
        let Some(route) = route else {
            let detail = "this is not answered to other hubs; ask the hub itself";
            return refuse("not_through_a_peer", detail);
        };
        let method = Method::from_bytes(asked.method.as_bytes());
        if !method.is_ok_and(|method| route.takes(&method)) {
            return refuse("method_not_allowed", "the path takes another method");
        }
        let query = match Query::parse(query, route) {
            Ok(query) => query,
            Err(detail) => return refuse("bad_query", &detail),
        };
        let by = &asked.by[..asked.by.floor_char_boundary(MAX_BY)];
        match self.part(route, &query, by, Some(hub)) {
            Ok(found) => Told::Found { found },
            Err(problem) => Told::from(problem),
        }
    }
}

impl From<Problem> for Told {
    fn from(problem: Problem) -> Self {
        Self::Refused {
            status: problem.status.as_u16(),
            error: problem.code.to_owned(),
            detail: problem.detail,
        }
    }
}

pub(super) fn read(answer: &[u8]) -> Result<Value, Missing> {
    match serde_json::from_slice(answer) {
        Ok(Told::Found { found }) => Ok(found),
        Ok(Told::Refused { error, detail, .. }) => Err(Missing::new(&error, detail)),
        Err(_) => Err(Missing::new(
            "bad_answer",
            "its answer is not of the known form",
        )),
    }
}

fn down(peer: &PeerStatus) -> Missing {
    let why = peer.last_error.as_deref().unwrap_or("not connected yet");
    Missing::new(
        Unanswered::LinkDown.code(),
        format!("there is no link with it: {why}"),
    )
}

impl Part {
    /// A hub that told something, for tests and the fuzzer.
    pub(super) fn of(hub: &str, told: Value) -> Self {
        Self {
            hub: Some(hub.to_owned()),
            peer: None,
            took: Duration::ZERO,
            told: Ok(told),
        }
    }

    /// One that did not answer.
    #[cfg(test)]
    pub(super) fn missing(hub: &str, reason: &str) -> Self {
        Self {
            told: Err(Missing::new(reason, "")),
            ..Self::of(hub, Value::Null)
        }
    }
}
