//! Targets learn who their clients are: the PROXY protocol towards nginx, HAProxy and plain sockets.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::fault_proxy::Cut;
use nowconnect_testkit::lab::{Agent, Hub, Lab, Pair};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Process;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, read_to_end};
use nowconnect_testkit::wait::{until, within};
use nowconnect_testkit::{ports, program};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// A program that answers every HTTP request with the client's address and port and those that the
/// client connected to, as the PROXY header said; it refuses connections without one.
struct Server {
    addr: SocketAddr,
    _process: Process,
}

impl Server {
    async fn nginx(dir: &Path) -> Result<Self> {
        let port = ports::reserve()?;
        let (name, dir_name) = (format!("nginx-{port}"), dir.display());
        let seen = "$proxy_protocol_addr $proxy_protocol_port \
                    $proxy_protocol_server_addr $proxy_protocol_server_port";
        let config = format!(
            "daemon off; master_process off; pid {dir_name}/{name}.pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
               access_log off; client_body_temp_path {dir_name}/{name}-b; proxy_temp_path {dir_name}/{name}-p;\n\
               fastcgi_temp_path {dir_name}/{name}-f; uwsgi_temp_path {dir_name}/{name}-u;\n\
               scgi_temp_path {dir_name}/{name}-s;\n\
               server {{ listen 127.0.0.1:{port} proxy_protocol; return 200 \"{seen}\"; }}\n\
             }}\n"
        );
        let program = program::find("nginx", "nginx-light")?;
        Self::spawn(&program, "-c", &name, &config, dir, port).await
    }

    async fn haproxy(dir: &Path) -> Result<Self> {
        let port = ports::reserve()?;
        let config = format!(
            "defaults\n  mode http\n  timeout client 10s\n  timeout connect 10s\n  timeout server 10s\n\
             frontend all\n  bind 127.0.0.1:{port} accept-proxy\n  http-request return status 200 \
             content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
        );
        let (program, name) = (
            program::find("haproxy", "haproxy")?,
            format!("haproxy-{port}"),
        );
        Self::spawn(&program, "-f", &name, &config, dir, port).await
    }

    async fn spawn(
        program: &Path,
        flag: &str,
        name: &str,
        config: &str,
        dir: &Path,
        port: u16,
    ) -> Result<Self> {
        let file = dir.join(format!("{name}.conf"));
        program::write(&file, config)?;
        let mut process = Process::spawn(name, Command::new(program).arg(flag).arg(&file), dir)?;
        let addr = ports::local(port);
        let up = until("the server to listen", async || {
            Ok(TcpStream::connect(addr).await?)
        });
        process.while_alive(up).await?;
        Ok(Self {
            addr,
            _process: process,
        })
    }
}

/// What the server behind `client` says it was told.
async fn told(client: &mut TcpStream) -> Result<String> {
    let request = b"GET / HTTP/1.1\r\nHost: target\r\nConnection: close\r\n\r\n";
    client.write_all(request).await?;
    let (answer, _) = read_to_end(client).await?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| answer.clone())?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(body.to_owned())
}

/// The address and port of both ends of a client's connection, as servers tell them.
fn ends(client: &TcpStream) -> Result<String> {
    let (from, to) = (client.local_addr()?, client.peer_addr()?);
    Ok(format!(
        "{} {} {} {}",
        from.ip(),
        from.port(),
        to.ip(),
        to.port()
    ))
}

/// The line of version 1 that comes back from an echo server.
async fn header_line(client: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(within("the header", client.read_u8()).await??);
    }
    Ok(String::from_utf8(line)?)
}

/// The header of version 1 that a target should see for a client's connection.
fn version_1(client: &TcpStream) -> Result<String> {
    let (from, to) = (client.local_addr()?, client.peer_addr()?);
    let family = if from.is_ipv4() { 4 } else { 6 };
    let (from_port, to_port) = (from.port(), to.port());
    Ok(format!(
        "PROXY TCP{family} {} {} {from_port} {to_port}\r\n",
        from.ip(),
        to.ip()
    ))
}

