//! Lets the flow engine of version 2 serve a peer that speaks version 1.
//!
//! One [`Bridge`] stands between the engine and one link. What the engine sends becomes texts for
//! the peer, what the peer sends becomes frames for the engine, and what version 1 lacks the bridge
//! supplies:
//!
//! - **OPEN is not answered** in version 1. The bridge answers for the agent once it shows life on
//!   the flow (DATA or FIN), once [`EARLY_WINDOW`] bytes went to it, or after a while without
//!   refusal. An RST before that is the refusal.
//! - **There is no flow control.** What was sent counts as handed on at once. What comes waits here
//!   until the engine grants credit, up to `queue_depth` frames per flow and `queue_bytes` per
//!   link; beyond, the flow is reset with `queue_overflow`.
//! - **`seq` counts frames**, so a gap or a repetition is found and resets the flow.
//! - **There is no PING, GOAWAY, UPDATE or TOKEN.** The first two are dropped (the link pings with
//!   the WebSocket's own frames), the others are answered with a refusal.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::{Direction, Message, V1Error};
use crate::close::Reason;
use crate::frame::{Frame, Open, OpenMode};
use crate::hello::{
    Body, Hello, HelloAck, Instance, MIN_SIZE, Rejected, TokenAck, Update, UpdateAck,
};
use crate::ids::{Cid, FlowId, Secret};

/// Bytes of a new flow that are sent and kept before the agent's silence counts as consent. More
/// would only make a client wait longer whose target speaks second.
pub const EARLY_WINDOW: u32 = 16 * 1024;

/// What a peer without flow control takes: everything.
const NO_LIMIT: u64 = u64::MAX >> 1;

/// Flows that ended a moment ago, whose late messages are no offence.
const REMEMBERED: usize = 256;

/// Which end of the link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens flows.
    Hub,
    /// Is asked to.
    Agent,
}

/// What a bridge needs to know.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// Which end this is.
    pub role: Role,
    /// Stands in for the peer's instance, drawn anew for each link: version 1 cannot tell a second
    /// tunnel of a running agent from the tunnel of a restarted one.
    pub instance: Instance,
    /// Largest payload of one DATA, in bytes.
    pub max_payload: u32,
    /// Frames of one flow that may wait for the engine's credit.
    pub queue_depth: usize,
    /// Bytes of all flows that may wait for the engine's credit.
    pub queue_bytes: usize,
    /// How long an agent may stay silent on a new flow before that counts as consent, in
    /// milliseconds: longer than it takes to dial a target in vain.
    pub consent_ms: u64,
    /// Ping interval and timeout to assume for a peer that announces none, in milliseconds.
    pub ping_ms: (u32, u32),
}

/// What came out of one step, in order.
#[derive(Debug, Default)]
pub struct Exchange {
    /// For the peer.
    pub texts: Vec<String>,
    /// For the engine.
    pub frames: Vec<Frame>,
    /// For the counters.
    pub events: Vec<Event>,
}

/// Something to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A flow was reset because too much waited for its socket.
    QueueOverflow(Cid),
    /// The peer broke a rule; the label is one of `nowconnect_protocol_errors_total{kind}`.
    ProtocolError(&'static str),
}

/// One link's translation. See the module's documentation.
#[derive(Debug)]
pub struct Bridge {
    config: BridgeConfig,
    flows: HashMap<Cid, Entry>,
    cids: HashMap<FlowId, Cid>,
    last_id: u32,
    /// Hub: flows by the time at which silence is consent; some have an answer or ended by then.
    unanswered: VecDeque<(u64, Cid)>,
    ended: VecDeque<Cid>,
    waiting_bytes: usize,
}

/// One flow.
#[derive(Debug)]
struct Entry {
    id: FlowId,
    /// The engine knows that the flow stands; until then nothing it sent counts as handed on.
    answered: bool,
    /// Towards the peer: bytes and frames sent, and whether FIN was.
    sent: u64,
    sent_seq: u64,
    sent_fin: bool,
    /// From the peer: frames that came, and whether FIN did.
    came_seq: u64,
    came_fin: bool,
    /// Towards the engine: bytes and FIN given, what it takes, and what waits for that.
    given: u64,
    given_fin: bool,
    limit: u64,
    waiting: VecDeque<Bytes>,
}

impl Entry {
    fn new(id: FlowId, answered: bool, limit: u64) -> Self {
        Self {
            id,
            answered,
            sent: 0,
            sent_seq: 0,
            sent_fin: false,
            came_seq: 0,
            came_fin: false,
            given: 0,
            given_fin: false,
            limit,
            waiting: VecDeque::new(),
        }
    }

    /// Everything sent counts as handed on.
    fn credit(&self) -> Frame {
        let acked = self.sent + u64::from(self.sent_fin);
        Frame::Credit {
            id: self.id,
            acked,
            limit: NO_LIMIT,
        }
    }

