//! One look at a target: what a client of its kind would do first, within one deadline.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nowconnect_link::counters::Engine;
use nowconnect_link::tls::{CertificateFault, Trust, Witness, written};
use rustls_pki_types::{IpAddr, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;

use super::fault::Fault;
use super::passage::Passage;
use super::{Spec, http, ldap};
use crate::config::{ProbeConfig, ProbeKind};
use crate::tunnels::Session;

/// What a look has found.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Until the answer, or until it was clear that there is none.
    pub(super) took: Duration,
    pub(super) verdict: Result<(), Fault>,
    pub(super) certificate: Option<Certificate>,
}

/// What a target has shown of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// When it ends.
    pub ends: SystemTime,
    /// Whom it is for.
    pub subject: String,
    /// Who has signed it.
    pub issuer: String,
    /// What is wrong with it; `None` when nobody has asked, for want of a `ca_file`.
    pub judged: Option<Result<(), CertificateFault>>,
}

/// Looks at the target of `connector` behind the tunnel of `session`, with all that is said on the
/// way. Takes the probe's `timeout_ms` and a few seconds for the end of its flow.
pub(super) async fn look(
    session: Arc<Session>,
    connector: Arc<str>,
    spec: Arc<Spec>,
    engine: Arc<Engine>,
) -> Outcome {
    let begun = Instant::now();
    let deadline = (begun + spec.config.timeout).into();
    let mut certificate = None;
    let opening = timeout_at(deadline, Passage::open(&session, &connector, &engine)).await;
    let mut passage = match opening {
        Ok(Ok(passage)) => passage,
        Ok(Err(fault)) => return Outcome::failed(begun, fault),
        Err(_) => {
            let fault = Fault::of_path("local", "this hub was too busy to open a socket for it");
            return Outcome::failed(begun, fault);
        }
    };
    let asked = ask(&mut passage, &spec, &mut certificate, deadline);
    let verdict = match asked.await {
        Ok(()) => Ok(()),
        Err(fault) => Err(passage.explain(fault)),
    };
    let took = begun.elapsed();
    passage.close(verdict.is_ok()).await;
    Outcome {
        took,
        verdict,
        certificate,
    }
}

impl Outcome {
    pub(super) fn failed(begun: Instant, fault: Fault) -> Self {
        Self {
            took: begun.elapsed(),
            verdict: Err(fault),
            certificate: None,
        }
    }
}

async fn ask(
    passage: &mut Passage,
    spec: &Spec,
    certificate: &mut Option<Certificate>,
    deadline: tokio::time::Instant,
) -> Result<(), Fault> {
    let config = &spec.config;
    let late = |what: &str| Fault::late(what, config.timeout.as_millis());
    let is_tcp = config.kind == ProbeKind::Tcp;
    if is_tcp || passage.answers_opens {
        let accepted = timeout_at(deadline, passage.accepted()).await;
        match accepted {
            Ok(accepted) => accepted?,
            Err(_) if passage.answers_opens => {
                return Err(late("the agent gave no word of the target"));
            }
            // An agent of version 1 is silent unless it fails, or the target speaks first.
            Err(_) => {}
        }
    }
    if is_tcp {
        return Ok(());
    }
    let mut stage = "the agent gave no word of the target";
    let talked = talk(&mut passage.near, spec, certificate, &mut stage);
    let talked = timeout_at(deadline, talked).await;
    talked.unwrap_or_else(|_| Err(late(stage)))
}

/// Says what the probe's kind has to say. `stage` tells what is waited for.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    spec: &Spec,
    certificate: &mut Option<Certificate>,
    stage: &mut &'static str,
) -> Result<(), Fault> {
    let config = &spec.config;
    if config.starttls && config.kind == ProbeKind::Ldap {
        *stage = "the directory did not answer StartTLS";
        exchange(
            stream,
            ldap::START_TLS,
            ldap::MOST_ANSWER,
            "ldap",
            ldap::start_tls,
        )
        .await?;
    }
    if !config.over_tls() {
        return speak(stream, config, stage).await;
    }
    *stage = "the TLS handshake did not end";
    let mut stream = handshake(stream, spec, certificate).await?;
    let said = speak(&mut stream, config, stage).await;
    // A farewell; nobody waits for it.
    let _ = stream.shutdown().await;
    said
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    config: &ProbeConfig,
    stage: &mut &'static str,
) -> Result<(), Fault> {
    match config.kind {
        ProbeKind::Tcp | ProbeKind::Tls => Ok(()),
        ProbeKind::Ldap | ProbeKind::Ldaps => {
            *stage = "the directory did not answer a search for its root DSE";
            exchange(
                stream,
                ldap::READ_ROOT_DSE,
                ldap::MOST_ANSWER,
                "ldap",
                ldap::root_dse,
            )
            .await?;
            let _ = stream.write_all(ldap::UNBIND).await;
            Ok(())
        }
        ProbeKind::Http | ProbeKind::Https => {
            *stage = "the server did not answer GET";
            let host = config.server_name.as_deref().unwrap_or("localhost");
            let request = http::request(host, &config.path);
            let most = http::MOST_ANSWER;
            let status = exchange(stream, request.as_bytes(), most, "http", http::status).await?;
            if http::is_well(status, &config.expect_status) {
                return Ok(());
            }
            let detail = format!("GET {} was answered with status {status}", config.path);
            Err(Fault::new("http", detail))
        }
    }
}

