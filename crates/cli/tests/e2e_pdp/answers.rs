//! What it says is done, and what it does not say is a no.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::pdp::{Pdp, Reply};
use nowconnect_testkit::ports;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use serde_json::json;

use crate::site::{Site, asking, configure, decisions, lab, only_site_2, served, turned_away};

#[tokio::test]
async fn what_it_says_is_done_in_both_formats() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    lab.write("pdp.token", "let-me-ask\n")?;
    let rules = |format: &str, ttl: u64| {
        json!({
            "url": pdp.url(), "format": format, "cache_ttl_sec": ttl, "timeout_ms": 5000,
            "token_file": lab.path("pdp.token"),
        })
    };
    let plan = lab.hub("hub-a").set("pdp", rules("authzen", 600));
    let mut site = Site::start(&lab, plan).await?;
    drop((served(&site.hub).await?, served(&site.hub).await?));
    let asked = pdp.asked();
    assert_eq!(asked.len(), 1, "the second was remembered");
    assert_eq!(asked[0].path, "/access/v1/evaluation");
    let head = asked[0].head.to_lowercase();
    assert!(head.contains("x-request-id: ") && head.contains("content-type: application/json"));
    assert!(head.contains("authorization: bearer let-me-ask\r\n"));
    let question = json!({
        "subject": { "type": "agent", "id": "site-1" },
        "action": { "name": "connect" },
        "resource": { "type": "connector", "id": "echo" },
        "context": {
            "replica_id": "hub", "origin_hub": "hub", "aud": "nowconnect",
            "listener": "echo", "client_ip": "127.0.0.1",
        },
    });
    assert_eq!(asked[0].body, question);
    assert_eq!(decisions(&site.hub, "allow").await?, 2.0);
    let opened = site.hub.log().events("flow_opened", Default::default());
    let grounds: Vec<_> = opened.iter().map(|event| event.text("pdp")).collect();
    assert_eq!(grounds, ["allow", "cached"]);

    // What is remembered is forgotten under other rules, and a deny is never remembered.
    configure(&mut site.hub, rules("simple", 0)).await?;
    drop(served(&site.hub).await?);
    let asked = pdp.asked();
    assert_eq!((asked.len(), asked[1].path.as_str()), (2, "/"));
    let question = json!({
        "subject": { "agent_id": "site-1" },
        "action": "connect",
        "resource": { "type": "connector", "id": "echo" },
        "context": { "replica_id": "hub", "aud": "nowconnect" },
    });
    assert_eq!(asked[1].body, question);
    for format in ["simple", "authzen"] {
        configure(&mut site.hub, rules(format, 600)).await?;
        pdp.say(Reply::deny());
        turned_away(&site.hub, "pdp_denied").await?;
        pdp.say(Reply::allow());
        drop(served(&site.hub).await?);
    }
    assert_eq!(decisions(&site.hub, "deny").await?, 2.0);
    let denied = site.hub.log().wait_event("pdp_denied").await?;
    assert_eq!(denied.text("agent_id"), "site-1");
    assert_eq!(denied.json()["audit"], true);
    let log = site.hub.log().text();
    assert!(!log.contains("let-me-ask"), "the token is in the log");
    Ok(())
}

#[tokio::test]
async fn the_simple_format_says_how_long_it_may_be_remembered() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::Json(json!({ "allow": true, "ttl_sec": 0 }))).await?;
    let plan = lab.hub("hub-a").set("pdp.url", pdp.url());
    let plan = plan
        .set("pdp.format", "simple")
        .set("pdp.cache_ttl_sec", 600);
    let site = Site::start(&lab, plan).await?;
    drop((served(&site.hub).await?, served(&site.hub).await?));
    assert_eq!(pdp.asked().len(), 2);
    pdp.say(Reply::Json(json!({ "allow": true, "ttl_sec": 600 })));
    drop((served(&site.hub).await?, served(&site.hub).await?));
    assert_eq!(pdp.asked().len(), 3);
    Ok(())
}

