//! Origin and owner of a flow both ask.

use anyhow::{Result, ensure};
use nowconnect_testkit::fault_proxy::Cut;
use nowconnect_testkit::lab::Pair;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::pdp::{Pdp, Reply};
use nowconnect_testkit::transfer::echo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::explain::explain;
use crate::site::{configure, decisions, lab, turned_away};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_the_agent_asks_as_well() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let (at_a, at_b) = (
        Pdp::start(Reply::allow()).await?,
        Pdp::start(Reply::deny()).await?,
    );
    let rules = |pdp: &Pdp| json!({ "url": pdp.url(), "timeout_ms": 10_000, "cache_ttl_sec": 0 });
    configure(&mut pair.a, rules(&at_a)).await?;
    configure(&mut pair.b, rules(&at_b)).await?;
    let _agent = pair.agent(&[&pair.b], "first").start().await?;
    pair.wait_routes(&pair.a, 1).await?;
    turned_away(&pair.a, "pdp_denied").await?;
    assert_eq!(pair.echo.accepted(), 0);
    let asked = at_b.asked();
    let context = &asked[0].body["context"];
    assert_eq!(
        (asked.len(), asked[0].agent(), asked[0].hub()),
        (1, "site-1", "hub-b")
    );
    assert_eq!(context["origin_hub"], "hub-a");
    assert_eq!(context["client_ip"], "127.0.0.1");
    assert_eq!(decisions(&pair.a, "allow").await?, 1.0);
    assert_eq!(decisions(&pair.b, "deny").await?, 1.0);

    // What the client sends at once waits at the owner, and arrives.
    at_b.say(Reply::allow());
    at_b.hold();
    let mut client = pair.a.connect("echo").await?;
    let sent = Pattern(1).bytes(0, 200_000);
    let (mut read, mut write) = client.split();
    let exchange = async {
        let mut back = vec![0; sent.len()];
        let (sent, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        sent?;
        read?;
        Pattern(1).check(0, &back)
    };
    let decide = async {
        at_b.wait_asked(2).await?;
        ensure!(
            pair.echo.accepted() == 0,
            "nothing is opened before the answer"
        );
        at_b.release();
        Ok(())
    };
    let (exchanged, decided) = tokio::join!(exchange, decide);
    exchanged.and(decided)?;

    let (report, code) = explain(&pair.lab, &pair.a, &["--client", "127.0.0.1"]).await?;
    assert_eq!((report["verdict"].as_str(), code), (Some("allowed"), 0));
    assert_eq!(report["hub"], "hub-b");

    // A flow that goes on over another path is not judged again.
    pair.to_b.cut(Cut::Reset);
    pair.wait_linked().await?;
    echo(&mut client, Pattern(1), 200_000, 1000).await?;
    assert_eq!((at_a.asked().len(), at_b.asked().len()), (3, 2));

    // The origin's no is enough.
    at_a.say(Reply::deny());
    turned_away(&pair.a, "pdp_denied").await?;
    assert_eq!(at_b.asked().len(), 2);

    // Silence is a no at the owner as well, and a client that leaves opens nothing.
    at_a.say(Reply::allow());
    at_b.hold();
    let gone = pair.a.connect("echo").await?;
    at_b.wait_asked(3).await?;
    gone.set_zero_linger()?;
    drop(gone);
    pair.a
        .wait_metric("nowconnect_tcp_active_connections", &[], |value| {
            value == 1.0
        })
        .await?;
    at_b.release();
    configure(&mut pair.b, json!({ "url": at_b.url(), "timeout_ms": 200 })).await?;
    at_b.say(Reply::Never);
    turned_away(&pair.a, "pdp_denied").await?;
    assert_eq!(pair.echo.accepted(), 1);
    assert!(decisions(&pair.b, "error").await? >= 1.0);
    echo(&mut client, Pattern(1), 201_000, 1000).await
}
