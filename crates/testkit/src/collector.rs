//! A collector of spans: OTLP over HTTP with protobuf, answered well or badly.

mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::wait::until;

/// How spans are answered.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// Taken.
    Ok,
    /// Not taken, with this status.
    Status(u16),
    /// Taken but for so many.
    Rejects(u8),
    /// Never, but the connection stays.
    Never,
}

/// A span that was taken.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` and `service.instance.id` of the process.
    pub process: (String, String),
    /// In hexadecimal.
    pub trace: String,
    /// In hexadecimal.
    pub id: String,
    /// In hexadecimal; empty for the first of its trace.
    pub parent: String,
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// Its name.
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    pub kind: u64,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// In order, with their attributes.
    pub events: Vec<(String, BTreeMap<String, String>)>,
    /// The message of an error status.
    pub error: Option<String>,
}

impl Span {
    /// An attribute; empty when there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

#[derive(Debug)]
struct Shared {
    reply: Mutex<Reply>,
    heads: Mutex<Vec<String>>,
    resources: Mutex<Vec<BTreeMap<String, String>>>,
    spans: Mutex<Vec<Span>>,
}

/// A server on a port of 127.0.0.1; it goes when it is dropped.
#[derive(Debug)]
pub struct Collector {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    /// One that answers everything with `reply`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(reply: Reply) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            reply: Mutex::new(reply),
            heads: Mutex::default(),
            resources: Mutex::default(),
            spans: Mutex::default(),
        });
        let accepting = accept(listener, shared.clone());
        Ok(Self {
            addr,
            shared,
            _task: AbortOnDropHandle::new(tokio::spawn(accepting)),
        })
    }

    /// Its address for all signals.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers otherwise from now on.
    pub fn say(&self, reply: Reply) {
        *self.shared.reply.lock() = reply;
    }

    /// Request lines and header fields, in order.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().clone()
    }

    /// What it has taken.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.shared.spans.lock().clone()
    }

    /// What processes said of themselves, once for each request.
    #[must_use]
    pub fn resources(&self) -> Vec<BTreeMap<String, String>> {
        self.shared.resources.lock().clone()
    }

    /// Waits until it has taken so many spans of this name, and returns these.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait(&self, name: &str, count: usize) -> Result<Vec<Span>> {
        until(name, async || {
            let mut spans = self.spans();
            let names: Vec<_> = spans.iter().map(|span| span.name.clone()).collect();
            spans.retain(|span| span.name == name);
            ensure!(spans.len() >= count, "{names:?}");
            Ok(spans)
        })
        .await
    }

    /// Waits until it was asked so often.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_asked(&self, count: usize) -> Result<()> {
        until("requests", async || {
            let asked = self.shared.heads.lock().len();
            ensure!(asked >= count, "{asked} of {count}");
            Ok(())
        })
        .await
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tasks.spawn(async move {
            // Clients come and go as they like.
            let _ = converse(stream, &shared).await;
        });
    }
}

async fn converse(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    loop {
        let (head, body) = read(&mut stream).await?;
        shared.heads.lock().push(head);
        let reply = *shared.reply.lock();
        let (status, answer) = match reply {
            Reply::Ok => (200, vec![]),
            Reply::Status(status) => (status, vec![]),
            // partial_success { rejected_spans, error_message: "no" }
            Reply::Rejects(count) => (200, vec![0x0a, 6, 0x08, count, 0x12, 2, b'n', b'o']),
            Reply::Never => std::future::pending().await,
        };
        if status == 200 {
            take(&body, shared)?;
        }
        let head = format!(
            "HTTP/1.1 {status} So\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&answer).await?;
    }
}

async fn read(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut raw = Vec::new();
    let head = loop {
        raw.push(stream.read_u8().await?);
        if raw.ends_with(b"\r\n\r\n") {
            break String::from_utf8(raw)?;
        }
    };
    let length = head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse())
    });
    let mut body = vec![0; length.context("no length")??];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}

/// The field numbers are those of `opentelemetry/proto/trace/v1/trace.proto` and what it imports.
fn take(body: &[u8], shared: &Shared) -> Result<()> {
    for resource_spans in wire::fields(body)?.messages(1) {
        let resource_spans = wire::fields(resource_spans)?;
        let resource = wire::fields(resource_spans.bytes(1))?;
        let resource = attributes(&resource, 1)?;
        for scope_spans in resource_spans.messages(2) {
            for span in wire::fields(scope_spans)?.messages(2) {
                let span = span_of(&wire::fields(span)?, &resource)?;
                shared.spans.lock().push(span);
            }
        }
        shared.resources.lock().push(resource);
    }
    Ok(())
}

fn span_of(span: &wire::Fields<'_>, resource: &BTreeMap<String, String>) -> Result<Span> {
    let said = |key: &str| resource.get(key).cloned().unwrap_or_default();
    let mut events = Vec::new();
    for event in span.messages(11) {
        let event = wire::fields(event)?;
        events.push((event.text(2)?, attributes(&event, 3)?));
    }
    let status = wire::fields(span.bytes(15))?;
    let error = match status.number(3) {
        0 => None,
        2 => Some(status.text(2)?),
        other => bail!("status {other}"),
    };
    Ok(Span {
        process: (said("service.name"), said("service.instance.id")),
        trace: hex(span.bytes(1), 16)?,
        id: hex(span.bytes(2), 8)?,
        parent: match span.bytes(4) {
            [] => String::new(),
            parent => hex(parent, 8)?,
        },
        parent_is_remote: span.number(16) & 0x200 != 0,
        name: span.text(5)?,
        kind: span.number(6),
        start: span.number(7),
        end: span.number(8),
        attributes: attributes(span, 9)?,
        events,
        error,
    })
}

fn attributes(of: &wire::Fields<'_>, number: u32) -> Result<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::new();
    for pair in of.messages(number) {
        let pair = wire::fields(pair)?;
        let value = wire::fields(pair.bytes(2))?;
        let value = match value.has(1) {
            true => value.text(1)?,
            false => value.number(3).to_string(),
        };
        let before = attributes.insert(pair.text(1)?, value);
        ensure!(before.is_none(), "{before:?} is there twice");
    }
    Ok(attributes)
}

fn hex(id: &[u8], len: usize) -> Result<String> {
    ensure!(
        id.len() == len && id.iter().any(|byte| *byte != 0),
        "{id:?}"
    );
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}
