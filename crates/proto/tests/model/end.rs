//! One end of a flow, with what its socket wrote and read. Shared by the models of flow and relay.

use bytes::{Bytes, BytesMut};
use nowconnect_proto::flow::{Side, Step};
use nowconnect_proto::frame::{self, Frame, Open};
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

/// `P` is what a model knows of the path that carries the flow.
pub(crate) struct End<P> {
    pub(crate) side: Side,
    pub(crate) flow: Flow,
    pub(crate) path: P,
    pub(crate) written: u64,
    pub(crate) eof: bool,
    pub(crate) read: u64,
    pub(crate) read_fin: bool,
}

impl<P: Default> End<P> {
    pub(crate) fn new(side: Side, flow: Flow) -> Self {
        Self {
            side,
            flow,
            path: P::default(),
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
        epoch: 1,
        mode,
        received,
        limit,
        ..Open::new(Cid([1; 16]), Secret([2; 16]), "ldap")
    })
}

/// Takes the first frame that is whole from the bytes on their way.
pub(crate) fn next_frame(wire: &mut BytesMut) -> Option<Frame> {
    let header = wire.get(..frame::HEADER_LEN)?;
    let body = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    let len = frame::HEADER_LEN + body;
    let mut message = (len <= wire.len()).then(|| wire.split_to(len).freeze())?;
    let frame = frame::decode(&mut message, MAX_PAYLOAD);
    Some(frame.expect("own frames decode").expect("one frame"))
}
