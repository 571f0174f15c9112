//! As much of a hub as an agent can see: upgrade, handshake, a real link, and clients' sockets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nowconnect_agent::Agent;
use nowconnect_agent::config::{
    AgentConfig, LimitsConfig, ObservabilityConfig, Protocol, ProxyConfig, ProxyProtocol, Target,
    TunnelConfig, TunnelMode,
};
use nowconnect_link::budget::Budget;
use nowconnect_link::counters::{Engine, EngineCounters, FlowCounters};
use nowconnect_link::endpoint::{FlowEvents, Label, SocketFlow, Summary};
use nowconnect_link::meter::Bounds;
use nowconnect_link::session::{self, Carrier, Link, LinkClosed, LinkConfig, LinkEvents, Peer};
use nowconnect_link::trace::Tracer;
use nowconnect_link::upgrade::{Offer, Pending, Refusal};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::{self, Mask};
use nowconnect_proto::frame::Open;
use nowconnect_proto::hello::{Body, Hello, HelloAck, Instance};
use nowconnect_proto::json_v1::bridge::{self, Bridge, BridgeConfig};
use nowconnect_proto::{Cid, FlowId, Frame, Reason};
use nowconnect_settings::{LogFormat, LogLevel};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const MAX_PAYLOAD: usize = 65_536;

/// Fails when `what` takes unreasonably long.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), what)
        .await
        .expect("in time")
}

pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    /// What it grants, whatever it is asked.
    epoch: AtomicU64,
    /// Answers upgrades with this status, if any, and counts them.
    refusal: Mutex<Option<StatusCode>>,
    refused: watch::Sender<usize>,
    v1: bool,
    sessions: mpsc::Sender<Session>,
}

/// A tunnel as its hub sees it.
pub(crate) struct Session {
    pub(crate) hello: Hello,
    pub(crate) bearer: String,
    pub(crate) epoch: u64,
    pub(crate) link: Arc<Link>,
    pub(crate) controls: mpsc::Receiver<Frame>,
    pub(crate) driver: JoinHandle<LinkClosed>,
}

impl Session {
    /// Why the agent leaves.
    pub(crate) async fn goodbye(&mut self) -> Reason {
        let Some(Frame::GoAway { reason, .. }) = soon(self.controls.recv()).await else {
            panic!("no GOAWAY")
        };
        reason
    }
}

impl Hub {
    pub(crate) async fn start() -> Self {
        Self::with(false, 7).await
    }

    pub(crate) async fn with(v1: bool, epoch: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (sender, sessions) = mpsc::channel(64);
        let shared = Arc::new(Shared {
            engine: Arc::new(Engine::new(
                Budget::new(64 << 20, 200),
                EngineCounters::default(),
            )),
            epoch: AtomicU64::new(epoch),
            refusal: Mutex::default(),
            refused: watch::Sender::new(0),
            v1,
            sessions: sender,
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            sessions,
            shared,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/tunnel", self.address)
    }

    pub(crate) async fn session(&mut self) -> Session {
        soon(self.sessions.recv()).await.expect("a tunnel")
    }

    pub(crate) fn has_session(&mut self) -> bool {
        !self.sessions.is_empty()
    }

    /// Grants `epoch` from now on.
    pub(crate) fn grant(&self, epoch: u64) {
        self.shared.epoch.store(epoch, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self, status: Option<StatusCode>) {
        *self.shared.refusal.lock() = status;
    }

    pub(crate) async fn has_refused(&self, times: usize) {
        soon(self.shared.refused.subscribe().wait_for(|n| *n >= times))
            .await
            .expect("refusals");
    }

    /// A client whose flow goes over `session`.
    pub(crate) async fn client(&self, session: &Session, connector: &str) -> Client {
        self.client_named(Cid::generate(), session, connector).await
    }

    pub(crate) async fn client_named(
        &self,
        cid: Cid,
        session: &Session,
        connector: &str,
    ) -> Client {
        let client = Client::new(cid, connector, &self.shared.engine).await;
        self.attach(&client, session);
        client
    }

    pub(crate) fn attach(&self, client: &Client, session: &Session) {
        session
            .link
            .attach(&client.flow, session.epoch)
            .expect("attached");
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = shared.answer(request);
                async move { Ok::<_, Infallible>(response) }
            });
            let io = TokioIo::new(stream);
            let _ = http1::Builder::new()
                .serve_connection(io, service)
                .with_upgrades()
                .await;
        });
    }
}

