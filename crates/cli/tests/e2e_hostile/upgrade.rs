//! Requests that try to become something else than an upgrade, alone and behind proxies.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::process::Process;
use nowconnect_testkit::wait::until;
use nowconnect_testkit::{anyhow, http, ports, program};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::list::cases;
use crate::scene::{Scene, refused};

/// What must never be reached over a connection that failed to become a tunnel.
const SECOND: &str = "GET /metrics HTTP/1.1\r\nHost: hub\r\n\r\n";
const UPGRADE: &str = "Host: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

cases! { "Upgrades and smuggling";
    a_bad_websocket_version_and_a_second_request_behind_it: "426 `bad_websocket_version`, the end; the second request is not answered", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_websocket_version\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 7\r\n", 426, "bad_websocket_version");
    a_refused_token_and_a_second_request_behind_it: "401 `malformed`, the end", "`nowconnect_auth_failures_total{reason=\"malformed\"}` +1, `jwt_rejected`" => bad_token_smuggled();
    a_websocket_version_given_twice: "426 `bad_websocket_version`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_websocket_version\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n", 426, "bad_websocket_version");
    an_upgrade_to_something_else: "426 `not_an_upgrade`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"not_an_upgrade\"}` +1, `tunnel_refused`" => plain("GET /tunnel HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 426, "not_an_upgrade");
    an_upgrade_by_post: "405 `bad_method`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_method\"}` +1, `tunnel_refused`" => smuggled("POST /tunnel", VERSION, 405, "bad_method");
    an_upgrade_in_http_1_0: "505 `bad_http_version`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_http_version\"}` +1, `tunnel_refused`" => plain("GET /tunnel HTTP/1.0\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", 505, "bad_http_version");
    an_upgrade_with_a_body: "400 `bad_upgrade`, the end; the body is not taken for a request", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_upgrade\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nContent-Length: 38\r\n", 400, "bad_upgrade");
    an_upgrade_with_a_chunked_body: "400 `bad_upgrade`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_upgrade\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nTransfer-Encoding: chunked\r\n", 400, "bad_upgrade");
    an_upgrade_with_two_keys: "400 `bad_upgrade`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_upgrade\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 400, "bad_upgrade");
    an_upgrade_with_two_hosts: "400 `bad_upgrade`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_upgrade\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nHost: other\r\n", 400, "bad_upgrade");
    a_page_in_a_browser_dials_the_tunnel: "403 `browser_origin`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"browser_origin\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nOrigin: https://evil.example\r\n", 403, "browser_origin");
    a_sandboxed_page_dials_the_tunnel: "403 `browser_origin`, the end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"browser_origin\"}` +1, `tunnel_refused`" => smuggled("GET /tunnel", "Sec-WebSocket-Version: 13\r\nOrigin: null\r\n", 403, "browser_origin");
    a_folded_header: "400, the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` +1" => unparsed("GET /tunnel HTTP/1.1\r\nHost: hub\r\nX-Fold: a\r\n b: c\r\n\r\n");
    a_space_before_the_colon: "400, the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` +1" => unparsed("GET /healthz HTTP/1.1\r\nHost : hub\r\n\r\n");
    two_different_content_lengths: "400, the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` +1" => unparsed("GET /healthz HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n");
    a_transfer_encoding_that_is_not_chunked_last: "400, the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` +1" => unparsed("GET /healthz HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked, identity\r\n\r\n");
    a_length_and_chunks_at_once: "400 `unexpected_body`, the end", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"unexpected_body\"}` +1" => body_on_a_page("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n");
    a_body_that_is_a_request: "400 `unexpected_body`, the end; the body is not answered", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"unexpected_body\"}` +1" => body_on_a_page("Content-Length: 38\r\n", SECOND);
    http_2_with_prior_knowledge: "the end, with no answer that anybody could take for one", "`nowconnect_protocol_errors_total{interface=\"http\",kind=\"bad_request\"}` +1" => unparsed("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    paths_beside_the_tunnel: "404 `not_found`, the end, for 14 spellings of `/tunnel` and `/mesh`", "no metric moves" => beside();
    the_admin_api_on_the_tunnel_port: "404 `not_found`, the end", "no metric moves" => admin_elsewhere();
    smuggling_through_nginx: "426, then nginx's own 404; the metrics stay hidden", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_websocket_version\"}` +1, `tunnel_refused`" => through(Front::Nginx);
    smuggling_through_haproxy: "426, then HAProxy's own 404; the metrics stay hidden", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_websocket_version\"}` +1, `tunnel_refused`" => through(Front::Haproxy);
    other_spellings_of_mesh_through_nginx: "no 101, whatever nginx makes of `//mesh`, `/%6desh`, `/tunnel/../mesh`", "no link comes up" => spelled_through(Front::Nginx);
    other_spellings_of_mesh_through_haproxy: "no 101", "no link comes up" => spelled_through(Front::Haproxy);
}

