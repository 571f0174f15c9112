//! From the peer to the engine.

use bytes::Bytes;

use super::{Bridge, EARLY_WINDOW, Entry, Event, Exchange, NO_LIMIT, Role};
use crate::close::Reason;
use crate::frame::{Frame, Open};
use crate::hello::{Body, Hello, HelloAck, MIN_SIZE};
use crate::ids::{Cid, FlowId, Secret};
use crate::json_v1::{Direction, Message, V1Error};

impl Bridge {
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
            epoch_held: None,
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
            limit: NO_LIMIT,
            ..Open::new(cid, Secret::generate(), connector)
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
}
