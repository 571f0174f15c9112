//! The key cache against an identity provider that rotates, fails, lies and stalls.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nowconnect_hub::auth::key::MAX_KEYS;
use nowconnect_hub::auth::mint::{self, AgentToken, KeyKind, SigningKey};
use nowconnect_hub::auth::{Keys, Reason, Rules, Timing, Verifier};
use nowconnect_hub::config::JwksSource;
use nowconnect_testkit::anyhow::ensure;
use nowconnect_testkit::wait::until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(10);

/// What the identity provider does with a request.
#[derive(Clone)]
enum Answer {
    Body(String),
    /// As soon as somebody says so.
    Held(Arc<Notify>, String),
    WithHeader(&'static str, String),
    Status(&'static str),
    RedirectTo(String),
    /// One byte every few milliseconds, for ever.
    Drip,
    /// Headers that promise more than comes.
    Truncated,
    Huge,
    Silence,
}

struct Idp {
    address: std::net::SocketAddr,
    answer: Arc<parking_lot::Mutex<Answer>>,
    hits: Arc<AtomicUsize>,
    _task: tokio::task::JoinSet<()>,
}

impl Idp {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(parking_lot::Mutex::new(answer));
        let hits = Arc::new(AtomicUsize::new(0));
        let mut task = tokio::task::JoinSet::new();
        let (answers, counter) = (Arc::clone(&answer), Arc::clone(&hits));
        task.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = answers.lock().clone();
                connections.spawn(async move {
                    let _ = serve(socket, answer).await;
                });
            }
        });
        Self {
            address,
            answer,
            hits,
            _task: task,
        }
    }

    fn now(&self, answer: Answer) {
        *self.answer.lock() = answer;
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    fn source(&self) -> JwksSource {
        url(&format!("http://{}/jwks", self.address))
    }
}

