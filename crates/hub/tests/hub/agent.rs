//! An agent made of the link alone: it answers every OPEN with an echo, or refuses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nowconnect_link::budget::Budget;
use nowconnect_link::counters::{Engine, EngineCounters, FlowCounters};
use nowconnect_link::endpoint::{FlowEvents, SocketFlow, Summary};
use nowconnect_link::flows::FlowTable;
use nowconnect_link::meter::Bounds;
use nowconnect_link::session::{
    Carrier, Link, LinkClosed, LinkConfig, LinkEvents, Peer, Role, start,
};
use nowconnect_link::upgrade::{Bearer, ClientRequest, Upgraded, connect};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::{self, Mask};
use nowconnect_proto::frame::{Frame, Open, OpenMode};
use nowconnect_proto::hello::{Body, Hello, HelloAck, Instance, TokenAck, UpdateAck};
use nowconnect_proto::{FlowId, Reason};
use nowconnect_testkit::anyhow::{self, Result, ensure};
use nowconnect_testkit::target::Target;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const MAX_PAYLOAD: u32 = 65_536;

/// One start of an agent; its flows outlive its tunnels.
pub(crate) struct Process {
    pub(crate) agent_id: String,
    pub(crate) connectors: Vec<String>,
    pub(crate) instance: Instance,
    state: Arc<State>,
}

struct State {
    engine: Arc<Engine>,
    flows: FlowTable,
    target: Target,
    refuse: Mutex<Option<Reason>>,
    silent: AtomicBool,
    opened: AtomicUsize,
}

/// A tunnel.
pub(crate) struct Agent {
    pub(crate) ack: HelloAck,
    pub(crate) link: Arc<Link>,
    pub(crate) control: mpsc::Receiver<Frame>,
    task: JoinHandle<LinkClosed>,
}

impl Process {
    pub(crate) async fn new(agent_id: &str, instance: u128) -> Self {
        let engine = Arc::new(Engine::new(
            Budget::new(64 << 20, 100),
            EngineCounters::default(),
        ));
        let state = State {
            flows: FlowTable::new(&engine),
            engine,
            target: Target::echo().await.unwrap(),
            refuse: Mutex::default(),
            silent: AtomicBool::new(false),
            opened: AtomicUsize::new(0),
        };
        Self {
            agent_id: agent_id.to_owned(),
            connectors: vec!["echo".to_owned()],
            instance: Instance(instance),
            state: Arc::new(state),
        }
    }

    /// Refuses every OPEN from now on.
    pub(crate) fn refuse(&self, reason: Reason) {
        *self.state.refuse.lock() = Some(reason);
    }

    /// Leaves every new OPEN without an answer from now on.
    pub(crate) fn fall_silent(&self) {
        self.state.silent.store(true, Ordering::Relaxed);
    }

    /// Answers again.
    pub(crate) fn speak(&self) {
        self.state.silent.store(false, Ordering::Relaxed);
    }

    /// OPENs that it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.state.opened.load(Ordering::Relaxed)
    }

    pub(crate) fn flows(&self) -> usize {
        self.state.flows.len()
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            agent_id: self.agent_id.clone(),
            instance: self.instance,
            connectors: self.connectors.clone(),
            version: "test".into(),
            epoch_seen: 0,
            epoch_held: None,
            initial_window: self.state.engine.budget.first_window(),
            max_payload: MAX_PAYLOAD,
            features: Vec::new(),
        }
    }

    /// Opens a tunnel and waits for its acknowledgement.
    pub(crate) async fn connect(&self, hub: SocketAddr, token: &str) -> Result<Agent> {
        let mut carrier = dial(hub, token).await?;
        carrier
            .send(Frame::Hello(self.hello().encode()?.into()))
            .await?;
        let answer = carrier.receive().await?;
        let Frame::HelloAck(body) = answer else {
            anyhow::bail!("{answer:?}")
        };
        let ack = HelloAck::decode(&body)?;
        let config = LinkConfig {
            role: Role::Answerer,
            peer: Peer {
                name: ack.hub.as_str().into(),
                first_window: ack.initial_window,
                max_payload: ack.max_payload.min(MAX_PAYLOAD) as usize,
            },
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            bounds: Bounds::NONE,
            meter: None,
        };
        let (sender, control) = mpsc::channel(64);
        let events = Arc::new(Events {
            state: self.state.clone(),
            control: sender,
        });
        let (link, driver) = start(carrier, &config, &self.state.engine, events);
        Ok(Agent {
            ack,
            link,
            control,
            task: tokio::spawn(driver),
        })
    }
}

