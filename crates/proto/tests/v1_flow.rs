//! Two flow engines with the bridges of version 1 between them, over random interleavings of
//! writes, reads, half-closes, resets and delays.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;

use nowconnect_proto::flow::{Ending, Side, Step};
use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::hello::Instance;
use nowconnect_proto::json_v1::bridge::{Bridge, BridgeConfig, EARLY_WINDOW, Exchange, Role};
use nowconnect_proto::{Cid, Flow, FlowId, Reason, Secret};
use proptest::prelude::*;

const ID: FlowId = FlowId(1);
const WINDOW: u32 = 1024;
const ALLOWANCE: u32 = 32 * 1024;

fn byte_at(side: Side, offset: u64) -> u8 {
    (offset.wrapping_mul(if side == Side::Origin { 31 } else { 37 }) >> 3) as u8
}

/// One end: socket, engine, bridge, and the texts on their way from it.
struct End {
    side: Side,
    cid: Cid,
    bridge: Bridge,
    flow: Option<Flow>,
    written: u64,
    eof: bool,
    read: Vec<u8>,
    read_eof: bool,
    refused: Option<Reason>,
    wire: VecDeque<String>,
}

impl End {
    fn new(side: Side, cid: Cid, queue_depth: usize) -> Self {
        let role = if side == Side::Origin {
            Role::Hub
        } else {
            Role::Agent
        };
        let flow = (side == Side::Origin).then(|| {
            let mut flow = Flow::new(side, WINDOW, ALLOWANCE, 0);
            flow.set_echoes(false);
            flow.attach_origin(u64::from(EARLY_WINDOW), ALLOWANCE);
            flow
        });
        let bridge = Bridge::new(BridgeConfig {
            role,
            instance: Instance(1),
            max_payload: 8192,
            queue_depth,
            queue_bytes: 1 << 20,
            consent_ms: 5000,
            ping_ms: (1, 1),
        });
        let (read, wire) = (Vec::new(), VecDeque::new());
        let (written, eof, read_eof, refused) = (0, false, false, None);
        Self {
            side,
            cid,
            bridge,
            flow,
            written,
            eof,
            read,
            read_eof,
            refused,
            wire,
        }
    }

    fn write(&mut self, most: usize) {
        let Some(flow) = &mut self.flow else { return };
        let n = most.min(flow.room()) as u64;
        let bytes: Vec<u8> = (self.written..self.written + n)
            .map(|o| byte_at(self.side, o))
            .collect();
        self.written += n;
        flow.push(bytes.into());
    }

    fn write_eof(&mut self) {
        if let Some(flow) = &mut self.flow {
            self.eof = true;
            flow.push_fin();
        }
    }

    fn read(&mut self, most: usize) {
        let Some(flow) = &mut self.flow else { return };
        let n = most.min(flow.inbox().len());
        let all: Vec<u8> = flow.inbox().chunks().flatten().copied().collect();
        self.read.extend(&all[..n]);
        flow.hand_on(n);
        if flow.fin_due() {
            flow.fin_handed();
            self.read_eof = true;
        }
    }

    /// Lets the engine send all it has.
    fn send(&mut self) {
        while let Some(step) = self
            .flow
            .as_mut()
            .and_then(|flow| flow.next_step(700, true))
        {
            let mut out = Exchange::default();
            self.bridge.send(self.frame(step), 0, &mut out);
            self.take(out);
        }
    }

    fn frame(&self, step: Step) -> Frame {
        step.into_frame(ID, |mode, received, limit| Open {
            epoch: 1,
            mode,
            received,
            limit,
            ..Open::new(self.cid, Secret([1; 16]), "ldap")
        })
    }

    fn receive(&mut self, text: &str) {
        let mut out = Exchange::default();
        self.bridge.receive(text.as_bytes(), &mut out).unwrap();
        self.take(out);
    }

    fn silence(&mut self) {
        let mut out = Exchange::default();
        self.bridge.on_time(u64::MAX, &mut out);
        self.take(out);
    }

    fn take(&mut self, out: Exchange) {
        self.wire.extend(out.texts);
        for frame in out.frames {
            self.engine(frame);
        }
    }

