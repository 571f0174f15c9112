//! Who may be an agent, and for how long.

use std::path::Path;

use anyhow::{Result, ensure};
use nowconnect_testkit::http::{self, Answer};
use nowconnect_testkit::issuer::{Issuer, claims, now};
use nowconnect_testkit::lab::{Hub, Lab, Pair};
use nowconnect_testkit::log::{Event, Mark};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::program;
use nowconnect_testkit::raw_tunnel::RawTunnel;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use serde_json::{Value, json};

const FAILURES: &str = "nowconnect_auth_failures_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

async fn knock(hub: &Hub, authorization: &str) -> Result<Answer> {
    let headers = http::upgrade_headers(authorization);
    http::request(hub.tunnel_addr()?, "GET", "/tunnel", &headers, "").await
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims("site-1", 600);
    claims[key] = value;
    claims
}

#[tokio::test]
async fn a_bad_token_gets_401_with_a_reason_that_is_logged_and_counted() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let (issuer, stranger) = (lab.issuer(), Issuer::new(&stranger_dir(&lab)?)?);
    let good = issuer.token("site-1")?;
    let altered = format!("{}A{}", &good[..good.len() - 10], &good[good.len() - 9..]);
    let header = |alg: &str| json!({ "alg": alg, "typ": "JWT", "kid": "key-1" });
    let body = claims("site-1", 600);
    let cases = [
        (String::new(), "missing_token"),
        ("Basic YTpi".to_owned(), "missing_token"),
        ("Bearer not.a.token".to_owned(), "malformed"),
        (format!("Bearer {}", "x".repeat(9000)), "too_large"),
        (
            format!("Bearer {}", Issuer::forge(&header("none"), &body, b"")),
            "alg_not_allowed",
        ),
        (
            format!(
                "Bearer {}",
                Issuer::forge(&header("HS256"), &body, &[7; 32])
            ),
            "alg_not_allowed",
        ),
        (
            format!(
                "Bearer {}",
                Issuer::forge(&header("RS256"), &body, &[7; 256])
            ),
            "alg_mismatch",
        ),
        (format!("Bearer {altered}"), "bad_signature"),
        (
            format!("Bearer {}", stranger.token("site-1")?),
            "bad_signature",
        ),
        (
            format!("Bearer {}", issuer.sign(&claims("site-1", -60))?),
            "expired",
        ),
        (
            format!("Bearer {}", issuer.sign(&with("nbf", json!(now() + 90)))?),
            "not_yet_valid",
        ),
        (
            format!("Bearer {}", issuer.sign(&with("exp", json!("9999999999")))?),
            "malformed",
        ),
        (
            format!("Bearer {}", issuer.sign(&with("exp", Value::Null))?),
            "missing_expiry",
        ),
        (
            format!("Bearer {}", issuer.sign(&with("aud", json!("other")))?),
            "wrong_audience",
        ),
        (
            format!("Bearer {}", issuer.sign(&with("agent_id", Value::Null))?),
            "missing_agent_id",
        ),
        (
            format!("Bearer {}", issuer.sign(&with("agent_id", json!("a\nb")))?),
            "invalid_agent_id",
        ),
    ];
    for (authorization, reason) in &cases {
        let before = hub.metric(FAILURES, &[("reason", reason)]).await?;
        // Who shows many bad tokens is not judged for a moment.
        let answer = until("a verdict", async || {
            let answer = knock(&hub, authorization).await?;
            ensure!(answer.status != 429, "{answer:?}");
            Ok(answer)
        })
        .await?;
        ensure!(
            answer.status == 401 && answer.body.contains(reason),
            "{reason}: {answer:?}"
        );
        let after = hub.metric(FAILURES, &[("reason", reason)]).await?;
        ensure!(
            after == before + 1.0,
            "{reason} counted {before} to {after}"
        );
        // Like causes are summed up in one line, so that a flood of bad tokens is not one of lines.
        let told = |event: &Event| event.text("reason") == *reason;
        hub.log()
            .wait_event_where("jwt_rejected", Mark::default(), told)
            .await?;
    }
    for (authorization, _) in cases.iter().filter(|(text, _)| text.len() > 50) {
        let secret = &authorization["Bearer ".len()..];
        assert!(
            !hub.log().text().contains(&secret[secret.len() - 30..]),
            "a token was logged"
        );
    }
    let welcome = async || Ok(RawTunnel::dial(hub.tunnel_addr()?, &good).await?);
    until("a welcome", welcome).await?;
    Ok(())
}