    /// The peer consents, if it has not before.
    fn answer(&mut self, frames: &mut Vec<Frame>) {
        if self.answered {
            return;
        }
        self.answered = true;
        frames.push(Frame::OpenAck {
            id: self.id,
            received: 0,
            limit: NO_LIMIT,
        });
        if self.sent > 0 || self.sent_fin {
            frames.push(self.credit());
        }
    }

    /// Gives the engine what it takes; returns the bytes given.
    fn release(&mut self, frames: &mut Vec<Frame>) -> usize {
        let before = self.given;
        while let Some(mut payload) = self.waiting.pop_front() {
            let room = usize::try_from(self.limit.saturating_sub(self.given)).unwrap_or(usize::MAX);
            if payload.len() > room {
                let rest = payload.split_off(room);
                self.waiting.push_front(rest);
            }
            if payload.is_empty() {
                break;
            }
            let offset = self.given;
            self.given += payload.len() as u64;
            frames.push(Frame::Data {
                id: self.id,
                offset,
                payload,
            });
        }
        if self.came_fin && !self.given_fin && self.waiting.is_empty() {
            self.given_fin = true;
            frames.push(Frame::Fin {
                id: self.id,
                offset: self.given,
            });
        }
        usize::try_from(self.given - before).unwrap_or(usize::MAX)
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Bytes::len).sum()
    }
}

