//! Flows with real sockets over real links: bytes, half-close, resets, and links that break.

#![allow(clippy::expect_used, clippy::panic)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use nowconnect_link::budget::Budget;
use nowconnect_link::counters::{Engine, EngineCounters, FlowCounters};
use nowconnect_link::endpoint::{FlowEvents, Label, SocketFlow, Summary};
use nowconnect_link::flows::FlowTable;
use nowconnect_link::meter::Bounds;
use nowconnect_link::session::{
    self, Carrier, Link, LinkClosed, LinkConfig, LinkEvents, Peer, Role,
};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws;
use nowconnect_proto::frame::{Frame, Open, OpenMode};
use nowconnect_proto::{Cid, FlowId, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// One side: its engine, its flows, and what it saw.
struct Side {
    engine: Arc<Engine>,
    flows: FlowTable,
    target: Option<SocketAddr>,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Side {
    fn new(target: Option<SocketAddr>) -> Arc<Self> {
        Self::with_flows(target, 200)
    }

    fn with_flows(target: Option<SocketAddr>, flows: usize) -> Arc<Self> {
        let engine = Arc::new(Engine::new(
            Budget::new(64 << 20, flows),
            EngineCounters::default(),
        ));
        Arc::new(Self {
            flows: FlowTable::new(&engine),
            engine,
            target,
            opened: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
        })
    }
}

struct Events(Arc<Side>);

impl FlowEvents for Events {
    fn opened(&self, _: &Arc<SocketFlow>) {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, _: &Arc<SocketFlow>, _: Reason) -> bool {
        false
    }

    fn path_lost(&self, _: &Arc<SocketFlow>) {}

    fn closed(&self, _: &Arc<SocketFlow>, _: Summary) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn over(&self, flow: &Arc<SocketFlow>) {
        self.0.flows.remove(flow.cid());
    }
}

impl LinkEvents for Events {
    fn on_open(&self, link: &Arc<Link>, id: FlowId, open: Open) {
        let side = &self.0;
        if let Some(flow) = side.flows.get(open.cid) {
            assert!(flow.knows(&open.secret));
            link.bind(id, &flow, &open).expect("bound again");
            return;
        }
        if open.mode == OpenMode::Resume {
            return link.refuse(id, Reason::UnknownFlow);
        }
        let events = Arc::new(Events(Arc::clone(side)));
        let flow = SocketFlow::target(&open, &side.engine, FlowCounters::default(), events);
        side.flows.insert(&flow, Duration::ZERO);
        link.bind(id, &flow, &open).expect("bound");
        let target = side.target.expect("a target");
        tokio::spawn(async move {
            match TcpStream::connect(target).await {
                Ok(socket) => flow.connected(socket),
                Err(_) => flow.abort(Reason::ConnectFailed),
            }
        });
    }

    fn on_control(&self, _: &Arc<Link>, _: Frame) {}

    fn on_protocol_error(&self, _: &Arc<Link>, kind: &'static str) {
        panic!("protocol error {kind}");
    }
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.expect("connect"), far.expect("accept").0)
}

struct Tunnel {
    hub: Arc<Link>,
    tasks: Vec<JoinHandle<LinkClosed>>,
    pipe: Option<Pipe>,
}

/// What lies between two sockets, and can swallow what they say without a word.
struct Pipe {
    /// From the hub to the agent, and back.
    held: [Arc<Notify>; 2],
    tasks: [JoinHandle<()>; 2],
}

impl Pipe {
    async fn lay() -> (Self, TcpStream, TcpStream) {
        let ((near, left), (right, far)) = tokio::join!(socket_pair(), socket_pair());
        let (left, right) = (left.into_split(), right.into_split());
        let held = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let copy = |mut from: OwnedReadHalf, mut to: OwnedWriteHalf, held: Arc<Notify>| {
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy(&mut from, &mut to) => {}
                    () = held.notified() => std::future::pending().await,
                }
            })
        };
        let tasks = [
            copy(left.0, right.1, Arc::clone(&held[0])),
            copy(right.0, left.1, Arc::clone(&held[1])),
        ];
        (Self { held, tasks }, near, far)
    }

    /// From now on nothing arrives, and nobody notices.
    fn hold(&self) {
        self.held.iter().for_each(|held| held.notify_one());
    }

    /// The same for what the agent says.
    fn hold_answers(&self) {
        self.held[1].notify_one();
    }
}

impl Tunnel {
    async fn up(hub: &Arc<Side>, agent: &Arc<Side>) -> Self {
        let (near, far) = socket_pair().await;
        Self::over(near, far, hub, agent)
    }