    fn engine(&mut self, frame: Frame) {
        if let Frame::Open { open, .. } = &frame {
            let mut flow = Flow::new(Side::Target, WINDOW, ALLOWANCE, open.limit);
            flow.attach_target(0, open.limit, ALLOWANCE).unwrap();
            flow.set_echoes(false);
            self.flow = Some(flow);
            return;
        }
        let flow = self.flow.as_mut().unwrap();
        let result = match frame {
            Frame::OpenAck {
                received, limit, ..
            } => flow.on_open_ack(received, limit),
            Frame::Data {
                offset, payload, ..
            } => flow.on_data(offset, payload).map(|accepted| {
                assert_eq!(accepted.duplicate, 0);
            }),
            Frame::Fin { offset, .. } => flow.on_fin(offset),
            Frame::Credit { acked, limit, .. } => flow.on_credit(acked, limit),
            Frame::Rst { reason, .. } => {
                flow.on_rst(reason);
                Ok(())
            }
            Frame::Refuse { reason, .. } => {
                self.refused = Some(reason);
                let answer = flow.on_refuse();
                flow.refused(reason);
                answer
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(result, Ok(()), "the bridge never offends the engine");
    }

    fn ending(&self) -> Option<Ending> {
        self.flow.as_ref().and_then(Flow::ending)
    }
}

struct Pair {
    hub: End,
    agent: End,
}

impl Pair {
    fn new(depth: usize) -> Self {
        let cid = Cid::generate();
        let hub = End::new(Side::Origin, cid, depth);
        Self {
            hub,
            agent: End::new(Side::Target, cid, depth),
        }
    }

    fn end(&mut self, hub: bool) -> &mut End {
        if hub { &mut self.hub } else { &mut self.agent }
    }

    fn carry(&mut self, from_hub: bool, most: usize) {
        for _ in 0..most {
            let Some(text) = self.end(from_hub).wire.pop_front() else {
                return;
            };
            self.end(!from_hub).receive(&text);
        }
    }

    fn connect(&mut self) {
        if let Some(flow) = &mut self.agent.flow
            && !flow.is_opened()
        {
            flow.connected();
        }
    }

    fn step(&mut self, op: u8, hub: bool, amount: usize) {
        match op {
            0..=2 => self.end(hub).write(amount),
            3..=5 => self.end(hub).read(amount),
            6..=8 => self.end(hub).send(),
            9..=12 => self.carry(hub, 1 + amount % 9),
            13 => self.connect(),
            14 if amount.is_multiple_of(4) => self.end(hub).write_eof(),
            15 => self.hub.silence(),
            _ => {}
        }
    }

    /// Both sockets read to the end, everything arrives.
    fn quiesce(&mut self) {
        for _ in 0..2000 {
            self.connect();
            for hub in [true, false] {
                self.end(hub).send();
                self.carry(hub, usize::MAX);
                self.end(hub).read(usize::MAX);
            }
            self.hub.silence();
        }
    }

    fn assert_prefixes(&self) {
        for (reader, writer) in [(&self.hub, &self.agent), (&self.agent, &self.hub)] {
            assert!(reader.read.len() as u64 <= writer.written);
            let expected = (0..reader.read.len() as u64).map(|o| byte_at(writer.side, o));
            assert!(
                reader.read.iter().copied().eq(expected),
                "bytes survive in order"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bytes_and_half_closes_survive(ops in prop::collection::vec((0u8..16, any::<bool>(), 0usize..5000), 0..120)) {
        let mut pair = Pair::new(1000);
        for (op, hub, amount) in ops {
            pair.step(op, hub, amount);
        }
        pair.quiesce();
        pair.hub.write_eof();
        pair.agent.write_eof();
        pair.quiesce();
        pair.assert_prefixes();
        for (reader, writer) in [(&pair.hub, &pair.agent), (&pair.agent, &pair.hub)] {
            prop_assert_eq!(reader.read.len() as u64, writer.written);
            prop_assert!(reader.read_eof);
            prop_assert_eq!(reader.ending(), Some(Ending::Finished));
        }
    }

    #[test]
    fn resets_and_overflows_end_both_sides(
        ops in prop::collection::vec((0u8..16, any::<bool>(), 0usize..5000), 0..120),
        abort_at in 0usize..120,
        by_hub: bool,
        depth in 1usize..8,
    ) {
        let mut pair = Pair::new(depth);
        for (n, (op, hub, amount)) in ops.into_iter().enumerate() {
            if n == abort_at && let Some(flow) = &mut pair.end(by_hub).flow {
                flow.abort(Reason::SocketReset);
            }
            pair.step(op, hub, amount);
        }
        pair.hub.flow.as_mut().unwrap().abort(Reason::SocketReset);
        pair.quiesce();
        pair.assert_prefixes();
        let hub = pair.hub.ending();
        prop_assert!(hub.is_some());
        let agent = pair.agent.ending();
        prop_assert!(agent.is_some() || pair.agent.flow.is_none(), "{:?} {:?}", hub, agent);
        for end in [&pair.hub, &pair.agent] {
            if end.ending() == Some(Ending::Finished) {
                prop_assert!(end.read_eof);
            }
        }
    }
}

#[test]
fn a_refused_flow_can_be_offered_to_another_agent() {
    let mut pair = Pair::new(100);
    pair.hub.write(5000);
    pair.hub.send();
    pair.carry(true, usize::MAX);
    pair.agent
        .flow
        .as_mut()
        .unwrap()
        .abort(Reason::ConnectFailed);
    pair.agent.send();
    let text = pair.agent.wire.pop_front().unwrap();
    let mut out = Exchange::default();
    pair.hub.bridge.receive(text.as_bytes(), &mut out).unwrap();
    assert!(matches!(
        out.frames[..],
        [Frame::Refuse {
            reason: Reason::ConnectFailed,
            ..
        }]
    ));
    let flow = pair.hub.flow.as_mut().unwrap();
    assert!(flow.on_refuse().is_ok() && flow.rewind());
    flow.attach_origin(u64::from(EARLY_WINDOW), ALLOWANCE);
    let mut second = Pair::new(100);
    (second.hub.flow, second.hub.written) = (pair.hub.flow, pair.hub.written);
    second.quiesce();
    second.assert_prefixes();
    assert_eq!(second.agent.read.len(), 5000);
}

#[test]
fn a_client_that_says_more_than_the_early_window_is_not_held_up() {
    let mut pair = Pair::new(1000);
    for _ in 0..100 {
        pair.hub.write(4096);
        pair.hub.send();
    }
    assert!(
        pair.hub.written > 4 * u64::from(EARLY_WINDOW),
        "{}",
        pair.hub.written
    );
    pair.quiesce();
    assert_eq!(pair.agent.read.len() as u64, pair.hub.written);
}
