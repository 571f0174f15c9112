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

mod entry;
mod receiving;
mod sending;

use std::collections::{HashMap, VecDeque};

use super::Message;
use crate::close::Reason;
use crate::frame::Frame;
use crate::hello::Instance;
use crate::ids::{Cid, FlowId};

use entry::Entry;

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