#[tokio::test]
async fn what_is_no_answer_is_a_no_unless_it_fails_open() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let rules = |fail_open: bool| json!({ "url": pdp.url(), "format": "simple", "timeout_ms": 400, "fail_open": fail_open });
    let mut site = Site::start(&lab, lab.hub("hub-a").set("pdp", rules(false))).await?;
    let garbage = [
        Reply::Text(""),
        Reply::Text("yes"),
        Reply::Text(r#"{"allow":"yes"}"#),
        Reply::Text(r#"{"allow":1}"#),
        Reply::Text(r#"{"allow":false,"allow":true}"#),
        Reply::Status(500),
        Reply::Status(403),
        Reply::Status(204),
        Reply::Redirect,
        Reply::Html,
        Reply::Huge,
        Reply::Drip,
        Reply::Never,
        Reply::Cut,
    ];
    for reply in &garbage {
        pdp.say(reply.clone());
        turned_away(&site.hub, "pdp_denied").await?;
    }
    let count = garbage.len() as f64;
    assert_eq!(decisions(&site.hub, "error").await?, count);
    assert_eq!(site.target.accepted(), 0);
    let failed = site.hub.log().wait_event("pdp_failed").await?;
    assert_eq!(failed.json()["allowed"], false);
    assert_eq!(failed.json()["audit"], true);

    let mark = site.hub.log().mark();
    configure(&mut site.hub, rules(true)).await?;
    for reply in &garbage {
        pdp.say(reply.clone());
        drop(served(&site.hub).await?);
    }
    assert_eq!(decisions(&site.hub, "error").await?, 2.0 * count);
    assert_eq!(decisions(&site.hub, "allow").await?, 0.0);
    let opened = site.hub.log().wait_event_since("flow_opened", mark).await?;
    assert_eq!(opened.text("pdp"), "fail_open");
    // A no is a no all the same.
    pdp.say(Reply::deny());
    turned_away(&site.hub, "pdp_denied").await
}

#[tokio::test]
async fn nobody_answers_in_its_place() -> Result<()> {
    let lab = lab()?;
    let closed = ports::local(ports::reserve()?);
    let plan = lab.hub("hub-a").set("pdp.url", format!("http://{closed}"));
    let mut site = Site::start(&lab, plan).await?;
    turned_away(&site.hub, "pdp_denied").await?;
    let (authority, stranger) = (Authority::new("ours")?, Authority::new("another")?);
    let pdp = Pdp::start_tls(Reply::allow(), &authority).await?;
    let rules =
        |ca: &Authority| json!({ "url": pdp.url(), "ca_bundle": ca.bundle(), "timeout_ms": 5000 });
    configure(&mut site.hub, rules(&stranger)).await?;
    turned_away(&site.hub, "pdp_denied").await?;
    assert!(pdp.asked().is_empty());
    configure(&mut site.hub, rules(&authority)).await?;
    drop(served(&site.hub).await?);
    assert_eq!(decisions(&site.hub, "error").await?, 2.0);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_ends_costs_nobody_a_decision() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let plan = asking(&lab, &pdp, 5000).set("pdp.cache_ttl_sec", 0);
    let site = Site::start(&lab, plan).await?;
    drop(served(&site.hub).await?);
    let cut = AtomicBool::new(true);
    pdp.decide(move |_| match cut.swap(false, Ordering::Relaxed) {
        true => Reply::Cut,
        false => Reply::allow(),
    });
    drop(served(&site.hub).await?);
    let asked = pdp.asked();
    let name = |at: usize| asked[at].header("x-request-id").map(str::to_owned);
    assert_eq!(asked.len(), 3);
    assert!(name(0) != name(1) && name(1) == name(2));
    assert_eq!(decisions(&site.hub, "error").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn who_may_not_have_one_agent_gets_another() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::deny()).await?;
    pdp.decide(only_site_2);
    let plan = asking(&lab, &pdp, 5000);
    let site = Site::start(&lab, plan).await?;
    turned_away(&site.hub, "pdp_denied").await?;
    let target = Target::echo().await?;
    let agent = lab
        .agent("site-2")
        .to(&site.hub)
        .target("echo", target.addr());
    let _agent = agent.start().await?;
    for _ in 0..6 {
        drop(served(&site.hub).await?);
    }
    assert_eq!((site.target.accepted(), target.accepted()), (0, 6));
    Ok(())
}

#[tokio::test]
async fn it_is_turned_on_and_off_while_flows_run() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::deny()).await?;
    let mut site = Site::start(&lab, lab.hub("hub-a")).await?;
    let mut running = served(&site.hub).await?;
    configure(
        &mut site.hub,
        json!({ "url": pdp.url(), "timeout_ms": 5000 }),
    )
    .await?;
    turned_away(&site.hub, "pdp_denied").await?;
    echo(&mut running, Pattern(1), 100, 100).await?;
    configure(&mut site.hub, json!({})).await?;
    drop(served(&site.hub).await?);
    assert_eq!(pdp.asked().len(), 1);
    // A file that is not there changes nothing.
    let mark = site.hub.log().mark();
    site.hub.rewrite(
        "pdp",
        json!({ "url": pdp.url(), "token_file": lab.path("none") }),
    )?;
    site.hub.reload().await?;
    site.hub
        .log()
        .wait_event_since("config_rejected", mark)
        .await?;
    drop(served(&site.hub).await?);
    Ok(())
}
