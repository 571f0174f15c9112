//! One end of the flow, with what its socket wrote and read.

use bytes::Bytes;
use nowconnect_proto::flow::{Side, Step};
use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::{Cid, Flow, FlowId, Secret};

pub(crate) const MAX_PAYLOAD: usize = 700;

/// What byte stands at `offset` of the direction that starts at `side`.
fn byte_at(side: Side, offset: u64) -> u8 {
    let salt = if side == Side::Origin {
        0x9e37_79b9
    } else {
        0x85eb_ca6b
    };
    (offset.wrapping_mul(salt) >> 7) as u8 ^ offset as u8
}

pub(crate) fn other(side: Side) -> Side {
    match side {
        Side::Origin => Side::Target,
        Side::Target => Side::Origin,
    }
}

pub(crate) struct End {
    pub(crate) side: Side,
    pub(crate) flow: Flow,
    /// The path that carries the flow.
    pub(crate) path: Option<usize>,
    pub(crate) written: u64,
    pub(crate) eof: bool,
    pub(crate) read: u64,
    pub(crate) read_fin: bool,
}

impl End {
    pub(crate) fn new(side: Side, flow: Flow) -> Self {
        Self {
            side,
            flow,
            path: None,
            written: 0,
            eof: false,
            read: 0,
            read_fin: false,
        }
    }

    /// Whether the socket is there.
    pub(crate) fn has_socket(&self) -> bool {
        self.side == Side::Origin || self.flow.is_opened()
    }

    pub(crate) fn write(&mut self, n: usize) {
        let n = n.min(self.flow.room());
        let bytes: Vec<u8> = (0..n as u64)
            .map(|i| byte_at(self.side, self.written + i))
            .collect();
        self.flow.push(Bytes::from(bytes));
        self.written += n as u64;
    }

    pub(crate) fn write_fin(&mut self) {
        self.flow.push_fin();
        self.eof = true;
    }

    pub(crate) fn read(&mut self, n: usize) -> bool {
        let n = n.min(self.flow.inbox().len());
        let mut left = n;
        let mut offset = self.read;
        for chunk in self.flow.inbox().chunks() {
            for byte in chunk.iter().take(left) {
                assert_eq!(*byte, byte_at(other(self.side), offset), "byte {offset}");
                offset += 1;
            }
            left -= left.min(chunk.len());
        }
        self.flow.hand_on(n);
        self.read += n as u64;
        if self.flow.fin_due() {
            self.flow.fin_handed();
            self.read_fin = true;
            return true;
        }
        n > 0
    }

    pub(crate) fn check_bounds(&self) {
        let inbox = self.flow.inbox().len();
        assert!(
            inbox as u64 <= self.flow.window(),
            "{:?}: inbox over the window",
            self.side
        );
        assert!(
            (self.flow.held() - inbox) as u64 <= self.flow.allowance(),
            "{:?}: replay over the allowance",
            self.side
        );
    }
}

pub(crate) fn frame_of(id: FlowId, step: Step) -> Frame {
    step.into_frame(id, |mode, received, limit| Open {
        cid: Cid([1; 16]),
        secret: Secret([2; 16]),
        epoch: 1,
        mode,
        received,
        limit,
        connector: "ldap".into(),
        client: String::new(),
        listener: String::new(),
        destination: String::new(),
        agent: String::new(),
        attempt: 0,
        trace: None,
    })
}