fn stranger_dir(lab: &Lab) -> Result<std::path::PathBuf> {
    let dir = lab.path("stranger");
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

#[tokio::test]
async fn a_browser_is_refused_and_a_failed_upgrade_closes_the_connection() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let bearer = format!("Bearer {}", lab.issuer().token("site-1")?);
    let mut headers = http::upgrade_headers(&bearer);
    headers.push(("Origin", "https://evil.example"));
    let answer = http::request(hub.tunnel_addr()?, "GET", "/tunnel", &headers, "").await?;
    assert_eq!(answer.status, 403, "{answer:?}");
    // The second request on the same connection must never be looked at.
    let request = format!(
        "GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 7\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: {bearer}\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    );
    let answer = http::exchange(hub.tunnel_addr()?, request.as_bytes()).await?;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        !answer.contains("101 ") && answer.matches("HTTP/1.1 ").count() == 1,
        "{answer}"
    );
    Ok(())
}

#[tokio::test]
async fn a_renewed_token_is_presented_in_band_and_an_expired_one_ends_the_tunnel() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    // The hub's leeway is 30 s: this token lives for about 7 more seconds.
    let short = lab.issuer().sign(&claims("site-1", -23))?;
    let agent = lab
        .agent("site-1")
        .target("echo", server.addr())
        .to(&hub)
        .token(&short);
    let agent = agent.start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;
    agent.replace_token(&lab.issuer().sign(&claims("site-1", -17))?)?;

    // The tunnel outlives its first token and goes, with a reason, when the second has expired.
    let gone = hub.log().wait_event("agent_disconnected").await?;
    assert_eq!(gone.text("reason"), "token_expired", "{}", gone.json());
    let lived = hub.log().events("agent_connected", Default::default());
    assert_eq!(lived.len(), 1, "the renewal went by a new connection");
    assert!(now() + 30 - 17 >= 0, "the clock");

    agent.replace_token(&lab.issuer().token("site-1")?)?;
    echo(&mut client, Pattern(1), 100, 100).await?;
    hub.wait_agents(1).await
}

#[tokio::test]
async fn keys_are_rotated_in_the_jwks_file_without_a_restart() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let old = format!("Bearer {}", lab.issuer().token("site-3")?);
    lab.issuer().add_key()?;
    let second = lab
        .agent("site-2")
        .to(&hub)
        .target("echo", server.addr())
        .start()
        .await?;
    hub.wait_agents(2).await?;
    lab.issuer().retire_old_keys()?;
    until("the old key to be refused", async || {
        let answer = knock(&hub, &old).await?;
        ensure!(
            answer.status == 401 && answer.body.contains("unknown_key"),
            "{answer:?}"
        );
        Ok(())
    })
    .await?;
    drop(second);
    Ok(())
}

#[tokio::test]
async fn without_keys_the_hub_runs_warns_and_refuses_with_a_reason_of_its_own() -> Result<()> {
    let lab = lab()?;
    let hub = lab
        .hub("hub-a")
        .set("security.jwks_url", "")
        .listener("echo")
        .start()
        .await?;
    let bearer = format!("Bearer {}", lab.issuer().token("site-1")?);
    let answer = knock(&hub, &bearer).await?;
    assert!(
        answer.status == 401 && answer.body.contains("no_jwks"),
        "{answer:?}"
    );
    assert!(
        hub.log().text().contains("jwks_url"),
        "no warning:\n{}",
        hub.log().text()
    );
    Ok(())
}

#[tokio::test]
async fn a_connector_outside_the_scopes_of_the_token_is_not_served() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let connectors = [("allowed", server.addr()), ("secret", server.addr())];
    let hub = lab
        .hub_for(&connectors)
        .set("security.require_connector_scopes", true);
    let hub = hub.start().await?;
    let token = lab.issuer().sign(&with("connectors", json!(["allowed"])))?;
    let agent = lab.agent_for(&connectors).to(&hub).token(&token);
    let _agent = agent.start().await?;
    echo(&mut hub.connect("allowed").await?, Pattern(1), 0, 100).await?;
    hub.turns_away("secret").await?;
    assert_eq!(server.accepted(), 1);
    Ok(())
}

