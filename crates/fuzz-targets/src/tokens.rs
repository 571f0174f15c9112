//! Tokens of agents, the keys that they are checked with, and decisions about them.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use nowconnect_hub::auth::jwt::{LEEWAY, MAX_TOKEN_BYTES, Unverified, is_agent_id};
use nowconnect_hub::auth::key::{KeySet, MAX_KEYS, MAX_KID_BYTES, allowed_algorithm};
use nowconnect_hub::auth::{Reason, Rules};
use nowconnect_hub::config::PdpFormat;
use nowconnect_hub::fuzzing;
use serde_json::Value;

/// One key; who had its private half has thrown it away.
const KEYS: &str = r#"{"keys":[{"use":"sig","alg":"ES256","kid":"key-1","kty":"EC","crv":"P-256",
    "x":"mdCFFqp6U_7KuUeysCc3YscSFBv0tBv0lvRRFEL3j6I",
    "y":"EOYnf5bg0pA3DNnRGwmf2G4zjMn-0wDDdd1dkUel6QA"}]}"#;
/// What that key signed: the seed of [`token`] that passes begins with it.
const SIGNED: &str = concat!(
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiIsImtpZCI6ImRpMmlTVVRyTEdQM2tJRHdsR1ZLa2l1OTdKbWlyRVp4",
    "eUpwWXRZcW0wWDQifQ.eyJpc3MiOiJodHRwczovL2lkcC5leGFtcGxlIiwiYXVkIjoibm93Y29ubmVjdCIsInN1Yi",
    "I6InNpdGUtMSIsImFnZW50X2lkIjoic2l0ZS0xIiwiY29ubmVjdG9ycyI6WyJsZGFwIiwicGciXSwiaWF0IjoxNz",
    "k1Mzg4ODcxLCJuYmYiOjE3OTUzODg4NzEsImV4cCI6MzUyMzM4ODg3MSwianRpIjoiNGNhODk2NzgtMGQwZC00ND",
    "NiLTk2NDgtZjRmMjBjZTFjZDA3In0."
);

static KEY_SET: LazyLock<KeySet> =
    LazyLock::new(|| KeySet::parse(KEYS.as_bytes()).expect("a key set").0);
static RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    audience: "nowconnect".into(),
    issuer: None,
});

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A JSON object that was taken, read as a tree; `None` where the tree's reader gives up on what the
/// first reading ignores: nesting and numbers beyond its bounds.
pub(crate) fn second_reading(json: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(json).expect("text");
    assert!(text.trim_start().starts_with('{'));
    serde_json::from_str(text).ok()
}

/// Any text as a token: its header is what a second reading finds, nothing passes that the key did not
/// sign, and no refusal shows it.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let parsed = match Unverified::parse(text) {
        Ok(parsed) => parsed,
        Err(refused) => return check_refusal(text, &refused.to_string()),
    };
    assert!(text.len() <= MAX_TOKEN_BYTES);
    let parts: Vec<&str> = text.split('.').collect();
    assert_eq!(parts.len(), 3);
    let header = URL_SAFE_NO_PAD.decode(parts[0]).expect("base64url");
    let Some(header) = second_reading(&header) else {
        return;
    };
    assert!(
        ["crit", "jku", "jwk", "x5u"]
            .iter()
            .all(|name| header.get(name).is_none())
    );
    assert_eq!(parsed.key_id(), header.get("kid").and_then(Value::as_str));
    let algorithm = header["alg"].as_str().expect("an algorithm");
    assert_eq!(format!("{:?}", parsed.algorithm()), algorithm);
    assert!(!algorithm.starts_with("HS") && !algorithm.eq_ignore_ascii_case("none"));
    // As if the token had named our key.
    let key = KEY_SET
        .find(Some("key-1"), parsed.algorithm())
        .expect("the key");
    match parsed.verify(key, &RULES, now()) {
        Ok(_) => assert!(text.starts_with(SIGNED)),
        Err(refused) if text.starts_with(SIGNED) => {
            assert_eq!(refused.reason, Reason::BadSignature)
        }
        Err(refused) => {
            assert!(matches!(
                refused.reason,
                Reason::BadSignature | Reason::AlgMismatch
            ));
            check_refusal(text, &refused.to_string());
        }
    }
}