    /// A tunnel that can be held up.
    async fn through_pipe(hub: &Arc<Side>, agent: &Arc<Side>) -> Self {
        let (pipe, near, far) = Pipe::lay().await;
        let mut tunnel = Self::over(near, far, hub, agent);
        tunnel.pipe = Some(pipe);
        tunnel
    }

    fn pipe(&self) -> &Pipe {
        self.pipe.as_ref().expect("a pipe")
    }

    fn over(near: TcpStream, far: TcpStream, hub: &Arc<Side>, agent: &Arc<Side>) -> Self {
        let mut tasks = Vec::new();
        let mut link = |io, side: &Arc<Side>, other: &Arc<Side>, role, ws_role, mask| {
            let wire = Wire::V2 {
                max_payload: 65_536,
            };
            let carrier = Carrier::new(io, BytesMut::new(), ws_role, mask, wire, 65_536);
            let config = LinkConfig {
                role,
                peer: Peer {
                    name: "peer".into(),
                    first_window: other.engine.budget.first_window(),
                    max_payload: 65_536,
                },
                ping_interval: Duration::from_secs(5),
                ping_timeout: Duration::from_secs(10),
                bounds: Bounds::NONE,
                meter: None,
            };
            let events = Arc::new(Events(Arc::clone(side)));
            let (link, task) = session::start(carrier, &config, &side.engine, events);
            tasks.push(tokio::spawn(task));
            link
        };
        let hub_link = link(
            near,
            hub,
            agent,
            Role::Opener,
            ws::Role::Server,
            ws::Mask::None,
        );
        link(
            far,
            agent,
            hub,
            Role::Answerer,
            ws::Role::Client,
            ws::Mask::Zero,
        );
        Self {
            hub: hub_link,
            tasks,
            pipe: None,
        }
    }

    /// Breaks the connection without a word.
    async fn cut(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        if let Some(pipe) = self.pipe {
            pipe.tasks.iter().for_each(JoinHandle::abort);
        }
    }
}

async fn client_of(hub: &Arc<Side>, tunnel: &Tunnel) -> TcpStream {
    let (client, accepted) = socket_pair().await;
    let label = Label {
        connector: "ldap".into(),
        listener: "l1".into(),
        destination: "192.0.2.10:389".into(),
        client: "".into(),
    };
    let events = Arc::new(Events(Arc::clone(hub)));
    let flow = SocketFlow::origin(
        Cid::generate(),
        label,
        accepted,
        &hub.engine,
        FlowCounters::default(),
        events,
    );
    hub.flows.insert(&flow, Duration::ZERO);
    tunnel.hub.attach(&flow, 1).expect("attached");
    client
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i.wrapping_mul(2_654_435_761) >> 11) ^ salt) as u8)
        .collect()
}

/// Says all it has to say, and returns all that the other side has.
async fn swap(socket: &mut TcpStream, say: &[u8]) -> io::Result<Vec<u8>> {
    let (mut read, mut write) = socket.split();
    let mut heard = Vec::new();
    let (sent, received) = tokio::join!(
        async {
            write.write_all(say).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut heard)
    );
    sent.and(received)?;
    Ok(heard)
}

/// A target that reads a client's bytes to their end and answers with as many of its own.
async fn target(len: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let got = swap(&mut socket, &pattern(len, 7)).await;
                let got = got.expect("target's socket");
                assert!(got == pattern(len, 3), "target got wrong bytes");
            });
        }
    });
    address
}

