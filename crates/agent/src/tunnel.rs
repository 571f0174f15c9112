//! One tunnel: from dialing a hub to its acknowledgement, and what the hub says afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nowconnect_link::counters::Engine;
use nowconnect_link::dial::WsUrl;
use nowconnect_link::meter::Bounds;
use nowconnect_link::quiet::Quiet;
use nowconnect_link::session::{self, Carrier, Link, LinkClosed, LinkConfig, LinkEvents, Peer};
use nowconnect_link::stream::Stream;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::upgrade::{self, ClientRequest, UpgradeError, Upgraded};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws;
use nowconnect_proto::frame::Open;
use nowconnect_proto::hello::{Body, Hello, HelloAck, Instance, TokenAck, UpdateAck};
use nowconnect_proto::json_v1::bridge::{self, Bridge, BridgeConfig};
use nowconnect_proto::{FlowId, Frame, Reason};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::{AgentConfig, Protocol};
use crate::credential::Credential;
use crate::failure::Failure;
use crate::flows::Flows;
use crate::metrics::Metrics;
use crate::standing::{Claim, Stand, Standing};
use crate::uplink::Uplink;

/// From the end of dialing to the hub's acknowledgement.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a hub whose answer is of no use may take to hear that.
const GOODBYE: Duration = Duration::from_secs(1);
/// The subprotocol of version 2; a hub that does not choose it speaks version 1.
const V2: &str = "nowconnect.v2";
/// What flows of version 1 may hold beyond their windows, all together, in bytes.
const V1_QUEUE: usize = 16 << 20;
/// Words of the hub about the tunnel that may wait for us; one that says more is broken.
const CONTROLS: usize = 64;
const USER_AGENT: &str = concat!("nowconnect-agent/", env!("CARGO_PKG_VERSION"));

/// Makes tunnels, all of which carry the same flows.
#[derive(Debug)]
pub(crate) struct Tunnels {
    /// This start of the process.
    pub(crate) instance: Instance,
    /// The highest epoch that a hub has told.
    pub(crate) epoch_seen: AtomicU64,
    /// The epoch of the living tunnels.
    pub(crate) standing: Arc<Standing>,
    pub(crate) uplink: Arc<Uplink>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) metrics: Arc<Metrics>,
    /// The drivers of links.
    pub(crate) links: Tasks,
}

/// A tunnel that a hub has acknowledged.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) url: WsUrl,
    pub(crate) link: Arc<Link>,
    pub(crate) stand: Stand,
    pub(crate) ack: HelloAck,
    /// What was shown last.
    pub(crate) credential: Credential,
    /// It was shown in band, and may be shown once more, with a nonce.
    pub(crate) may_prove_again: bool,
    /// The agent has another proof key: a tunnel with it is to take the place of this one.
    pub(crate) rekeyed: Arc<Notify>,
    /// What was exported last.
    pub(crate) connectors: Vec<String>,
    pub(crate) controls: mpsc::Receiver<Control>,
    pub(crate) driver: JoinHandle<LinkClosed>,
}

/// A tunnel that nobody looks after must not stay.
impl Drop for Tunnel {
    fn drop(&mut self) {
        self.link.close(Reason::Unspecified);
    }
}

/// What a hub says about the tunnel itself.
#[derive(Debug)]
pub(crate) enum Control {
    /// It wants us to go elsewhere, within this time.
    GoAway(Reason, Duration),
    /// What became of a TOKEN.
    Token(TokenAck),
    /// What became of an UPDATE.
    Update(UpdateAck),
}