/// No refusal is long, breaks a line or shows a token.
pub(crate) fn check_refusal(text: &str, shown: &str) {
    assert!(
        shown.len() < 400 && !shown.contains(char::is_control),
        "{shown:?}"
    );
    // Whole parts of a token, not chance words that it shares with the explanation.
    let parts = text.split('.').filter(|part| part.len() > 60);
    assert!(
        !parts.into_iter().any(|part| shown.contains(part)),
        "{shown}"
    );
}

/// Any JSON as the claims of a token that was signed well: whoever passes has every claim that he must
/// have, by a second reading.
pub fn claims(data: &[u8]) {
    let algorithm = allowed_algorithm("ES256").expect("an algorithm");
    let key = KEY_SET.find(Some("key-1"), algorithm).expect("the key");
    let identity = match fuzzing::claims(data, key, &RULES, now()) {
        Ok(identity) => identity,
        Err(refused) => return assert!(refused.to_string().len() < 2000),
    };
    let Some(claims) = second_reading(data) else {
        return;
    };
    assert!(is_agent_id(&identity.agent_id));
    assert_eq!(claims["agent_id"].as_str(), Some(&*identity.agent_id));
    let seconds = |name: &str| claims[name].as_f64();
    let at = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64()
    };
    let exp = seconds("exp").expect("a number");
    assert!(exp + LEEWAY.as_secs_f64() > at(now()) - 1.0);
    assert_eq!(exp.trunc(), at(identity.expires_at));
    match claims.get("nbf") {
        Some(_) => assert!(seconds("nbf").expect("a number") < at(now() + LEEWAY) + 1.0),
        None => assert!(seconds("nbf").is_none()),
    }
    let audience = match &claims["aud"] {
        Value::Array(list) => list.contains(&"nowconnect".into()),
        one => *one == "nowconnect",
    };
    assert!(audience && identity.audience.contains(&RULES.audience));
    let lists = ["connectors", "scp", "scope"];
    assert_eq!(
        identity.scopes.is_some(),
        lists.iter().any(|name| claims.get(name).is_some())
    );
    for name in identity.scopes.iter().flatten() {
        assert!(identity.grants(name));
    }
}

/// Any text as a key set: what is taken has keys within the bounds and no private ones, and the order
/// and spelling of the document change nothing.
pub fn keys(data: &[u8]) {
    let (set, skipped) = match KeySet::parse(data) {
        Ok(parsed) => parsed,
        Err(error) => return assert!(error.to_string().len() < 400),
    };
    let Some(value) = second_reading(data) else {
        return;
    };
    let members = value["keys"].as_array().expect("a list");
    assert!((1..=MAX_KEYS).contains(&set.count()));
    assert_eq!(set.count() + skipped.len(), members.len());
    assert!(
        skipped
            .iter()
            .all(|key| key.index < members.len() && key.why.len() < 400)
    );
    let kept = members.iter().enumerate();
    for (_, member) in kept.filter(|(at, _)| !skipped.iter().any(|key| key.index == *at)) {
        assert!(
            ["d", "p", "q", "k"]
                .iter()
                .all(|private| member.get(private).is_none())
        );
        let kid = member.get("kid").and_then(Value::as_str);
        assert!(kid.is_none_or(|kid| kid.len() <= MAX_KID_BYTES));
    }
    let again = KeySet::parse(value.to_string().as_bytes()).expect("the same document");
    assert_eq!((again.0.count(), again.1), (set.count(), skipped));
}

/// The first byte is the format and what the answer says it is, the rest the answer of a policy decision
/// point: who is allowed was allowed in so many words.
pub fn decision(data: &[u8]) {
    let Some((first, body)) = data.split_first() else {
        return;
    };
    let (format, key) = match first & 1 {
        0 => (PdpFormat::Authzen, "decision"),
        _ => (PdpFormat::Simple, "allow"),
    };
    let types = [
        "application/json; charset=utf-8",
        "application/x+json",
        "text/html",
    ];
    let said = types.get(usize::from(first >> 1));
    let headers = said.map(|value| (CONTENT_TYPE, HeaderValue::from_static(value)));
    let headers: HeaderMap = headers.into_iter().collect();
    match fuzzing::decision(format, &headers, body) {
        Ok((allowed, ttl)) => {
            assert_ne!(said, Some(&"text/html"));
            let Some(answer) = second_reading(body) else {
                return;
            };
            assert_eq!(answer[key], allowed);
            assert_eq!(
                ttl.map(|ttl| ttl.as_secs()),
                answer["ttl_sec"].as_u64().filter(|_| key == "allow")
            );
        }
        Err(error) => assert!(error.chars().count() < 300),
    }
}
