//! A policy decision point that says what a test wants, well or badly.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::authority::{Authority, Certificate};
use crate::wait::until;

/// How a question is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// With status 200 and this JSON.
    Json(Value),
    /// With status 200 and this text, which claims to be JSON.
    Text(&'static str),
    /// With this status, and an allow that must not count.
    Status(u16),
    /// With a redirect to an address that allows everything.
    Redirect,
    /// With status 200 and an allow of another media type.
    Html,
    /// With an allow in a megabyte of JSON.
    Huge,
    /// With an allow, a byte every 100 ms, behind much space.
    Drip,
    /// Never, but the connection stays.
    Never,
    /// With the end of the connection.
    Cut,
}

impl Reply {
    /// An allow in both formats.
    #[must_use]
    pub fn allow() -> Self {
        Self::Json(json!({ "decision": true, "allow": true }))
    }

    /// A deny in both formats.
    #[must_use]
    pub fn deny() -> Self {
        Self::Json(json!({ "decision": false, "allow": false }))
    }
}

/// A question that was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The path of the request.
    pub path: String,
    /// Request line and header fields.
    pub head: String,
    /// The body.
    pub body: Value,
}

impl Asked {
    /// A header field of the request.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Which agent it is about, in either format.
    #[must_use]
    pub fn agent(&self) -> &str {
        let subject = &self.body["subject"];
        subject["id"]
            .as_str()
            .or(subject["agent_id"].as_str())
            .unwrap_or_default()
    }

    /// Which hub asks.
    #[must_use]
    pub fn hub(&self) -> &str {
        self.body["context"]["replica_id"]
            .as_str()
            .unwrap_or_default()
    }
}

type Script = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

struct Shared {
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
    /// How many wait for an answer, and how many did at most.
    waiting: Mutex<(usize, usize)>,
    open: watch::Sender<bool>,
}

/// A server on a port of 127.0.0.1; it goes when it is dropped.
pub struct Pdp {
    addr: SocketAddr,
    tls: bool,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl Pdp {
    /// One that answers everything with `reply`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(reply: Reply) -> Result<Self> {
        Self::serve(reply, None).await
    }

    /// The same with TLS, by a certificate for 127.0.0.1 of `authority`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start_tls(reply: Reply, authority: &Authority) -> Result<Self> {
        authority.issue("pdp", &Certificate::good(&["127.0.0.1"]))?;
        let chain = CertificateDer::pem_file_iter(authority.file("pdp.crt"))?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(authority.file("pdp.key"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Self::serve(reply, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(reply: Reply, tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let shared = Arc::new(Shared {
            script: Mutex::new(Box::new(move |_| reply.clone())),
            asked: Mutex::default(),
            waiting: Mutex::default(),
            open: watch::Sender::new(true),
        });
        Ok(Self {
            addr: listener.local_addr()?,
            tls: tls.is_some(),
            shared: shared.clone(),
            _task: AbortOnDropHandle::new(tokio::spawn(accept(listener, tls, shared))),
        })
    }

    /// Its address without a path.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Answers otherwise from now on.
    pub fn say(&self, reply: Reply) {
        self.decide(move |_| reply.clone());
    }

    /// Answers by what is asked from now on.
    pub fn decide(&self, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *self.shared.script.lock() = Box::new(script);
    }

    /// Keeps answers back until [`Pdp::release`].
    pub fn hold(&self) {
        self.shared.open.send_replace(false);
    }

    /// Gives the answers that were kept back.
    pub fn release(&self) {
        self.shared.open.send_replace(true);
    }

    /// What it was asked, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().clone()
    }

    /// How many questions waited for their answers at the same time, at most.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.shared.waiting.lock().1
    }

    /// Waits until it was asked this often.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_asked(&self, count: usize) -> Result<()> {
        until("questions", async || {
            let asked = self.shared.asked.lock().len();
            ensure!(asked >= count, "{asked} of {count}");
            Ok(())
        })
        .await
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        tasks.spawn(async move {
            // Clients come and go as they like.
            let _ = match tls {
                None => converse(stream, &shared).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => converse(stream, &shared).await,
                    Err(error) => Err(error.into()),
                },
            };
        });
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    loop {
        let asked = read(&mut stream).await?;
        let reply = (shared.script.lock())(&asked);
        shared.asked.lock().push(asked);
        {
            let mut waiting = shared.waiting.lock();
            waiting.0 += 1;
            waiting.1 = waiting.1.max(waiting.0);
        }
        let _waits = Waits(shared);
        shared.open.subscribe().wait_for(|open| *open).await?;
        answer(&mut stream, reply).await?;
    }
}

struct Waits<'a>(&'a Shared);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().0 -= 1;
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Asked> {
    let mut raw = Vec::new();
    let head = loop {
        raw.push(stream.read_u8().await?);
        if raw.ends_with(b"\r\n\r\n") {
            break String::from_utf8(raw)?;
        }
    };
    let mut asked = Asked {
        path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
        body: Value::Null,
        head,
    };
    let length = asked.header("content-length").context("no length")?;
    let mut body = vec![0; length.parse()?];
    stream.read_exact(&mut body).await?;
    asked.body = serde_json::from_slice(&body)?;
    Ok(asked)
}

const ALLOW: &str = r#"{"decision":true,"allow":true}"#;

async fn answer(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> Result<()> {
    let text = match reply {
        Reply::Json(value) => http(200, "application/json", &value.to_string()),
        Reply::Text(text) => http(200, "application/json", text),
        Reply::Status(status) => http(status, "application/json", ALLOW),
        Reply::Html => http(200, "text/html", ALLOW),
        Reply::Huge => {
            let more = " ".repeat(1 << 20);
            http(200, "application/json", &(more + ALLOW))
        }
        Reply::Redirect => "HTTP/1.1 307 Elsewhere\r\nLocation: /allow\r\n\
                            Content-Length: 0\r\n\r\n"
            .to_owned(),
        Reply::Drip => {
            let text = http(200, "application/json", &(" ".repeat(1000) + ALLOW));
            for byte in text.bytes() {
                stream.write_u8(byte).await?;
                // The pause is the offence.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            return Ok(());
        }
        Reply::Never => std::future::pending().await,
        Reply::Cut => anyhow::bail!("cut"),
    };
    Ok(stream.write_all(text.as_bytes()).await?)
}

fn http(status: u16, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

impl std::fmt::Debug for Pdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pdp")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}
