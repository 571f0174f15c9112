//! The health port as probes see it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_agent::health::{self, Readiness, Surface};
use nowconnect_agent::metrics::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Port {
    address: SocketAddr,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn port() -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let readiness = Arc::new(Readiness::default());
    let surface = Surface {
        readiness: readiness.clone(),
        metrics: Metrics::new(),
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(health::serve(listener, Arc::new(surface), stop.clone()));
    Port {
        address,
        readiness,
        stop,
        task,
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what)
        .await
        .unwrap()
}

impl Port {
    /// Everything that comes back when `sent` is sent in these pieces and nothing more.
    async fn answer(&self, sent: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in sent {
            stream.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.answer(&[&format!("GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n")])
            .await
    }
}

#[tokio::test]
async fn a_silent_probe_gets_one_word() {
    let port = port().await;
    assert_eq!(port.answer(&[]).await, "OK");
    let up = port.readiness.tunnel_up();
    assert_eq!(port.answer(&[]).await, "READY");
    assert_eq!(
        port.answer(&["STATUS\r\n"]).await,
        "READY",
        "unread bytes cost no answer"
    );
    drop(up);
    assert_eq!(port.answer(&[]).await, "OK");
}

#[tokio::test]
async fn a_probe_that_only_connects_is_fine() {
    let port = port().await;
    drop(TcpStream::connect(port.address).await.unwrap());
    assert_eq!(port.answer(&[]).await, "OK");
}

#[tokio::test]
async fn readiness_over_http_follows_the_tunnels() {
    let port = port().await;
    let page = port.get("/readyz").await;
    assert!(page.starts_with("HTTP/1.1 503 "), "{page}");
    assert!(
        page.ends_with(r#"{"status":"connecting","tunnels":0}"#),
        "{page}"
    );
    let up = [port.readiness.tunnel_up(), port.readiness.tunnel_up()];
    let page = port.get("/readyz").await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(
        page.ends_with(r#"{"status":"ready","tunnels":2}"#),
        "{page}"
    );
    port.readiness.drain();
    let page = port.get("/readyz").await;
    assert!(
        page.starts_with("HTTP/1.1 503 ") && page.contains("draining"),
        "{page}"
    );
    drop(up);
}

#[tokio::test]
async fn http_is_answered_as_http() {
    let port = port().await;
    let page = port.get("/healthz").await;
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.ends_with(r#"{"status":"ok"}"#),
        "{page}"
    );
    let page = port.get("/metrics").await;
    assert!(
        page.contains("content-type: text/plain; version=0.0.4"),
        "{page}"
    );
    assert!(page.contains("nowconnect_build_info{"), "{page}");
    assert!(port.get("/").await.starts_with("HTTP/1.1 404 "));
    let post = port
        .answer(&["POST /healthz HTTP/1.1\r\nHost: agent\r\n\r\n"])
        .await;
    assert!(
        post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"),
        "{post}"
    );
    let head = port
        .answer(&["HEAD /healthz HTTP/1.1\r\nHost: agent\r\n\r\n"])
        .await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let slow = port
        .answer(&["G", "ET /healthz HT", "TP/1.0\r\n\r\n"])
        .await;
    assert!(slow.starts_with("HTTP/1.0 200 "), "{slow}");
    let huge = port
        .answer(&["GET / HTTP/1.1\r\nx: ", &"x".repeat(20_000)])
        .await;
    assert!(
        huge.starts_with("HTTP/1.1 431 ") || huge.is_empty(),
        "{huge}"
    );
}

#[tokio::test]
async fn more_connections_than_places_are_served_in_turn() {
    let port = port().await;
    let mut streams = Vec::new();
    for _ in 0..150 {
        streams.push(TcpStream::connect(port.address).await.unwrap());
    }
    for mut stream in streams {
        let mut word = [0; 2];
        soon(stream.read_exact(&mut word)).await.unwrap();
        assert_eq!(&word, b"OK");
    }
}

#[tokio::test]
async fn stopping_ends_open_connections() {
    let port = port().await;
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    stream.write_all(b"GET /half").await.unwrap();
    port.stop.cancel();
    soon(port.task).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(TcpStream::connect(port.address).await.is_err());
}