async fn serve(mut socket: TcpStream, answer: Answer) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let ok = |headers: &str, body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        )
    };
    match answer {
        Answer::Body(body) => socket.write_all(ok("", &body).as_bytes()).await,
        Answer::Held(go, body) => {
            go.notified().await;
            socket.write_all(ok("", &body).as_bytes()).await
        }
        Answer::WithHeader(header, body) => {
            socket
                .write_all(ok(&format!("{header}\r\n"), &body).as_bytes())
                .await
        }
        Answer::Status(line) => {
            socket
                .write_all(format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                .await
        }
        Answer::RedirectTo(to) => {
            let head = format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            socket.write_all(head.as_bytes()).await
        }
        Answer::Truncated => {
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{\"keys\":[")
                .await
        }
        Answer::Drip => {
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n")
                .await?;
            loop {
                socket.write_all(b" ").await?;
                // The pause is the offence.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Answer::Huge => {
            socket
                .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                .await?;
            let spaces = vec![b' '; 64 * 1024];
            for _ in 0..2048 {
                socket.write_all(&spaces).await?;
            }
            Ok(())
        }
        Answer::Silence => std::future::pending().await,
    }
}

/// Fetches never overlap with another test's idea of time: long waits, unless a test shortens them.
fn timing() -> Timing {
    Timing {
        timeout: Duration::from_secs(2),
        ..Timing::default()
    }
}

fn tls(roots: rustls::RootCertStore) -> rustls::ClientConfig {
    rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A running cache with its verifier.
struct Hub {
    keys: Arc<Keys>,
    verifier: Verifier,
    _stop: DropGuard,
    _task: tokio::task::JoinSet<()>,
}

impl Hub {
    fn start(source: JwksSource, timing: Timing) -> Self {
        Self::start_trusting(source, timing, rustls::RootCertStore::empty())
    }

    fn start_trusting(source: JwksSource, timing: Timing, roots: rustls::RootCertStore) -> Self {
        let keys = Keys::new(Some(source), tls(roots), timing);
        let stop = CancellationToken::new();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(Arc::clone(&keys).run(stop.clone()));
        let rules = Rules {
            audience: "nowconnect".into(),
            issuer: None,
        };
        let verifier = Verifier::new(rules, Arc::clone(&keys));
        Self {
            keys,
            verifier,
            _stop: stop.drop_guard(),
            _task: task,
        }
    }

    async fn judge(&self, token: &str) -> Result<(), Reason> {
        let judged = tokio::time::timeout(DEADLINE, self.verifier.verify(token, SystemTime::now()));
        judged
            .await
            .unwrap()
            .map(|_| ())
            .map_err(|refused| refused.reason)
    }

    /// Waits until the newest fetch left this problem.
    async fn problem(&self, part: &str) {
        let seen = until("the problem", async || {
            let status = self.keys.status();
            let problem = status.problem.as_deref().unwrap_or_default();
            ensure!(problem.contains(part), "no {part:?} but {status:?}");
            Ok(())
        });
        seen.await.unwrap();
    }

    async fn change(&self, what: impl AsyncFnOnce()) {
        let mut changes = self.keys.changes();
        what().await;
        tokio::time::timeout(DEADLINE, changes.changed())
            .await
            .unwrap()
            .unwrap();
    }
}

fn url(text: &str) -> JwksSource {
    JwksSource::Url(text.parse().unwrap())
}

/// Every unknown `kid` is asked for, however soon after the last one.
fn at_once() -> Timing {
    Timing {
        unknown_kid_gap: Duration::ZERO,
        ..timing()
    }
}

fn key() -> SigningKey {
    SigningKey::generate(KeyKind::Es256).unwrap()
}

fn document<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> String {
    serde_json::to_string(&mint::jwks(keys)).unwrap()
}

fn token(key: &SigningKey) -> String {
    let agent = AgentToken {
        agent_id: "site-1".into(),
        audience: "nowconnect".into(),
        issuer: None,
        connectors: None,
        proof_key: None,
        lifetime: Duration::from_secs(600),
    };
    key.mint(&agent, SystemTime::now()).unwrap()
}

#[tokio::test]
async fn without_a_source_everybody_is_refused_with_a_reason_of_its_own() {
    let keys = Keys::new(None, tls(rustls::RootCertStore::empty()), timing());
    let rules = Rules {
        audience: "nowconnect".into(),
        issuer: None,
    };
    let refused = Verifier::new(rules, Arc::clone(&keys))
        .verify(&token(&key()), SystemTime::now())
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::NoJwks);
    keys.run(CancellationToken::new()).await;
}

#[tokio::test]
async fn rotation_is_found_through_the_unknown_kid() {
    let (old, new) = (key(), key());
    let idp = Idp::start(Answer::Body(document([&old]))).await;
    let hub = Hub::start(idp.source(), at_once());
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    idp.now(Answer::Body(document([&old, &new])));
    assert_eq!(hub.judge(&token(&new)).await, Ok(()));
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    assert_eq!(idp.hits(), 2);
}

#[tokio::test]
async fn a_removed_key_stops_counting_and_is_announced() {
    let (old, new) = (key(), key());
    let idp = Idp::start(Answer::Body(document([&old]))).await;
    let hub = Hub::start(idp.source(), timing());
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    let old_id = old.jwk().common.key_id.clone().unwrap();
    assert!(hub.keys.upholds(&old_id));
    hub.change(async || {
        idp.now(Answer::Body(document([&new])));
        hub.keys.refresh().await;
    })
    .await;
    assert!(!hub.keys.upholds(&old_id));
    assert_eq!(hub.judge(&token(&old)).await, Err(Reason::UnknownKey));
}

#[tokio::test]
async fn a_key_that_takes_the_name_of_another_is_another_key() {
    let (old, new) = (key(), key());
    let named = |key: &SigningKey| {
        let mut set = mint::jwks([key]);
        set.keys[0].common.key_id = Some("main".into());
        serde_json::to_string(&set).unwrap()
    };
    let idp = Idp::start(Answer::Body(named(&old))).await;
    let hub = Hub::start(idp.source(), timing());
    hub.change(async || hub.keys.refresh().await).await;
    let id = old.jwk().common.key_id.clone().unwrap();
    assert!(hub.keys.upholds(&id));
    hub.change(async || {
        idp.now(Answer::Body(named(&new)));
        hub.keys.refresh().await;
    })
    .await;
    assert!(!hub.keys.upholds(&id));
}

#[tokio::test]
async fn a_flood_of_unknown_kids_costs_one_fetch() {
    let known = key();
    let idp = Idp::start(Answer::Body(document([&known]))).await;
    let hub = Arc::new(Hub::start(idp.source(), timing()));
    assert_eq!(hub.judge(&token(&known)).await, Ok(()));
    let stranger = token(&key());
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (hub, stranger) = (Arc::clone(&hub), stranger.clone());
        flood.spawn(async move { hub.judge(&stranger).await });
    }
    for judged in flood.join_all().await {
        assert_eq!(judged, Err(Reason::UnknownKey));
    }
    assert_eq!(idp.hits(), 1);
    assert_eq!(hub.judge(&token(&known)).await, Ok(()));
}