/// Upgrades and says nothing.
pub(crate) async fn dial(hub: SocketAddr, token: &str) -> Result<Carrier<TcpStream>> {
    let uri = format!("ws://{hub}/tunnel").parse()?;
    let bearer = Bearer::new(token)?;
    let request = ClientRequest {
        uri: &uri,
        protocols: &["nowconnect.v2"],
        bearer: Some(&bearer),
        user_agent: "test",
        headers: http::HeaderMap::new(),
    };
    let Upgraded {
        io,
        leftover,
        protocol,
    } = connect(TcpStream::connect(hub).await?, &request).await?;
    ensure!(protocol == Some("nowconnect.v2"), "{protocol:?}");
    let max_payload = MAX_PAYLOAD as usize;
    let wire = Wire::V2 { max_payload };
    Ok(Carrier::new(
        io,
        leftover,
        ws::Role::Client,
        Mask::Zero,
        wire,
        max_payload,
    ))
}

impl Agent {
    /// Breaks the connection without a word.
    pub(crate) async fn cut(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Waits for the end of the tunnel.
    pub(crate) async fn closed(self) -> LinkClosed {
        nowconnect_testkit::wait::within("the tunnel's end", self.task)
            .await
            .unwrap()
            .unwrap()
    }

    /// The next frame of the link itself.
    pub(crate) async fn heard(&mut self) -> Frame {
        let heard = nowconnect_testkit::wait::within("a control frame", self.control.recv()).await;
        heard.unwrap().expect("a living tunnel")
    }

    /// What became of the connectors that it wants to export.
    pub(crate) async fn update_ack(&mut self) -> UpdateAck {
        match self.heard().await {
            Frame::UpdateAck(body) => UpdateAck::decode(&body).unwrap(),
            other => panic!("{} where UPDATE_ACK was due", other.name()),
        }
    }

    /// What became of the token that it has shown.
    pub(crate) async fn token_ack(&mut self) -> TokenAck {
        match self.heard().await {
            Frame::TokenAck(body) => TokenAck::decode(&body).unwrap(),
            other => panic!("{} where TOKEN_ACK was due", other.name()),
        }
    }

    /// Why it is to leave the tunnel.
    pub(crate) async fn sent_away(&mut self) -> Reason {
        match self.heard().await {
            Frame::GoAway { reason, .. } => reason,
            other => panic!("{} where GOAWAY was due", other.name()),
        }
    }
}

struct Events {
    state: Arc<State>,
    control: mpsc::Sender<Frame>,
}

impl LinkEvents for Events {
    fn on_open(&self, link: &Arc<Link>, id: FlowId, open: Open) {
        let state = self.state.clone();
        if let Some(flow) = state.flows.get(open.cid) {
            assert!(flow.knows(&open.secret));
            link.bind(id, &flow, &open).expect("bound again");
            return;
        }
        if open.mode == OpenMode::Resume {
            return link.refuse(id, Reason::UnknownFlow);
        }
        state.opened.fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = *state.refuse.lock() {
            return link.refuse(id, reason);
        }
        if state.silent.load(Ordering::Relaxed) {
            return;
        }
        let events = Arc::new(Ends(state.clone()));
        let flow = SocketFlow::target(&open, &state.engine, FlowCounters::default(), events);
        state.flows.insert(&flow, Duration::ZERO);
        link.bind(id, &flow, &open).expect("bound");
        tokio::spawn(async move {
            flow.connected(
                TcpStream::connect(state.target.addr())
                    .await
                    .expect("the target"),
            );
        });
    }

    fn on_control(&self, _: &Arc<Link>, frame: Frame) {
        let _ = self.control.try_send(frame);
    }

    fn on_protocol_error(&self, _: &Arc<Link>, kind: &'static str) {
        panic!("the hub broke the protocol: {kind}");
    }
}

struct Ends(Arc<State>);

impl FlowEvents for Ends {
    fn opened(&self, _: &Arc<SocketFlow>) {}

    fn refused(&self, _: &Arc<SocketFlow>, _: Reason) -> bool {
        false
    }

    fn path_lost(&self, _: &Arc<SocketFlow>) {}

    fn closed(&self, _: &Arc<SocketFlow>, _: Summary) {}

    fn over(&self, flow: &Arc<SocketFlow>) {
        self.0.flows.remove(flow.cid());
    }
}
