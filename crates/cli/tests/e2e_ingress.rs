//! An agent that reaches its hub through a real nginx, which ends TLS and restarts when it likes.

use std::net::SocketAddr;

use anyhow::Result;
use nowconnect_testkit::http;
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::nginx::Ingress;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports;
use nowconnect_testkit::process::Process;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{Transfer, echo};

async fn nginx(lab: &Lab, listen: SocketAddr, hub: SocketAddr) -> Result<Process> {
    let ingress = Ingress {
        listen,
        certificate: lab.path("server.crt"),
        key: lab.path("server.key"),
        client_ca: None,
        hub,
    };
    ingress.start(lab.dir()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_survive_a_restart_of_the_ingress() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    lab.certificates()?;
    let (server, bulk) = (Target::echo().await?, Target::bulk().await?);
    let connectors = [("echo", server.addr()), ("bulk", bulk.addr())];
    let hub = lab.hub_for(&connectors).start().await?;
    let listen = ports::local(ports::reserve()?);
    let mut ingress = nginx(&lab, listen, hub.tunnel_addr()?).await?;
    let agent = lab
        .agent_for(&connectors)
        .url(&format!("wss://localhost:{}/tunnel", listen.port()));
    let ca = lab.path("ca.pem").display().to_string();
    let agent = agent.env("NC_CA_BUNDLE", &ca).start().await?;

    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100_000).await?;
    let transfer = Transfer {
        stream: 2,
        up: 10_000_000,
        down: 10_000_000,
    };
    let running = tokio::spawn(transfer.run(hub.connect("bulk").await?));
    bulk.wait_accepted(1).await?;
    ingress.kill().await?;
    hub.log().wait_event("agent_disconnected").await?;
    let _ingress = nginx(&lab, listen, hub.tunnel_addr()?).await?;
    echo(&mut client, Pattern(1), 100_000, 100_000).await?;
    running.await??;
    assert_eq!(http::get(agent.health_addr(), "/readyz").await?.status, 200);
    Ok(())
}