#[tokio::test]
async fn many_who_wait_for_the_first_keys_share_one_fetch() {
    let known = key();
    let idp = Idp::start(Answer::Body(document([&known]))).await;
    let hub = Arc::new(Hub::start(idp.source(), timing()));
    let good = token(&known);
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (hub, good) = (Arc::clone(&hub), good.clone());
        agents.spawn(async move { hub.judge(&good).await });
    }
    assert!(agents.join_all().await.iter().all(Result::is_ok));
    assert_eq!(idp.hits(), 1);
}

#[tokio::test]
async fn an_impatient_caller_does_not_take_the_fetch_with_it() {
    let (old, new) = (key(), key());
    let idp = Idp::start(Answer::Body(document([&old]))).await;
    let hub = Hub::start(idp.source(), at_once());
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    hub.change(async || {
        idp.now(Answer::Body(document([&old, &new])));
        let stranger = token(&new);
        let mut call = std::pin::pin!(hub.judge(&stranger));
        // One poll asks for the fetch; then the caller is gone.
        std::future::poll_fn(|cx| {
            let _ = std::future::Future::poll(call.as_mut(), cx);
            std::task::Poll::Ready(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn known_keys_serve_through_every_kind_of_outage() {
    let known = key();
    let good = document([&known]);
    let idp = Idp::start(Answer::Body(good.clone())).await;
    let elsewhere = Idp::start(Answer::Body(good.clone())).await;
    let timing = Timing {
        timeout: Duration::from_millis(300),
        ..timing()
    };
    let hub = Hub::start(idp.source(), timing);
    assert_eq!(hub.judge(&token(&known)).await, Ok(()));
    let many = format!(r#"{{"keys":[{}]}}"#, vec!["{}"; MAX_KEYS + 1].join(","));
    for (answer, problem) in [
        (Answer::Status("500 Oops"), "HTTP status 500"),
        (Answer::Status("204 No Content"), "HTTP status 204"),
        (
            Answer::RedirectTo(format!("http://{}/", elsewhere.address)),
            "redirects are not followed",
        ),
        (
            Answer::Body("<html><body>Sign in</body></html>".into()),
            "not a JWKS document",
        ),
        (Answer::Body(r#"{"keys":[]}"#.into()), "no usable key"),
        (Answer::Body(many), "at most 100"),
        (Answer::Truncated, "broke off"),
        (Answer::Huge, "larger than"),
        (Answer::Drip, "no complete answer within"),
        (Answer::Silence, "no complete answer within"),
    ] {
        idp.now(answer);
        hub.keys.refresh().await;
        hub.problem(problem).await;
        assert_eq!(hub.judge(&token(&known)).await, Ok(()), "{problem}");
        // Nobody knows whether this key exists: the agent must try again, not give up.
        assert_eq!(
            hub.judge(&token(&key())).await,
            Err(Reason::KeysUnavailable),
            "{problem}"
        );
    }
    assert_eq!(elsewhere.hits(), 0);
    idp.now(Answer::Body(good));
    hub.keys.refresh().await;
    assert_eq!(hub.keys.status().problem, None);
}

#[tokio::test]
async fn an_operator_s_reload_during_a_fetch_is_followed_by_another() {
    let (old, new) = (key(), key());
    let idp = Idp::start(Answer::Body(document([&old]))).await;
    let hub = Hub::start(idp.source(), timing());
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    let go = Arc::new(Notify::new());
    idp.now(Answer::Held(go.clone(), document([&old])));
    hub.keys.trust(tls(rustls::RootCertStore::empty()));
    let asked = until("the fetch", async || {
        ensure!(idp.hits() == 2);
        Ok(())
    });
    asked.await.unwrap();
    hub.change(async || {
        idp.now(Answer::Body(document([&new])));
        hub.keys.trust(tls(rustls::RootCertStore::empty()));
        go.notify_one();
    })
    .await;
    assert_eq!(hub.judge(&token(&new)).await, Ok(()));
}

#[tokio::test]
async fn a_provider_that_comes_late_is_found_soon() {
    let known = key();
    let idp = Idp::start(Answer::Status("503 Starting")).await;
    let hub = Hub::start(
        idp.source(),
        Timing {
            first_retry: Duration::from_millis(5),
            ..timing()
        },
    );
    hub.problem("503").await;
    assert_eq!(
        hub.judge(&token(&known)).await,
        Err(Reason::KeysUnavailable)
    );
    hub.change(async || idp.now(Answer::Body(document([&known]))))
        .await;
    assert_eq!(hub.judge(&token(&known)).await, Ok(()));
}

#[tokio::test]
async fn refused_connections_are_an_outage_like_any_other() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let source = url(&format!("http://{free}/"));
    let hub = Hub::start(source, timing());
    hub.problem("cannot connect").await;
    assert_eq!(
        hub.judge(&token(&key())).await,
        Err(Reason::KeysUnavailable)
    );
}

#[tokio::test]
async fn the_set_is_refreshed_in_time_and_max_age_decides_when() {
    let (old, new) = (key(), key());
    let idp = Idp::start(Answer::Body(document([&old]))).await;
    let short = Timing {
        refresh: Duration::from_millis(10),
        ..timing()
    };
    let hub = Hub::start(idp.source(), short.clone());
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    hub.change(async || idp.now(Answer::Body(document([&new]))))
        .await;

    // The server asks for longer, and gets it.
    let patient = Idp::start(Answer::WithHeader(
        "cache-control: max-age=600",
        document([&old]),
    ))
    .await;
    let hub = Hub::start(patient.source(), short);
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));
    let hits = idp.hits();
    let second = Hub::start(
        idp.source(),
        Timing {
            refresh: Duration::from_millis(1),
            ..timing()
        },
    );
    until("the other hub to ask five times", async || {
        ensure!(idp.hits() >= hits + 5, "{} times", idp.hits() - hits);
        Ok(())
    })
    .await
    .unwrap();
    drop(second);
    assert_eq!(patient.hits(), 1);
}

#[tokio::test]
async fn a_pipe_in_the_place_of_the_file_is_not_opened() {
    let known = key();
    let dir = tempfile::tempdir().unwrap();
    let (path, pipe) = (dir.path().join("jwks.json"), dir.path().join("pipe"));
    std::fs::write(&path, document([&known])).unwrap();
    let hub = Hub::start(
        JwksSource::File(path.clone()),
        Timing {
            file_poll: Duration::from_millis(5),
            ..timing()
        },
    );
    assert_eq!(hub.judge(&token(&known)).await, Ok(()));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    std::fs::rename(&pipe, &path).unwrap();
    hub.problem("is no file").await;
    assert_eq!(hub.judge(&token(&known)).await, Ok(()));
}

#[tokio::test]
async fn a_file_is_watched_and_bad_content_changes_nothing() {
    let (old, new) = (key(), key());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let source = JwksSource::File(path.clone());
    let hub = Hub::start(
        source,
        Timing {
            file_poll: Duration::from_millis(5),
            ..timing()
        },
    );
    hub.problem("cannot read the file").await;
    assert_eq!(hub.judge(&token(&old)).await, Err(Reason::KeysUnavailable));

    hub.change(async || std::fs::write(&path, document([&old])).unwrap())
        .await;
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));

    std::fs::write(&path, &document([&new])[..40]).unwrap();
    hub.problem("not a JWKS").await;
    assert_eq!(hub.judge(&token(&old)).await, Ok(()));

    // As Kubernetes does it: a symbolic link to another directory's file takes its place.
    let other = dir.path().join("..data");
    std::fs::write(&other, document([&new])).unwrap();
    hub.change(async || {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        std::fs::rename(&link, &path).unwrap();
    })
    .await;
    assert_eq!(hub.judge(&token(&new)).await, Ok(()));
    assert_eq!(hub.judge(&token(&old)).await, Err(Reason::UnknownKey));
}

#[tokio::test]
async fn https_is_verified() {
    let known = key();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    let certificate = params.self_signed(&ca_key).unwrap();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(ca_key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = document([&known]);
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(socket).await else {
                continue;
            };
            let mut request = [0; 4096];
            let _ = tls.read(&mut request).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = tls.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    });
    let source = url(&format!("https://localhost:{port}/jwks"));

    let stranger = Hub::start(source.clone(), timing());
    stranger.problem("invalid peer certificate").await;
    assert_eq!(
        stranger.judge(&token(&known)).await,
        Err(Reason::KeysUnavailable)
    );

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let friend = Hub::start_trusting(source, timing(), roots);
    assert_eq!(friend.judge(&token(&known)).await, Ok(()));
}
