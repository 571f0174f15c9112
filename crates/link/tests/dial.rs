//! Dialing real sockets: plain, TLS, through a proxy that behaves and one that does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in test helpers

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_link::dial::{
    DialError, DialErrorKind, Dialer, Proxy, ProxyRules, TcpOptions, WsUrl, dial_tcp,
};
use nowconnect_link::stream::Stream;
use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Identity, Live, LiveClientConfig, LiveServerConfig, Roots, ServerFiles,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A CA, a server for `hub.example` and `127.0.0.1`, and a client that trusts the CA.
struct Pki {
    _dir: TempDir,
    server: LiveServerConfig,
    client: Arc<LiveClientConfig>,
}

impl Pki {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let file = |name: &str, content: String| -> PathBuf {
            fs::write(dir.path().join(name), content).unwrap();
            dir.path().join(name)
        };
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let bundle = file("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
        let names = ["hub.example".to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let identity = Identity {
            cert_file: file("hub.crt", leaf.pem()),
            key_file: file("hub.key", key.serialize_pem()),
        };
        let roots = Roots::Only(bundle);
        Self {
            server: Live::load(ServerFiles {
                identity,
                client_auth: ClientAuth::Off,
            })
            .unwrap(),
            client: Arc::new(
                Live::load(ClientFiles {
                    roots,
                    identity: None,
                })
                .unwrap(),
            ),
            _dir: dir,
        }
    }

    fn dialer(&self, proxy: Option<&str>) -> Dialer {
        let proxy = proxy.map(|url| Proxy::parse("test", url).unwrap());
        Dialer {
            tls: Some(self.client.current()),
            proxies: ProxyRules::new(proxy.clone(), proxy, ""),
            timeout: TIMEOUT,
            tcp: TcpOptions {
                keepalive: Some(Duration::from_secs(5)),
                user_timeout: Some(Duration::from_secs(15)),
            },
        }
    }
}

fn url(text: &str) -> WsUrl {
    text.parse().unwrap()
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut io: S) {
    let (mut read, mut write) = tokio::io::split(&mut io);
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn assert_echo(stream: &mut Stream) {
    let sent = vec![42; 200_000];
    let mut received = vec![0; sent.len()];
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.flush().await.unwrap();
    };
    let both = async {
        tokio::join!(send, read.read_exact(&mut received))
            .1
            .unwrap()
    };
    tokio::time::timeout(TIMEOUT, both).await.unwrap();
    assert!(sent == received);
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

#[tokio::test]
async fn plain_and_tls() {
    let pki = Pki::new();
    let (listener, addr) = listen().await;
    let acceptor = TlsAcceptor::from(pki.server.current());
    tokio::spawn(async move {
        echo(listener.accept().await.unwrap().0).await;
        echo(
            acceptor
                .accept(listener.accept().await.unwrap().0)
                .await
                .unwrap(),
        )
        .await;
    });
    let mut plain = pki
        .dialer(None)
        .dial(&url(&format!("ws://{addr}/t")))
        .await
        .unwrap();
    assert_echo(&mut plain).await;
    assert!(!plain.is_tls() && plain.peer_certificates().is_none());
    let socket = SockRef::from(plain.tcp());
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_user_timeout().unwrap(),
        Some(Duration::from_secs(15))
    );
    drop(plain);

    let mut tls = pki
        .dialer(None)
        .dial(&url(&format!("wss://{addr}/t")))
        .await
        .unwrap();
    assert_echo(&mut tls).await;
    assert!(tls.is_tls() && tls.peer_certificates().is_some());
    assert!(tokio::io::AsyncWrite::is_write_vectored(&tls));
}

/// A proxy for one connection. Sends `reply` in pieces of `step` bytes, then hands the socket on;
/// the request it got is the task's result.
async fn proxy<F, W>(reply: &'static str, step: usize, then: F) -> (String, JoinHandle<String>)
where
    F: FnOnce(TcpStream) -> W + Send + 'static,
    W: Future<Output = ()> + Send,
{
    let (listener, addr) = listen().await;
    let task = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        io.set_nodelay(true).unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(io.read_buf(&mut request).await.unwrap(), 0);
        }
        for piece in reply.as_bytes().chunks(step) {
            io.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        then(io).await;
        String::from_utf8(request).unwrap()
    });
    (addr.to_string(), task)
}

