//! Whoever knocks at the ports that speak HTTP: tunnel, metrics, admin, and the agent's health.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports::connect_from;
use nowconnect_testkit::raw_ws::{RawWs, v2};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{echo, read_to_end};
use nowconnect_testkit::wait::{until, within};
use nowconnect_testkit::{anyhow, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::list::cases;
use crate::scene::{Scene, V2, closed_with, kind, refused};

cases! { "HTTP ports: tunnel, metrics, admin, agent's health";
    garbage_on_every_port: "400 or the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` moves" => garbage();
    two_megabytes_of_header: "431 or a reset", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` moves" => endless("GET /healthz HTTP/1.1\r\nHost: x\r\n", "X-Filler: 0123456789012345678901234567890123456789\r\n", 2_000_000);
    a_path_of_200_kb: "431 or a reset", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` moves" => endless("GET /", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 200_000);
    half_a_request: "the end within 10 s", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"header_timeout\"}` +3" => half();
    a_letter_per_second: "the end within 15 s", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"header_timeout\"}` +1" => drip();
    a_connection_that_says_nothing: "the end within 15 s", "the descriptors are given back" => silence();
    an_upgrade_and_then_nothing: "close 1000 `handshake_timeout` after 10 s", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"hello_timeout\"}` +2, `agent_refused`" => no_hello();
    half_a_tls_client_hello: "the end within 5 s", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"tls_timeout\"}` +1" => half_tls();
    plain_http_on_a_tls_port: "an alert and the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"tls_handshake\"}` +1" => plain_on_tls();
    heavy_2000_silent_sockets: "a reset for all but 256 of one address, the end after 10 s for those; agents and clients come through meanwhile", "`nowconnect_http_refused_total{reason=\"address\"}` +1744, the descriptors are given back" => crowd();
    a_storm_of_tls_client_hellos: "a turn for each, one at a time; flows and agents come through meanwhile", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"tls_handshake\"}` moves" => tls_storm();
    the_metrics_asked_for_without_end: "what they were a moment ago: one text for all, written four times a second at most", "no metric moves" => metrics_storm();
    writing_to_a_page: "405 `method_not_allowed`, the end", "no metric moves" => writing();
    the_admin_api_from_a_web_page: "403 `origin`, the end", "`admin_refused`" => admin(&[("Origin", "http://127.0.0.1:8766")], 403, "origin");
    the_admin_api_by_a_rebound_name: "403 `host`, the end", "`admin_refused`" => rebound();
    the_admin_api_without_its_token: "401 `unauthorized`, the end", "`admin_refused`" => admin_token(&[]);
    the_admin_api_with_a_wrong_token: "401 `unauthorized`, the end", "`admin_refused`" => admin_token(&[("Authorization", "Bearer guess")]);
    the_admin_api_with_the_beginning_of_its_token: "401 `unauthorized`, the end", "`admin_refused`" => admin_token(&[("Authorization", "Bearer correct-horse")]);
    the_admin_api_with_two_tokens: "401 `unauthorized`, the end", "`admin_refused`" => admin_token(&[("Authorization", "Bearer guess"), ("Authorization", "Bearer correct-horse-battery")]);
    an_agent_id_in_the_admin_path_that_is_none: "404, the end", "no agent is disconnected" => admin_path();
}

/// The ports on which hub and agent speak HTTP.
fn http_ports(scene: &Scene) -> [SocketAddr; 4] {
    [
        scene.tunnel(),
        scene.hub.http_addr().unwrap(),
        scene.hub.admin_addr().unwrap(),
        scene.agent.health_addr(),
    ]
}

async fn garbage() -> Result<()> {
    let mut scene = Scene::set().await?;
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
    for port in http_ports(&scene) {
        for bytes in &garbage {
            // Whatever the answer is: it comes, and it ends.
            let mut client = TcpStream::connect(port).await?;
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            read_to_end(&mut client).await?;
        }
    }
    scene.offended("http", "bad_request", 9.0).await?;
    scene.serves().await
}

async fn endless(begin: &str, more: &str, length: usize) -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut request = begin.to_owned();
    while request.len() < length {
        request += more;
    }
    for port in http_ports(&scene) {
        let answer = http::exchange(port, request.as_bytes())
            .await
            .unwrap_or_default();
        ensure!(!answer.starts_with(b"HTTP/1.1 200"), "{port} took it");
    }
    scene.offended("http", "bad_request", 3.0).await?;
    scene.serves().await
}

/// All of them are ended in time after `start`.
async fn are_ended(open: &mut [(SocketAddr, TcpStream)], start: Instant) -> Result<()> {
    for (port, client) in open {
        read_to_end(client).await?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(15), "{port}: {took:?}");
    }
    Ok(())
}

