//! The health port: for probes that only open a TCP connection, and for those that speak HTTP.
//!
//! Whoever connects and says nothing gets one word, `OK` or (with a tunnel) `READY`, and the end of
//! the stream. Whoever begins with an HTTP method within [`SILENCE`] gets HTTP. This port may be
//! open to a whole network, so connections are bounded in number, bytes and time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nowconnect_link::metrics::Format;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// How long a connection may be silent before it gets the one-word answer.
const SILENCE: Duration = Duration::from_millis(200);
/// How long a connection may last.
const LIFETIME: Duration = Duration::from_secs(5);
/// Connections at one time; the next ones wait in the kernel.
const CONNECTIONS: usize = 64;
/// How long accepting rests after a failure, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// hyper's own least buffer; a probe's request fits many times.
const HEADER_BYTES: usize = 8192;
const JSON: &str = "application/json";

/// Whether the agent can serve: written by the tunnels, read by probes.
#[derive(Debug, Default)]
pub struct Readiness {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    tunnels: usize,
    /// Since when there has been one.
    since: Option<Instant>,
    draining: bool,
}

impl State {
    fn status(self) -> &'static str {
        if self.draining {
            "draining"
        } else if self.tunnels == 0 {
            "connecting"
        } else {
            "ready"
        }
    }
}

impl Readiness {
    /// A hub has acknowledged a tunnel, which is up until the guard is dropped.
    pub fn tunnel_up(self: &Arc<Self>) -> TunnelUp {
        self.state.send_modify(|state| {
            if state.tunnels == 0 {
                state.since = Some(Instant::now());
            }
            state.tunnels += 1;
        });
        TunnelUp(Arc::clone(self))
    }

    /// The agent is about to stop.
    pub fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
    }

    /// Tunnels that are up.
    pub fn tunnels(&self) -> usize {
        self.state.borrow().tunnels
    }

    /// How long there has been a tunnel without a break.
    pub fn up_for(&self) -> Option<Duration> {
        let state = *self.state.borrow();
        state
            .since
            .filter(|_| state.tunnels > 0)
            .map(|since| since.elapsed())
    }

    /// Whether flows can be opened now.
    pub fn is_ready(&self) -> bool {
        self.state.borrow().status() == "ready"
    }

    /// Waits until readiness is `wanted`.
    pub async fn becomes(&self, wanted: bool) {
        let mut state = self.state.subscribe();
        let _ = state
            .wait_for(|state| (state.status() == "ready") == wanted)
            .await;
    }
}

/// A tunnel that is up.
#[derive(Debug)]
pub struct TunnelUp(Arc<Readiness>);

impl Drop for TunnelUp {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.tunnels -= 1);
    }
}

/// What probes and scrapers are told.
#[derive(Debug)]
pub struct Surface {
    /// For the one-word answer and `/readyz`.
    pub readiness: Arc<Readiness>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
}

/// Answers on `port` until `stop`. Connections that are open then end with it.
pub async fn serve(port: TcpListener, surface: Arc<Surface>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    stop.run_until_cancelled(accept(&port, &surface, &stop, &tasks))
        .await;
    drop(port);
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    port: &TcpListener,
    surface: &Arc<Surface>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match port.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(event = "accept_failed", listener = "health", %error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (surface, stop) = (surface.clone(), stop.clone());
        tasks.spawn(async move {
            let answer = timeout(LIFETIME, surface.answer(stream, peer));
            stop.run_until_cancelled(answer).await;
            drop(place);
        });
    }
}

impl Surface {
    async fn answer(&self, stream: TcpStream, peer: SocketAddr) {
        let mut head = [0; 8];
        let answered = match timeout(SILENCE, stream.peek(&mut head)).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(n)) if is_http(&head[..n]) => {
                self.http(stream).await.map_err(|error| error.to_string())
            }
            Ok(Ok(_)) | Err(_) => self.word(stream).await.map_err(|error| error.to_string()),
        };
        if let Err(error) = answered {
            tracing::debug!(event = "health_failed", %peer, error);
        }
    }

    async fn word(&self, mut stream: TcpStream) -> io::Result<()> {
        let word: &[u8] = if self.readiness.is_ready() {
            b"READY"
        } else {
            b"OK"
        };
        stream.write_all(word).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection and take the answer with it.
        let mut unread = [0; 256];
        while stream.read(&mut unread).await? > 0 {}
        Ok(())
    }

    async fn http(&self, stream: TcpStream) -> Result<(), hyper::Error> {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.page(&request)) });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(LIFETIME)
            .max_buf_size(HEADER_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
    }

    fn page(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = page(
                StatusCode::METHOD_NOT_ALLOWED,
                JSON,
                error("method_not_allowed"),
            );
            refusal
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/healthz" => page(StatusCode::OK, JSON, r#"{"status":"ok"}"#.to_owned()),
            "/readyz" => {
                let state = *self.readiness.state.borrow();
                let (status, tunnels) = (state.status(), state.tunnels);
                let code = match status {
                    "ready" => StatusCode::OK,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                page(
                    code,
                    JSON,
                    format!(r#"{{"status":"{status}","tunnels":{tunnels}}}"#),
                )
            }
            "/metrics" => {
                let accept = request
                    .headers()
                    .get(ACCEPT)
                    .and_then(|value| value.to_str().ok());
                let format = Format::negotiate(accept);
                match self.metrics.render(format) {
                    Ok(text) => page(StatusCode::OK, format.content_type(), text),
                    Err(_) => page(StatusCode::INTERNAL_SERVER_ERROR, JSON, error("internal")),
                }
            }
            _ => page(StatusCode::NOT_FOUND, JSON, error("not_found")),
        }
    }
}

fn error(code: &str) -> String {
    format!(r#"{{"error":"{code}"}}"#)
}

fn page(code: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    *page.status_mut() = code;
    page.headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page.headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

/// Whether what came first begins an HTTP request, or may do so with the next bytes.
fn is_http(head: &[u8]) -> bool {
    [&b"GET "[..], b"HEAD ", b"POST ", b"OPTIONS"]
        .iter()
        .any(|method| {
            let common = method.len().min(head.len());
            head[..common] == method[..common]
        })
}