#[tokio::test]
async fn the_binary_makes_keys_and_tokens_that_a_hub_takes() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let help = lab.run(&["token", "mint", "--help"]).await?;
    assert!(
        help.status.success() && help.stdout.contains("nowconnect token mint"),
        "{help:?}"
    );
    let (key, agent_token) = mint(&lab).await?;
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("security.jwks_url", format!("file://{}", key.display()));
    let hub = hub.start().await?;
    let agent = lab
        .agent("site-1")
        .to(&hub)
        .target("echo", server.addr())
        .token(&agent_token);
    let _agent = agent.start().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100).await
}

/// A JWKS file and a token for `site-1`, from the binary's own commands.
async fn mint(lab: &Lab) -> Result<(std::path::PathBuf, String)> {
    let key = lab.path("dev.key").display().to_string();
    let token = lab
        .run(&["token", "mint", "--key", &key, "--agent-id", "site-1"])
        .await?;
    ensure!(token.status.success(), "{token:?}");
    let jwks = lab.run(&["token", "jwks", "--key", &key]).await?;
    ensure!(jwks.status.success(), "{jwks:?}");
    let file = lab.path("dev-jwks.json");
    program::write(Path::new(&file), &jwks.stdout)?;
    Ok((file, token.stdout.trim().to_owned()))
}

#[tokio::test]
async fn a_tunnel_ends_when_the_rules_or_the_keys_no_longer_uphold_its_token() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let mut hub = lab.hub("hub-a").listener("echo").start().await?;
    let site = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;

    // Its key is withdrawn: the tunnel goes, and the flow waits for a token of the new key.
    let (mark, began) = (hub.log().mark(), std::time::Instant::now());
    lab.issuer().add_key()?;
    lab.issuer().retire_old_keys()?;
    let gone = hub
        .log()
        .wait_event_since("agent_disconnected", mark)
        .await?;
    ensure!(gone.text("reason") == "token_revoked", "{}", gone.json());
    let took = began.elapsed();
    ensure!(took < std::time::Duration::from_secs(10), "{took:?}");
    site.replace_token(&lab.issuer().token("site-1")?)?;
    echo(&mut client, Pattern(1), 100, 100).await?;

    // Another audience is asked for; a token that has it leads back in.
    let mark = hub.log().mark();
    hub.rewrite("security.audience", "others")?;
    hub.reload().await?;
    let gone = hub
        .log()
        .wait_event_since("agent_disconnected", mark)
        .await?;
    ensure!(gone.text("reason") == "token_revoked", "{}", gone.json());
    let token = lab.issuer().sign(&with("aud", json!("others")))?;
    site.replace_token(&token)?;
    echo(&mut client, Pattern(1), 200, 100).await?;

    // An operator's word is a nudge: the agent comes back, and the flow goes on.
    let mark = hub.log().mark();
    let path = "/api/v1/agents/site-1/disconnect";
    let answer = http::request(hub.admin_addr()?, "POST", path, &[], "").await?;
    ensure!(answer.status == 200, "{answer:?}");
    let gone = hub
        .log()
        .wait_event_since("agent_disconnected", mark)
        .await?;
    ensure!(gone.text("reason") == "operator", "{}", gone.json());
    echo(&mut client, Pattern(1), 300, 100).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_count_at_every_open_for_clients_of_other_hubs_too() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    for hub in [&mut pair.a, &mut pair.b] {
        hub.rewrite("security.require_connector_scopes", true)?;
        hub.reload().await?;
        hub.log().wait_event("config_reloaded").await?;
    }
    let sign = |connectors: Value| pair.lab.issuer().sign(&with("connectors", connectors));
    let site = pair.agent(&[&pair.a], "all").token(&sign(json!(["echo"]))?);
    let site = site.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut running = pair.b.connect("echo").await?;
    echo(&mut running, Pattern(1), 0, 100).await?;
    for hub in [&pair.a, &pair.b] {
        hub.turns_away("bulk").await?;
    }
    // A renewed token grants something else: at once, and for what is opened from then on.
    let mark = pair.a.log().mark();
    site.replace_token(&sign(json!(["other"]))?)?;
    pair.a.log().wait_event_since("agent_updated", mark).await?;
    for hub in [&pair.a, &pair.b] {
        hub.turns_away("echo").await?;
    }
    echo(&mut running, Pattern(1), 100, 100).await?;
    site.replace_token(&sign(json!(["echo"]))?)?;
    until("the connector to be back", async || {
        echo(&mut pair.b.connect("echo").await?, Pattern(2), 0, 100).await
    })
    .await?;
    ensure!(pair.bulk.accepted() == 0, "a client reached it");
    Ok(())
}