async fn exchange(mut client: TcpStream, len: usize) -> io::Result<()> {
    let got = swap(&mut client, &pattern(len, 3)).await?;
    assert!(
        got == pattern(len, 7),
        "client got {} bytes, or wrong ones",
        got.len()
    );
    Ok(())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    timeout(SOON, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what} did not come to hold"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_and_both_ends_finish() {
    let hub = Side::new(None);
    let len = 8 << 20;
    let agent = Side::new(Some(target(len).await));
    let tunnel = Tunnel::up(&hub, &agent).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(tokio::spawn(exchange(client_of(&hub, &tunnel).await, len)));
    }
    for client in clients {
        timeout(SOON, client)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("no reset");
    }
    until("all flows over", || {
        hub.flows.is_empty() && agent.flows.is_empty()
    })
    .await;
    assert_eq!(hub.opened.load(Ordering::Relaxed), 4);
    assert_eq!(tunnel.hub.active_flows(), 0);
    tunnel.hub.close(Reason::Shutdown);
    for task in tunnel.tasks {
        let closed = timeout(SOON, task)
            .await
            .expect("in time")
            .expect("no panic");
        assert_eq!(closed.reason, Reason::Shutdown);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_survive_twenty_cuts() {
    let hub = Side::new(None);
    let len = 24 << 20;
    let agent = Side::new(Some(target(len).await));
    let mut tunnel = Tunnel::up(&hub, &agent).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(tokio::spawn(exchange(client_of(&hub, &tunnel).await, len)));
    }
    let resumed = &hub.engine.counters.resumed;
    for _ in 0..20 {
        // A cut is to fall into the midst of the bytes, wherever that is.
        tokio::time::sleep(Duration::from_millis(7)).await;
        tunnel.cut().await;
        tunnel = Tunnel::up(&hub, &agent).await;
        for flow in hub.flows.select(|_| true) {
            tunnel.hub.attach(&flow, 1).expect("attached");
        }
    }
    for client in clients {
        timeout(SOON, client)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("no reset");
    }
    assert!(resumed.get() > 0, "the cuts came too late to matter");
    until("hub's flows over", || hub.flows.is_empty()).await;
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side() {
    let hub = Side::new(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let agent = Side::new(Some(listener.local_addr().expect("address")));
    let tunnel = Tunnel::up(&hub, &agent).await;
    let mut client = client_of(&hub, &tunnel).await;
    client.write_all(b"hello").await.expect("write");
    let (mut socket, _) = listener.accept().await.expect("accept");
    let mut hello = [0; 5];
    socket.read_exact(&mut hello).await.expect("early bytes");
    socket.set_zero_linger().expect("linger");
    drop(socket);
    let error = timeout(SOON, client.read(&mut hello))
        .await
        .expect("in time")
        .expect_err("no end of file");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    until("both forgot the flow", || {
        hub.flows.is_empty() && agent.flows.is_empty()
    })
    .await;
}

/// A client and its target, connected through a tunnel that can be held up.
async fn connected(hub: &Arc<Side>, agent: &mut Arc<Side>) -> (Tunnel, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    *agent = Side::new(Some(listener.local_addr().expect("address")));
    let tunnel = Tunnel::through_pipe(hub, agent).await;
    let mut client = client_of(hub, &tunnel).await;
    client.write_all(b"hello").await.expect("write");
    let (mut target, _) = listener.accept().await.expect("accept");
    target.read_exact(&mut [0; 5]).await.expect("early bytes");
    (tunnel, client, target)
}

fn reset(socket: TcpStream) {
    socket.set_zero_linger().expect("linger");
    drop(socket);
}

async fn hears_of_the_reset(socket: &mut TcpStream) {
    let mut buffer = [0; 8];
    let read = timeout(SOON, socket.read(&mut buffer));
    let error = read.await.expect("in time").expect_err("no end of file");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_that_is_lost_with_its_path_is_told_over_the_next_one() {
    for by_client in [true, false] {
        let (hub, mut agent) = (Side::new(None), Side::new(None));
        let (tunnel, client, target) = connected(&hub, &mut agent).await;
        tunnel.pipe().hold();
        let (first, mut last, teller, hearer) = match by_client {
            true => (client, target, &hub, &agent),
            false => (target, client, &agent, &hub),
        };
        reset(first);
        let told = || teller.engine.counters.rst_sent.get() == 1;
        until("one end has told its path", told).await;
        assert_eq!(
            teller.closed.load(Ordering::Relaxed),
            1,
            "its socket is closed"
        );
        tunnel.cut().await;
        assert_eq!(hearer.closed.load(Ordering::Relaxed), 0);

        let next = Tunnel::up(&hub, &agent).await;
        for flow in hub.flows.select(|_| true) {
            next.hub.attach(&flow, 2).expect("attached");
        }
        hears_of_the_reset(&mut last).await;
        until("both forgot the flow", || {
            hub.flows.is_empty() && agent.flows.is_empty()
        })
        .await;
        assert_eq!(next.hub.active_flows(), 0);
    }
}

#[tokio::test]
async fn a_confirmation_that_is_lost_with_its_path_costs_nothing() {
    let (hub, mut agent) = (Side::new(None), Side::new(None));
    let (tunnel, client, mut target) = connected(&hub, &mut agent).await;
    tunnel.pipe().hold_answers();
    reset(client);
    hears_of_the_reset(&mut target).await;
    until("the agent forgot the flow", || agent.flows.is_empty()).await;
    tunnel.cut().await;
    let next = Tunnel::up(&hub, &agent).await;
    let flow = hub.flows.select(|_| true).pop().expect("a flow that waits");
    next.hub.attach(&flow, 2).expect("attached");
    until("the hub forgot it too", || hub.flows.is_empty()).await;
    assert_eq!(next.hub.active_flows(), 0);
}

#[tokio::test]
async fn no_more_ended_flows_wait_for_a_word_than_there_may_be_flows() {
    let hub = Side::with_flows(None, 3);
    let agent = Side::new(Some(target(0).await));
    let tunnel = Tunnel::through_pipe(&hub, &agent).await;
    tunnel.pipe().hold();
    for _ in 0..10 {
        let mut client = client_of(&hub, &tunnel).await;
        client.write_all(b"hello").await.expect("write");
        reset(client);
    }
    let all = || hub.closed.load(Ordering::Relaxed) == 10;
    until("all clients are gone", all).await;
    until("three wait", || hub.flows.len() == 3).await;
    hub.flows.sweep(Duration::ZERO);
    assert!(hub.flows.is_empty());
}

#[tokio::test]
async fn a_refused_target_resets_the_client() {
    let hub = Side::new(None);
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind")
        .local_addr()
        .expect("address");
    let agent = Side::new(Some(gone));
    let tunnel = Tunnel::up(&hub, &agent).await;
    let mut client = client_of(&hub, &tunnel).await;
    client.write_all(b"hello").await.expect("write");
    let ended = timeout(SOON, client.read(&mut [0; 5]))
        .await
        .expect("in time");
    assert!(ended.is_err(), "{ended:?}");
    until("both forgot the flow", || {
        hub.flows.is_empty() && agent.flows.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_stops_only_itself() {
    let hub = Side::new(None);
    let len = 4 << 20;
    let agent = Side::new(Some(target(len).await));
    let tunnel = Tunnel::up(&hub, &agent).await;
    let stalled = client_of(&hub, &tunnel).await;
    for _ in 0..3 {
        exchange(client_of(&hub, &tunnel).await, len)
            .await
            .expect("no reset");
    }
    let held = hub
        .flows
        .select(|_| true)
        .iter()
        .map(|flow| flow.held())
        .sum::<usize>();
    assert!(
        held as u64 <= nowconnect_link::budget::MOST_WINDOW,
        "{held}"
    );
    timeout(SOON, exchange(stalled, len))
        .await
        .expect("in time")
        .expect("no reset");
}

#[tokio::test]
async fn a_client_that_aborts_while_nobody_reads_it_is_noticed() {
    let hub = Side::new(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let agent = Side::new(Some(listener.local_addr().expect("address")));
    let tunnel = Tunnel::up(&hub, &agent).await;
    let mut client = client_of(&hub, &tunnel).await;
    let chunk = vec![7; 1 << 20];
    let accepted = async { listener.accept().await.expect("accept").0 };
    let stuck = async {
        while timeout(Duration::from_millis(500), client.write(&chunk))
            .await
            .is_ok_and(|wrote| wrote.is_ok())
        {}
    };
    let (target, ()) = tokio::join!(accepted, stuck);
    client.set_zero_linger().expect("linger");
    drop(client);
    until("both forgot the flow", || {
        hub.flows.sweep(Duration::from_secs(30));
        hub.flows.is_empty() && agent.flows.is_empty()
    })
    .await;
    drop(target);
}

/// There is room for what it sends, but the link does not take even that.
#[tokio::test]
async fn a_client_that_aborts_while_the_link_takes_nothing_is_noticed() {
    let hub = Side::new(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let agent = Side::new(Some(listener.local_addr().expect("address")));
    let tunnel = Tunnel::through_pipe(&hub, &agent).await;
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(client_of(&hub, &tunnel).await);
    }
    until("all to be open", || {
        hub.opened.load(Ordering::Relaxed) == crowd.len()
    })
    .await;
    tunnel.pipe().hold();
    let chunk = vec![7; 1 << 20];
    for client in &mut crowd {
        while timeout(Duration::from_millis(20), client.write(&chunk))
            .await
            .is_ok_and(|wrote| wrote.is_ok())
        {}
    }
    let last = crowd.pop().expect("the last");
    last.set_zero_linger().expect("linger");
    drop(last);
    until("its flow to end", || {
        hub.flows.sweep(Duration::from_secs(30));
        hub.closed.load(Ordering::Relaxed) == 1
    })
    .await;
    assert!(!tunnel.hub.is_closed(), "the link is given up only later");
}