impl Tunnels {
    /// Dials `url`, introduces the agent, and starts the link.
    pub(crate) async fn open(
        &self,
        url: &WsUrl,
        config: &Arc<AgentConfig>,
    ) -> Result<Tunnel, Failure> {
        let credential = Credential::read(&config.tunnel).await?;
        let (uplink, for_uplink) = (Arc::clone(&self.uplink), Arc::clone(config));
        let dialer = tokio::task::spawn_blocking(move || uplink.dialer(&for_uplink))
            .await
            .map_err(|_| Failure::Stopping)??;
        let mut nonce = None;
        let mut carrier = loop {
            let stream = dialer.dial(url).await?;
            let upgrade = self.upgrade(stream, url, &credential, nonce.as_deref(), config);
            let upgraded = timeout(HANDSHAKE, upgrade).await;
            match upgraded.map_err(|_| Failure::Timeout(HANDSHAKE))? {
                // Asked for once, it is a step of the handshake; twice, something is wrong.
                Err(Failure::Upgrade(UpgradeError::Refused {
                    nonce: Some(given), ..
                })) if nonce.is_none() && credential.has_key() => nonce = Some(given),
                upgraded => break upgraded?,
            }
        };
        let connectors = self.flows.targets().names();
        let claim = if carrier.is_v1() {
            None
        } else {
            Some(self.standing.claim().await)
        };
        let hello = self.hello(config, connectors.clone(), claim.as_ref());
        let ack = timeout(HANDSHAKE, introduce(&mut carrier, &hello))
            .await
            .map_err(|_| Failure::Timeout(HANDSHAKE))??;
        self.epoch_seen.fetch_max(ack.epoch, Ordering::Relaxed);
        let stand = match self.standing.enter(claim.as_ref().map(|_| ack.epoch)) {
            Ok(stand) => stand,
            Err(held) => {
                let _ = timeout(GOODBYE, carrier.close(Reason::StaleEpoch)).await;
                let epoch = ack.epoch;
                return Err(Failure::Stale { epoch, held });
            }
        };
        let (link, controls, driver) = self.start(carrier, config, &ack);
        Ok(Tunnel {
            url: url.clone(),
            link,
            stand,
            ack,
            credential,
            may_prove_again: false,
            rekeyed: Arc::default(),
            connectors,
            controls,
            driver,
        })
    }

    async fn upgrade(
        &self,
        stream: Stream,
        url: &WsUrl,
        credential: &Credential,
        nonce: Option<&str>,
        config: &AgentConfig,
    ) -> Result<Carrier<Stream>, Failure> {
        let upgraded = ask(stream, url, credential, nonce, config).await?;
        let max_payload = config.tunnel.max_ws_payload;
        let wire = match upgraded.protocol {
            Some(_) => Wire::V2 { max_payload },
            None => Wire::v1(self.bridge(config)),
        };
        let (role, mask) = (ws::Role::Client, url.mask());
        Ok(Carrier::new(
            upgraded.io,
            upgraded.leftover,
            role,
            mask,
            wire,
            max_payload,
        ))
    }

    fn bridge(&self, config: &AgentConfig) -> Bridge {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Bridge::new(BridgeConfig {
            role: bridge::Role::Agent,
            instance: self.instance,
            max_payload: u32::try_from(config.tunnel.max_ws_payload).unwrap_or(u32::MAX),
            queue_depth: config.limits.queue_depth_per_cid,
            queue_bytes: V1_QUEUE,
            consent_ms: 0,
            ping_ms: (
                millis(config.tunnel.ping_interval),
                millis(config.tunnel.ping_timeout),
            ),
        })
    }

    fn hello(&self, config: &AgentConfig, connectors: Vec<String>, claim: Option<&Claim>) -> Hello {
        Hello {
            agent_id: config.tunnel.agent_id.clone(),
            instance: self.instance,
            connectors,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch_seen: self.epoch_seen.load(Ordering::Relaxed),
            epoch_held: claim.map(|claim| claim.held),
            initial_window: self.engine.budget.first_window(),
            max_payload: u32::try_from(config.tunnel.max_ws_payload).unwrap_or(u32::MAX),
            features: Vec::new(),
        }
    }

