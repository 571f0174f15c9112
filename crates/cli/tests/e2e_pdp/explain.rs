//! `nowconnect policy explain`.

use anyhow::Result;
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pdp::{Pdp, Reply};
use serde_json::{Value, json};

use crate::site::{Site, asking, decisions, lab, only_site_2, served};

/// What `policy explain` prints as JSON, and its exit code.
pub(crate) async fn explain(lab: &Lab, hub: &Hub, more: &[&str]) -> Result<(Value, i32)> {
    let url = format!("http://{}", hub.admin_addr()?);
    let mut args = vec![
        "policy",
        "explain",
        "--json",
        "--connector",
        "echo",
        "--url",
        &url,
    ];
    args.extend(more);
    let finished = lab.run(&args).await?;
    let report = serde_json::from_str(&finished.stdout)?;
    Ok((report, finished.status.code().unwrap_or(-1)))
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().into_iter().flatten();
    steps
        .into_iter()
        .find(|step| step["step"] == name)
        .unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_decision_is_explained_and_nothing_is_changed() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    pdp.decide(only_site_2);
    let plan = asking(&lab, &pdp, 5000);
    let plan = plan.set("pdp.cache_ttl_sec", 600);
    let plan = plan.set("security.allow_cidrs", json!(["127.0.0.0/8", "10.0.0.0/8"]));
    let site = Site::start(&lab, plan.set("limits.max_conn_per_client", 1)).await?;
    let client = ["--client", "10.0.0.5"];

    let (report, code) = explain(&lab, &site.hub, &client).await?;
    assert_eq!((report["verdict"].as_str(), code), (Some("denied"), 1));
    assert_eq!(report["reason"], "pdp_denied");
    assert_eq!(step(&report, "networks")["more"]["hub"], "10.0.0.0/8");
    let asked = &step(&report, "pdp")["more"][0];
    assert_eq!(asked["question"]["context"]["client_ip"], "10.0.0.5");
    assert_eq!(asked["answer"]["decision"], false);
    assert_eq!(asked["cached_ms_left"], Value::Null);

    let agent = lab
        .agent("site-2")
        .to(&site.hub)
        .target("echo", site.target.addr());
    let _agent = agent.start().await?;
    let (report, code) = explain(&lab, &site.hub, &client).await?;
    assert_eq!((report["verdict"].as_str(), code), (Some("allowed"), 0));
    assert_eq!(report["agent_id"], "site-2");
    let (report, code) = explain(
        &lab,
        &site.hub,
        &["--client", "10.0.0.5", "--agent", "site-1"],
    )
    .await?;
    assert_eq!((report["reason"].as_str(), code), (Some("pdp_denied"), 1));
    let (report, _) = explain(&lab, &site.hub, &["--client", "192.0.2.1"]).await?;
    assert_eq!(report["reason"], "cidr_blocked");
    assert_eq!(step(&report, "pdp")["result"], "skipped");
    let (report, _) = explain(
        &lab,
        &site.hub,
        &["--client", "10.0.0.5", "--listener", "x"],
    )
    .await?;
    assert_eq!(report["reason"], "no_listener");
    let asked = pdp.asked().len();
    assert_eq!(
        decisions(&site.hub, "allow").await?,
        0.0,
        "nothing is counted"
    );
    assert_eq!(decisions(&site.hub, "deny").await?, 0.0);

    let running = served(&site.hub).await?;
    assert!(pdp.asked().len() > asked, "nothing is remembered");
    let (report, code) = explain(&lab, &site.hub, &["--client", "127.0.0.1"]).await?;
    assert_eq!(
        (report["reason"].as_str(), code),
        (Some("max_conn_client"), 1)
    );
    assert_eq!(step(&report, "limits")["more"]["client"]["held"], 1);
    drop(running);
    site.hub.wait_idle("echo").await?;
    let args = ["--client", "127.0.0.1", "--agent", "site-2"];
    let (report, _) = explain(&lab, &site.hub, &args).await?;
    assert!(step(&report, "pdp")["more"][0]["cached_ms_left"].as_u64() > Some(0));

    let finished = lab
        .run(&["policy", "explain", "--connector", "echo", "--client", "x"])
        .await?;
    assert_eq!(finished.status.code(), Some(2));
    Ok(())
}
