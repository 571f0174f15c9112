//! From the engine to the peer.

use bytes::Bytes;

use super::{Bridge, EARLY_WINDOW, Entry, Exchange, Role};
use crate::close::Reason;
use crate::frame::{Frame, Open, OpenMode};
use crate::hello::{Body, Hello, HelloAck, Rejected, TokenAck, Update, UpdateAck};
use crate::ids::FlowId;
use crate::json_v1::{Direction, Message};

impl Bridge {
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
                answer(
                    &TokenAck::Refused { error, nonce: None },
                    Frame::TokenAck,
                    out,
                );
            }
            Frame::Open { id, open } => self.send_open(id, *open, now_ms, out),
            Frame::OpenAck { id, limit, .. } => self.take_credit(id, limit, out),
            Frame::Credit { id, limit, .. } => self.take_credit(id, limit, out),
            Frame::Data { id, payload, .. } => self.send_data(id, payload, out),
            Frame::Fin { id, .. } => self.send_fin(id, out),
            Frame::Refuse { id, reason }
            | Frame::Rst { id, reason }
            | Frame::Detach { id, reason } => {
                if let Some(&cid) = self.cids.get(&id) {
                    self.tell_reset(cid, reason, out);
                }
            }
            Frame::UpdateAck(_)
            | Frame::TokenAck(_)
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::GoAway { .. }
            | Frame::Query { .. }
            | Frame::Answer { .. } => {}
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
