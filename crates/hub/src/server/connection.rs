//! Serving HTTP connections within bounds.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nowconnect_link::quiet::Quiet;
use nowconnect_link::shards::Shards;
use nowconnect_link::stream::{BufferedIo, Stream, TLS_WRITES};
use nowconnect_link::tasks::Tasks;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::listener::Acceptor;
use crate::mesh::Shown;
use crate::policy::{Client, KeyedGate, KeyedSlot};

use super::{Bound, Call, Respond};

/// Connections that have shown no token yet.
const STRANGERS: usize = 1024;
/// Those of one address, unless it is an ingress: nobody alone keeps the others out.
const STRANGERS_PER_ADDRESS: usize = 256;
/// Connections beyond all those, which are told to come back later; with these the port stops accepting.
const TURNED_AWAY: usize = 256;
const TLS_DEADLINE: Duration = Duration::from_secs(5);
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
const HEADER_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// A connection that did not become a tunnel is ended after this, and then has
/// [`HEADER_DEADLINE`] to take its last answer.
const LIFETIME: Duration = Duration::from_secs(60);

/// What a new connection begins with; `None` = plain.
pub(crate) type CurrentTls = Arc<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Accepts connections on one port and lets `S` answer their requests.
pub(crate) struct Doorman<S> {
    surface: Arc<S>,
    tls: CurrentTls,
    shards: Shards,
    tasks: Tasks,
    strangers: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    addresses: KeyedGate<Client>,
    quiet: Quiet,
}

/// What a connection holds until it has become a tunnel or ended.
struct Place {
    _stranger: OwnedSemaphorePermit,
    _of_address: Option<KeyedSlot<Client>>,
    /// It is one of those who are turned away.
    busy: bool,
}

