//! Links give flows their turns, and hand out the frames that come.

use nowconnect_proto::flow::Step;
use nowconnect_proto::frame::Open;
use nowconnect_proto::relay::Face;
use nowconnect_proto::{Flow, FlowId, Frame, Reason};

use crate::ends::{End, cid, secret};
use crate::net::{Carried, ConnId, Kind, Message};
use crate::world::{Role, World};

const MAX_PAYLOAD: usize = 512;

impl World {
    pub(crate) fn let_flows_send(&mut self) {
        while let Some((conn, side)) = self.stirred.pop_first() {
            let mut idle = 0;
            while self.conns[conn].carries(side) && idle < self.conns[conn].flows[side].len() {
                let Some((number, carried)) = self.conns[conn].next_turn(side) else {
                    break;
                };
                match self.next_frame(conn, side, number, carried) {
                    Some(frame) => {
                        idle = 0;
                        self.send(conn, side, Message::Frame(frame));
                    }
                    None => idle += 1,
                }
            }
        }
    }

    /// What the flow has for the link.
    fn next_frame(
        &mut self,
        conn: ConnId,
        side: usize,
        number: u32,
        carried: Carried,
    ) -> Option<Frame> {
        let most = self.conns[conn].most(side).min(MAX_PAYLOAD);
        let role = self.procs[self.conns[conn].procs[side]].role;
        match (carried, role) {
            (Carried::Client(name), Role::Hub(hub)) => {
                let client = self.hubs[hub].flows.get_mut(&name)?;
                let step = client.end.flow.next_step(most, true);
                let meshed = self.conns[conn].kind == Kind::Mesh;
                let agent = client.holder.as_ref().filter(|_| meshed);
                let agent = agent.map_or_else(String::new, |holder| holder.0.to_string());
                let (epoch, connector) = (client.epoch, client.connector);
                let attempt = client.end.flow.attempt();
                let frame =
                    step.map(|step| frame_of(name, number, step, epoch, connector, agent, attempt));
                self.client_stepped(hub, name);
                frame
            }
            (Carried::Target(name), Role::Agent(agent)) => {
                let served = self.agents[agent].flows.get_mut(&name)?;
                let step = served.end.flow.next_step(most, true);
                let frame = step.map(|step| frame_of(name, number, step, 0, "", String::new(), 0));
                self.target_stepped(agent, name);
                frame
            }
            (Carried::Relay(relay, face), _) => {
                let passing = self.relays.get_mut(&relay)?;
                let room = passing.room;
                let id = FlowId(number);
                let promised = passing.relay.has_frame(face, room);
                let frame = passing.relay.next_frame(face, id, most, room);
                assert!(promised || frame.is_none(), "a frame without has_frame");
                if frame.is_some() {
                    let other = passing.leg(face.other());
                    self.stirred.insert((other.conn, other.side));
                }
                self.drop_if_over(relay);
                frame
            }
            _ => panic!("a flow in the wrong process"),
        }
    }

    // ---- in -------------------------------------------------------------------------------------

    pub(crate) fn take_frame(&mut self, conn: ConnId, side: usize, frame: Frame) {
        let role = self.procs[self.conns[conn].procs[side]].role;
        let (id, frame) = match (frame, role) {
            (Frame::Open { id, open }, Role::Agent(agent)) => {
                self.conns[conn].note_used(side, id.0);
                return self.open_at_agent(agent, conn, id.0, &open);
            }
            (Frame::Open { id, open }, Role::Hub(hub)) => {
                self.conns[conn].note_used(side, id.0);
                return self.forward(hub, conn, id.0, *open);
            }
            (frame, _) => (number_of(&frame), frame),
        };
        self.stirred.insert((conn, side));
        let carried = self.conns[conn].flows[side].get(&id).copied();
        match (carried, role) {
            (Some(Carried::Client(name)), Role::Hub(hub)) => {
                self.client_frame(hub, conn, name, frame)
            }
            (Some(Carried::Target(name)), Role::Agent(agent)) => {
                self.target_frame(agent, conn, name, frame);
            }
            (Some(Carried::Relay(relay, face)), _) => self.relay_frame(relay, face, frame),
            (None, _) => self.stray(conn, side, id, &frame),
            _ => panic!("a flow in the wrong process"),
        }
    }

