//! What a token says. Nobody has checked its signature: the hub does that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nowconnect_agent::config::AgentConfig;
use nowconnect_hub::auth::jwt;
use nowconnect_hub::auth::key::allowed_algorithm;
use serde_json::Value;

use super::report::Report;

/// A token that ends sooner is about to be missed.
const SOON: i64 = 600;
/// What hubs allow tokens, in seconds.
pub(super) const LEEWAY: i64 = jwt::LEEWAY.as_secs() as i64;

/// Compares a token with the configuration.
pub(super) fn examine(
    token: &str,
    thumbprint: Option<&str>,
    config: &AgentConfig,
    report: &mut Report,
) {
    const AREA: &str = "token";
    let file = config.tunnel.token_file.display();
    let Some(claims) = claims(token) else {
        let next = "put the JWT of this agent there, header.payload.signature on one line";
        return report.fault(AREA, format!("{file} holds no JWT"), next);
    };
    let id = &config.tunnel.agent_id;
    match claims["agent_id"].as_str() {
        Some(named) if named == id => report.ok(AREA, format!("{file}: agent_id {named}")),
        Some(named) => report.fault(
            AREA,
            format!("it is for agent_id {named}, this agent is {id}"),
            "use the token of this agent, or correct tunnel.agent_id (NC_AGENT_ID)",
        ),
        None => report.fault(
            AREA,
            "it has no claim agent_id",
            "have the identity provider put the claim agent_id into it",
        ),
    }
    header(token, report);
    times(&claims, report);
    scopes(&claims, config, report);
    match (claims["cnf"]["jkt"].as_str(), thumbprint) {
        (Some(bound), Some(own)) if bound == own => report.ok("dpop", "the token is for our key"),
        (Some(bound), Some(own)) => report.fault(
            "dpop",
            format!("the token is for the key {bound}, ours is {own}"),
            "have a token issued for the key in tunnel.auth.dpop_key_file",
        ),
        (Some(_), None) => report.fault(
            "dpop",
            "the token can only be used with its key, and there is none",
            "set tunnel.auth.dpop_key_file (NC_DPOP_KEY_FILE)",
        ),
        (None, Some(_)) => report.warning(
            "dpop",
            "there is a proof key, but the token is not bound to it (no claim cnf.jkt)",
            "a hub with security.fapi_mode 2 refuses it: have a bound token issued",
        ),
        (None, None) => {}
    }
}

fn claims(token: &str) -> Option<Value> {
    let (Some(_), Some(payload), Some(_), None) = parts(token) else {
        return None;
    };
    object(payload)
}

fn parts(token: &str) -> (Option<&str>, Option<&str>, Option<&str>, Option<&str>) {
    let mut parts = token.split('.');
    (parts.next(), parts.next(), parts.next(), parts.next())
}

fn object(part: &str) -> Option<Value> {
    let json = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok().filter(Value::is_object)
}

/// How it is signed, which the hub's keys must go with.
fn header(token: &str, report: &mut Report) {
    const AREA: &str = "token";
    let header = parts(token).0.and_then(object).unwrap_or_default();
    let algorithm = header["alg"].as_str().unwrap_or("nothing");
    let by = match header["kid"].as_str() {
        Some(kid) => format!("by the key {kid:?}"),
        None => "by a key without a name (no kid)".to_owned(),
    };
    let fact = format!("it is signed with {algorithm}, {by}");
    match allowed_algorithm(algorithm) {
        Some(_) => report.ok(AREA, fact),
        None => report.fault(
            AREA,
            fact,
            "have it signed with RS*, PS*, ES256, ES384 or EdDSA: hubs take nothing else",
        ),
    }
}