/// Sends a question and reads until `judge` has seen enough, or `most` bytes. `reason` is that of an
/// answer that is none.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin, T>(
    stream: &mut S,
    question: &[u8],
    most: usize,
    reason: &'static str,
    judge: impl Fn(&[u8]) -> Result<Option<T>, String>,
) -> Result<T, Fault> {
    let gone = |_| Fault::closed("before it had answered");
    stream.write_all(question).await.map_err(gone)?;
    stream.flush().await.map_err(gone)?;
    let (mut answer, mut piece) = (Vec::new(), [0; 2048]);
    loop {
        let len = stream.read(&mut piece).await.map_err(gone)?;
        if len == 0 {
            return Err(Fault::closed("before it had answered"));
        }
        answer.extend_from_slice(&piece[..len]);
        match judge(&answer) {
            Ok(Some(found)) => return Ok(found),
            Err(detail) => return Err(Fault::new(reason, detail)),
            Ok(None) if answer.len() >= most => {
                let detail = format!("the answer does not end within {most} bytes");
                return Err(Fault::new(reason, detail));
            }
            Ok(None) => {}
        }
    }
}

async fn handshake<'s, S: AsyncRead + AsyncWrite + Unpin>(
    stream: &'s mut S,
    spec: &Spec,
    certificate: &mut Option<Certificate>,
) -> Result<tokio_rustls::client::TlsStream<&'s mut S>, Fault> {
    let config = &spec.config;
    let name = server_name(config);
    let witness = Witness::new();
    let alpn = (config.kind == ProbeKind::Https).then_some(&b"http/1.1"[..]);
    let tls = witness.config(alpn);
    let tls = tls.map_err(|error| Fault::of_path("local", error.to_string()))?;
    let shaken = TlsConnector::from(Arc::new(tls))
        .connect(name.clone(), stream)
        .await;
    *certificate = examine(&witness, spec.trust.as_deref(), &name);
    let stream = shaken.map_err(|error| match CertificateFault::of_ours(&error) {
        Some(fault) => Fault::new(
            "tls",
            format!("the target wants a client certificate: {fault}"),
        ),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::closed("during the TLS handshake")
        }
        None => Fault::new("tls", format!("the TLS handshake fails: {error}")),
    })?;
    match certificate.as_ref().and_then(|shown| shown.judged) {
        Some(Err(fault)) => {
            let detail = format!("{fault} (judged by ca_file for {})", name.to_str());
            Err(Fault::new("certificate", detail))
        }
        _ => Ok(stream),
    }
}

/// The name that the target is asked for; none is sent in place of an address.
fn server_name(config: &ProbeConfig) -> ServerName<'static> {
    let nobody = ServerName::IpAddress(IpAddr::V4([0, 0, 0, 0].into()));
    let name = config.server_name.clone();
    name.and_then(|name| ServerName::try_from(name).ok())
        .unwrap_or(nobody)
}

fn examine(witness: &Witness, trust: Option<&Trust>, name: &ServerName<'_>) -> Option<Certificate> {
    let chain = witness.chain();
    let leaf = written(chain.first()?).ok()?;
    let judged = trust.map(|trust| {
        let judged = trust.judge_server(&chain, name, SystemTime::now());
        judged.map_err(|error| CertificateFault::of(&error).unwrap_or(CertificateFault::Other))
    });
    Some(Certificate {
        ends: leaf.ends,
        subject: leaf.subject,
        issuer: leaf.issuer,
        judged,
    })
}