async fn half() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut open = Vec::new();
    for port in http_ports(&scene) {
        let mut client = TcpStream::connect(port).await?;
        client
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            .await?;
        open.push((port, client));
    }
    let start = Instant::now();
    are_ended(&mut open, start).await?;
    scene.offended("http", "header_timeout", 3.0).await?;
    scene.serves().await
}

async fn drip() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut read, mut write) = TcpStream::connect(scene.tunnel()).await?.into_split();
    let start = Instant::now();
    let drip = async {
        let mut second = tokio::time::interval(Duration::from_millis(250));
        for byte in b"GET /tunnel HTTP/1.1\r\nHost: x\r\nX-Long: "
            .iter()
            .chain([b'x'].iter().cycle())
        {
            second.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = drip => {}
        ended = within("the hub to give up", read.read_to_end(&mut answer)) => drop(ended?),
    }
    ensure!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    scene.offended("http", "header_timeout", 1.0).await?;
    scene.serves().await
}

async fn silence() -> Result<()> {
    let mut scene = Scene::set().await?;
    let start = Instant::now();
    let mut open = Vec::new();
    for port in http_ports(&scene) {
        open.push((port, TcpStream::connect(port).await?));
    }
    are_ended(&mut open, start).await?;
    scene.serves().await
}

async fn no_hello() -> Result<()> {
    let mut scene = Scene::set().await?;
    let token = scene.token("evil");
    let mut v2_peer = RawWs::tunnel(scene.tunnel(), &token, Some(V2)).await?;
    let mut v1_peer = RawWs::tunnel(scene.tunnel(), &token, None).await?;
    // What is no HELLO does not count as one, however often it comes.
    let ping = v2(kind::PING, 0, &[0; 8]);
    v2_peer.send(0x89, &ping).await?;
    closed_with(&v2_peer.closed().await?, 1000, "handshake_timeout")?;
    closed_with(&v1_peer.closed().await?, 1000, "handshake_timeout")?;
    scene.offended("tunnel", "hello_timeout", 2.0).await?;
    scene.logged("agent_refused", "handshake_timeout").await?;
    scene.serves().await
}

/// A hub whose tunnel port speaks TLS.
async fn tls_hub() -> Result<(nowconnect_testkit::lab::Lab, nowconnect_testkit::lab::Hub)> {
    let lab = crate::scene::lab()?;
    lab.certificates()?;
    let file = |name: &str| lab.path(name).display().to_string();
    let hub = lab
        .hub("hub-a")
        .listener("echo")
        .set("tunnel.tls.cert_file", file("server.crt"))
        .set("tunnel.tls.key_file", file("server.key"))
        .start()
        .await?;
    Ok((lab, hub))
}

async fn half_tls() -> Result<()> {
    let (_lab, hub) = tls_hub().await?;
    let start = Instant::now();
    let mut client = TcpStream::connect(hub.tunnel_addr()?).await?;
    client
        .write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])
        .await?;
    read_to_end(&mut client).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(9),
        "{:?}",
        start.elapsed()
    );
    let labels = [("interface", "http"), ("kind", "tls_timeout")];
    hub.wait_metric(crate::scene::ERRORS, &labels, |n| n == 1.0)
        .await?;
    Ok(())
}

