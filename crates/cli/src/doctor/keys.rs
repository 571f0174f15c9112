//! The keys that a hub checks tokens with, and a token as the hub would judge it.

use std::path::Path;
use std::time::SystemTime;

use nowconnect_hub::auth::key::{Skipped, VerifyKey};
use nowconnect_hub::auth::{Identity, Rejection};
use nowconnect_hub::config::{FapiMode, HubConfig, JwksSource};
use nowconnect_hub::probe::{self, FetchError, KeysError, Published};

use super::claims::{seconds_left, span};
use super::report::{Report, count};
use super::web;

const AREA: &str = "token keys";
/// Keys that are told one by one.
const TOLD: usize = 10;

/// Fetches the keys and lists them.
pub(super) async fn examine(config: &HubConfig, report: &mut Report) {
    let Some(source) = &config.security.jwks else {
        let next = "set security.jwks_url (NOWCONNECT_JWKS_URL)";
        return report.fault(AREA, "there are none: every agent is refused", next);
    };
    match probe::keys(&config.security, source).await {
        Ok(published) => listed(source, &published, report),
        Err(KeysError::Trust(error)) => report.error(AREA, format!("security.jwks_ca: {error}")),
        Err(error) => report.fault(AREA, format!("{source}: {error}"), next(&error)),
    }
}

fn listed(source: &JwksSource, published: &Published, report: &mut Report) {
    let Published {
        keys,
        skipped,
        date,
        took,
    } = published;
    let usable = count(keys.len(), "usable key");
    let took = took.as_millis();
    report.ok(AREA, format!("{source}: {usable}, {took} ms"));
    for key in keys.iter().take(TOLD) {
        let kid = key
            .kid()
            .map_or("without kid".into(), |kid| format!("kid {kid:?}"));
        let algorithms: Vec<String> = key.algorithms().collect();
        report.ok(AREA, format!("{kid}: {}", algorithms.join(", ")));
    }
    if keys.len() > TOLD {
        report.ok(AREA, format!("and {} more", keys.len() - TOLD));
    }
    if let Some(key) = keys.iter().find(|key| is_ambiguous(key, keys)) {
        let algorithm = key.algorithms().next().unwrap_or_default();
        report.warning(
            AREA,
            format!("there are several keys for {algorithm}, and one of them has no kid"),
            "give every key a kid, and tokens the kid of theirs: without one none of them is taken",
        );
    }
    for Skipped { index, why } in skipped.iter().take(TOLD) {
        report.warning(
            AREA,
            format!("keys[{index}] is not used: {why}"),
            "tokens that are signed with it are refused; keys for something else may stay as they are",
        );
    }
    if let (JwksSource::Url(url), Some(date)) = (source, date) {
        let who = url.host().unwrap_or("the server of the keys");
        web::compare_clocks(date, who, report);
    }
}

/// A key without a name is only found while it is the only one for its algorithm.
fn is_ambiguous(key: &VerifyKey, keys: &[impl AsRef<VerifyKey>]) -> bool {
    let fits = |other: &VerifyKey| {
        other
            .algorithms()
            .any(|one| key.algorithms().any(|own| own == one))
    };
    key.kid().is_none() && keys.iter().filter(|other| fits(other.as_ref())).count() > 1
}

fn next(error: &KeysError) -> String {
    match error {
        KeysError::Fetch(FetchError::Web(error)) => {
            web::next(error, "security.jwks_url", "security.jwks_ca")
        }
        KeysError::Fetch(FetchError::File(_)) => {
            "put the JWKS document there, readable for this user, or correct security.jwks_url"
                .into()
        }
        _ => "security.jwks_url must lead to the provider's JWKS document: the jwks_uri of its \
              /.well-known/openid-configuration"
            .into(),
    }
}

/// Judges the token in `file`.
pub(super) async fn judge(file: &Path, config: &HubConfig, report: &mut Report) {
    const AREA: &str = "token";
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let fact = format!("cannot read {}: {error}", file.display());
            return report.fault(AREA, fact, "give --token a file with an agent's token");
        }
    };
    match probe::token(&config.security, text.trim()).await {
        Ok(Ok(identity)) => taken(&identity, config, report),
        Ok(Err(Rejection { reason, detail })) => {
            let fact = match detail.as_str() {
                "" => format!("this hub refuses it: {reason}"),
                detail => format!("this hub refuses it: {reason} ({detail})"),
            };
            report.fault(AREA, fact, reason.hint());
        }
        // Told with the keys.
        Err(_) => {}
    }
}

fn taken(identity: &Identity, config: &HubConfig, report: &mut Report) {
    const AREA: &str = "token";
    let id = &identity.agent_id;
    let left = identity.remaining(SystemTime::now());
    let left = span(seconds_left(SystemTime::now() + left));
    report.ok(
        AREA,
        format!("this hub takes it: agent_id {id}, for another {left}"),
    );
    if config.security.fapi_mode != FapiMode::Off && identity.proof_key.is_none() {
        report.fault(
            AREA,
            "it is bound to no key (no claim cnf.jkt), and security.fapi_mode 2 demands one",
            "have the identity provider bind it to the agent's key, see docs/dpop.md",
        );
    }
    let mut connectors: Vec<&str> = config.listeners.iter().map(|one| &*one.connector).collect();
    connectors.sort_unstable();
    connectors.dedup();
    let (granted, others): (Vec<&str>, Vec<&str>) = connectors
        .into_iter()
        .partition(|name| identity.grants(name));
    match (config.security.require_connector_scopes, granted.is_empty()) {
        (false, _) => report.ok("scopes", "none are required: it may serve every connector"),
        (true, false) if others.is_empty() => {
            report.ok("scopes", format!("it may serve {}", granted.join(", ")));
        }
        (true, false) => report.ok(
            "scopes",
            format!(
                "it may serve {}, not {}",
                granted.join(", "),
                others.join(", ")
            ),
        ),
        (true, true) => report.fault(
            "scopes",
            format!("it may serve none of {}", others.join(", ")),
            "have the connectors added to its claim connectors, or to the words of scp or scope",
        ),
    }
}
