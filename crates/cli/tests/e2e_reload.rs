//! A running hub takes a new configuration whole or not at all.

use anyhow::{Result, ensure};
use nowconnect_testkit::http;
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports;
use nowconnect_testkit::program;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

const RELOADS: &str = "nowconnect_config_reloads_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

async fn applied(hub: &Hub) -> Result<f64> {
    hub.metric(RELOADS, &[("result", "applied")]).await
}

#[tokio::test]
async fn listeners_come_and_go_while_flows_run() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;

    hub.add_listener("second", "echo")?;
    let mark = hub.log().mark();
    hub.reload().await?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    echo(&mut hub.connect("second").await?, Pattern(2), 0, 1000).await?;
    echo(&mut client, Pattern(1), 1000, 1000).await?;
    let count = applied(&hub).await?;
    assert!(count >= 1.0);

    // This time nobody sends a signal: the file alone is enough.
    let mark = hub.log().mark();
    hub.remove_listener("second")?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    let gone = TcpStream::connect(hub.listener_addr("second")?).await;
    assert!(gone.is_err(), "the listener is still there");
    echo(&mut client, Pattern(1), 2000, 1000).await?;
    hub.wait_metric(RELOADS, &[("result", "applied")], |value| value > count)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_bad_file_changes_nothing() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;
    let good = program::read(hub.file())?;
    let big = format!("listeners: [{}]", "x, ".repeat(4_000_000));
    let broken = [
        &good[..good.len() / 2],
        "listeners: 7",
        "limitz: {}",
        "\u{0}\u{1}",
        &big,
    ];
    for (index, text) in broken.iter().enumerate() {
        let mark = hub.log().mark();
        program::write(hub.file(), text)?;
        hub.reload().await?;
        hub.log().wait_event_since("config_rejected", mark).await?;
        let rejected = hub.metric(RELOADS, &[("result", "rejected")]).await?;
        assert!(rejected > index as f64, "{rejected}");
        echo(&mut client, Pattern(1), 1000 + 1000 * index as u64, 1000).await?;
    }
    // A port that is taken: the good half of the change must not be applied either.
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let busy = taken.local_addr()?.to_string();
    let free = ports::local(ports::reserve()?);
    let mut listeners = hub.config()["listeners"].clone();
    if let Some(list) = listeners.as_array_mut() {
        list.push(json!({ "name": "new", "bind": free.to_string(), "connector": "echo" }));
        list.push(json!({ "name": "busy", "bind": busy, "connector": "echo" }));
    }
    let mark = hub.log().mark();
    hub.rewrite("listeners", listeners)?;
    hub.reload().await?;
    let event = hub.log().wait_event_since("config_rejected", mark).await?;
    assert!(event.json().to_string().contains(&busy), "{}", event.json());
    assert!(
        TcpStream::connect(free).await.is_err(),
        "half a configuration was applied"
    );

    program::write(hub.file(), &good)?;
    let mark = hub.log().mark();
    hub.reload().await?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    echo(&mut client, Pattern(1), 100_000, 1000).await
}

#[tokio::test]
async fn limits_and_networks_change_live_and_what_cannot_is_named() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await?;

    let mark = hub.log().mark();
    hub.rewrite("limits.max_conn_total", 1)?;
    hub.reload().await?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    hub.turns_away("echo").await?;
    echo(&mut client, Pattern(1), 1000, 1000).await?;

    let mark = hub.log().mark();
    hub.rewrite("limits.max_conn_total", 100)?;
    let old = hub.tunnel_addr()?;
    hub.rewrite("tunnel.port", ports::reserve()?)?;
    hub.reload().await?;
    let what = |line: &str| line.contains("tunnel.port").then_some(());
    let deadline = std::time::Duration::from_secs(20);
    hub.log()
        .wait_line("word of tunnel.port", mark, deadline, what)
        .await?;
    assert_eq!(http::get(old, "/healthz").await?.status, 200);
    until("the new limit", async || {
        echo(&mut hub.connect("echo").await?, Pattern(2), 0, 10).await
    })
    .await
}

#[tokio::test]
async fn the_file_may_be_swapped_by_a_symlink_as_kubernetes_does() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (mut hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    for round in 1..=2 {
        let name = format!("extra{round}");
        let file = hub.file().to_owned();
        hub.add_listener(&name, "echo")?;
        let text = program::read(&file)?;
        let dir = lab.path(&format!("..data{round}"));
        std::fs::create_dir(&dir)?;
        program::write(&dir.join("hub.yaml"), &text)?;
        let link = lab.path("link.new");
        std::os::unix::fs::symlink(dir.join("hub.yaml"), &link)?;
        std::fs::rename(&link, &file)?;
        until("the new listener", async || {
            let mut client = hub.connect(&name).await?;
            ensure!(echo(&mut client, Pattern(1), 0, 10).await.is_ok());
            Ok(())
        })
        .await?;
    }
    Ok(())
}
