//! The HTTP surface.

use nowconnect_testkit::ports::connect_from;
use nowconnect_testkit::{http, wait};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::Rig;

fn json(answer: &http::Answer) -> Value {
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "{answer:?}"
    );
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test]
async fn health_and_metrics_answer() {
    let rig = Rig::start_with(|config| config.observability.metrics_port = Some(0)).await;
    for address in [rig.http(), rig.hub.addresses().metrics.unwrap()] {
        let alive = http::get(address, "/healthz").await.unwrap();
        assert_eq!(
            (alive.status, json(&alive)["status"].as_str()),
            (200, Some("ok"))
        );
        let ready = http::get(address, "/readyz?strict=1").await.unwrap();
        assert_eq!(ready.status, 200);
        assert_eq!(
            ready.body,
            r#"{"mode":"off","reasons":[],"status":"ready"}"#
        );
        let metrics = http::get(address, "/metrics").await.unwrap();
        assert!(
            metrics
                .header("content-type")
                .unwrap()
                .starts_with("text/plain; version=0.0.4")
        );
        assert!(
            metrics
                .body
                .contains("nowconnect_tcp_connections_total{connector=\"echo\"} 0\n")
        );
    }
    let open = [("Accept", "application/openmetrics-text; version=1.0.0")];
    let metrics = http::request(rig.http(), "GET", "/metrics", &open, "")
        .await
        .unwrap();
    assert!(
        metrics
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(metrics.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn only_exact_paths_and_methods_exist() {
    let rig = Rig::start_with(|config| config.observability.metrics_port = Some(0)).await;
    for path in [
        "/",
        "/tunnel/",
        "//tunnel",
        "/%74unnel",
        "/mesh/",
        "//mesh",
        "/%6desh",
        "/Healthz",
        "/metrics/x",
    ] {
        let answer = http::get(rig.http(), path).await.unwrap();
        assert_eq!(
            (answer.status, json(&answer)["error"].as_str()),
            (404, Some("not_found")),
            "{path}"
        );
    }
    let second = rig.hub.addresses().metrics.unwrap();
    assert_eq!(http::get(second, "/tunnel").await.unwrap().status, 404);
    for (method, path) in [
        ("POST", "/healthz"),
        ("DELETE", "/metrics"),
        ("POST", "/tunnel"),
    ] {
        let answer = http::request(rig.http(), method, path, &[], "")
            .await
            .unwrap();
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.header("allow").unwrap().starts_with("GET"));
    }
}

#[tokio::test]
async fn a_bad_token_gets_a_reason_and_the_connection_ends() {
    let rig = Rig::start().await;
    let expired = nowconnect_testkit::issuer::claims("site-1", -3600);
    let expired = format!("Bearer {}", rig.issuer.sign(&expired).unwrap());
    for (authorization, reason) in [
        ("Bearer nonsense", "malformed"),
        ("Basic x", "missing_token"),
        (&expired, "expired"),
    ] {
        // Connection: Upgrade leaves the closing to the hub.
        let headers = http::upgrade_headers(authorization);
        let answer = http::request(rig.http(), "GET", "/tunnel", &headers, "")
            .await
            .unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(json(&answer)["error"], reason);
        assert_eq!(answer.header("connection"), Some("close"));
        let labels = [("reason", reason)];
        assert_eq!(
            rig.scrape()
                .await
                .get("nowconnect_auth_failures_total", &labels),
            Some(1.0)
        );
    }
}

#[tokio::test]
async fn what_is_no_upgrade_is_refused_before_the_token_is_judged() {
    let rig = Rig::start().await;
    let token = format!("Bearer {}", rig.issuer.token("site-1").unwrap());
    let mut browser = http::upgrade_headers(&token);
    browser.push(("Origin", "https://evil.example"));
    let mut old = http::upgrade_headers(&token);
    old.retain(|(name, _)| *name != "Sec-WebSocket-Version");
    old.push(("Sec-WebSocket-Version", "8"));
    for (headers, status, reason) in [
        (browser, 403, "browser_origin"),
        (old, 426, "bad_websocket_version"),
    ] {
        let answer = http::request(rig.http(), "GET", "/tunnel", &headers, "")
            .await
            .unwrap();
        assert_eq!(
            (answer.status, json(&answer)["error"].as_str()),
            (status, Some(reason))
        );
    }
}

#[tokio::test]
async fn requests_that_never_end_are_bounded() {
    let rig = Rig::start().await;
    let mut endless = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
    endless.resize(64 * 1024, b'a');
    let answer = http::exchange(rig.http(), &endless).await.unwrap();
    assert!(
        String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 431"),
        "{answer:?}"
    );

    let mut slow = TcpStream::connect(rig.http()).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut rest = Vec::new();
    wait::within("the hub to give up", slow.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    rig.wait_metric(
        "nowconnect_protocol_errors_total",
        &[("interface", "http"), ("kind", "header_timeout")],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn too_many_strangers_are_told_to_come_back() {
    let rig = Rig::start().await;
    let mut strangers = Vec::new();
    for source in 2..=5 {
        for _ in 0..256 {
            let stranger = connect_from([127, 0, 0, source], rig.http()).await;
            strangers.push(stranger.unwrap());
        }
    }
    let token = format!("Bearer {}", rig.issuer.token("site-1").unwrap());
    let headers = http::upgrade_headers(&token);
    let busy = http::request(rig.http(), "GET", "/tunnel", &headers, "")
        .await
        .unwrap();
    assert_eq!(
        (busy.status, json(&busy)["error"].as_str()),
        (503, Some("busy"))
    );
    assert_eq!(busy.header("retry-after"), Some("5"));
    assert_eq!(http::get(rig.http(), "/healthz").await.unwrap().status, 200);
}