impl Shared {
    fn answer(self: &Arc<Self>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(status) = *self.refusal.lock() {
            self.refused.send_modify(|n| *n += 1);
            return Refusal::new(status, "test", "as the test wants").into_response();
        }
        let bearer = request.headers()["authorization"]
            .to_str()
            .expect("text")
            .to_owned();
        let offer = Offer::from_request(&request).expect("an upgrade");
        let protocol = if self.v1 {
            None
        } else {
            offer.choose(&["nowconnect.v2"])
        };
        let (response, pending) = offer.accept(&mut request, protocol);
        let serve = Arc::clone(self).serve(pending, bearer);
        tokio::spawn(serve);
        response
    }

    async fn serve(self: Arc<Self>, pending: Pending, bearer: String) {
        let upgraded = pending.complete::<TcpStream>().await.expect("upgraded");
        let wire = match upgraded.protocol {
            Some(_) => Wire::V2 {
                max_payload: MAX_PAYLOAD,
            },
            None => Wire::v1(Bridge::new(BridgeConfig {
                role: bridge::Role::Hub,
                instance: Instance(1),
                max_payload: MAX_PAYLOAD as u32,
                queue_depth: 1000,
                queue_bytes: 1 << 24,
                consent_ms: 5000,
                ping_ms: (5000, 10_000),
            })),
        };
        let (role, io, leftover) = (ws::Role::Server, upgraded.io, upgraded.leftover);
        let mut carrier = Carrier::new(io, leftover, role, Mask::None, wire, MAX_PAYLOAD);
        let Ok(Frame::Hello(hello)) = carrier.receive().await else {
            panic!("no HELLO")
        };
        let hello = Hello::decode(&hello).expect("a HELLO");
        let epoch = self.epoch.load(Ordering::Relaxed);
        let ack = HelloAck {
            hub: "hub-a".into(),
            epoch,
            initial_window: self.engine.budget.first_window(),
            max_payload: MAX_PAYLOAD as u32,
            ping_interval_ms: 5000,
            ping_timeout_ms: 10_000,
            resume_grace_ms: 30_000,
            features: vec![],
        };
        carrier
            .send(Frame::HelloAck(ack.encode().expect("fits").into()))
            .await
            .expect("sent");
        let config = LinkConfig {
            role: session::Role::Opener,
            peer: Peer {
                name: hello.agent_id.as_str().into(),
                first_window: hello.initial_window,
                max_payload: MAX_PAYLOAD,
            },
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            bounds: Bounds::NONE,
            meter: None,
        };
        let (sender, controls) = mpsc::channel(64);
        let events = Arc::new(Controls(sender));
        let (link, driver) = session::start(carrier, &config, &self.engine, events);
        let driver = tokio::spawn(driver);
        let session = Session {
            hello,
            bearer,
            epoch,
            link,
            controls,
            driver,
        };
        let _ = self.sessions.send(session).await;
    }
}

struct Controls(mpsc::Sender<Frame>);

impl LinkEvents for Controls {
    fn on_open(&self, link: &Arc<Link>, id: FlowId, _: Open) {
        link.refuse(id, Reason::ProtocolError);
    }

    fn on_control(&self, _: &Arc<Link>, frame: Frame) {
        self.0.try_send(frame).expect("room");
    }

    fn on_protocol_error(&self, _: &Arc<Link>, kind: &'static str) {
        panic!("the agent offends: {kind}");
    }
}

/// A client's connection and the flow that carries it.
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    pub(crate) flow: Arc<SocketFlow>,
    events: Arc<Ends>,
}

#[derive(Default)]
struct Ends {
    closed: watch::Sender<Option<Summary>>,
    lost: watch::Sender<bool>,
}

impl FlowEvents for Ends {
    fn opened(&self, _: &Arc<SocketFlow>) {}

    fn refused(&self, _: &Arc<SocketFlow>, _: Reason) -> bool {
        false
    }

    fn path_lost(&self, _: &Arc<SocketFlow>) {
        self.lost.send_replace(true);
    }

    fn closed(&self, _: &Arc<SocketFlow>, summary: Summary) {
        self.closed.send_replace(Some(summary));
    }
}