/// How many answers came, and the first of them.
async fn answers(to: SocketAddr, request: &str) -> Result<(usize, String)> {
    let bytes = http::exchange(to, request.as_bytes())
        .await
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok((text.matches("HTTP/1.1 ").count(), text))
}

async fn smuggled(line: &str, headers: &str, status: u16, code: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let token = scene.token("evil");
    let request = format!(
        "{line} HTTP/1.1\r\n{UPGRADE}Authorization: Bearer {token}\r\n{headers}\r\n{SECOND}"
    );
    judge(&mut scene, &request, status, code).await
}

async fn plain(request: &str, status: u16, code: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    judge(&mut scene, &format!("{request}{SECOND}"), status, code).await
}

async fn judge(scene: &mut Scene, request: &str, status: u16, code: &str) -> Result<()> {
    let (count, text) = answers(scene.tunnel(), request).await?;
    ensure!(count <= 1, "{count} answers: {text}");
    let first = text.lines().next().unwrap_or_default();
    ensure!(first.contains(&format!(" {status} ")), "{text}");
    ensure!(text.contains(code), "{text}");
    scene.offended("tunnel", code, 1.0).await?;
    scene.logged("tunnel_refused", code).await?;
    scene.serves().await
}

async fn bad_token_smuggled() -> Result<()> {
    let mut scene = Scene::set().await?;
    let request = format!(
        "GET /tunnel HTTP/1.1\r\n{UPGRADE}{VERSION}Authorization: Bearer x\r\n\r\n{SECOND}"
    );
    let (count, text) = answers(scene.tunnel(), &request).await?;
    ensure!(count == 1 && text.starts_with("HTTP/1.1 401"), "{text}");
    scene.logged("jwt_rejected", "malformed").await?;
    scene.serves().await
}

async fn unparsed(request: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (count, text) = answers(scene.tunnel(), &format!("{request}{SECOND}")).await?;
    ensure!(count <= 1, "{count} answers: {text}");
    ensure!(
        !text.contains(" 200 ") && !text.contains("nowconnect_"),
        "{text}"
    );
    scene.offended("http", "bad_request", 1.0).await?;
    scene.serves().await
}

async fn body_on_a_page(headers: &str, body: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    for port in [scene.tunnel(), scene.hub.http_addr()?] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: hub\r\n{headers}\r\n{body}{SECOND}");
        let (count, text) = answers(port, &request).await?;
        ensure!(
            count == 1 && text.contains("unexpected_body"),
            "{port}: {text}"
        );
    }
    scene.offended("http", "unexpected_body", 2.0).await?;
    scene.serves().await
}

async fn beside() -> Result<()> {
    let mut scene = Scene::set().await?;
    let bearer = format!("Bearer {}", scene.token("evil"));
    let headers = http::upgrade_headers(&bearer);
    for path in [
        "/tunnel/",
        "//tunnel",
        "/%74unnel",
        "/tunnel/..",
        "/TUNNEL",
        "/tunnel;x",
        "/./tunnel",
        "/mesh/",
        "//mesh",
        "/%6desh",
        "/MESH",
        "/mesh;x",
        "/tunnel/../mesh",
        "/",
    ] {
        let answer = http::request(scene.tunnel(), "GET", path, &headers, "").await?;
        refused(&answer, 404, "not_found")?;
    }
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}

async fn admin_elsewhere() -> Result<()> {
    let mut scene = Scene::set().await?;
    for port in [scene.tunnel(), scene.hub.http_addr()?] {
        for path in [
            "/api/v1/status",
            "/api/v1/config",
            "/admin",
            "/debug/pprof/",
        ] {
            refused(&http::get(port, path).await?, 404, "not_found")?;
        }
        let answer = http::request(port, "POST", "/api/v1/drain", &[], "").await?;
        refused(&answer, 404, "not_found")?;
    }
    scene.serves().await
}

