//! Many clients at a time, and those that leave before they are decided about.

use std::time::Duration;

use anyhow::Result;
use nowconnect_testkit::lab::Pair;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::pdp::{Pdp, Reply};
use nowconnect_testkit::transfer::echo;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::site::{Site, asking, configure, decisions, from, lab};

#[tokio::test]
async fn a_crowd_asks_few_questions_at_a_time_and_the_same_one_once() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let plan = asking(&lab, &pdp, 30_000);
    let site = Site::start(&lab, plan).await?;
    pdp.hold();
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(site.hub.connect("echo").await?);
    }
    for last in 1..=100 {
        clients.push(from([127, 0, 1, last], &site.hub).await?);
    }
    pdp.wait_asked(32).await?;
    let admitted = "nowconnect_tcp_connections_total";
    site.hub
        .wait_metric(admitted, &[], |value| value == 150.0)
        .await?;
    assert_eq!(pdp.asked().len(), 32);
    assert_eq!(site.target.accepted(), 0);
    pdp.release();
    for client in &mut clients {
        echo(client, Pattern(1), 0, 100).await?;
    }
    assert_eq!(pdp.asked().len(), 101);
    assert_eq!(pdp.most_at_once(), 32);
    assert_eq!(decisions(&site.hub, "allow").await?, 150.0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_in_the_meantime_opens_nothing() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let plan = asking(&lab, &pdp, 30_000);
    // Longer than a flow without a path is kept.
    let site = Site::start(&lab, plan.set("limits.resume_grace_ms", 0)).await?;
    pdp.hold();
    let (gone, mut patient) = (
        site.hub.connect("echo").await?,
        site.hub.connect("echo").await?,
    );
    pdp.wait_asked(1).await?;
    gone.set_zero_linger()?;
    drop(gone);
    let closed = site.hub.log().wait_event("flow_closed").await?;
    assert_eq!(closed.text("reason"), "socket_reset");
    timeout(Duration::from_secs(3), patient.read_u8())
        .await
        .expect_err("it waits");
    pdp.release();
    echo(&mut patient, Pattern(1), 0, 100).await?;
    assert_eq!(site.target.accepted(), 1);
    Ok(())
}

/// A hub that opens more than can be decided about is held up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_hub_cannot_pile_up_questions() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let rules = json!({ "url": pdp.url(), "timeout_ms": 60_000 });
    configure(&mut pair.b, rules).await?;
    let _agent = pair.agent(&[&pair.b], "first").start().await?;
    pair.wait_routes(&pair.a, 1).await?;
    pdp.hold();
    let mut clients = Vec::new();
    for number in 1..=300_u16 {
        let [high, low] = number.to_be_bytes();
        clients.push(from([127, 1, high, low], &pair.a).await?);
    }
    let refused = [("reason", "refused")];
    let refusals = "nowconnect_mesh_backpressure_total";
    pair.b
        .wait_metric(refusals, &refused, |value| value == 44.0)
        .await?;
    // Clients of the hub itself are not behind them.
    let own = pair.b.connect("echo").await?;
    pdp.wait_asked(33).await?;
    let asked = pdp.asked();
    let of_own = asked
        .iter()
        .filter(|asked| asked.body["context"]["origin_hub"] == "hub-b");
    assert_eq!((asked.len(), of_own.count()), (33, 1));
    pdp.release();
    clients.push(own);
    let mut served = 0;
    for client in &mut clients {
        served += usize::from(echo(client, Pattern(1), 0, 100).await.is_ok());
    }
    assert_eq!((served, pair.echo.accepted()), (257, 257));
    assert_eq!(pdp.most_at_once(), 33);
    Ok(())
}
