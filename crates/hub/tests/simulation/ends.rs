//! The ends of a flow, their sockets, and what is known of every flow from outside.

use bytes::Bytes;
use nowconnect_proto::flow::Side;
use nowconnect_proto::{Cid, Flow, Secret};

use crate::net::{ConnId, FlowName};
use crate::random::Random;
use crate::world::ProcId;

pub(crate) const WINDOW: u32 = 4096;

/// What stands at `offset` of one direction of one flow, and of no other.
fn byte_at(name: FlowName, from: Side, offset: u64) -> u8 {
    let direction = u64::from(from == Side::Origin);
    let mixed = Random::new(name << 33 ^ direction << 32 ^ offset).next();
    mixed as u8
}

pub(crate) fn cid(name: FlowName) -> Cid {
    Cid(u128::from(name).to_be_bytes())
}

pub(crate) fn secret(name: FlowName) -> Secret {
    Secret(u128::from(!name).to_be_bytes())
}

pub(crate) fn name_of(cid: Cid) -> FlowName {
    u128::from_be_bytes(cid.0) as FlowName
}

/// An end of a flow and its socket.
pub(crate) struct End {
    pub(crate) name: FlowName,
    pub(crate) flow: Flow,
    side: Side,
    /// The connection that carries it, and its number there.
    pub(crate) at: Option<(ConnId, u32)>,
    pub(crate) detached_at: u64,
    pub(crate) ended_at: Option<u64>,
    /// Bytes that the socket will bring.
    brings: u64,
    pub(crate) written: u64,
    pub(crate) read: u64,
    pub(crate) read_fin: bool,
}

impl End {
    pub(crate) fn new(name: FlowName, side: Side, flow: Flow, brings: u64, now: u64) -> Self {
        Self {
            name,
            flow,
            side,
            at: None,
            detached_at: now,
            ended_at: None,
            brings,
            written: 0,
            read: 0,
            read_fin: false,
        }
    }

    /// The socket brings up to `n` bytes, and its end behind the last.
    pub(crate) fn write(&mut self, n: u64) {
        let room = self.flow.room() as u64;
        let n = n.min(room).min(self.brings - self.written);
        let offsets = self.written..self.written + n;
        let bytes: Vec<u8> = offsets
            .map(|offset| byte_at(self.name, self.side, offset))
            .collect();
        self.flow.push(Bytes::from(bytes));
        self.written += n;
        if self.written == self.brings && self.flow.ending().is_none() {
            self.flow.push_fin();
        }
    }

    /// The socket takes up to `n` bytes, which must be the right ones.
    pub(crate) fn read(&mut self, n: usize) -> usize {
        let n = n.min(self.flow.inbox().len());
        let from = match self.side {
            Side::Origin => Side::Target,
            Side::Target => Side::Origin,
        };
        let mut left = n;
        for chunk in self.flow.inbox().chunks() {
            for byte in chunk.iter().take(left) {
                let right = byte_at(self.name, from, self.read);
                assert_eq!(
                    *byte, right,
                    "flow {}: a wrong byte at offset {} of what the {:?} reads",
                    self.name, self.read, self.side
                );
                self.read += 1;
            }
            left -= left.min(chunk.len());
        }
        self.flow.hand_on(n);
        if self.flow.fin_due() {
            self.flow.fin_handed();
            self.read_fin = true;
        }
        n
    }

    pub(crate) fn detach(&mut self, now: u64) {
        if self.at.take().is_some() {
            self.detached_at = now;
        }
        self.flow.detach();
    }
}

/// What is known of a flow from outside.
#[derive(Default, Debug)]
pub(crate) struct Truth {
    pub(crate) brings: u64,
    pub(crate) target_brings: u64,
    /// Targets that were dialed.
    pub(crate) dials: u32,
    /// The process and the dial whose target has had bytes of the client.
    pub(crate) fed: Option<(ProcId, u32)>,
    /// What the target that was fed has read, and whether to the end.
    pub(crate) target_read: (u64, bool),
    pub(crate) client_read: (u64, bool),
    /// The client went to its end without a reset.
    pub(crate) finished: bool,
    /// The hub that holds the client is gone.
    pub(crate) lost: bool,
}