/// What the hub, whose clock says `there`, makes of its times, where that differs from what this machine
/// makes of them.
pub(super) fn at_the_hub(token: &str, there: i64, report: &mut Report) {
    const AREA: &str = "clock";
    const NEXT: &str = "set this machine's clock (NTP); if it is right, that of the hub or of the identity provider";
    let Some(claims) = claims(token) else { return };
    let seconds = |name: &str| claims[name].as_f64().map(|seconds| seconds as i64);
    let here = now();
    if let Some(exp) = seconds("exp") {
        let over = |clock: i64| clock.saturating_sub(exp) > LEEWAY;
        let ago = span(there.saturating_sub(exp));
        match (over(here), over(there)) {
            (false, true) => {
                let fact = format!("by the hub's clock the token expired {ago} ago");
                report.fault(AREA, fact, NEXT);
            }
            (true, false) => {
                let fact = "by the hub's clock the token has not expired: this clock is ahead";
                report.warning(AREA, fact, NEXT);
            }
            _ => {}
        }
    }
    for (claim, what) in [("nbf", "is not valid before"), ("iat", "was issued")] {
        let ahead = seconds(claim).map(|time| time.saturating_sub(there));
        let Some(ahead) = ahead.filter(|ahead| *ahead > LEEWAY) else {
            continue;
        };
        let fact = format!(
            "by the hub's clock the token {what} {} from now ({claim})",
            span(ahead)
        );
        match claim {
            "nbf" => report.fault(AREA, fact, NEXT),
            _ => report.warning(AREA, fact, NEXT),
        }
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn times(claims: &Value, report: &mut Report) {
    const AREA: &str = "token";
    let now = now();
    let seconds = |name: &str| claims[name].as_f64().map(|seconds| seconds as i64);
    let renew = "renew it: a new token in the file is presented at once, no restart needed";
    match seconds("exp").map(|exp| exp.saturating_sub(now)) {
        None => report.fault(AREA, "it has no end (exp), hubs refuse that", renew),
        Some(left) if left <= 0 => {
            report.fault(AREA, format!("it expired {} ago", span(left)), renew);
        }
        Some(left) if left < SOON => {
            report.warning(AREA, format!("it ends in {}", span(left)), renew);
        }
        Some(left) => report.ok(AREA, format!("it is valid for another {}", span(left))),
    }
    if let Some(wait) = seconds("nbf")
        .map(|nbf| nbf.saturating_sub(now))
        .filter(|wait| *wait > 0)
    {
        let fact = format!("it is not valid before {} from now", span(wait));
        report.fault(
            AREA,
            fact,
            "check the clocks of this machine and of the identity provider",
        );
    }
}

/// A list in `connectors`, or words in `scp` or `scope`, as hubs read them.
fn scopes(claims: &Value, config: &AgentConfig, report: &mut Report) {
    let mut named: Vec<&str> = Vec::new();
    let mut any = false;
    for key in ["connectors", "scp", "scope"] {
        match &claims[key] {
            Value::Array(items) => {
                any = true;
                named.extend(items.iter().filter_map(Value::as_str));
            }
            Value::String(words) => {
                any = true;
                named.extend(words.split_whitespace());
            }
            _ => {}
        }
    }
    let exported = &config.tunnel.exported_connectors;
    let missing: Vec<&str> = exported
        .iter()
        .map(String::as_str)
        .filter(|connector| !named.contains(connector))
        .collect();
    match (any, missing.is_empty()) {
        (true, true) => report.ok("scopes", "the token covers every exported connector"),
        (true, false) => report.warning(
            "scopes",
            format!("the token does not cover {}", missing.join(", ")),
            "a hub with security.require_connector_scopes refuses these: have them added to the \
             claim connectors, or do not export them",
        ),
        (false, _) => report.ok(
            "scopes",
            "the token names no connectors: enough, unless the hub requires scopes",
        ),
    }
}

/// A time in its largest unit.
pub(super) fn span(seconds: i64) -> String {
    let seconds = seconds.unsigned_abs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// When something ends, from now; negative when it has ended.
pub(super) fn seconds_left(end: SystemTime) -> i64 {
    let signed = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match end.duration_since(SystemTime::now()) {
        Ok(left) => signed(left),
        Err(error) => -signed(error.duration()) - 1,
    }
}
