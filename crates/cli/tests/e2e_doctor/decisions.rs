//! A decision point that decides, and those that do not.

use anyhow::Result;
use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::pdp::{Pdp, Reply};
use nowconnect_testkit::ports;
use serde_json::json;

use super::{doctor, hub_config, lab};

#[tokio::test]
async fn it_is_asked_what_nothing_depends_on() -> Result<()> {
    let lab = lab()?;
    let mut config = hub_config(&lab)?;
    lab.write("pdp.token", "let-me-ask\n")?;
    let pdp = Pdp::start(Reply::deny()).await?;
    config["pdp"] = json!({ "url": pdp.url(), "token_file": lab.path("pdp.token") });
    let found = doctor(&lab, "hub", &config, &[]).await?;
    found.has(
        "ok",
        "pdp",
        &["may nowconnect:doctor serve echo to 192.0.2.1? deny"],
    )?;
    let asked = pdp.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/access/v1/evaluation");
    assert_eq!(asked[0].header("authorization"), Some("Bearer let-me-ask"));
    assert_eq!(asked[0].body["subject"]["id"], "nowconnect:doctor");
    assert_eq!(asked[0].body["context"]["client_ip"], "192.0.2.1");

    pdp.say(Reply::allow());
    let found = doctor(&lab, "hub", &config, &[]).await?;
    found.has("warning", "pdp", &["cannot exist", "subject"])?;
    assert_eq!(found.code, Some(0), "{}", found.report);
    assert!(!found.report.to_string().contains("let-me-ask"));
    Ok(())
}

#[tokio::test]
async fn why_it_does_not_decide_is_named() -> Result<()> {
    let lab = lab()?;
    let mut config = hub_config(&lab)?;
    let pdp = Pdp::start(Reply::allow()).await?;
    config["pdp"] = json!({ "url": pdp.url(), "timeout_ms": 2000 });
    for (reply, words) in [
        (
            Reply::Status(401),
            &["HTTP status 401", "set pdp.token_file"][..],
        ),
        (
            Reply::Status(404),
            &["HTTP status 404", "/access/v1/evaluation"],
        ),
        (Reply::Status(422), &["HTTP status 422", "pdp.format"]),
        (Reply::Status(503), &["HTTP status 503", "its log"]),
        (Reply::Redirect, &["redirects are not followed", "pdp.url"]),
        (
            Reply::Html,
            &["text/html", "pdp.url leads to the decision point"],
        ),
        (
            Reply::Text("{\"ok\":true}"),
            &["not an answer of format authzen", "pdp.format"],
        ),
        (
            Reply::Text("nonsense"),
            &["not an answer of format authzen"],
        ),
        (Reply::Huge, &["larger than"]),
        (
            Reply::Never,
            &["no complete answer within 2 s", "pdp.timeout_ms"],
        ),
        (Reply::Cut, &["ended before the answer"]),
    ] {
        pdp.say(reply);
        let found = doctor(&lab, "hub", &config, &[]).await?;
        found.has("fault", "pdp", words)?;
        found.has("ok", "pdp", &["clients are refused"])?;
    }

    config["pdp"] =
        json!({ "url": format!("http://127.0.0.1:{}", ports::reserve()?), "fail_open": true });
    let found = doctor(&lab, "hub", &config, &[]).await?;
    found.has("fault", "pdp", &["refused", "host and port"])?;
    found.has("ok", "pdp", &["clients are let in"])?;
    config["pdp"] = json!({ "url": "http://pdp.invalid/" });
    doctor(&lab, "hub", &config, &[])
        .await?
        .has("fault", "pdp", &["host and port"])?;

    let authority = Authority::new("pdp CA")?;
    let sealed = Pdp::start_tls(Reply::deny(), &authority).await?;
    config["pdp"] = json!({ "url": sealed.url() });
    doctor(&lab, "hub", &config, &[]).await?.has(
        "fault",
        "pdp",
        &["UnknownIssuer", "pdp.ca_bundle"],
    )?;
    config["pdp"]["ca_bundle"] = json!(authority.bundle());
    doctor(&lab, "hub", &config, &[])
        .await?
        .has("ok", "pdp", &["deny"])?;
    Ok(())
}