#[tokio::test]
async fn real_servers_are_told_the_client_in_both_versions_and_families() -> Result<()> {
    let lab = lab()?;
    let nginx = Server::nginx(lab.dir()).await?;
    let haproxy = Server::haproxy(lab.dir()).await?;
    let announced = json!({ "proxy_protocol": "any" });
    let mut plan = lab
        .hub("hub-a")
        .set("tunnel.trusted_proxies", json!(["127.0.0.1/32"]));
    let mut agent = lab.agent("site-1");
    let mut cases = Vec::new();
    for (server, addr) in [("nginx", nginx.addr), ("haproxy", haproxy.addr)] {
        for version in ["v1", "v2"] {
            let connector = format!("{server}-{version}");
            let six = SocketAddr::new("::1".parse()?, ports::reserve()?);
            plan = plan
                .listener(&connector)
                .listener_with(
                    &format!("{connector}-6"),
                    &connector,
                    json!({ "bind": six.to_string() }),
                )
                .listener_with(
                    &format!("{connector}-behind"),
                    &connector,
                    announced.clone(),
                );
            // One by the file, one by the environment.
            agent = agent.target(&connector, addr);
            agent = if version == "v1" {
                agent.set(
                    &format!("targets.{connector}.proxy_protocol"),
                    json!(version),
                )
            } else {
                let name = connector.replace('-', "_");
                agent.env(&format!("NC_TARGET_{name}_PROXY_PROTOCOL"), version)
            };
            cases.push((connector, six));
        }
    }
    let hub = plan.start().await?;
    let _agent = agent.to(&hub).start().await?;
    for (connector, six) in cases {
        let mut client = hub.connect(&connector).await?;
        let expected = ends(&client)?;
        assert_eq!(told(&mut client).await?, expected, "{connector}");

        let mut client = TcpStream::connect(six).await?;
        let expected = ends(&client)?;
        assert_eq!(told(&mut client).await?, expected, "{connector}");

        let mut client = hub.connect(&format!("{connector}-behind")).await?;
        client
            .write_all(b"PROXY TCP6 2001:db8::7 2001:db8::10 40000 636\r\n")
            .await?;
        let expected = "2001:db8::7 40000 2001:db8::10 636";
        assert_eq!(told(&mut client).await?, expected, "{connector}");
    }
    Ok(())
}

async fn echo_site(lab: &Lab, server: &Target, more: &[(&str, &str)]) -> Result<(Hub, Agent)> {
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let plan = lab.agent("site-1").to(&hub).target("echo", server.addr());
    let plan = plan.set("targets.echo.proxy_protocol", "v1");
    let plan = more
        .iter()
        .fold(plan, |plan, (key, value)| plan.env(key, value));
    let agent = plan.start().await?;
    Ok((hub, agent))
}

#[tokio::test]
async fn the_header_is_no_payload_and_half_closes_pass() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, agent) = echo_site(&lab, &server, &[]).await?;
    let mut client = hub.connect("echo").await?;
    // Bytes that travel with the OPEN must not overtake the header.
    client.write_all(&Pattern(1).bytes(0, 1000)).await?;
    assert_eq!(header_line(&mut client).await?, version_1(&client)?);
    let mut back = vec![0; 1000];
    within("the echo", client.read_exact(&mut back)).await??;
    assert_eq!(back, Pattern(1).bytes(0, 1000));
    client.shutdown().await?;
    assert!(read_to_end(&mut client).await?.0.is_empty());
    let closed = agent.log().wait_event("flow_closed").await?;
    assert_eq!(closed.number("bytes_c2a"), Some(1000), "{}", closed.json());
    assert_eq!(closed.text("reason"), "finished");
    let labels = [("direction", "c2a")];
    let relayed = hub.wait_metric("nowconnect_tcp_bytes_total", &labels, |value| {
        value >= 1000.0
    });
    assert_eq!(relayed.await?, 1000.0);
    Ok(())
}

#[tokio::test]
async fn the_header_is_sent_once_however_often_the_path_breaks() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, _first) = echo_site(&lab, &server, &[]).await?;
    drop(_first);
    let proxy = nowconnect_testkit::fault_proxy::FaultProxy::start(hub.tunnel_addr()?).await?;
    let agent = lab.agent("site-2").via(proxy.addr());
    let agent = agent.target("echo", server.addr());
    let agent = agent.set("targets.echo.proxy_protocol", "v1");
    let _agent = agent.start().await?;
    let mut client = hub.connect("echo").await?;
    assert_eq!(header_line(&mut client).await?, version_1(&client)?);
    for round in 0..3 {
        echo(&mut client, Pattern(1), round * 500, 500).await?;
        proxy.cut(Cut::Reset);
    }
    echo(&mut client, Pattern(1), 1500, 500).await?;
    assert_eq!(server.accepted(), 1);
    Ok(())
}

#[tokio::test]
async fn what_is_not_known_is_not_made_up() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, _agent) = echo_site(&lab, &server, &[("NC_PROTOCOL", "1")]).await?;
    let mut client = hub.connect("echo").await?;
    client.write_all(b"x").await?;
    assert_eq!(header_line(&mut client).await?, "PROXY UNKNOWN\r\n");
    assert_eq!(within("the echo", client.read_u8()).await??, b'x');
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_hub_is_told_too() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let agent = pair.agent(&[&pair.a], "first");
    let agent = agent.set("targets.echo.proxy_protocol", "v1");
    let _agent = agent.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    for hub in [&pair.a, &pair.b] {
        let mut client = hub.connect("echo").await?;
        assert_eq!(header_line(&mut client).await?, version_1(&client)?);
        echo(&mut client, Pattern(1), 0, 1000).await?;
    }
    assert_eq!(
        pair.b
            .metric("nowconnect_cross_hub_flows_total", &[])
            .await?,
        1.0
    );
    Ok(())
}
