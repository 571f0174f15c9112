//! Bytes that no honest peer sends, on every port.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::http::{self, exchange, get};
use nowconnect_testkit::lab::{Agent, Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports::connect_from;
use nowconnect_testkit::raw_tunnel::RawTunnel;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, read_to_end};
use nowconnect_testkit::wait::{until, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ERRORS: &str = "nowconnect_protocol_errors_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

async fn site(lab: &Lab) -> Result<(Hub, Agent, Target)> {
    let server = Target::echo().await?;
    let (hub, agent) = lab.site(&[("echo", server.addr())]).await?;
    Ok((hub, agent, server))
}

/// The ports on which hub and agent speak HTTP.
fn http_ports(hub: &Hub, agent: &Agent) -> Result<[SocketAddr; 4]> {
    Ok([
        hub.tunnel_addr()?,
        hub.http_addr()?,
        hub.admin_addr()?,
        agent.health_addr(),
    ])
}

/// Everybody lives, and clients are served.
async fn check_service(hub: &mut Hub, agent: &mut Agent) -> Result<()> {
    hub.process().check_alive()?;
    agent.process().check_alive()?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 1000).await
}

#[tokio::test]
async fn garbage_on_every_port_hurts_nobody() -> Result<()> {
    let lab = lab()?;
    let (mut hub, mut agent, _server) = site(&lab).await?;
    let tls_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x5a; 506]].concat();
    let garbage = [
        Pattern(13).bytes(0, 5000),
        tls_hello,
        b"\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /readyz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(),
        b"GET /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"GET /readyz HTTP/1.1\r\nHost: a\r\nX-\0: y\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ];
    for port in http_ports(&hub, &agent)? {
        for bytes in &garbage {
            // Whatever the answer is: it comes, and it ends.
            let mut client = TcpStream::connect(port).await?;
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            read_to_end(&mut client).await?;
        }
    }
    check_service(&mut hub, &mut agent).await
}

#[tokio::test]
async fn an_endless_header_is_cut_off() -> Result<()> {
    let lab = lab()?;
    let (mut hub, mut agent, _server) = site(&lab).await?;
    for port in http_ports(&hub, &agent)? {
        let mut request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n".to_vec();
        while request.len() < 2_000_000 {
            request.extend_from_slice(b"X-Filler: 0123456789012345678901234567890123456789\r\n");
        }
        let answer = exchange(port, &request).await.unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer);
        ensure!(
            !answer.starts_with("HTTP/1.1 200"),
            "{port} took 2 MB of header"
        );
        let line = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(200_000));
        let answer = exchange(port, line.as_bytes()).await.unwrap_or_default();
        ensure!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "{port} took a path of 200 KB"
        );
    }
    check_service(&mut hub, &mut agent).await
}

#[tokio::test]
async fn half_a_request_is_not_waited_for() -> Result<()> {
    let lab = lab()?;
    let (mut hub, mut agent, _server) = site(&lab).await?;
    let mut open = Vec::new();
    for port in http_ports(&hub, &agent)? {
        let mut client = TcpStream::connect(port).await?;
        client
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            .await?;
        open.push((port, client));
    }
    let start = Instant::now();
    for (port, client) in &mut open {
        read_to_end(client).await?;
        ensure!(
            start.elapsed() < Duration::from_secs(15),
            "{port}: {:?}",
            start.elapsed()
        );
    }
    check_service(&mut hub, &mut agent).await
}

#[tokio::test]
async fn a_tunnel_without_a_greeting_is_not_waited_for() -> Result<()> {
    let lab = lab()?;
    let (mut hub, mut agent, _server) = site(&lab).await?;
    let token = lab.issuer().token("site-9")?;
    let start = Instant::now();
    for protocol in [None, Some("nowconnect.v2")] {
        let mut silent = RawTunnel::dial_as(hub.tunnel_addr()?, &token, protocol).await?;
        silent.wait_closed().await?;
    }
    assert!(
        start.elapsed() < Duration::from_secs(25),
        "{:?}",
        start.elapsed()
    );
    check_service(&mut hub, &mut agent).await
}