impl Bridge {
    /// A bridge for a new link.
    #[must_use]
    pub fn new(config: BridgeConfig) -> Self {
        Self {
            config,
            flows: HashMap::new(),
            cids: HashMap::new(),
            last_id: 0,
            unanswered: VecDeque::new(),
            ended: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// When [`Bridge::on_time`] is due next, on the clock of [`Bridge::send`], in milliseconds.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        self.unanswered.front().map(|(due, _)| *due)
    }

    /// Time passed: agents that stayed silent long enough have consented.
    pub fn on_time(&mut self, now_ms: u64, out: &mut Exchange) {
        while let Some((due, cid)) = self.unanswered.front().copied()
            && due <= now_ms
        {
            self.unanswered.pop_front();
            if let Some(flow) = self.flows.get_mut(&cid) {
                flow.answer(&mut out.frames);
            }
        }
    }

    // ---- from the engine ------------------------------------------------------------------------

    /// The engine sends `frame`.
    pub fn send(&mut self, frame: Frame, now_ms: u64, out: &mut Exchange) {
        match frame {
            Frame::Hello(body) => {
                if let Ok(Hello {
                    agent_id,
                    connectors,
                    version,
                    ..
                }) = Hello::decode(&body)
                {
                    let hello = Message::Hello {
                        agent_id,
                        connectors,
                        ver: version,
                    };
                    out.texts.push(hello.encode());
                }
            }
            Frame::HelloAck(body) => {
                let epoch = HelloAck::decode(&body).ok().map(|ack| ack.epoch);
                out.texts.push(Message::HelloAck { epoch }.encode());
            }
            Frame::Update(body) => refuse_update(&body, out),
            Frame::Token(_) => {
                let error = "not possible in version 1".to_owned();
                answer(&TokenAck::Refused { error }, Frame::TokenAck, out);
            }
            Frame::Open { id, open } => self.send_open(id, *open, now_ms, out),
            Frame::OpenAck { id, limit, .. } => self.take_credit(id, limit, out),
            Frame::Credit { id, limit, .. } => self.take_credit(id, limit, out),
            Frame::Data { id, payload, .. } => self.send_data(id, payload, out),
            Frame::Fin { id, .. } => self.send_fin(id, out),
            Frame::Refuse { id, reason } | Frame::Rst { id, reason } => {
                if let Some(&cid) = self.cids.get(&id) {
                    self.tell_reset(cid, reason, out);
                }
            }
            Frame::UpdateAck(_)
            | Frame::TokenAck(_)
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::GoAway { .. } => {}
        }
    }

    fn send_open(&mut self, id: FlowId, open: Open, now_ms: u64, out: &mut Exchange) {
        // A flow that had another path cannot go on here: version 1 has no offsets.
        if open.mode != OpenMode::New || self.flows.contains_key(&open.cid) {
            out.frames.push(Frame::Refuse {
                id,
                reason: Reason::UnknownFlow,
            });
            return;
        }
        let cid = open.cid;
        self.flows.insert(cid, Entry::new(id, false, open.limit));
        self.cids.insert(id, cid);
        self.unanswered
            .push_back((now_ms.saturating_add(self.config.consent_ms), cid));
        out.texts.push(
            Message::Open {
                cid,
                connector: open.connector,
            }
            .encode(),
        );
    }

    fn send_data(&mut self, id: FlowId, payload: Bytes, out: &mut Exchange) {
        let Some((cid, flow)) = self.by_id(id) else {
            return;
        };
        flow.sent += payload.len() as u64;
        let seq = flow.sent_seq;
        flow.sent_seq += 1;
        out.texts.push(Message::Data { cid, seq, payload }.encode());
        if flow.answered {
            out.frames.push(flow.credit());
        } else if flow.sent >= u64::from(EARLY_WINDOW) {
            flow.answer(&mut out.frames);
        }
    }

    fn send_fin(&mut self, id: FlowId, out: &mut Exchange) {
        let dir = match self.config.role {
            Role::Hub => Direction::C2a,
            Role::Agent => Direction::A2c,
        };
        let Some((cid, flow)) = self.by_id(id) else {
            return;
        };
        flow.sent_fin = true;
        out.texts.push(Message::Fin { cid, dir }.encode());
        if flow.answered {
            out.frames.push(flow.credit());
        }
        self.forget_if_done(cid);
    }

    fn take_credit(&mut self, id: FlowId, limit: u64, out: &mut Exchange) {
        let Some((cid, flow)) = self.by_id(id) else {
            return;
        };
        flow.limit = flow.limit.max(limit);
        let released = flow.release(&mut out.frames);
        self.waiting_bytes -= released;
        self.forget_if_done(cid);
    }

    // ---- from the peer --------------------------------------------------------------------------

    /// The peer sent a text.
    ///
    /// # Errors
    /// The link must end: the text is no message, or one that only our side may send.
    pub fn receive(&mut self, text: &[u8], out: &mut Exchange) -> Result<(), V1Error> {
        let Some(message) = Message::decode(text)? else {
            out.events.push(Event::ProtocolError("unknown_type"));
            return Ok(());
        };
        match (self.config.role, message) {
            (
                Role::Hub,
                Message::Hello {
                    agent_id,
                    connectors,
                    ver,
                },
            ) => {
                let hello = self.hello(agent_id, connectors, ver);
                out.frames.push(Frame::Hello(hello.encode()?.into()));
            }
            (Role::Agent, Message::HelloAck { epoch }) => {
                out.frames
                    .push(Frame::HelloAck(self.hello_ack(epoch).encode()?.into()));
            }
            (Role::Agent, Message::Open { cid, connector }) => self.come_open(cid, connector, out),
            (_, Message::Data { cid, seq, payload }) => self.come_data(cid, seq, payload, out),
            (_, Message::Fin { cid, dir }) => self.come_fin(cid, dir, out),
            (_, Message::Rst { cid, err }) => self.come_rst(cid, &err, out),
            (Role::Hub, Message::HelloAck { .. } | Message::Open { .. })
            | (Role::Agent, Message::Hello { .. }) => return Err(V1Error::WrongSide),
        }
        Ok(())
    }

    fn hello(&self, agent_id: String, connectors: Vec<String>, version: String) -> Hello {
        Hello {
            agent_id,
            instance: self.config.instance,
            connectors,
            version,
            epoch_seen: 0,
            initial_window: EARLY_WINDOW,
            max_payload: self.config.max_payload.max(MIN_SIZE),
            features: Vec::new(),
        }
    }

    fn hello_ack(&self, epoch: Option<u64>) -> HelloAck {
        HelloAck {
            hub: "v1".to_owned(),
            epoch: epoch.unwrap_or(0),
            initial_window: EARLY_WINDOW,
            max_payload: self.config.max_payload.max(MIN_SIZE),
            ping_interval_ms: self.config.ping_ms.0.max(1),
            ping_timeout_ms: self.config.ping_ms.1.max(1),
            resume_grace_ms: 0,
            features: Vec::new(),
        }
    }

    fn come_open(&mut self, cid: Cid, connector: String, out: &mut Exchange) {
        if self.flows.contains_key(&cid) {
            return self.offend(cid, "repeated_open", Reason::ProtocolError, out);
        }
        let Some(id) = self.last_id.checked_add(1) else {
            let err = Reason::FlowIdsExhausted.name().to_owned();
            return out.texts.push(Message::Rst { cid, err }.encode());
        };
        self.last_id = id;
        // Nothing is given to the engine before its answer says how much it takes.
        self.flows.insert(cid, Entry::new(FlowId(id), true, 0));
        self.cids.insert(FlowId(id), cid);
        let open = Box::new(Open {
            cid,
            secret: Secret::generate(),
            epoch: 0,
            mode: OpenMode::New,
            received: 0,
            limit: NO_LIMIT,
            connector,
            client: String::new(),
            listener: String::new(),
        });
        out.frames.push(Frame::Open {
            id: FlowId(id),
            open,
        });
    }

    fn come_data(&mut self, cid: Cid, seq: u64, payload: Bytes, out: &mut Exchange) {
        let (depth, bytes) = (self.config.queue_depth, self.config.queue_bytes);
        let Some(flow) = self.flows.get_mut(&cid) else {
            return self.come_late(cid, out);
        };
        if flow.came_fin {
            return self.offend(cid, "data_after_fin", Reason::AfterFin, out);
        }
        if seq != flow.came_seq {
            return self.offend(cid, "seq", Reason::OffsetGap, out);
        }
        flow.came_seq += 1;
        flow.answer(&mut out.frames);
        if payload.is_empty() {
            return;
        }
        self.waiting_bytes += payload.len();
        flow.waiting.push_back(payload);
        self.waiting_bytes -= flow.release(&mut out.frames);
        if flow.waiting.len() > depth || self.waiting_bytes > bytes {
            out.events.push(Event::QueueOverflow(cid));
            self.reset_both(cid, Reason::QueueOverflow, out);
        }
    }

    fn come_fin(&mut self, cid: Cid, dir: Direction, out: &mut Exchange) {
        let theirs = match self.config.role {
            Role::Hub => Direction::A2c,
            Role::Agent => Direction::C2a,
        };
        let Some(flow) = self.flows.get_mut(&cid) else {
            return self.come_late(cid, out);
        };
        if flow.came_fin || dir != theirs {
            // It says nothing that would harm the flow.
            return out.events.push(Event::ProtocolError("fin"));
        }
        flow.came_fin = true;
        flow.answer(&mut out.frames);
        self.waiting_bytes -= flow.release(&mut out.frames);
        self.forget_if_done(cid);
    }

    fn come_rst(&mut self, cid: Cid, err: &str, out: &mut Exchange) {
        let Some(flow) = self.forget(cid) else { return };
        let (id, reason) = (flow.id, Reason::from_name(err));
        let refusal = reason.allows_another_agent() || reason == Reason::Denied;
        out.frames.push(if !flow.answered && refusal {
            Frame::Refuse { id, reason }
        } else {
            Frame::Rst { id, reason }
        });
    }

    /// A message of a flow that is not there: late, or never opened.
    fn come_late(&mut self, cid: Cid, out: &mut Exchange) {
        if !self.ended.contains(&cid) {
            out.events.push(Event::ProtocolError("unknown_flow"));
            self.tell_reset(cid, Reason::UnknownFlow, out);
        }
    }

    // ---- endings --------------------------------------------------------------------------------

    fn offend(&mut self, cid: Cid, kind: &'static str, reason: Reason, out: &mut Exchange) {
        out.events.push(Event::ProtocolError(kind));
        self.reset_both(cid, reason, out);
    }

    fn reset_both(&mut self, cid: Cid, reason: Reason, out: &mut Exchange) {
        if let Some(flow) = self.flows.get(&cid) {
            out.frames.push(Frame::Rst {
                id: flow.id,
                reason,
            });
        }
        self.tell_reset(cid, reason, out);
    }

    fn tell_reset(&mut self, cid: Cid, reason: Reason, out: &mut Exchange) {
        self.forget(cid);
        self.remember(cid);
        out.texts.push(
            Message::Rst {
                cid,
                err: reason.name().to_owned(),
            }
            .encode(),
        );
    }

    fn forget_if_done(&mut self, cid: Cid) {
        if self
            .flows
            .get(&cid)
            .is_some_and(|flow| flow.sent_fin && flow.given_fin)
        {
            self.forget(cid);
        }
    }

    fn forget(&mut self, cid: Cid) -> Option<Entry> {
        let flow = self.flows.remove(&cid)?;
        self.cids.remove(&flow.id);
        self.waiting_bytes -= flow.waiting_bytes();
        self.remember(cid);
        Some(flow)
    }

    fn remember(&mut self, cid: Cid) {
        if self.ended.back() == Some(&cid) {
            return;
        }
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(cid);
    }

    fn by_id(&mut self, id: FlowId) -> Option<(Cid, &mut Entry)> {
        let cid = *self.cids.get(&id)?;
        Some((cid, self.flows.get_mut(&cid)?))
    }
}

/// Version 1 cannot change a list of connectors: it takes a new connection.
fn refuse_update(body: &[u8], out: &mut Exchange) {
    let Ok(Update { connectors }) = Update::decode(body) else {
        return;
    };
    let reason = "not possible in version 1";
    let rejected = connectors
        .into_iter()
        .map(|name| Rejected {
            name,
            reason: reason.to_owned(),
        })
        .collect();
    answer(
        &UpdateAck {
            accepted: Vec::new(),
            rejected,
        },
        Frame::UpdateAck,
        out,
    );
}

fn answer<B: Body>(body: &B, frame: fn(Bytes) -> Frame, out: &mut Exchange) {
    if let Ok(body) = body.encode() {
        out.frames.push(frame(body.into()));
    }
}
