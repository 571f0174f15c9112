//! The two shapes of question and answer.

use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Question;
use crate::config::PdpFormat;
use crate::strict_json::object;

/// Characters of an error that are kept: it may quote the answer.
const MOST_SAID: usize = 200;

/// What the decision point says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) allowed: bool,
    /// For how long, where it says so.
    pub(crate) ttl: Option<Duration>,
}

/// The question of hub `hub` for tokens of `audience`.
pub(super) fn question(format: PdpFormat, hub: &str, audience: &str, asked: &Question) -> Value {
    let resource = json!({ "type": "connector", "id": &*asked.connector });
    match format {
        // Authorization API 1.0, section 6.1.
        PdpFormat::Authzen => {
            let mut context = json!({
                "replica_id": hub,
                "aud": audience,
                "listener": &*asked.listener,
                "origin_hub": asked.origin.as_deref().unwrap_or(hub),
            });
            if let Some(client) = asked.client {
                context["client_ip"] = client.to_string().into();
            }
            json!({
                "subject": { "type": "agent", "id": &*asked.agent_id },
                "action": { "name": "connect" },
                "resource": resource,
                "context": context,
            })
        }
        PdpFormat::Simple => json!({
            "subject": { "agent_id": &*asked.agent_id },
            "action": "connect",
            "resource": resource,
            "context": { "replica_id": hub, "aud": audience },
        }),
    }
}

/// Authorization API 1.0, section 6.2.
#[derive(Deserialize)]
struct Authzen {
    decision: bool,
    #[serde(default, rename = "context")]
    _context: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Simple {
    allow: bool,
    #[serde(default)]
    ttl_sec: Option<u64>,
}

/// Reads an answer, strictly: what is not exactly a decision is none.
pub(crate) fn answer(
    format: PdpFormat,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Answer, String> {
    check_type(headers)?;
    let answer = match format {
        PdpFormat::Authzen => object(body).map(|it: Authzen| Answer {
            allowed: it.decision,
            ttl: None,
        }),
        PdpFormat::Simple => object(body).map(|it: Simple| Answer {
            allowed: it.allow,
            ttl: it.ttl_sec.map(Duration::from_secs),
        }),
    };
    answer.map_err(|error| {
        let said: String = error.to_string().chars().take(MOST_SAID).collect();
        format!("not an answer of format {}: {said}", format.as_str())
    })
}

/// An answer that says what it is says that it is JSON.
fn check_type(headers: &HeaderMap) -> Result<(), String> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let said: String = essence.chars().take(MOST_SAID).collect();
    Err(format!("the answer is {said:?}, not application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Question {
        Question {
            agent_id: "site-1".into(),
            connector: "ldap".into(),
            client: Some("192.0.2.7".parse().expect("an address")),
            listener: "l1".into(),
            origin: None,
        }
    }

    #[test]
    fn questions_have_the_shape_of_their_format() {
        assert_eq!(
            question(PdpFormat::Authzen, "hub-a", "nowconnect", &asked()),
            json!({
                "subject": { "type": "agent", "id": "site-1" },
                "action": { "name": "connect" },
                "resource": { "type": "connector", "id": "ldap" },
                "context": {
                    "replica_id": "hub-a", "aud": "nowconnect", "listener": "l1",
                    "origin_hub": "hub-a", "client_ip": "192.0.2.7",
                },
            })
        );
        let crossing = Question {
            origin: Some("hub-b".into()),
            client: None,
            ..asked()
        };
        let told = question(PdpFormat::Authzen, "hub-a", "nowconnect", &crossing);
        assert_eq!(told["context"]["origin_hub"], "hub-b");
        assert_eq!(told["context"].get("client_ip"), None);
        assert_eq!(
            question(PdpFormat::Simple, "hub-a", "nowconnect", &asked()),
            json!({
                "subject": { "agent_id": "site-1" },
                "action": "connect",
                "resource": { "type": "connector", "id": "ldap" },
                "context": { "replica_id": "hub-a", "aud": "nowconnect" },
            })
        );
    }

    #[test]
    fn only_a_decision_is_one() {
        let read = |format, body: &str| answer(format, &HeaderMap::new(), body.as_bytes());
        let said = |allowed, ttl: Option<u64>| Answer {
            allowed,
            ttl: ttl.map(Duration::from_secs),
        };
        let authzen = |body| read(PdpFormat::Authzen, body);
        assert_eq!(authzen(r#"{"decision":true}"#), Ok(said(true, None)));
        let with_context = r#"{"decision":false,"context":{"reason":"no"},"more":1}"#;
        assert_eq!(authzen(with_context), Ok(said(false, None)));
        let simple = |body| read(PdpFormat::Simple, body);
        assert_eq!(
            simple(r#"{"allow":true,"ttl_sec":5}"#),
            Ok(said(true, Some(5)))
        );
        assert_eq!(simple(r#"{"allow":false}"#), Ok(said(false, None)));
        for body in [
            "",
            "null",
            "true",
            "[]",
            "{}",
            "{",
            "yes",
            r#"{"decision":"true"}"#,
            r#"{"decision":1}"#,
            r#"{"decision":null}"#,
            r#"{"decision":false,"decision":true}"#,
            r#"{"decision":true} {}"#,
            r#"{"decision":true,"context":7}"#,
            r#"{"Decision":true}"#,
            r#"{"allow":true}"#,
        ] {
            assert!(authzen(body).is_err(), "{body}");
        }
        for body in [
            r#"{"allow":"yes"}"#,
            r#"{"allow":1}"#,
            r#"{"allow":true,"ttl_sec":"5"}"#,
            r#"{"allow":true,"ttl_sec":-1}"#,
            r#"{"allow":false,"allow":true}"#,
            r#"{"decision":true}"#,
        ] {
            assert!(simple(body).is_err(), "{body}");
        }
        let long = format!(r#"{{"decision":"{}"}}"#, "x".repeat(5000));
        assert!(authzen(&long).expect_err("garbage").len() < 300);
    }

    #[test]
    fn an_answer_that_says_it_is_no_json_is_none() {
        let read = |kind: &'static str| {
            let value = http::HeaderValue::from_static(kind);
            let headers = [(CONTENT_TYPE, value)].into_iter().collect();
            answer(PdpFormat::Authzen, &headers, br#"{"decision":true}"#)
        };
        assert!(read("application/json").is_ok());
        assert!(read("Application/JSON; charset=utf-8").is_ok());
        assert!(read("application/authzen+json").is_ok());
        assert!(read("text/html").is_err());
        assert!(read("").is_err());
    }
}
