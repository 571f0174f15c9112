//! Tokens that no issuer would sign, and some that one would.

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nowconnect_testkit::anyhow;
use nowconnect_testkit::http;
use nowconnect_testkit::issuer::{Issuer, claims, now};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::raw_ws::{RawWs, v2};
use serde_json::{Value, json};

use crate::list::cases;
use crate::scene::{AUTH, Scene, V2, closed_with, hello, kind, refused};

cases! { "Tokens at /tunnel";
    no_token_at_all: "401 `missing_token`", "`nowconnect_auth_failures_total{reason=\"missing_token\"}` +1, `jwt_rejected`" => header("", "missing_token");
    a_password_instead_of_a_token: "401 `missing_token`", "`nowconnect_auth_failures_total{reason=\"missing_token\"}` +1, `jwt_rejected`" => header("Basic c2l0ZS0xOnB3", "missing_token");
    a_token_in_the_query_string: "401 `missing_token`", "`nowconnect_auth_failures_total{reason=\"missing_token\"}` +1, `jwt_rejected`" => in_query();
    alg_none: "401 `alg_not_allowed`", "`nowconnect_auth_failures_total{reason=\"alg_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "none", "kid": "key-1" })), "alg_not_allowed");
    alg_none_in_odd_letters: "401 `alg_not_allowed`", "`nowconnect_auth_failures_total{reason=\"alg_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "nOnE", "kid": "key-1" })), "alg_not_allowed");
    hs256_signed_with_the_public_key: "401 `alg_not_allowed`", "`nowconnect_auth_failures_total{reason=\"alg_not_allowed\"}` +1, `jwt_rejected`" => rejected(hmac_with_public_key, "alg_not_allowed");
    an_algorithm_that_is_not_on_the_list: "401 `alg_not_allowed`", "`nowconnect_auth_failures_total{reason=\"alg_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256K", "kid": "key-1" })), "alg_not_allowed");
    an_rsa_algorithm_for_a_key_on_a_curve: "401 `alg_mismatch`", "`nowconnect_auth_failures_total{reason=\"alg_mismatch\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "RS256", "kid": "key-1" })), "alg_mismatch");
    a_kid_that_climbs_directories: "401 `unknown_key`", "`nowconnect_auth_failures_total{reason=\"unknown_key\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "../../../../dev/null" })), "unknown_key");
    a_kid_that_is_a_query: "401 `unknown_key`", "`nowconnect_auth_failures_total{reason=\"unknown_key\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "' UNION SELECT 'a" })), "unknown_key");
    a_kid_that_is_an_address: "401 `unknown_key`", "`nowconnect_auth_failures_total{reason=\"unknown_key\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "http://169.254.169.254/latest/meta-data" })), "unknown_key");
    a_kid_of_10_kb: "401 `too_large`", "`nowconnect_auth_failures_total{reason=\"too_large\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "k".repeat(10_000) })), "too_large");
    a_kid_given_twice: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => rejected(|_| raw(r#"{"alg":"ES256","kid":"key-1","kid":"other"}"#, &good().to_string()), "malformed");
    a_kid_that_is_a_list: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": ["key-1"] })), "malformed");
    a_jku_header: "401 `header_not_allowed`, and nobody is asked for a key", "`nowconnect_auth_failures_total{reason=\"header_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "key-1", "jku": "http://127.0.0.1:1/jwks" })), "header_not_allowed");
    a_jwk_header: "401 `header_not_allowed`", "`nowconnect_auth_failures_total{reason=\"header_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "jwk": { "kty": "EC" } })), "header_not_allowed");
    an_x5u_header: "401 `header_not_allowed`", "`nowconnect_auth_failures_total{reason=\"header_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "key-1", "x5u": "http://127.0.0.1:1/" })), "header_not_allowed");
    a_crit_header: "401 `header_not_allowed`", "`nowconnect_auth_failures_total{reason=\"header_not_allowed\"}` +1, `jwt_rejected`" => rejected(|_| forged(json!({ "alg": "ES256", "kid": "key-1", "crit": ["b64"], "b64": false })), "header_not_allowed");
    a_signature_of_somebody_else: "401 `bad_signature`", "`nowconnect_auth_failures_total{reason=\"bad_signature\"}` +1, `jwt_rejected`" => rejected(stranger_signed, "bad_signature");
    a_signature_cut_off: "401 `bad_signature`", "`nowconnect_auth_failures_total{reason=\"bad_signature\"}` +1, `jwt_rejected`" => rejected(|lab| Ok(strip_signature(&lab.issuer().token("evil")?)), "bad_signature");
    claims_exchanged_under_a_signature: "401 `bad_signature`", "`nowconnect_auth_failures_total{reason=\"bad_signature\"}` +1, `jwt_rejected`" => rejected(other_claims, "bad_signature");
    a_signature_of_zeros: "401 `bad_signature`", "`nowconnect_auth_failures_total{reason=\"bad_signature\"}` +1, `jwt_rejected`" => rejected(|_| Ok(Issuer::forge(&json!({ "alg": "ES256", "kid": "key-1" }), &good(), &[0; 64])), "bad_signature");
    an_encrypted_token: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => rejected(|lab| Ok(format!("{}.AA.AA", lab.issuer().token("evil")?)), "malformed");
    exp_as_text: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => claiming(|c| c["exp"] = json!((now() + 999).to_string()), "malformed");
    exp_beyond_the_year_9999: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => claiming(|c| c["exp"] = json!(1e300), "malformed");
    exp_before_1970: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => claiming(|c| c["exp"] = json!(-1), "malformed");
    exp_that_is_no_number: "401 `bad_signature`: NaN is no JSON, so nobody can have signed it", "`nowconnect_auth_failures_total{reason=\"bad_signature\"}` +1, `jwt_rejected`" => rejected(|_| raw(r#"{"alg":"ES256","kid":"key-1"}"#, r#"{"agent_id":"evil","aud":"nowconnect","exp":NaN}"#), "bad_signature");
    exp_missing: "401 `missing_expiry`", "`nowconnect_auth_failures_total{reason=\"missing_expiry\"}` +1, `jwt_rejected`" => claiming(|c| drop(c.as_object_mut().unwrap().remove("exp")), "missing_expiry");
    exp_null: "401 `missing_expiry`", "`nowconnect_auth_failures_total{reason=\"missing_expiry\"}` +1, `jwt_rejected`" => claiming(|c| c["exp"] = Value::Null, "missing_expiry");
    a_token_that_expired: "401 `expired`", "`nowconnect_auth_failures_total{reason=\"expired\"}` +1, `jwt_rejected`" => claiming(|c| c["exp"] = json!(now() - 60), "expired");
    nbf_as_text: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => claiming(|c| c["nbf"] = json!("0"), "malformed");
    nbf_null: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => claiming(|c| c["nbf"] = Value::Null, "malformed");
    a_token_from_the_future: "401 `not_yet_valid`", "`nowconnect_auth_failures_total{reason=\"not_yet_valid\"}` +1, `jwt_rejected`" => claiming(|c| c["nbf"] = json!(now() + 300), "not_yet_valid");
    another_audience: "401 `wrong_audience`", "`nowconnect_auth_failures_total{reason=\"wrong_audience\"}` +1, `jwt_rejected`" => claiming(|c| c["aud"] = json!("nowconnect2"), "wrong_audience");
    a_list_of_other_audiences: "401 `wrong_audience`", "`nowconnect_auth_failures_total{reason=\"wrong_audience\"}` +1, `jwt_rejected`" => claiming(|c| c["aud"] = json!(["now", "connect"]), "wrong_audience");
    no_audience: "401 `wrong_audience`", "`nowconnect_auth_failures_total{reason=\"wrong_audience\"}` +1, `jwt_rejected`" => claiming(|c| drop(c.as_object_mut().unwrap().remove("aud")), "wrong_audience");
    an_audience_that_is_an_object: "401 `malformed`", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => claiming(|c| c["aud"] = json!({ "nowconnect": true }), "malformed");
    no_agent_id: "401 `missing_agent_id`", "`nowconnect_auth_failures_total{reason=\"missing_agent_id\"}` +1, `jwt_rejected`" => claiming(|c| drop(c.as_object_mut().unwrap().remove("agent_id")), "missing_agent_id");
    an_agent_id_with_a_nul: "401 `invalid_agent_id`", "`nowconnect_auth_failures_total{reason=\"invalid_agent_id\"}` +1, `jwt_rejected` in one clean line" => claiming(|c| c["agent_id"] = json!("site-1\0"), "invalid_agent_id");
    an_agent_id_with_a_newline: "401 `invalid_agent_id`", "`nowconnect_auth_failures_total{reason=\"invalid_agent_id\"}` +1, `jwt_rejected` in one clean line" => claiming(|c| c["agent_id"] = json!("x\n{\"event\":\"agent_connected\"}"), "invalid_agent_id");
    an_agent_id_with_colours: "401 `invalid_agent_id`", "`nowconnect_auth_failures_total{reason=\"invalid_agent_id\"}` +1, `jwt_rejected` in one clean line" => claiming(|c| c["agent_id"] = json!("\u{1b}[31mroot"), "invalid_agent_id");
    an_agent_id_of_300_letters: "401 `invalid_agent_id`", "`nowconnect_auth_failures_total{reason=\"invalid_agent_id\"}` +1, `jwt_rejected`" => claiming(|c| c["agent_id"] = json!("x".repeat(300)), "invalid_agent_id");
    an_audience_with_colours_and_newlines: "401 `wrong_audience`", "`nowconnect_auth_failures_total{reason=\"wrong_audience\"}` +1, `jwt_rejected` in one clean line" => claiming(|c| c["aud"] = json!("\u{1b}[2J\n{}"), "wrong_audience");
    two_authorization_headers: "400 `bad_upgrade`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_upgrade\"}` +1, `tunnel_refused`" => two_headers();
    an_authorization_header_of_100_kb: "431", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` +1" => huge_header();
    a_hello_for_another_agent: "close 1008 `auth_failed`", "`nowconnect_auth_failures_total{reason=\"agent_id_mismatch\"}` +1, `agent_refused`" => other_hello();
    a_connector_beyond_the_scopes: "close 1008 `denied`", "`nowconnect_auth_failures_total{reason=\"nothing_granted\"}` +1, `agent_refused`" => beyond_scopes();
    a_renewal_with_the_token_of_another_agent: "TOKEN_ACK `agent_id_mismatch`; the old token stays", "`nowconnect_auth_failures_total{reason=\"agent_id_mismatch\"}` +1, `jwt_rejected`" => other_renewal();
    a_17th_tunnel_of_one_agent: "429 `too_many_tunnels`", "`nowconnect_auth_failures_total{reason=\"too_many_tunnels\"}` +1, `too_many_tunnels`" => too_many();
}

fn good() -> Value {
    claims("evil", 3600)
}

fn forged(header: Value) -> Result<String> {
    Ok(Issuer::forge(&header, &good(), b"signature"))
}

fn raw(header: &str, claims: &str) -> Result<String> {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    Ok(format!("{}.{}.{}", part(header), part(claims), part("x")))
}

/// What RFC 8725 section 2.1 warns of: the key of the JWKS taken for a shared secret.
fn hmac_with_public_key(lab: &Lab) -> Result<String> {
    let jwks: Value = serde_json::from_str(&std::fs::read_to_string(lab.path("jwks.json"))?)?;
    let secret = jwks["keys"][0].to_string();
    lab.issuer().sign_with_hmac(&good(), "key-1", &secret)
}

fn stranger_signed(lab: &Lab) -> Result<String> {
    let dir = lab.path("stranger");
    std::fs::create_dir_all(&dir)?;
    // Its key is called key-1, like the good one.
    Issuer::new(&dir)?.token("evil")
}

fn strip_signature(token: &str) -> String {
    let (message, _) = token.rsplit_once('.').unwrap();
    format!("{message}.")
}

fn other_claims(lab: &Lab) -> Result<String> {
    let token = lab.issuer().token("evil")?;
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    parts[1] = URL_SAFE_NO_PAD.encode(claims("site-1", 3600).to_string());
    Ok(parts.join("."))
}

async fn rejected(token: impl Fn(&Lab) -> Result<String>, reason: &'static str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let token = token(&scene.lab)?;
    judge(&mut scene, &format!("Bearer {token}"), reason).await?;
    // A token, whole or in part, stands in no log.
    let signed = token.split('.').max_by_key(|part| part.len()).unwrap();
    ensure!(
        !scene.hub.log().text().contains(signed),
        "the token is in the log"
    );
    Ok(())
}

async fn claiming(adjust: impl Fn(&mut Value), reason: &'static str) -> Result<()> {
    let token = |lab: &Lab| {
        let mut claims = good();
        adjust(&mut claims);
        lab.issuer().sign(&claims)
    };
    rejected(token, reason).await
}

async fn header(authorization: &str, reason: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    judge(&mut scene, authorization, reason).await
}

async fn judge(scene: &mut Scene, authorization: &str, reason: &str) -> Result<()> {
    refused(&scene.ask(authorization).await?, 401, reason)?;
    scene.counted(AUTH, &[("reason", reason)], 1.0).await?;
    scene.counted(AUTH, &[], 1.0).await?;
    let event = scene.logged("jwt_rejected", reason).await?;
    ensure!(event.json()["audit"] == true, "{}", event.json());
    let log = scene.hub.log().text();
    ensure!(log.lines().all(|line| line.starts_with('{')), "{log}");
    ensure!(!log.contains('\u{1b}') && !log.contains('\0'), "{log}");
    scene.serves().await
}

async fn in_query() -> Result<()> {
    let mut scene = Scene::set().await?;
    let path = format!("/tunnel?access_token={}", scene.token("evil"));
    let mut headers = http::upgrade_headers("");
    headers.remove(0);
    let answer = http::request(scene.tunnel(), "GET", &path, &headers, "").await?;
    refused(&answer, 401, "missing_token")?;
    scene
        .counted(AUTH, &[("reason", "missing_token")], 1.0)
        .await?;
    scene.serves().await
}

async fn two_headers() -> Result<()> {
    let mut scene = Scene::set().await?;
    let good = format!("Bearer {}", scene.token("evil"));
    let mut headers = http::upgrade_headers(&good);
    headers.push(("Authorization", "Bearer x"));
    let answer = http::request(scene.tunnel(), "GET", "/tunnel", &headers, "").await?;
    refused(&answer, 400, "bad_upgrade")?;
    scene.offended("tunnel", "bad_upgrade", 1.0).await?;
    scene.logged("tunnel_refused", "bad_upgrade").await?;
    scene.serves().await
}

async fn huge_header() -> Result<()> {
    let mut scene = Scene::set().await?;
    let answer = scene
        .ask(&format!("Bearer {}", "x".repeat(100_000)))
        .await?;
    ensure!(answer.status == 431, "{answer:?}");
    scene.offended("http", "bad_request", 1.0).await?;
    scene.serves().await
}

async fn other_hello() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = scene.upgraded().await?;
    let hello = hello("site-1", &["echo"]).to_string();
    ws.binary(&v2(kind::HELLO, 0, hello.as_bytes())).await?;
    closed_with(&ws.closed().await?, 1008, "auth_failed")?;
    scene
        .counted(AUTH, &[("reason", "agent_id_mismatch")], 1.0)
        .await?;
    scene.logged("agent_refused", "auth_failed").await?;
    scene.serves().await
}

async fn beyond_scopes() -> Result<()> {
    let lab = crate::scene::lab()?;
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub
        .set("security.require_connector_scopes", true)
        .start()
        .await?;
    let mut claims = good();
    claims["connectors"] = json!(["evil"]);
    let token = lab.issuer().sign(&claims)?;
    let mut ws = RawWs::tunnel(hub.tunnel_addr()?, &token, Some(V2)).await?;
    let hello = hello("evil", &["echo"]).to_string();
    ws.binary(&v2(kind::HELLO, 0, hello.as_bytes())).await?;
    closed_with(&ws.closed().await?, 1008, "denied")?;
    hub.wait_metric(AUTH, &[("reason", "nothing_granted")], |n| n == 1.0)
        .await?;
    hub.log().wait_event("agent_refused").await?;
    hub.wait_agents(0).await
}

async fn other_renewal() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    let body = json!({ "token": scene.token("site-1") }).to_string();
    ws.binary(&v2(kind::TOKEN, 0, body.as_bytes())).await?;
    let ack = ws.frame_of(kind::TOKEN_ACK).await?;
    let ack: Value = serde_json::from_slice(&ack.body)?;
    ensure!(ack["error"] == "agent_id_mismatch", "{ack}");
    scene
        .counted(AUTH, &[("reason", "agent_id_mismatch")], 1.0)
        .await?;
    scene.logged("jwt_rejected", "agent_id_mismatch").await?;
    scene.hub.wait_agents(2).await?;
    scene.serves().await
}

async fn too_many() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut tunnels = Vec::new();
    for _ in 0..16 {
        tunnels.push(scene.upgraded().await?);
    }
    let bearer = format!("Bearer {}", scene.token("evil"));
    let answer = scene.ask(&bearer).await?;
    refused(&answer, 429, "too_many_tunnels")?;
    ensure!(answer.header("retry-after").is_some(), "{answer:?}");
    scene
        .counted(AUTH, &[("reason", "too_many_tunnels")], 1.0)
        .await?;
    scene.hub.log().wait_event("too_many_tunnels").await?;
    scene.serves().await
}