#[tokio::test]
async fn heavy_2000_silent_sockets_keep_nobody_out() -> Result<()> {
    let lab = lab()?;
    let (mut hub, mut agent, _server) = site(&lab).await?;
    let tunnel = hub.tunnel_addr()?;
    let mut silent = Vec::new();
    for _ in 0..2000 {
        let socket = connect_from([127, 0, 0, 9], tunnel);
        // One that is not taken in may hear so before `connect` has returned.
        silent.extend(within("a silent socket", socket).await?);
    }
    // The silent ones must not be able to wait for ever, nor to lock others out while they do.
    let start = Instant::now();
    agent.restart().await?;
    check_service(&mut hub, &mut agent).await?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(5), "served after {took:?}");
    let refused = "nowconnect_http_refused_total";
    let count = hub.metric(refused, &[("reason", "address")]).await?;
    assert_eq!(count, 2000.0 - 256.0);
    until("the hub to drop silent sockets", async || {
        let files = hub.open_files()?;
        ensure!(files < 500, "{files} descriptors are open");
        Ok(())
    })
    .await?;
    drop(silent);
    Ok(())
}

#[tokio::test]
async fn frames_out_of_bounds_close_their_own_tunnel_only() -> Result<()> {
    let lab = lab()?;
    let (mut hub, mut agent, _server) = site(&lab).await?;
    let tunnel = hub.tunnel_addr()?;
    let token = lab.issuer().token("site-9")?;
    // Version 2: length 16 MiB, type 0; an unknown type; a HELLO that is no JSON; zeros; noise.
    let hello = |body: &[u8]| {
        [
            &[0, 0, u8::try_from(body.len()).unwrap_or(255), 1, 0][..],
            &[0; 4],
            body,
        ]
        .concat()
    };
    let frames = [
        [&[0xff, 0xff, 0xff, 0][..], &[0; 5]].concat(),
        hello(b"no json"),
        hello(br#"{"agent_id":"someone-else"}"#),
        vec![0; 9000],
        Pattern(5).bytes(0, 9000),
        vec![0, 0],
    ];
    for frame in frames {
        let mut peer = RawTunnel::dial_as(tunnel, &token, Some("nowconnect.v2")).await?;
        let _ = peer.send_binary(frame).await;
        peer.wait_closed().await?;
    }
    hub.wait_metric(ERRORS, &[], |value| value >= 3.0).await?;

    // WebSocket frames that RFC 6455 forbids, by hand: a length of 2^62; an unmasked frame; a
    // reserved bit; a fragmented ping; a text message of 5 MB.
    let raw: [&[u8]; 4] = [
        &[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
        &[0x82, 0x01, 0x00],
        &[0xc2, 0x81, 0, 0, 0, 0, 0],
        &[0x09, 0x80, 0, 0, 0, 0],
    ];
    for bytes in raw {
        let mut socket = upgraded(tunnel, &token).await?;
        socket.write_all(bytes).await?;
        read_to_end(&mut socket).await?;
    }
    let mut peer = RawTunnel::dial(tunnel, &token).await?;
    let _ = peer.send_text(&"x".repeat(5_000_000)).await;
    peer.wait_closed().await?;
    check_service(&mut hub, &mut agent).await?;
    hub.wait_agents(1).await
}

/// A socket on which the WebSocket handshake is done.
async fn upgraded(tunnel: SocketAddr, token: &str) -> Result<TcpStream> {
    let bearer = format!("Bearer {token}");
    let mut request = "GET /tunnel HTTP/1.1\r\nHost: hub\r\n".to_owned();
    for (name, value) in http::upgrade_headers(&bearer) {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    let mut socket = TcpStream::connect(tunnel).await?;
    socket.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the upgrade", socket.read_u8()).await??);
    }
    ensure!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    Ok(socket)
}

#[tokio::test]
async fn a_listener_whose_connector_nobody_exports_closes_at_once() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("nobody").start().await?;
    let start = Instant::now();
    hub.turns_away("nobody").await?;
    assert!(start.elapsed() < Duration::from_secs(2));
    let event = hub.log().wait_event("no_agent_for_connector").await?;
    assert_eq!(
        (event.text("connector"), event.text("listener")),
        ("nobody".into(), "nobody".into())
    );
    let labels = [("connector", "nobody")];
    hub.wait_metric("nowconnect_listener_errors_total", &labels, |value| {
        value == 1.0
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn paths_beside_the_tunnel_lead_nowhere() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    for path in [
        "/tunnel/",
        "//tunnel",
        "/%74unnel",
        "/tunnel/..",
        "/mesh/",
        "/TUNNEL",
        "/",
    ] {
        let answer = get(hub.tunnel_addr()?, path).await?;
        ensure!(answer.status == 404, "{path}: {answer:?}");
    }
    Ok(())
}
