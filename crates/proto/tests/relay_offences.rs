//! What a relay does when an end takes more than it was given.

#![allow(clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::relay::{Face, Relay};
use nowconnect_proto::{Cid, FlowId, Reason, Secret};

const ID: FlowId = FlowId(1);
const ROOM: u64 = 4096;

fn data(offset: u64, len: u64) -> Frame {
    let payload = Bytes::from(vec![7; usize::try_from(len).expect("small")]);
    let id = ID;
    Frame::Data {
        id,
        offset,
        payload,
    }
}

/// The other end may take as much as it likes: what waits in the middle is what the middle gave.
#[test]
fn nobody_sends_more_than_the_relay_has_told() {
    let open = Open {
        epoch: 1,
        limit: u64::MAX,
        agent: "site-1".into(),
        ..Open::new(Cid::generate(), Secret::generate(), "ldap")
    };
    let mut relay = Relay::new(open, 1024, 1 << 20, true);
    let Some(Frame::Open { open, .. }) = relay.next_frame(Face::Target, ID, 0, ROOM) else {
        panic!("no OPEN");
    };
    assert_eq!(open.limit, ROOM);
    let answer = Frame::OpenAck {
        id: ID,
        received: 0,
        limit: 1 << 20,
    };
    relay.on_frame(Face::Target, answer).expect("answered");
    let both = [(Face::Target, ROOM), (Face::Origin, 1024)];
    for (face, told) in both {
        assert_eq!(relay.on_frame(face, data(0, told)), Ok(()));
        let more = relay.on_frame(face, data(told, 1));
        assert_eq!(more, Err(Reason::BeyondCredit), "{face:?}");
        assert_eq!(relay.queued(face.other()) as u64, told);
    }
}
