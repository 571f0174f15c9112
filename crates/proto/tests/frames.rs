//! The frame codec: golden bytes, round trips, and input that is mangled or hostile.

#![allow(clippy::expect_used, clippy::panic)]

use bytes::{Bytes, BytesMut};
use nowconnect_proto::frame::{self, Frame, FrameError, MAX_JSON_BODY, Open, OpenMode};
use nowconnect_proto::{Cid, FlowId, Reason, Secret, TraceContext};
use proptest::prelude::*;

const MAX_PAYLOAD: usize = 65_536;
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const ID: FlowId = FlowId(0x0102_0304);

fn encoded(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.freeze()
}

fn decoded(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    frame::decode(&mut Bytes::copy_from_slice(bytes), MAX_PAYLOAD)
}

fn open(mode: OpenMode) -> Frame {
    Frame::Open {
        id: ID,
        open: Box::new(Open {
            cid: Cid([0xC1; 16]),
            secret: Secret([0x5E; 16]),
            epoch: 7,
            mode,
            received: 8,
            limit: 9,
            connector: "ldap".into(),
            client: "192.0.2.1:5".into(),
            listener: "l1".into(),
            destination: "192.0.2.10:389".into(),
            agent: "site-01".into(),
            attempt: 7,
            trace: TraceContext::parse(TRACEPARENT),
        }),
    }
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let golden: &[(Frame, &str)] = &[
        (
            Frame::Hello(Bytes::from_static(b"{}")),
            "000002 01 00 00000000 7b7d",
        ),
        (
            Frame::HelloAck(Bytes::from_static(b"{}")),
            "000002 02 00 00000000 7b7d",
        ),
        (
            Frame::Update(Bytes::from_static(b"{}")),
            "000002 03 00 00000000 7b7d",
        ),
        (
            Frame::UpdateAck(Bytes::from_static(b"{}")),
            "000002 04 00 00000000 7b7d",
        ),
        (
            Frame::Token(Bytes::from_static(b"{}")),
            "000002 05 00 00000000 7b7d",
        ),
        (
            Frame::TokenAck(Bytes::from_static(b"{}")),
            "000002 06 00 00000000 7b7d",
        ),
        (Frame::Ping(1), "000008 07 00 00000000 0000000000000001"),
        (Frame::Pong(1), "000008 08 00 00000000 0000000000000001"),
        (
            Frame::GoAway {
                reason: Reason::Draining,
                deadline_ms: 30_000,
            },
            "000006 09 00 00000000 0060 00007530",
        ),
        (
            Frame::Query {
                number: 5,
                body: Bytes::from_static(b"{}"),
            },
            "000006 0a 00 00000000 00000005 7b7d",
        ),
        (
            Frame::Answer {
                number: 5,
                more: true,
                body: Bytes::from_static(b"{"),
            },
            "000005 0b 01 00000000 00000005 7b",
        ),
        (
            Frame::Answer {
                number: 5,
                more: false,
                body: Bytes::new(),
            },
            "000004 0b 00 00000000 00000005",
        ),
        (
            Frame::OpenAck {
                id: ID,
                received: 2,
                limit: 3,
            },
            "000010 11 00 01020304 0000000000000002 0000000000000003",
        ),
        (
            Frame::Refuse {
                id: ID,
                reason: Reason::ConnectFailed,
            },
            "000002 12 00 01020304 0010",
        ),
        (
            Frame::Data {
                id: ID,
                offset: 5,
                payload: Bytes::from_static(b"hi"),
            },
            "00000a 13 00 01020304 0000000000000005 6869",
        ),
        (
            Frame::Fin { id: ID, offset: 7 },
            "000008 14 00 01020304 0000000000000007",
        ),
        (
            Frame::Credit {
                id: ID,
                acked: 2,
                limit: 3,
            },
            "000010 15 00 01020304 0000000000000002 0000000000000003",
        ),
        (
            Frame::Rst {
                id: ID,
                reason: Reason::SocketReset,
            },
            "000002 16 00 01020304 0020",
        ),
        (
            Frame::Detach {
                id: ID,
                reason: Reason::PeerClosed,
            },
            "000002 17 00 01020304 0066",
        ),
        (
            open(OpenMode::ResumeOrNew),
            "0000ac 10 03 01020304 c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1 5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e \
             0000000000000007 0000000000000008 0000000000000009 04 6c646170 \
             01 000b 3139322e302e322e313a35 02 0002 6c31 03 0007 736974652d3031 \
             05 000e 3139322e302e322e31303a333839 \
             06 0037 30302d346266393266333537376233346461366133636539323964 \
             30653065343733362d303066303637616130626139303262372d3031 04 0004 00000007",
        ),
    ];
    for (frame, hex) in golden {
        let expected: String = hex.split_whitespace().collect();
        let actual: String = encoded(frame)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(actual, expected, "{}", frame.name());
        let back = decoded(&encoded(frame)).expect("decodes").expect("a frame");
        assert_eq!(encoded(&back), encoded(frame), "{}", frame.name());
    }
}

