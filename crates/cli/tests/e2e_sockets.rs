//! Socket activation: a service manager holds the sockets, and clients do not notice that the hub was away.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use anyhow::{Result, ensure};
use nowconnect_testkit::held_sockets::HeldSockets;
use nowconnect_testkit::lab::{Hub, HubPlan, Lab};
use nowconnect_testkit::log::{Event, Mark};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use nowconnect_testkit::{ports, program};
use serde_json::json;
use tokio::net::TcpStream;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

fn port() -> Result<SocketAddr> {
    Ok(ports::local(ports::reserve()?))
}

/// A hub with a listener `echo` at `address`.
fn plan(lab: &Lab, address: SocketAddr) -> HubPlan<'_> {
    let bind = json!({ "bind": address.to_string() });
    lab.hub("hub-a").listener_with("echo", "echo", bind)
}

async fn passes(address: SocketAddr) -> Result<()> {
    let mut client = TcpStream::connect(address).await?;
    echo(&mut client, Pattern(1), 0, 1000).await
}

async fn ends_with(mut hub: Hub, code: i32, word: &str) -> Result<()> {
    let status = hub.process().wait_exit().await?;
    let text = hub.log().text();
    ensure!(status.code() == Some(code), "{status}: {text}");
    ensure!(text.contains(word), "{word:?} is not in: {text}");
    Ok(())
}

#[tokio::test]
async fn clients_wait_while_the_hub_is_restarted() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (clients, agents, spare) = (port()?, port()?, port()?);
    // By name, by address, and for nobody.
    let held = HeldSockets::default()
        .listen("echo", clients)?
        .listen("nowconnect-hub.socket", agents)?
        .listen("spare", spare)?;
    let mut hub = plan(&lab, clients)
        .set("tunnel.port", agents.port())
        .launched_by(held.launcher())
        .start()
        .await?;
    for (what, address) in [("listener echo", clients), ("tunnel", agents)] {
        let is_its = |event: &Event| event.text("port") == what;
        let inherited = hub
            .log()
            .wait_event_where("socket_inherited", Mark::default(), is_its);
        assert_eq!(inherited.await?.text("address"), address.to_string());
    }
    let unused = hub.log().wait_event("socket_unused").await?;
    assert_eq!(unused.text("socket"), "spare");
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    passes(clients).await?;

    // Once in good order, once not: those who come meanwhile are connected, wait, and are served.
    for signal in [Signal::Term, Signal::Kill] {
        hub.process().signal(signal).await?;
        hub.process().wait_exit().await?;
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(TcpStream::connect(clients).await?);
        }
        hub.start_again().await?;
        for client in &mut waiting {
            echo(client, Pattern(2), 0, 1000).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_listener_that_comes_back_finds_its_socket_and_its_clients() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let clients = port()?;
    let held = HeldSockets::default().listen("nowconnect-hub.socket", clients)?;
    let mut hub = plan(&lab, clients)
        .launched_by(held.launcher())
        .start()
        .await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    passes(clients).await?;
    let files = hub.open_files()?;
    let before = hub.config()["listeners"].clone();
    for _ in 0..3 {
        let mark = hub.log().mark();
        hub.rewrite("listeners", json!([]))?;
        hub.reload().await?;
        let unused = hub.log().wait_event_since("socket_unused", mark).await?;
        assert_eq!(unused.text("address"), clients.to_string());
        let mut client = TcpStream::connect(clients).await?;
        hub.rewrite("listeners", before.clone())?;
        hub.reload().await?;
        echo(&mut client, Pattern(1), 0, 1000).await?;
    }
    until("no more descriptors than before", async || {
        let now = hub.open_files()?;
        ensure!(now <= files, "{now} instead of {files}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_listener_without_a_socket_is_bound_as_ever() -> Result<()> {
    let lab = lab()?;
    let (clients, other) = (port()?, port()?);
    let held = HeldSockets::default().listen("echo", clients)?;
    let hub = plan(&lab, clients)
        .listener_with("second", "echo", json!({ "bind": other.to_string() }))
        .launched_by(held.launcher())
        .start()
        .await?;
    hub.log().wait_event("hub_started").await?;
    let inherited = hub.log().events("socket_inherited", Mark::default());
    assert_eq!(inherited.len(), 1);
    TcpStream::connect(other).await?;
    Ok(())
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_advice() -> Result<()> {
    let lab = lab()?;
    let (wanted, elsewhere) = (port()?, port()?);
    let held = HeldSockets::default().listen("echo", elsewhere)?;
    let hub = plan(&lab, wanted).launched_by(held.launcher()).spawn()?;
    let word = format!("\"echo\" that the service manager holds for it listens on {elsewhere}");
    ends_with(hub, 2, &word).await?;

    // The administrator's port is for this machine; its socket is open to all.
    let admin = ports::reserve()?;
    let held = HeldSockets::default().listen("admin", ([0, 0, 0, 0], admin).into())?;
    let hub = plan(&lab, wanted)
        .set("admin.bind", format!("127.0.0.1:{admin}"))
        .launched_by(held.launcher())
        .spawn()?;
    ends_with(hub, 2, "make its ListenStream= and the configuration agree").await?;

    let datagrams = UdpSocket::bind("127.0.0.1:0")?;
    socket2::SockRef::from(&datagrams).set_cloexec(false)?;
    let script = format!(
        "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"",
        datagrams.as_raw_fd()
    );
    let launcher = ["bash", "-c", &script].map(str::to_owned).to_vec();
    let hub = plan(&lab, wanted).launched_by(launcher).spawn()?;
    ends_with(hub, 2, "not ListenDatagram=").await?;

    for (count, word) in [
        ("100000", "LISTEN_FDS is 100000"),
        ("700", "not all are there: descriptor "),
        ("x", "is no number"),
    ] {
        let script = format!("LISTEN_PID=$$ LISTEN_FDS={count} exec \"$0\" \"$@\"");
        let launcher = ["bash", "-c", &script].map(str::to_owned).to_vec();
        let hub = plan(&lab, wanted).launched_by(launcher).spawn()?;
        ends_with(hub, 2, word).await?;
    }
    Ok(())
}

/// What another process was given is not ours, whatever the variables say that it left behind.
#[tokio::test]
async fn sockets_of_another_process_are_left_alone() -> Result<()> {
    let lab = lab()?;
    let script = "LISTEN_PID=1 LISTEN_FDS=3 exec \"$0\" \"$@\"";
    let launcher = ["bash", "-c", script].map(str::to_owned).to_vec();
    let hub = plan(&lab, port()?).launched_by(launcher).start().await?;
    hub.log().wait_event("hub_started").await?;
    let told = hub.log().events("socket_unused", Mark::default());
    assert!(told.is_empty());
    Ok(())
}

/// The real thing starts the hub for its first client, who waits for the agent too.
#[tokio::test]
async fn systemd_starts_a_hub_for_its_first_client() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let activate = program::find("systemd-socket-activate", "systemd")?;
    let (clients, agents) = (port()?, port()?);
    let launcher = [
        &*activate.to_string_lossy(),
        &format!("--listen={clients}"),
        &format!("--listen={agents}"),
        "--fdname=echo:tunnel",
    ];
    let hub = plan(&lab, clients)
        .set("tunnel.port", agents.port())
        .launched_by(launcher.map(str::to_owned).to_vec())
        .spawn()?;
    let mut client = until("systemd to listen", async || {
        Ok(TcpStream::connect(clients).await?)
    })
    .await?;
    hub.log().wait_event("hub_started").await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    echo(&mut client, Pattern(1), 0, 1000).await
}