#[derive(Clone, Copy)]
enum Front {
    Nginx,
    Haproxy,
}

impl Front {
    /// Starts a proxy that passes `/tunnel` and `/mesh` on, keeps its connections to the hub, and
    /// answers everything else itself.
    async fn start(self, lab: &Lab, hub: SocketAddr) -> Result<(Process, SocketAddr)> {
        let (listen, dir) = (ports::local(ports::reserve()?), lab.dir().display());
        let (config, mut command) = match self {
            Self::Nginx => (
                format!(
                    "daemon off; master_process off; pid {dir}/front.pid; error_log stderr;\n\
                     events {{}}\n\
                     http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
                       fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
                       upstream hub {{ server {hub}; keepalive 4; }}\n\
                       proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;\n\
                       proxy_set_header Connection \"upgrade\"; proxy_set_header Host $host;\n\
                       server {{ listen {listen};\n\
                         location = /tunnel {{ proxy_pass http://hub; }}\n\
                         location = /mesh {{ proxy_pass http://hub; }}\n\
                         location / {{ return 404; }} }} }}\n"
                ),
                Command::new(program::find("nginx", "nginx-light")?),
            ),
            Self::Haproxy => (
                format!(
                    "defaults\n mode http\n timeout connect 5s\n timeout client 20s\n \
                     timeout server 20s\n timeout tunnel 1h\n option http-keep-alive\n \
                     http-reuse always\n\
                     frontend front\n bind {listen}\n acl wanted path /tunnel /mesh\n \
                     http-request deny deny_status 404 unless wanted\n default_backend hub\n\
                     backend hub\n server hub {hub}\n"
                ),
                Command::new(program::find("haproxy", "haproxy")?),
            ),
        };
        let file = lab.write("front.conf", &config)?;
        let option = match self {
            Self::Nginx => "-c",
            Self::Haproxy => "-f",
        };
        let mut front = Process::spawn("front", command.args([option, &file]), lab.dir())?;
        let up = until("the proxy to listen", async || {
            Ok(TcpStream::connect(listen).await?)
        });
        front.while_alive(up).await?;
        Ok((front, listen))
    }
}

async fn through(front: Front) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (_front, listen) = front.start(&scene.lab, scene.tunnel()).await?;
    let request = format!(
        "GET /tunnel HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Version: 7\r\n\r\n\
         GET /metrics HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n"
    );
    let (_, text) = answers(listen, &request).await?;
    ensure!(text.starts_with("HTTP/1.1 426"), "{text}");
    ensure!(
        !text.contains("nowconnect_"),
        "the metrics came through: {text}"
    );
    scene
        .offended("tunnel", "bad_websocket_version", 1.0)
        .await?;
    scene
        .logged("tunnel_refused", "bad_websocket_version")
        .await?;
    // The way that is meant to be open is open.
    let bearer = format!("Bearer {}", scene.token("evil"));
    let headers = http::upgrade_headers(&bearer);
    nowconnect_testkit::raw_ws::RawWs::open(listen, "/tunnel", &headers).await?;
    scene.serves().await
}

async fn spelled_through(front: Front) -> Result<()> {
    let mut scene = Scene::set_with(|plan| {
        plan.set("ha.enabled", true)
            .set("ha.mode", "active")
            .set("ha.replica_id", "hub-a")
            .set("ha.mesh.require_mtls", false)
    })
    .await?;
    let (_front, listen) = front.start(&scene.lab, scene.tunnel()).await?;
    for path in [
        "//mesh",
        "/%6desh",
        "/tunnel/../mesh",
        "/mesh/",
        "/./mesh",
        "/mesh%00",
    ] {
        let request = format!(
            "GET {path} HTTP/1.1\r\n{UPGRADE}{VERSION}\
             Sec-WebSocket-Protocol: nowconnect.mesh.v1\r\n\r\n{SECOND}"
        );
        // A proxy may keep the connection: what it answers first is what counts.
        let mut socket = TcpStream::connect(listen).await?;
        tokio::io::AsyncWriteExt::write_all(&mut socket, request.as_bytes()).await?;
        let mut head = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut socket, &mut head).await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(
            !head.ends_with("101") && !head.ends_with("200"),
            "{path}: {head}"
        );
    }
    ensure!(
        scene
            .hub
            .log()
            .events("mesh_link_up", Default::default())
            .is_empty(),
        "somebody joined"
    );
    scene.serves().await
}