#[test]
fn every_open_mode_survives() {
    for mode in [OpenMode::New, OpenMode::Resume, OpenMode::ResumeOrNew] {
        let Some(Frame::Open { open, .. }) = decoded(&encoded(&open(mode))).expect("decodes")
        else {
            panic!("no OPEN");
        };
        assert_eq!(open.mode, mode);
        assert_eq!(
            [&open.client, &open.listener, &open.destination],
            ["192.0.2.1:5", "l1", "192.0.2.10:389"]
        );
        assert_eq!(open.trace, TraceContext::parse(TRACEPARENT));
    }
}

#[test]
fn a_trace_that_makes_no_sense_leaves_the_flow_alone() {
    let sent = encoded(&open(OpenMode::New));
    let at = sent
        .windows(3)
        .position(|w| w == [6, 0, 55])
        .expect("there")
        + 3;
    for (what, byte) in [("version", 0), ("trace", 5), ("flags", 54)] {
        let mut bytes = sent.to_vec();
        bytes[at + byte] = 0xff;
        let Some(Frame::Open { open, .. }) = decoded(&bytes).expect("decodes") else {
            panic!("no OPEN");
        };
        assert_eq!(open.trace, None, "{what}");
        assert_eq!((&*open.connector, open.attempt), ("ldap", 7), "{what}");
    }
}

#[test]
fn what_a_newer_peer_adds_is_skipped() {
    let mut bytes = BytesMut::new();
    // An unknown type on the link and one on a flow, unknown flags, and bytes behind known fields.
    bytes.extend_from_slice(&[0, 0, 3, 0x7f, 0, 0, 0, 0, 0, 1, 2, 3]);
    bytes.extend_from_slice(&[0, 0, 0, 0x80, 0xff, 0, 0, 0, 9]);
    bytes.extend_from_slice(&[
        0, 0, 9, 0x14, 0xff, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 7, 0xee,
    ]);
    let frame = decoded(&bytes).expect("decodes").expect("a frame");
    assert!(
        matches!(frame, Frame::Fin { id: ID, offset: 7 }),
        "{frame:?}"
    );
}

#[test]
fn an_unknown_option_of_open_is_skipped_and_too_many_are_refused() {
    let mut bytes = BytesMut::from(encoded(&open(OpenMode::New)).as_ref());
    let known = bytes.len();
    bytes.extend_from_slice(&[0x63, 0, 2, 1, 2]);
    bytes[2] = u8::try_from(bytes.len() - frame::HEADER_LEN).expect("short");
    assert!(decoded(&bytes).expect("decodes").is_some());
    bytes.truncate(known);
    for _ in 0..frame::MAX_OPTIONS {
        bytes.extend_from_slice(&[0x63, 0, 0]);
    }
    bytes[2] = u8::try_from(bytes.len() - frame::HEADER_LEN).expect("short");
    assert!(matches!(decoded(&bytes), Err(FrameError::Malformed { .. })));
}