/// The same bytes again and again: the attacker computes nothing, the hub a key exchange and a signature.
fn client_hello() -> Result<Vec<u8>> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into()?;
    let mut client = rustls::ClientConnection::new(config.into(), name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

async fn tls_storm() -> Result<()> {
    let (lab, hub) = tls_hub().await?;
    let server = Target::echo().await?;
    let (to, hello) = (hub.tunnel_addr()?, client_hello()?);
    let mut storm = tokio::task::JoinSet::new();
    for attacker in 1..=64 {
        let hello = hello.clone();
        storm.spawn(async move {
            loop {
                if let Ok(mut socket) = connect_from([127, 0, 0, attacker], to).await {
                    let _ = socket.write_all(&hello).await;
                    let _ = socket.read(&mut [0; 1]).await;
                    let _ = socket.set_zero_linger();
                }
            }
        });
    }
    let labels = [("interface", "http"), ("kind", "tls_handshake")];
    hub.wait_metric(crate::scene::ERRORS, &labels, |n| n >= 200.0)
        .await?;
    let start = Instant::now();
    let agent = lab.agent("site-1").target("echo", server.addr());
    let agent = agent.url(&format!("wss://{to}/tunnel"));
    let ca = lab.path("ca.pem").display().to_string();
    let _agent = agent.env("NC_CA_BUNDLE", &ca).start().await?;
    let came = start.elapsed();
    ensure!(came < Duration::from_secs(10), "let in after {came:?}");
    let mut client = hub.connect("echo").await?;
    for round in 0..100 {
        echo(&mut client, Pattern(1), round * 100, 100).await?;
    }
    storm.shutdown().await;
    Ok(())
}

async fn metrics_storm() -> Result<()> {
    let mut scene = Scene::set().await?;
    let start = Instant::now();
    let mut texts = std::collections::HashSet::new();
    for _ in 0..300 {
        let answer = http::get(scene.tunnel(), "/metrics").await?;
        ensure!(answer.status == 200, "{}", answer.head);
        texts.insert(answer.body);
    }
    let most = 4 * (start.elapsed().as_secs() as usize + 2);
    ensure!(texts.len() <= most, "{} texts, {most} at most", texts.len());
    // Whoever runs the hub sees what is now.
    scene.serves().await
}

async fn plain_on_tls() -> Result<()> {
    let (_lab, hub) = tls_hub().await?;
    let mut client = TcpStream::connect(hub.tunnel_addr()?).await?;
    client
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: hub\r\n\r\n")
        .await?;
    let (answer, _) = read_to_end(&mut client).await?;
    ensure!(
        !answer.starts_with(b"HTTP"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let labels = [("interface", "http"), ("kind", "tls_handshake")];
    hub.wait_metric(crate::scene::ERRORS, &labels, |n| n == 1.0)
        .await?;
    Ok(())
}

async fn crowd() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut silent = Vec::new();
    for _ in 0..2000 {
        let socket = connect_from([127, 0, 0, 9], scene.tunnel());
        // Whoever is one too many may be reset before it knows that it is connected.
        silent.push(within("a silent socket", socket).await?);
    }
    // The silent ones must not be able to wait for ever, nor to lock others out while they do.
    let start = Instant::now();
    scene.agent.restart().await?;
    scene.serves().await?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(5), "served after {took:?}");
    let labels = [("reason", "address")];
    let refused = "nowconnect_http_refused_total";
    scene.counted(refused, &labels, 2000.0 - 256.0).await?;
    until("the hub to drop silent sockets", async || {
        let files = scene.hub.open_files()?;
        ensure!(files < 500, "{files} descriptors are open");
        Ok(())
    })
    .await?;
    drop(silent);
    Ok(())
}

async fn writing() -> Result<()> {
    let mut scene = Scene::set().await?;
    for port in [scene.tunnel(), scene.hub.http_addr()?] {
        for (method, path) in [
            ("POST", "/metrics"),
            ("PUT", "/readyz"),
            ("DELETE", "/healthz"),
            ("TRACE", "/healthz"),
        ] {
            let answer = http::request(port, method, path, &[], "").await?;
            refused(&answer, 405, "method_not_allowed")?;
        }
    }
    let health = scene.agent.health_addr();
    let answer = http::request(health, "POST", "/metrics", &[], "").await?;
    ensure!(answer.status == 405, "{answer:?}");
    scene.serves().await
}

async fn admin(headers: &[(&str, &str)], status: u16, code: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let answer = http::request(
        scene.hub.admin_addr()?,
        "POST",
        "/api/v1/drain",
        headers,
        "",
    )
    .await?;
    refused(&answer, status, code)?;
    scene.logged("admin_refused", code).await?;
    scene.serves().await
}

async fn rebound() -> Result<()> {
    let mut scene = Scene::set().await?;
    let request =
        b"POST /api/v1/drain HTTP/1.1\r\nHost: evil.example:8766\r\nContent-Length: 0\r\n\r\n";
    let answer = http::exchange(scene.hub.admin_addr()?, request).await?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("\"host\""),
        "{answer}"
    );
    scene.logged("admin_refused", "host").await?;
    scene.serves().await
}

async fn admin_token(headers: &[(&str, &str)]) -> Result<()> {
    let lab = crate::scene::lab()?;
    let file = lab.write("admin.token", "correct-horse-battery\n")?;
    let hub = lab
        .hub("hub-a")
        .listener("echo")
        .set("admin.token_file", file);
    let hub = hub.start().await?;
    for (method, path) in [
        ("GET", "/api/v1/status"),
        ("POST", "/api/v1/drain"),
        ("GET", "/api/v1/config"),
    ] {
        let answer = http::request(hub.admin_addr()?, method, path, headers, "").await?;
        refused(&answer, 401, "unauthorized")?;
    }
    hub.log().wait_event("admin_refused").await?;
    let good = [("Authorization", "Bearer correct-horse-battery")];
    let answer = http::request(hub.admin_addr()?, "GET", "/api/v1/status", &good, "").await?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        !hub.log().text().contains("correct-horse"),
        "a token is in the log"
    );
    Ok(())
}

async fn admin_path() -> Result<()> {
    let mut scene = Scene::set().await?;
    for id in [
        "..",
        "%2e%2e",
        "site-1%00",
        "site-1/..",
        "SITE-1",
        "*",
        "%0d%0aX:y",
    ] {
        let path = format!("/api/v1/agents/{id}/disconnect");
        let answer = http::request(scene.hub.admin_addr()?, "POST", &path, &[], "").await?;
        ensure!(answer.status == 404, "{id}: {answer:?}");
    }
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}