impl<S: Respond> Doorman<S> {
    /// Serves `surface`, over TLS when there is a configuration for it, until `tasks` are to stop. A
    /// connection lives on the one of `shards` that was the least loaded when it came.
    pub(crate) fn new(
        surface: Arc<S>,
        tls: CurrentTls,
        shards: Shards,
        tasks: &Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            surface,
            tls,
            shards,
            tasks: tasks.clone(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY)),
            addresses: KeyedGate::default(),
            quiet: Quiet::default(),
        })
    }

    /// Starts to accept on `port`.
    pub(crate) fn open(self: Arc<Self>, port: Bound) {
        self.open_until(port, CancellationToken::new());
    }

    /// The same until `close` is cancelled, which ends no connection.
    pub(crate) fn open_until(self: Arc<Self>, port: Bound, close: CancellationToken) {
        let (tasks, stop) = (self.tasks.clone(), self.tasks.token());
        tasks.spawn("http_accept", async move {
            let accept = close.run_until_cancelled(self.accept(port));
            stop.run_until_cancelled(accept).await;
        });
    }

    async fn accept(self: &Arc<Self>, port: Bound) {
        let address = port.address;
        let mut acceptor = Acceptor::new(port.socket, move |error: &io::Error| {
            tracing::warn!(event = "accept_failed", listener = "http", %address, %error);
        });
        loop {
            let (stream, peer) = acceptor.next().await;
            let Ok(of_address) = self.address_place(peer) else {
                // Nothing is left of it, so that whoever repeats it uses up nothing of ours.
                let _ = stream.set_zero_linger();
                continue;
            };
            let Some(place) = self.place(of_address).await else {
                return;
            };
            let doorman = self.clone();
            let Ok(stream) = stream.into_std() else {
                continue;
            };
            let shard = self.shards.least_loaded();
            self.tasks.spawn_on(shard, "http", async move {
                let stop = doorman.tasks.token();
                // From here on the event loop of the shard watches it.
                if let Ok(stream) = TcpStream::from_std(stream) {
                    stop.run_until_cancelled(doorman.admit(stream, peer, place.busy))
                        .await;
                }
                drop(place);
            });
        }
    }

    /// A place among those of one address; none is needed by an ingress.
    fn address_place(&self, peer: SocketAddr) -> Result<Option<KeyedSlot<Client>>, ()> {
        if self.surface.is_proxy(peer.ip()) {
            return Ok(None);
        }
        let place = self
            .addresses
            .take(Client::from(peer.ip()), STRANGERS_PER_ADDRESS);
        place.map(Some).ok_or_else(|| {
            self.count_refused("address");
            if let Some(suppressed) = self.quiet.pass() {
                let reason = "too_many_strangers";
                tracing::warn!(event = "http_refused", %peer, reason, suppressed, audit = true);
            }
        })
    }

    async fn place(&self, of_address: Option<KeyedSlot<Client>>) -> Option<Place> {
        let (stranger, busy) = match self.strangers.clone().try_acquire_owned() {
            Ok(stranger) => (stranger, false),
            Err(_) => {
                self.count_refused("busy");
                (self.turned_away.clone().acquire_owned().await.ok()?, true)
            }
        };
        Some(Place {
            _stranger: stranger,
            _of_address: of_address,
            busy,
        })
    }

    fn count_refused(&self, reason: &str) {
        let metrics = &self.surface.metrics().tunnels;
        metrics.http_refused.with([reason]).inc();
    }

    fn count_offence(&self, kind: &str) {
        let metrics = &self.surface.metrics().tunnels;
        metrics.protocol_errors.with(["http", kind]).inc();
    }

    async fn admit(&self, stream: TcpStream, peer: SocketAddr, busy: bool) {
        let Some(tls) = (self.tls)() else {
            let plain = BufferedIo::direct(stream, BytesMut::new());
            return self.serve(Stream::Plain(plain), peer, busy).await;
        };
        let acceptor = TlsAcceptor::from(tls);
        let buffered = BufferedIo::new(stream, BytesMut::new());
        let accept = acceptor.accept_with(buffered, |tls| tls.set_buffer_limit(Some(TLS_WRITES)));
        let handshakes = self.shards.handshakes();
        match timeout(TLS_DEADLINE, handshakes.run(peer.ip(), accept)).await {
            Ok(Ok(stream)) => {
                self.serve(Stream::Tls(Box::new(stream.into())), peer, busy)
                    .await
            }
            Ok(Err(error)) => {
                // A balancer that only looks whether the port is open ends it without a word.
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    self.count_offence("tls_handshake");
                }
                self.surface.tls_failed(peer, &error);
            }
            Err(late) => {
                match handshakes.are_waiting() {
                    true => self.count_refused("handshakes"),
                    false => self.count_offence("tls_timeout"),
                }
                self.surface.tls_failed(peer, &late.into());
            }
        }
    }

    /// Ends when the connection does, or has become a tunnel, which then belongs to its session.
    async fn serve(&self, stream: Stream, peer: SocketAddr, busy: bool) {
        let surface = &self.surface;
        let certificates: Option<Shown> = stream.peer_certificates().map(Into::into);
        let (certificates, over_tls) = (&certificates, matches!(stream, Stream::Tls(_)));
        let service = service_fn(|request| async move {
            Ok::<_, std::convert::Infallible>(
                surface
                    .answer(Call {
                        request,
                        peer,
                        over_tls,
                        certificates: certificates.clone(),
                        busy,
                    })
                    .await,
            )
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(HEADER_BYTES)
            .max_headers(HEADERS);
        let mut connection = pin!(
            builder
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
        );
        let ended = match timeout(LIFETIME, connection.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                timeout(HEADER_DEADLINE, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            let kind = if error.is_timeout() {
                "header_timeout"
            } else if error.is_parse() || error.is_parse_too_large() {
                "bad_request"
            } else {
                return;
            };
            self.count_offence(kind);
            tracing::debug!(event = "http_failed", %peer, %error);
        }
    }
}