#[test]
fn limits_are_judged_by_the_header_alone() {
    let data = |len: usize| {
        let len = u32::try_from(len).expect("short").to_be_bytes();
        vec![len[1], len[2], len[3], 0x13, 0, 0, 0, 0, 1]
    };
    assert_eq!(
        decoded(&data(MAX_PAYLOAD + 8)).err(),
        Some(FrameError::Truncated)
    );
    assert_eq!(
        decoded(&data(MAX_PAYLOAD + 9)).err(),
        Some(FrameError::TooLong {
            kind: 0x13,
            len: MAX_PAYLOAD + 9
        })
    );
    let hello = [1, 0, 1, 0x01, 0, 0, 0, 0, 0];
    assert_eq!(
        decoded(&hello).err(),
        Some(FrameError::TooLong {
            kind: 0x01,
            len: MAX_JSON_BODY + 1
        })
    );
}

#[test]
fn a_frame_belongs_to_the_link_or_to_a_flow() {
    for kind in 0x01..=0x0b {
        let bytes = [0, 0, 8, kind, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            decoded(&bytes).err(),
            Some(FrameError::WrongFlow { kind, id: 1 })
        );
    }
    for kind in 0x10..=0x16 {
        let bytes = [0, 0, 8, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            decoded(&bytes).err(),
            Some(FrameError::WrongFlow { kind, id: 0 })
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_bytes_make_the_decoder_panic_or_stand_still(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut message = Bytes::from(bytes);
        let mut left = message.len();
        while let Ok(Some(_)) = frame::decode(&mut message, MAX_PAYLOAD) {
            prop_assert!(message.len() < left);
            left = message.len();
        }
    }

    #[test]
    fn a_mangled_frame_is_an_error_or_another_frame(at in 0usize..80, bit in 0u8..8, cut in 0usize..90) {
        let mut bytes = encoded(&open(OpenMode::New)).to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        bytes.truncate(cut);
        if let Ok(Some(frame)) = decoded(&bytes) {
            prop_assert!(decoded(&encoded(&frame)).is_ok());
        }
    }
}

/// A question that is cut, too long or without a number closes the link; one of whatever JSON, or
/// none, is for its reader to judge.
#[test]
fn questions_are_bounded_and_need_a_number() {
    for kind in [0x0a, 0x0b] {
        let short = [0, 0, 3, kind, 0, 0, 0, 0, 0, 1, 2, 3];
        let malformed = FrameError::Malformed { kind, len: 3 };
        assert_eq!(decoded(&short).err(), Some(malformed));
        let long = [1, 0, 1, kind, 0, 0, 0, 0, 0];
        let len = MAX_JSON_BODY + 1;
        assert_eq!(
            decoded(&long).err(),
            Some(FrameError::TooLong { kind, len })
        );
    }
}

proptest! {
    #[test]
    fn questions_and_answers_survive(
        number: u32,
        more: bool,
        asked in prop::collection::vec(any::<u8>(), 0..600),
        cut in 0usize..20,
    ) {
        let body = Bytes::from(asked);
        let query = encoded(&Frame::Query { number, body: body.clone() });
        let answer = encoded(&Frame::Answer { number, more, body: body.clone() });
        let mut both = Bytes::from([query.as_ref(), answer.as_ref()].concat());
        let first = frame::decode(&mut both, MAX_PAYLOAD);
        let second = frame::decode(&mut both, MAX_PAYLOAD);
        let asked = matches!(first, Ok(Some(Frame::Query { number: n, body: b }))
            if n == number && b == body);
        let answered = matches!(second, Ok(Some(Frame::Answer { number: n, more: m, body: b }))
            if n == number && m == more && b == body);
        prop_assert!(asked && answered);
        let cut = answer.len().saturating_sub(cut + 1);
        let is_cut = decoded(&answer[..cut]).is_err() || cut == 0;
        prop_assert!(is_cut);
    }
}

#[test]
fn the_specification_lists_every_reason() {
    let specification = include_str!("../../../docs/protocol.md");
    for reason in Reason::ALL {
        let row = format!("| {} | `{}` |", reason.code(), reason.name());
        assert!(specification.contains(&row), "docs/protocol.md lacks {row}");
    }
}