    /// A number that is not in use any more: whoever resets it hears that the flow is not known.
    fn stray(&mut self, conn: ConnId, side: usize, number: u32, frame: &Frame) {
        // A flow may leave a link again before its OPEN was sent.
        let leaves = matches!(frame, Frame::Detach { .. } | Frame::Rst { .. });
        assert!(
            leaves || self.conns[conn].was_used(side, number),
            "a number never used"
        );
        if let Frame::Rst { reason, .. } = frame
            && *reason != Reason::UnknownFlow
        {
            let (id, reason) = (FlowId(number), Reason::UnknownFlow);
            self.send(conn, side, Message::Frame(Frame::Rst { id, reason }));
        }
    }

    pub(crate) fn path_lost(&mut self, conn: ConnId, side: usize, number: u32, carried: Carried) {
        let role = self.procs[self.conns[conn].procs[side]].role;
        match (carried, role) {
            (Carried::Client(name), Role::Hub(hub)) => {
                self.client_detached(hub, conn, number, name)
            }
            (Carried::Target(name), Role::Agent(agent)) => {
                self.target_detached(agent, conn, number, name);
            }
            (Carried::Relay(relay, face), _) => self.relay_lost(relay, face),
            _ => panic!("a flow in the wrong process"),
        }
    }

    /// The flow's end at `side` leaves the link; with `moved` it goes on over another.
    pub(crate) fn leave_link(&mut self, conn: ConnId, side: usize, number: u32, moved: bool) {
        self.conns[conn].flows[side].remove(&number);
        if moved {
            let (id, reason) = (FlowId(number), Reason::Moved);
            self.send(conn, side, Message::Frame(Frame::Detach { id, reason }));
        }
    }
}

/// What every end does about frames. The number is the link's business.
pub(crate) fn apply(end: &mut End, frame: Frame) -> Result<(), Reason> {
    let flow: &mut Flow = &mut end.flow;
    match frame {
        Frame::OpenAck { .. } if flow.ending().is_some() => Ok(()),
        Frame::OpenAck {
            received, limit, ..
        } => flow.on_open_ack(received, limit),
        Frame::Data {
            offset, payload, ..
        } => flow.on_data(offset, payload).map(|_| ()),
        Frame::Fin { offset, .. } => flow.on_fin(offset),
        Frame::Credit { acked, limit, .. } => flow.on_credit(acked, limit),
        Frame::Rst { reason, .. } => {
            flow.on_rst(reason);
            Ok(())
        }
        _ => Err(Reason::ProtocolError),
    }
}

pub(crate) fn number_of(frame: &Frame) -> u32 {
    match frame {
        Frame::OpenAck { id, .. }
        | Frame::Refuse { id, .. }
        | Frame::Data { id, .. }
        | Frame::Fin { id, .. }
        | Frame::Credit { id, .. }
        | Frame::Rst { id, .. }
        | Frame::Detach { id, .. } => id.0,
        other => panic!("{} is no frame of a flow", other.name()),
    }
}

fn frame_of(
    name: u64,
    number: u32,
    step: Step,
    epoch: u64,
    connector: &str,
    agent: String,
    attempt: u32,
) -> Frame {
    step.into_frame(FlowId(number), |mode, received, limit| Open {
        epoch,
        mode,
        received,
        limit,
        agent,
        attempt,
        ..Open::new(cid(name), secret(name), connector)
    })
}

/// A relay's way out.
#[derive(Clone, Copy)]
pub(crate) struct Leg {
    pub(crate) conn: ConnId,
    pub(crate) side: usize,
    pub(crate) number: u32,
}

pub(crate) fn slot(face: Face) -> usize {
    match face {
        Face::Origin => 0,
        Face::Target => 1,
    }
}