    fn start(
        &self,
        carrier: Carrier<Stream>,
        config: &AgentConfig,
        ack: &HelloAck,
    ) -> (Arc<Link>, mpsc::Receiver<Control>, JoinHandle<LinkClosed>) {
        self.flows
            .set_hub_grace(Duration::from_millis(ack.resume_grace_ms.into()));
        let theirs = usize::try_from(ack.max_payload).unwrap_or(usize::MAX);
        let link_config = LinkConfig {
            role: session::Role::Answerer,
            peer: Peer {
                name: ack.hub.as_str().into(),
                first_window: ack.initial_window,
                max_payload: config.tunnel.max_ws_payload.min(theirs),
            },
            ping_interval: config.tunnel.ping_interval,
            ping_timeout: config.tunnel.ping_timeout,
            bounds: Bounds::NONE,
            meter: None,
        };
        let (sender, controls) = mpsc::channel(CONTROLS);
        let events = Arc::new(Events {
            epoch: ack.epoch,
            controls: sender,
            flows: Arc::clone(&self.flows),
            metrics: Arc::clone(&self.metrics),
            quiet: Quiet::default(),
        });
        let (link, driver) = session::start(carrier, &link_config, &self.engine, events);
        (link, controls, self.links.spawn("tunnel", driver))
    }
}

/// Asks the hub at `url` for the upgrade.
pub(crate) async fn ask(
    stream: Stream,
    url: &WsUrl,
    credential: &Credential,
    nonce: Option<&str>,
    config: &AgentConfig,
) -> Result<Upgraded<Stream>, Failure> {
    let protocols: &[_] = match config.tunnel.protocol {
        Protocol::V1 => &[],
        Protocol::V2 => &[V2],
    };
    let (bearer, headers) = credential.for_upgrade(&config.tunnel, url.uri(), nonce)?;
    let request = ClientRequest {
        uri: url.uri(),
        protocols,
        bearer: Some(&bearer),
        user_agent: USER_AGENT,
        headers,
    };
    Ok(upgrade::connect(stream, &request).await?)
}

/// Says HELLO and waits for the answer.
async fn introduce(carrier: &mut Carrier<Stream>, hello: &Hello) -> Result<HelloAck, Failure> {
    let body = carrier.greet(hello.encode()?.into()).await?;
    Ok(HelloAck::decode(&body)?)
}

/// What a link's driver tells us, on the link's own task.
struct Events {
    epoch: u64,
    controls: mpsc::Sender<Control>,
    flows: Arc<Flows>,
    metrics: Arc<Metrics>,
    /// A hub may offend with every frame that it sends: not each is worth a line.
    quiet: Quiet,
}

impl LinkEvents for Events {
    fn on_open(&self, link: &Arc<Link>, id: FlowId, open: Open) {
        self.flows.open(link, id, &open, self.epoch);
    }

    fn on_control(&self, link: &Arc<Link>, frame: Frame) {
        let Some(control) = read_control(frame) else {
            self.on_protocol_error(link, "unexpected_frame");
            return link.close(Reason::ProtocolError);
        };
        if let Control::GoAway(..) = control {
            link.leave();
        }
        if self.controls.try_send(control).is_err() && !self.controls.is_closed() {
            self.on_protocol_error(link, "control_flood");
            link.close(Reason::ProtocolError);
        }
    }

    fn on_protocol_error(&self, link: &Arc<Link>, kind: &'static str) {
        self.metrics.protocol_errors.with(["tunnel", kind]).inc();
        if let Some(suppressed) = self.quiet.pass() {
            let hub = &link.peer().name;
            tracing::warn!(event = "protocol_error", %hub, kind, suppressed);
        }
    }
}

fn read_control(frame: Frame) -> Option<Control> {
    fn body<B: Body>(body: &Bytes) -> Option<B> {
        B::decode(body).ok()
    }
    match frame {
        Frame::GoAway {
            reason,
            deadline_ms,
        } => Some(Control::GoAway(
            reason,
            Duration::from_millis(deadline_ms.into()),
        )),
        Frame::TokenAck(ack) => body(&ack).map(Control::Token),
        Frame::UpdateAck(ack) => body(&ack).map(Control::Update),
        _ => None,
    }
}
