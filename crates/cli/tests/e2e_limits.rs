//! Who may connect, how often, and for how long.

use std::time::{Duration, Instant};

use anyhow::Result;
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, read_to_end};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

async fn served(hub: &Hub, listener: &str) -> Result<TcpStream> {
    let mut client = hub.connect(listener).await?;
    echo(&mut client, Pattern(1), 0, 100).await?;
    Ok(client)
}

async fn turned_away(hub: &Hub, listener: &str, why: &str) -> Result<()> {
    hub.turns_away(listener).await?;
    let labels = [("type", why)];
    hub.wait_metric("nowconnect_listener_errors_total", &labels, |value| {
        value >= 1.0
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn limits_hold_in_all_per_listener_and_per_client() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.listener_with("small", "echo", json!({ "max_conn": 1 }));
    let hub = hub.set("limits.max_conn_total", 4).start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let one = served(&hub, "small").await?;
    turned_away(&hub, "small", "max_conn_listener").await?;
    let more = [
        served(&hub, "echo").await?,
        served(&hub, "echo").await?,
        served(&hub, "echo").await?,
    ];
    turned_away(&hub, "echo", "max_conn_total").await?;
    drop((one, more));
    hub.wait_idle("echo").await?;
    served(&hub, "small").await?;
    drop(hub);

    let hub = lab
        .hub("hub-b")
        .listener("echo")
        .set("limits.max_conn_per_client", 2);
    let hub = hub.start().await?;
    let _agent = lab
        .agent("site-2")
        .to(&hub)
        .target("echo", server.addr())
        .start()
        .await?;
    let two = [served(&hub, "echo").await?, served(&hub, "echo").await?];
    turned_away(&hub, "echo", "max_conn_client").await?;
    drop(two);
    hub.wait_idle("echo").await?;
    served(&hub, "echo").await.map(drop)
}

#[tokio::test]
async fn networks_are_kept_out() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let closed = json!({ "allow_cidrs": ["10.0.0.0/8", "2001:db8::/32"] });
    let hub = hub.listener_with("closed", "echo", closed).start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    served(&hub, "echo").await?;
    turned_away(&hub, "closed", "cidr_blocked").await?;
    let event = hub.log().wait_event("cidr_blocked").await?;
    assert!(
        event.text("client").starts_with("127.0.0.1"),
        "{}",
        event.json()
    );
    assert_eq!(event.json()["audit"], true);
    Ok(())
}

#[tokio::test]
async fn the_proxy_header_names_the_client_and_is_not_payload() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let only_ten = json!({ "proxy_protocol": "any", "allow_cidrs": ["10.0.0.0/8"] });
    let hub = lab.hub("hub-a").listener_with("pp", "echo", only_ten);
    let hub = hub
        .set("tunnel.trusted_proxies", json!(["127.0.0.0/8"]))
        .start()
        .await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;

    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
        &[10, 1, 2, 3, 127, 0, 0, 1, 0x30, 0x39, 1, 0x85],
    ]
    .concat();
    for header in [b"PROXY TCP4 10.1.2.3 127.0.0.1 12345 389\r\n".to_vec(), v2] {
        let mut client = hub.connect("pp").await?;
        // Split, as balancers and networks do.
        client.write_all(&header[..7]).await?;
        client.write_all(&header[7..]).await?;
        echo(&mut client, Pattern(1), 0, 1000).await?;
    }
    let closed = hub.log().wait_event("flow_closed").await?;
    assert!(
        closed.text("client").starts_with("10.1.2.3"),
        "{}",
        closed.json()
    );

    for bad in [
        "PROXY TCP4 192.0.2.1 127.0.0.1 12345 389\r\n",
        "PROXY TCP4 10.1.2.3\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = hub.connect("pp").await?;
        client.write_all(bad.as_bytes()).await?;
        let (bytes, _) = read_to_end(&mut client).await?;
        assert!(bytes.is_empty(), "{bad}");
    }
    assert_eq!(server.accepted(), 2);
    Ok(())
}

#[tokio::test]
async fn idle_flows_end_and_busy_ones_do_not() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let short = json!({ "idle_timeout_ms": 1500 });
    let hub = lab
        .hub("hub-a")
        .listener("echo")
        .listener_with("short", "echo", short);
    let hub = hub.start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let mut patient = served(&hub, "echo").await?;
    let (mut idle, mut busy) = (served(&hub, "short").await?, served(&hub, "short").await?);
    let start = Instant::now();
    let watch = read_to_end(&mut idle);
    let talk = async {
        let mut at = 100;
        while start.elapsed() < Duration::from_secs(4) {
            echo(&mut busy, Pattern(1), at, 100).await?;
            at += 100;
            // Traffic that pauses less long than the timeout is what this is about.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        anyhow::Ok(())
    };
    let ended = async {
        watch.await?;
        anyhow::Ok(start.elapsed())
    };
    let (after, ()) = tokio::try_join!(ended, talk)?;
    assert!((1200..4000).contains(&after.as_millis()), "{after:?}");
    echo(&mut patient, Pattern(1), 100, 100).await
}