#[tokio::test]
async fn tls_through_a_proxy_is_with_the_urls_host() {
    let pki = Pki::new();
    for step in [1, 7, 1000] {
        let acceptor = TlsAcceptor::from(pki.server.current());
        let reply = "HTTP/1.1 200 Connection established\r\nVia: x\r\nContent-Length: 5\r\n\r\n";
        let (addr, task) = proxy(reply, step, async move |io| {
            let tls = acceptor.accept(io).await.unwrap();
            assert_eq!(tls.get_ref().1.server_name(), Some("hub.example"));
            echo(tls).await;
        })
        .await;
        let dialer = pki.dialer(Some(&format!("http://me:p%40ss@{addr}")));
        let mut stream = dialer.dial(&url("wss://hub.example/tunnel")).await.unwrap();
        assert_echo(&mut stream).await;
        drop(stream);
        let request = task.await.unwrap();
        assert!(
            request.starts_with("CONNECT hub.example:443 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains("\r\nHost: hub.example:443\r\n"),
            "{request}"
        );
        assert!(
            request.contains("\r\nProxy-Authorization: Basic bWU6cEBzcw==\r\n"),
            "{request}"
        );
    }
}

#[tokio::test]
async fn bytes_behind_the_proxys_header_are_kept() {
    let pki = Pki::new();
    let reply = "HTTP/1.0 299 Whatever\r\n\r\nearly bird";
    let (addr, _task) = proxy(reply, 1000, echo).await;
    let dialer = pki.dialer(Some(&addr));
    let mut stream = dialer
        .dial(&url("ws://hub.example:8765/tunnel"))
        .await
        .unwrap();
    let mut early = [0; 10];
    stream.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early bird");
    assert_echo(&mut stream).await;
}

/// The error of dialing through a proxy that sends `reply` and closes.
async fn proxy_error(reply: &'static str, userinfo: &str) -> DialError {
    let pki = Pki::new();
    let (addr, task) = proxy(reply, 1000, async |io| drop(io)).await;
    let dialer = pki.dialer(Some(&format!("http://{userinfo}{addr}")));
    let error = dialer
        .dial(&url("wss://hub.example/tunnel"))
        .await
        .unwrap_err();
    task.await.unwrap();
    let text = format!("{error} {error:?}");
    assert!(
        !text.contains("hush") && !text.contains("Basic b"),
        "{text}"
    );
    error
}

#[tokio::test]
async fn a_407_names_the_schemes_and_what_to_do() {
    let both = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n\
                Proxy-Authenticate: Basic realm=\"a, b\", Digest nonce=\"x\"\r\n\r\n";
    let error = proxy_error(both, "").await;
    assert_eq!(error.kind(), DialErrorKind::ProxyAuth);
    let text = error.to_string();
    assert!(
        text.contains("407, it offers: NTLM, Basic, Digest)"),
        "{text}"
    );
    assert!(text.contains("http://user:password@host:port"), "{text}");

    let text = proxy_error(both, "me:hush@").await.to_string();
    assert!(text.contains("are not accepted"), "{text}");

    let ntlm = "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\r\n";
    let text = proxy_error(ntlm, "me:hush@").await.to_string();
    assert!(text.contains("only Basic is supported"), "{text}");
}

#[tokio::test]
async fn what_a_proxy_says_is_passed_on() {
    let error = proxy_error(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 30\r\n\r\n<h1>Blocked</h1>\r\n  by\tpolicy 7",
        "me:hush@",
    )
    .await;
    assert_eq!(error.kind(), DialErrorKind::Proxy);
    let text = error.to_string();
    assert!(
        text.contains("hub.example:443: 403 Forbidden (<h1>Blocked</h1> by policy 7)"),
        "{text}"
    );
    assert!(text.contains("NO_PROXY"), "{text}");

    let error = proxy_error("SSH-2.0-OpenSSH_9.2p1\r\n", "").await;
    assert_eq!(error.kind(), DialErrorKind::Proxy);
    assert!(error.to_string().contains("not HTTP/1"), "{error}");

    let error = proxy_error("HTTP/1.1 200 OK\r\n", "").await;
    assert!(
        error.to_string().contains("closed after 17 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_silent_proxy_is_a_timeout_that_says_so() {
    let pki = Pki::new();
    let (_listener, addr) = listen().await;
    let mut dialer = pki.dialer(Some(&addr.to_string()));
    dialer.timeout = Duration::from_millis(100);
    let error = dialer
        .dial(&url("wss://hub.example/tunnel"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Timeout);
    assert!(
        error
            .to_string()
            .contains("no answer to CONNECT within 100 ms"),
        "{error}"
    );
}

#[tokio::test]
async fn tls_errors_say_what_to_do() {
    let pki = Pki::new();
    let stranger = Pki::new();
    let (listener, addr) = listen().await;
    let acceptor = TlsAcceptor::from(pki.server.current());
    tokio::spawn(async move {
        for _ in 0..2 {
            let _ = acceptor.accept(listener.accept().await.unwrap().0).await;
        }
        let (mut io, _) = listener.accept().await.unwrap();
        let _ = io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = io.read(&mut [0; 1000]).await;
        drop(listener.accept().await.unwrap());
    });
    let error = async |pki: &Pki, host: &str| {
        let url = url(&format!("wss://{host}:{}/", addr.port()));
        let error = pki.dialer(None).dial(&url).await.unwrap_err();
        assert_eq!(error.kind(), DialErrorKind::Tls);
        error.to_string()
    };
    let text = error(&stranger, "127.0.0.1").await;
    assert!(text.contains("add that CA to the CA bundle"), "{text}");
    let text = error(&pki, "localhost").await;
    assert!(
        text.contains("use a host name that the certificate is for"),
        "{text}"
    );
    let text = error(&pki, "127.0.0.1").await;
    assert!(text.contains("does not speak TLS"), "{text}");
    let text = error(&pki, "127.0.0.1").await;
    assert!(text.contains("may not let TLS through"), "{text}");
}

/// A listener that answers no SYN any more, because its queue is full.
fn black_hole() -> (Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap().as_socket().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&addr.into());
        sockets.push(filler);
    }
    (sockets, addr)
}

#[tokio::test]
async fn target_errors_are_told_apart() {
    let dial = async |host: &str, port: u16, ms: u64| {
        let timeout = Duration::from_millis(ms);
        dial_tcp(host, port, timeout, TcpOptions::default())
            .await
            .unwrap_err()
    };
    let (listener, addr) = listen().await;
    drop(listener);
    let error = dial("127.0.0.1", addr.port(), 10_000).await;
    assert_eq!(error.kind().as_str(), "refused");
    assert!(
        error
            .to_string()
            .contains(&format!("127.0.0.1:{}", addr.port())),
        "{error}"
    );

    let (_sockets, addr) = black_hole();
    let error = dial("127.0.0.1", addr.port(), 200).await;
    assert_eq!(error.kind().as_str(), "timeout");
    assert!(
        error.to_string().contains("no connection within 200 ms"),
        "{error}"
    );

    let error = dial("no-such-host.invalid", 389, 10_000).await;
    assert_eq!(error.kind().as_str(), "dns", "{error}");
    assert!(
        error.to_string().contains("no-such-host.invalid:389"),
        "{error}"
    );

    let error = dial("255.255.255.255", 389, 10_000).await;
    assert_eq!(error.kind().as_str(), "unreachable", "{error}");
}

#[tokio::test]
async fn names_are_resolved_and_every_address_tried() {
    let (listener, addr) = listen().await;
    tokio::spawn(async move { echo(listener.accept().await.unwrap().0).await });
    // localhost is ::1 first on many machines, where nobody listens.
    let started = Instant::now();
    let options = TcpOptions::default();
    let io = dial_tcp("localhost", addr.port(), TIMEOUT, options)
        .await
        .unwrap();
    assert_eq!(io.peer_addr().unwrap(), addr);
    assert!(started.elapsed() < Duration::from_secs(5));
}