impl Client {
    async fn new(cid: Cid, connector: &str, engine: &Arc<Engine>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, (far, _)) = (near.expect("connect"), far.expect("accept"));
        let label = Label {
            connector: connector.into(),
            listener: "l1".into(),
            destination: "192.0.2.10:389".into(),
            client: "192.0.2.1:40000".into(),
        };
        let events = Arc::new(Ends::default());
        let counters = FlowCounters::default();
        let flow = SocketFlow::origin(cid, label, far, engine, counters, events.clone());
        Self {
            socket,
            flow,
            events,
        }
    }

    pub(crate) async fn echo(&mut self, text: &str) {
        self.socket
            .write_all(text.as_bytes())
            .await
            .expect("written");
        let mut answer = vec![0; text.len()];
        soon(self.socket.read_exact(&mut answer))
            .await
            .expect("an answer");
        assert_eq!(answer, text.as_bytes());
    }

    pub(crate) async fn closed(&self) -> Reason {
        let mut closed = self.events.closed.subscribe();
        let summary = soon(closed.wait_for(Option::is_some))
            .await
            .expect("events live");
        summary.expect("some").reason()
    }

    pub(crate) async fn path_lost(&self) {
        soon(self.events.lost.subscribe().wait_for(|lost| *lost))
            .await
            .expect("events live");
    }
}

/// A target that sends back what it gets.
pub(crate) async fn echo_target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// An address that answers no SYN: a listener whose queue is full.
pub(crate) struct Silent {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Silent {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("bind");
        let listener = socket.listen(1).expect("listen");
        let address = listener.local_addr().expect("address");
        let mut queued = Vec::new();
        let connect = || timeout(Duration::from_millis(300), TcpStream::connect(address));
        while let Ok(connected) = connect().await {
            queued.push(connected.expect("connected"));
        }
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}

/// An agent's configuration and the directory of its token.
pub(crate) struct Site {
    pub(crate) config: AgentConfig,
    dir: tempfile::TempDir,
}

impl Site {
    /// Exports these connectors to these hubs.
    pub(crate) fn new(urls: &[String], targets: &[(&str, SocketAddr)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let token_file = dir.path().join("agent.jwt");
        std::fs::write(&token_file, "first.token.x\n").expect("written");
        let config = AgentConfig {
            tunnel: TunnelConfig {
                urls: urls.iter().map(|url| url.parse().expect("a URL")).collect(),
                mode: TunnelMode::All,
                agent_id: "premise-01".into(),
                exported_connectors: targets.iter().map(|(name, _)| (*name).into()).collect(),
                token_file,
                identity: None,
                dpop_key_file: None,
                protocol: Protocol::V2,
                ping_interval: Duration::from_secs(5),
                ping_timeout: Duration::from_secs(10),
                max_ws_payload: MAX_PAYLOAD,
            },
            targets: self::targets(targets),
            limits: LimitsConfig {
                idle_timeout: None,
                connect_timeout: Duration::from_secs(3),
                max_dials_per_sec: None,
                queue_depth_per_cid: 1000,
                max_inflight_cids: 100,
                memory_budget: 64 << 20,
                resume_grace: Duration::from_secs(30),
            },
            observability: ObservabilityConfig {
                metrics_port: None,
                log_level: LogLevel::Info,
                log_format: LogFormat::Plain,
                traces: None,
            },
            proxy: ProxyConfig {
                https_proxy: None,
                http_proxy: None,
                no_proxy: None,
                ca_bundle: None,
            },
            health: Some("127.0.0.1:0".parse().expect("an address")),
        };
        Self { config, dir }
    }

    pub(crate) async fn start(&self) -> Agent {
        Agent::start(self.config.clone(), Tracer::default())
            .await
            .expect("an agent")
    }

    /// Replaces the token the way a mounted secret is replaced.
    pub(crate) fn replace_token(&self, token: &str) {
        let next = self.dir.path().join("next");
        std::fs::write(&next, token).expect("written");
        std::fs::rename(&next, &self.config.tunnel.token_file).expect("replaced");
    }
}

/// Targets by connector, for a configuration.
pub(crate) fn targets(of: &[(&str, SocketAddr)]) -> BTreeMap<String, Target> {
    let target = |at: SocketAddr| Target {
        host: at.ip().to_string(),
        port: at.port(),
        proxy_protocol: ProxyProtocol::Off,
    };
    of.iter()
        .map(|(name, at)| ((*name).to_owned(), target(*at)))
        .collect()
}
