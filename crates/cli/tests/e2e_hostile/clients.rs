//! Clients of listeners: rapid, silent, and with PROXY headers of their own making.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::transfer::{read_to_end, reset};
use nowconnect_testkit::wait::until;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::list::cases;
use crate::scene::{LISTENER, Scene, lab};

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

cases! { "Clients of a listener";
    a_connector_that_nobody_exports: "a reset at once", "`nowconnect_listener_errors_total{connector=\"nobody\",type=\"no_agent\"}` +1, `no_agent_for_connector`" => nobody();
    a_proxy_header_that_is_payload: "a reset", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1, `connection_refused`" => header(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "proxy_header");
    a_proxy_header_that_never_ends: "a reset", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1, `connection_refused`" => header([b"PROXY TCP4 ".as_slice(), &[b'1'; 500]].concat(), "proxy_header");
    a_proxy_header_of_64_kb: "a reset before its end is waited for", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1, `connection_refused`" => header([V2_SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(), "proxy_header");
    a_proxy_header_of_another_version: "a reset", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1, `connection_refused`" => header([V2_SIGNATURE, &[0xf1, 0x11, 0, 12], &[1; 12]].concat(), "proxy_header");
    a_proxy_header_that_is_too_short_for_its_addresses: "a reset", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1, `connection_refused`" => header([V2_SIGNATURE, &[0x21, 0x21, 0, 12], &[1; 12]].concat(), "proxy_header");
    a_proxy_header_with_a_port_beyond_65535: "a reset", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1, `connection_refused`" => header(b"PROXY TCP4 10.1.2.3 127.0.0.1 99999 1\r\n".to_vec(), "proxy_header");
    a_proxy_header_from_nobody_we_trust: "a reset", "`nowconnect_listener_errors_total{type=\"proxy_untrusted\"}` +1, `connection_refused`" => untrusted();
    a_proxy_header_that_does_not_come: "a reset within 5 s", "`nowconnect_listener_errors_total{type=\"proxy_header\"}` +1" => late();
    an_address_in_ipv6_clothes: "a reset: `::ffff:192.0.2.9` is judged as 192.0.2.9", "`nowconnect_listener_errors_total{type=\"cidr_blocked\"}` +1, `cidr_blocked`" => mapped();
    a_thousand_connects_and_resets: "nothing", "`nowconnect_tcp_active_connections` is back at 0, the descriptors and the target's connections are gone" => rapid();
    clients_that_never_speak: "nothing: their flows wait like others", "`nowconnect_tcp_active_connections` counts them" => silent();
}

async fn nobody() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("nobody").start().await?;
    let start = Instant::now();
    hub.turns_away("nobody").await?;
    ensure!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let event = hub.log().wait_event("no_agent_for_connector").await?;
    ensure!(
        (event.text("connector"), event.text("listener")) == ("nobody".into(), "nobody".into()),
        "{}",
        event.json()
    );
    let labels = [("connector", "nobody"), ("type", "no_agent")];
    hub.wait_metric(LISTENER, &labels, |value| value == 1.0)
        .await?;
    Ok(())
}

async fn guarded(trusted: serde_json::Value, more: serde_json::Value) -> Result<Scene> {
    let mut listener = json!({ "proxy_protocol": "any" });
    listener
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    Scene::set_with(|plan| {
        plan.listener_with("guarded", "echo", listener)
            .set("tunnel.trusted_proxies", trusted)
    })
    .await
}

async fn header(bytes: Vec<u8>, why: &str) -> Result<()> {
    let mut scene = guarded(json!(["127.0.0.0/8"]), json!({})).await?;
    let mut client = scene.hub.connect("guarded").await?;
    client.write_all(&bytes).await?;
    let start = Instant::now();
    let (answer, _) = read_to_end(&mut client).await?;
    ensure!(
        answer.is_empty() && start.elapsed() < Duration::from_secs(3),
        "{answer:?}"
    );
    scene.counted(LISTENER, &[("type", why)], 1.0).await?;
    scene.logged("connection_refused", why).await?;
    scene.serves().await
}

async fn untrusted() -> Result<()> {
    let mut scene = guarded(json!(["192.0.2.0/24"]), json!({})).await?;
    scene.hub.turns_away("guarded").await?;
    scene
        .counted(LISTENER, &[("type", "proxy_untrusted")], 1.0)
        .await?;
    scene
        .logged("connection_refused", "proxy_untrusted")
        .await?;
    scene.serves().await
}

async fn late() -> Result<()> {
    let mut scene = guarded(json!(["127.0.0.0/8"]), json!({})).await?;
    let start = Instant::now();
    let mut client = scene.hub.connect("guarded").await?;
    client.write_all(b"PROXY TCP4 10.1").await?;
    read_to_end(&mut client).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(9),
        "{:?}",
        start.elapsed()
    );
    scene
        .counted(LISTENER, &[("type", "proxy_header")], 1.0)
        .await?;
    scene.serves().await
}

async fn mapped() -> Result<()> {
    let allow = json!({ "allow_cidrs": ["::/0", "10.0.0.0/8"] });
    let mut scene = guarded(json!(["127.0.0.0/8"]), allow).await?;
    let mut client = scene.hub.connect("guarded").await?;
    client
        .write_all(b"PROXY TCP6 ::ffff:192.0.2.9 ::1 5 6\r\n")
        .await?;
    read_to_end(&mut client).await?;
    scene
        .counted(LISTENER, &[("type", "cidr_blocked")], 1.0)
        .await?;
    scene.hub.log().wait_event("cidr_blocked").await?;
    scene.serves().await
}

async fn rapid() -> Result<()> {
    let mut scene = Scene::set().await?;
    scene.serves().await?;
    let (files, agent_files) = (scene.hub.open_files()?, scene.agent.open_files()?);
    for round in 0..1000 {
        let mut client = scene.hub.connect("echo").await?;
        if round % 2 == 0 {
            client.write_all(b"x").await?;
        }
        reset(client)?;
    }
    scene.hub.wait_idle("echo").await?;
    until("the descriptors to be given back", async || {
        let (hub, agent) = (scene.hub.open_files()?, scene.agent.open_files()?);
        ensure!(
            hub <= files + 8 && agent <= agent_files + 8,
            "{hub} {agent}"
        );
        Ok(())
    })
    .await?;
    scene.serves().await
}

async fn silent() -> Result<()> {
    let mut scene = Scene::set_with(|plan| plan.set("limits.max_conn_total", 300)).await?;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(scene.hub.connect("echo").await?);
    }
    let labels = [("connector", "echo")];
    scene
        .counted("nowconnect_tcp_active_connections", &labels, 200.0)
        .await?;
    scene.serves().await?;
    drop(silent);
    scene.hub.wait_idle("echo").await
}
