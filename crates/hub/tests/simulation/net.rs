//! Connections: what is on its way, what is lost, and the links that flows share.

use std::collections::{BTreeMap, VecDeque};

use nowconnect_proto::Frame;
use nowconnect_proto::keepalive::Keepalive;
use nowconnect_proto::relay::Face;

use crate::rules::Claim;
use crate::world::ProcId;

pub(crate) type ConnId = usize;
/// Name of a flow; its bytes are drawn from it.
pub(crate) type FlowName = u64;

/// The side that dialed: an agent, or one of two hubs.
pub(crate) const DIALER: usize = 0;
pub(crate) const ACCEPTOR: usize = 1;

/// Bytes of flows that may be on their way before a link takes no more.
const IN_FLIGHT: usize = 6 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Tunnel,
    Mesh,
}

pub(crate) enum Message {
    /// An agent's HELLO.
    Hello(Claim),
    /// HELLO_ACK with the epoch.
    Welcome(u64),
    Refused,
    MeshHello,
    MeshWelcome,
    Frame(Frame),
}

impl Message {
    fn size(&self) -> usize {
        match self {
            Self::Frame(Frame::Data { payload, .. }) => payload.len(),
            _ => 0,
        }
    }
}

/// What a number of a link stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carried {
    Client(FlowName),
    Target(FlowName),
    Relay(usize, Face),
}

/// A connection. Arrays are by side.
pub(crate) struct Conn {
    pub(crate) kind: Kind,
    pub(crate) procs: [ProcId; 2],
    /// The side has a connection, as far as it knows.
    pub(crate) up: [bool; 2],
    /// The side's handshake is done.
    pub(crate) ready: [bool; 2],
    /// No new flows go this way.
    pub(crate) leaving: bool,
    pub(crate) latency: u64,
    /// What the side sends is lost.
    pub(crate) deaf: [bool; 2],
    /// What is on its way to the side is lost.
    pub(crate) purged: [bool; 2],
    /// What arrives while the connection is held, for each side.
    pub(crate) held: Option<[VecDeque<Message>; 2]>,
    /// When the latest message of the side arrives.
    pub(crate) last_at: [u64; 2],
    in_flight: [usize; 2],
    pub(crate) keepalive: [Keepalive; 2],
    /// The highest number in use, by whoever opens flows and by whoever answers.
    numbers: [u32; 2],
    pub(crate) flows: [BTreeMap<u32, Carried>; 2],
    /// Whose turn comes after this one's.
    turn: [u32; 2],
    /// Of a tunnel, as the agent heard it.
    pub(crate) epoch: u64,
}

impl Conn {
    pub(crate) fn new(kind: Kind, procs: [ProcId; 2], latency: u64, now: u64) -> Self {
        Self {
            kind,
            procs,
            up: [true, false],
            ready: [false; 2],
            leaving: false,
            latency,
            deaf: [false; 2],
            purged: [false; 2],
            held: None,
            last_at: [now; 2],
            in_flight: [0; 2],
            keepalive: [Keepalive::new(5000, 10_000, now); 2],
            numbers: [0; 2],
            flows: Default::default(),
            turn: [0; 2],
            epoch: 0,
        }
    }

    /// Whether the side may use it for flows.
    pub(crate) fn carries(&self, side: usize) -> bool {
        self.up[side] && self.ready[side]
    }

    /// Whether the side may use it for new flows.
    pub(crate) fn takes_flows(&self, side: usize) -> bool {
        self.carries(side) && !self.leaving
    }

    /// The side that opens flows.
    pub(crate) fn opener(&self) -> usize {
        match self.kind {
            Kind::Tunnel => ACCEPTOR,
            Kind::Mesh => DIALER,
        }
    }

    /// The opener's next number.
    pub(crate) fn next_number(&mut self) -> u32 {
        let opener = self.opener();
        self.numbers[opener] += 1;
        self.numbers[opener]
    }

    pub(crate) fn note_used(&mut self, side: usize, number: u32) {
        self.numbers[side] = self.numbers[side].max(number);
    }

    pub(crate) fn was_used(&self, side: usize, number: u32) -> bool {
        number <= self.numbers[side]
    }

    pub(crate) fn depart(&mut self, side: usize, message: &Message) {
        self.in_flight[side] += message.size();
    }

    /// What the side sent has arrived.
    pub(crate) fn arrive(&mut self, side: usize, message: &Message) {
        self.in_flight[side] -= message.size();
    }

    /// How many bytes of a flow may leave now.
    pub(crate) fn most(&self, side: usize) -> usize {
        IN_FLIGHT.saturating_sub(self.in_flight[side])
    }

    /// The flow whose turn it is.
    pub(crate) fn next_turn(&mut self, side: usize) -> Option<(u32, Carried)> {
        let flows = &self.flows[side];
        let after = flows.range(self.turn[side] + 1..).next();
        let (number, carried) = after.or_else(|| flows.iter().next())?;
        self.turn[side] = *number;
        Some((*number, *carried))
    }
}
