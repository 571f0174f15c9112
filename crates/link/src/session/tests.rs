//! Flows that move between links at the worst moments. Links are driven by hand.

use std::pin::{Pin, pin};
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::BytesMut;
use nowconnect_proto::Cid;
use nowconnect_proto::hello::Instance;
use nowconnect_proto::json_v1::bridge::{self, Bridge, BridgeConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::budget::Budget;
use crate::carried::Carried;
use crate::counters::{EngineCounters, FlowCounters};
use crate::endpoint::{FlowEvents, Label, Summary};
use crate::meter::{Bound, Bounds};
use crate::wire::Wire;
use crate::ws;

struct Silent;

impl FlowEvents for Silent {
    fn opened(&self, _: &Arc<SocketFlow>) {}
    fn refused(&self, _: &Arc<SocketFlow>, _: Reason) -> bool {
        false
    }
    fn path_lost(&self, _: &Arc<SocketFlow>) {}
    fn closed(&self, _: &Arc<SocketFlow>, _: Summary) {}
}

/// Refuses every flow.
impl LinkEvents for Silent {
    fn on_open(&self, link: &Arc<Link>, id: FlowId, _: Open) {
        link.refuse(id, Reason::Limit);
    }
    fn on_control(&self, _: &Arc<Link>, _: Frame) {}
    fn on_protocol_error(&self, _: &Arc<Link>, _: &'static str) {}
}

const MAX_PAYLOAD: usize = 65_536;

/// A server's end of a connection that holds `room` bytes, and the other end.
fn carrier(wire: Wire, room: usize) -> (Carrier<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(room);
    let (role, mask) = (ws::Role::Server, ws::Mask::None);
    let carrier = Carrier::new(near, BytesMut::new(), role, mask, wire, MAX_PAYLOAD);
    (carrier, far)
}

/// Version 1, as a hub speaks it whose agents consent at once.
fn v1() -> Wire {
    Wire::v1(Bridge::new(BridgeConfig {
        role: bridge::Role::Hub,
        instance: Instance(1),
        max_payload: 65_536,
        queue_depth: 64,
        queue_bytes: 1 << 20,
        consent_ms: 0,
        ping_ms: (5_000, 10_000),
    }))
}

/// A link and the connection's other end.
struct Driven {
    link: Arc<Link>,
    driver: Pin<Box<dyn Future<Output = LinkClosed> + Send>>,
    far: DuplexStream,
}

impl Driven {
    fn new(engine: &Arc<Engine>, role: Role) -> Self {
        Self::metered(engine, role, None)
    }

    fn metered(engine: &Arc<Engine>, role: Role, meter: Option<Arc<dyn Meter>>) -> Self {
        let wire = Wire::V2 {
            max_payload: MAX_PAYLOAD,
        };
        Self::of(carrier(wire, 4 << 20), engine, role, meter)
    }

    fn of(
        (carrier, far): (Carrier<DuplexStream>, DuplexStream),
        engine: &Arc<Engine>,
        role: Role,
        meter: Option<Arc<dyn Meter>>,
    ) -> Self {
        let config = LinkConfig {
            role,
            peer: Peer {
                name: "peer".into(),
                first_window: 65_536,
                max_payload: MAX_PAYLOAD,
            },
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            bounds: Bounds::NONE,
            meter,
        };
        let (link, driver) = start(carrier, &config, engine, Arc::new(Silent));
        let driver = Box::pin(driver);
        Self { link, driver, far }
    }

    fn poll(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.driver.as_mut().poll(&mut cx).is_ready()
    }

    fn is_woken_for_flows(&self) -> bool {
        !self.link.queue.lock().ready.is_empty()
    }
}

fn engine() -> Arc<Engine> {
    let budget = Budget::new(64 << 20, 100);
    Arc::new(Engine::new(budget, EngineCounters::default()))
}

async fn flow(engine: &Arc<Engine>) -> (Arc<SocketFlow>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let label = Label {
        connector: "ldap".into(),
        listener: "".into(),
        destination: "".into(),
        client: "".into(),
    };
    let (socket, counters) = (accepted.unwrap().0, FlowCounters::default());
    let flow = SocketFlow::origin(
        Cid::generate(),
        label,
        socket,
        engine,
        counters,
        Arc::new(Silent),
    );
    (flow, client.unwrap())
}

#[tokio::test]
async fn a_wake_that_went_to_the_old_link_does_not_swallow_one_of_the_new() {
    for old_ends in [false, true] {
        let engine = engine();
        let mut old = Driven::new(&engine, Role::Opener);
        let mut new = Driven::new(&engine, Role::Opener);
        let (flow, _client) = flow(&engine).await;
        old.link.attach(&flow, 1).unwrap();
        old.poll();
        new.link.attach(&flow, 1).unwrap();
        new.poll();
        // The socket read which link carries the flow just before it moved; then it is ready again.
        old.link.ready(Carried::Socket(Arc::clone(&flow)));
        new.link.ready(Carried::Socket(Arc::clone(&flow)));
        assert!(!new.is_woken_for_flows());
        if old_ends {
            drop(old.driver);
        } else {
            old.poll();
        }
        assert!(new.is_woken_for_flows(), "old link ended: {old_ends}");
    }
}

#[tokio::test]
async fn a_wake_of_a_link_that_has_ended_leaves_the_flow_free_to_be_woken() {
    let engine = engine();
    let (old, mut new) = (
        Driven::new(&engine, Role::Opener),
        Driven::new(&engine, Role::Opener),
    );
    let (flow, _client) = flow(&engine).await;
    old.link.attach(&flow, 1).unwrap();
    new.link.attach(&flow, 1).unwrap();
    new.poll();
    drop(old.driver);
    old.link.ready(Carried::Socket(Arc::clone(&flow)));
    new.poll();
    new.link.ready(Carried::Socket(Arc::clone(&flow)));
    assert!(new.is_woken_for_flows());
}

#[tokio::test]
async fn a_turn_on_the_old_link_leaves_the_place_on_the_new_one() {
    let engine = engine();
    let (mut old, new) = (
        Driven::new(&engine, Role::Opener),
        Driven::new(&engine, Role::Opener),
    );
    let (flow, _client) = flow(&engine).await;
    old.link.attach(&flow, 1).unwrap();
    old.poll();
    new.link.attach(&flow, 1).unwrap();
    let mut steps = 0;
    let mut put = |_| steps += 1;
    assert!(flow.turn_in(&old.link, false, 0, &mut put).is_none());
    assert!(flow.turn_in(&new.link, false, 0, &mut put).is_some());
    assert_eq!(steps, 1, "OPEN on the new link");
}

/// Shows how many bytes are on their way.
#[derive(Debug, Default)]
struct OnTheirWay(AtomicU64);

impl Meter for OnTheirWay {
    fn frame_in(&self, _: &Frame) {}
    fn frame_out(&self, _: &Frame) {}
    fn bytes(&self, _: usize, _: usize) {}
    fn round_trip(&self, _: Duration) {}
    fn waiting(&self, _: usize, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
    fn held_up(&self, _: Bound) {}
    fn shed(&self) {}
}

#[tokio::test]
async fn nothing_is_on_its_way_on_a_link_that_has_ended() {
    let engine = engine();
    let meter = Arc::new(OnTheirWay::default());
    let mut link = Driven::metered(&engine, Role::Opener, Some(meter.clone()));
    let (flow, _client) = flow(&engine).await;
    link.link.attach(&flow, 1).unwrap();
    link.poll();
    assert_ne!(meter.0.load(Ordering::Relaxed), 0, "OPEN");
    drop(link.driver);
    assert_eq!(meter.0.load(Ordering::Relaxed), 0);
}

/// What a read brings at most: OPENs that are all refused.
#[tokio::test]
async fn a_burst_of_refusals_leaves_the_link_alone() {
    let mut answerer = Driven::new(&engine(), Role::Answerer);
    let mut message = BytesMut::new();
    for id in 1..=3000 {
        let open = Open {
            epoch: 1,
            limit: 65_536,
            ..Open::new(
                Cid::generate(),
                nowconnect_proto::Secret::generate(),
                "ldap",
            )
        };
        let id = FlowId(id);
        let frame = Frame::Open {
            id,
            open: Box::new(open),
        };
        let mut frames = BytesMut::new();
        frame.encode(&mut frames);
        ws::write_message(&mut message, ws::Opcode::Binary, &frames, ws::Mask::Zero);
    }
    answerer.far.write_all(&message).await.unwrap();
    for _ in 0..10 {
        assert!(!answerer.poll(), "the link was closed");
    }
    assert!(answerer.link.takes_flows());
}

#[tokio::test]
async fn a_peer_that_asks_and_does_not_listen_is_left() {
    let mut answerer = Driven::new(&engine(), Role::Answerer);
    let mut frames = BytesMut::new();
    for id in 1..=6000 {
        let (id, offset) = (FlowId(id), 0);
        Frame::Fin { id, offset }.encode(&mut frames);
    }
    let mut message = BytesMut::new();
    for part in frames.chunks(17 * 3000) {
        ws::write_message(&mut message, ws::Opcode::Binary, part, ws::Mask::Zero);
    }
    let (mut held, mut ended) = (0, false);
    for _ in 0..2000 {
        answerer.far.write_all(&message).await.unwrap();
        answerer.poll();
        ended = !answerer.link.takes_flows();
        if ended {
            break;
        }
        held += message.len();
    }
    assert!(ended, "{held} bytes and still there");
}

#[tokio::test]
async fn a_flow_that_ends_while_it_moves_leaves_nothing_behind() {
    let engine = engine();
    let mut new = Driven::new(&engine, Role::Opener);
    let (flow, _client) = flow(&engine).await;
    flow.expire(Reason::ResumeExpired);
    new.link.attach(&flow, 1).unwrap();
    new.poll();
    assert_eq!(new.link.active_flows(), 0);
    assert!(flow.link().is_none() && new.link.flows.lock().is_empty());
}

/// Sends `frame` to a link that is no client of the WebSocket.
async fn say(far: &mut DuplexStream, frame: Frame) {
    let (mut frames, mut message) = (BytesMut::new(), BytesMut::new());
    frame.encode(&mut frames);
    ws::write_message(&mut message, ws::Opcode::Binary, &frames, ws::Mask::Zero);
    far.write_all(&message).await.unwrap();
}

#[tokio::test]
async fn a_flow_that_is_turned_away_has_waited_all_the_time() {
    for (reason, waits_anew) in [(Reason::StaleEpoch, false), (Reason::ConnectionLost, true)] {
        let engine = engine();
        let (mut old, mut new) = (
            Driven::new(&engine, Role::Opener),
            Driven::new(&engine, Role::Opener),
        );
        let (flow, _client) = flow(&engine).await;
        old.link.attach(&flow, 1).unwrap();
        old.poll();
        drop(old.driver);
        let lost = flow.detached_ms().expect("lost");
        while engine.now_ms() == lost {
            tokio::task::yield_now().await;
        }
        new.link.attach(&flow, 1).unwrap();
        new.poll();
        assert_eq!(flow.detached_ms(), None);
        let id = FlowId(1);
        say(&mut new.far, Frame::Detach { id, reason }).await;
        new.poll();
        let since = flow.detached_ms().expect("turned away");
        assert_eq!(since > lost, waits_anew, "{reason}");
    }
}

#[tokio::test]
async fn an_answer_finds_a_flow_whose_socket_woke_it_while_it_was_attached() {
    let engine = engine();
    let mut new = Driven::new(&engine, Role::Opener);
    let (flow, _client) = flow(&engine).await;
    let id = new.link.next_number().unwrap();
    new.link.expect(id, &flow);
    flow.bind_origin(&new.link, id, 1, None);
    new.link.ready(Carried::Socket(Arc::clone(&flow)));
    new.poll();
    let (received, limit) = (0, 65_536);
    let answer = Frame::OpenAck {
        id,
        received,
        limit,
    };
    say(&mut new.far, answer).await;
    new.poll();
    assert!(flow.is_opened());
}

/// What is no HELLO and yet no error, and where its answer waits until there is a driver.
#[tokio::test]
async fn who_never_comes_to_its_hello_is_left() {
    let mut texts = BytesMut::new();
    for _ in 0..20_000 {
        let cid = Cid::generate();
        let text = format!(r#"{{"t":"FIN","cid":"{cid}","dir":"a2c"}}"#);
        ws::write_message(
            &mut texts,
            ws::Opcode::Text,
            text.as_bytes(),
            ws::Mask::Zero,
        );
    }
    let (mut pings, mut frames) = (BytesMut::new(), BytesMut::new());
    for _ in 0..20_000 {
        ws::write_message(&mut pings, ws::Opcode::Ping, b"x", ws::Mask::Zero);
        frames.extend_from_slice(&[0, 0, 0, 0x7f, 0, 0, 0, 0, 0]);
    }
    let mut unknown = BytesMut::new();
    for part in frames.chunks(9 * 4_000) {
        ws::write_message(&mut unknown, ws::Opcode::Binary, part, ws::Mask::Zero);
    }
    let v2 = || Wire::V2 {
        max_payload: MAX_PAYLOAD,
    };
    for (wire, bytes) in [(v1(), texts), (v2(), pings), (v2(), unknown)] {
        let (mut carrier, mut far) = carrier(wire, 4 << 20);
        far.write_all(&bytes).await.unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let received = pin!(carrier.receive()).poll(&mut cx);
        assert!(
            matches!(received, Poll::Ready(Err(CarrierError::Flood))),
            "{received:?}"
        );
        assert!(!carrier.out.is_flooded());
    }
}

#[tokio::test]
async fn a_broken_websocket_is_closed_with_the_code_for_it() {
    let text = |bytes: &[u8]| {
        let mut message = BytesMut::new();
        ws::write_message(&mut message, ws::Opcode::Text, bytes, ws::Mask::Zero);
        message.to_vec()
    };
    let long = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let cases = [
        (text(&[0xc3, 0x28]), 1007_u16),
        (long.to_vec(), 1009),
        (vec![0x82, 0], 1002),
    ];
    for (bytes, code) in cases {
        let mut link = Driven::new(&engine(), Role::Answerer);
        link.far.write_all(&bytes).await.unwrap();
        assert!(link.poll(), "the link goes on");
        drop(link.driver);
        let mut said = Vec::new();
        link.far.read_to_end(&mut said).await.unwrap();
        let mut close = code.to_be_bytes().to_vec();
        close.extend_from_slice(b"protocol_error");
        assert!(said.ends_with(&close), "{code}: {said:?}");
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_link_that_cannot_say_goodbye_sleeps() {
    let engine = engine();
    let mut link = Driven::of(carrier(v1(), 8), &engine, Role::Opener, None);
    let (flow, _client) = flow(&engine).await;
    link.link.attach(&flow, 1).unwrap();
    link.link.close(Reason::Shutdown);
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    for _ in 0..3 {
        let polled = link.driver.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    count.0.store(0, Ordering::Relaxed);
    let polled = link.driver.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    assert_eq!(count.0.load(Ordering::Relaxed), 0, "there is nothing to do");
}
