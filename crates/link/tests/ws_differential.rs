//! The codec against tungstenite's: the same bytes must mean the same to both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in test helpers

use bytes::BytesMut;
use nowconnect_link::ws::{self, Mask, Message, Opcode};
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::Message as Theirs;
use tokio_tungstenite::tungstenite::protocol::Role;

#[path = "ws_differential/oracle.rs"]
mod oracle;

use oracle::{End, assert_same, read_ours, read_theirs, theirs};

#[derive(Debug, Clone)]
struct RawFrame {
    first: u8,
    mask: Option<[u8; 4]>,
    length_form: u8,
    payload: Vec<u8>,
}

impl RawFrame {
    fn write(&self, out: &mut Vec<u8>) {
        let len = self.payload.len();
        let mask_bit = if self.mask.is_some() { 0x80 } else { 0 };
        let form = self.length_form.max(match len {
            0..126 => 0,
            126..65_536 => 1,
            _ => 2,
        });
        out.push(self.first);
        match form {
            0 => out.push(mask_bit | len as u8),
            1 => {
                out.push(mask_bit | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            _ => {
                out.push(mask_bit | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let key = self.mask.unwrap_or_default();
        out.extend_from_slice(&key[..if self.mask.is_some() { 4 } else { 0 }]);
        out.extend(
            self.payload
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ key[at % 4]),
        );
    }
}

/// Mostly sound frames, so that runs get past the first; every field is wrong now and then.
fn any_frame(masked: bool) -> impl Strategy<Value = RawFrame> {
    let opcode = prop_oneof![
        4 => Just(0_u8), 4 => Just(1), 4 => Just(2), 1 => Just(8), 2 => Just(9), 2 => Just(10),
        1 => 0..16_u8,
    ];
    let fin = prop_oneof![3 => Just(0x80_u8), 2 => Just(0)];
    let rsv = prop_oneof![60 => Just(0_u8), 1 => 0..8_u8];
    let key = prop_oneof![Just([0_u8; 4]), any::<[u8; 4]>()];
    let masked = prop_oneof![60 => Just(masked), 1 => Just(!masked)];
    let form = prop_oneof![60 => Just(0_u8), 1 => 0..3_u8];
    let payload = prop_oneof![
        4 => "[a-zé€😀]{0,20}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..6),
        1 => (prop_oneof![Just(1000_u16), 999..1017_u16, 2990..5010_u16], "[a-z]{0,9}")
            .prop_map(|(code, reason)| [&code.to_be_bytes()[..], reason.as_bytes()].concat()),
        1 => prop::collection::vec(Just(b'x'), 100..1100),
    ];
    (fin, rsv, opcode, masked, key, form, payload).prop_map(
        |(fin, rsv, opcode, masked, key, length_form, payload)| RawFrame {
            // Control frames are final far more often than not.
            first: (if opcode & 8 != 0 && rsv == 0 {
                0x80
            } else {
                fin
            }) | rsv << 4
                | opcode,
            mask: masked.then_some(key),
            length_form,
            payload,
        },
    )
}

fn any_wire(masked: bool) -> impl Strategy<Value = Vec<u8>> {
    (
        prop::collection::vec(any_frame(masked), 1..12),
        prop::option::weighted(0.2, 0..30_usize),
    )
        .prop_map(|(frames, cut)| {
            let mut wire = Vec::new();
            for frame in frames {
                frame.write(&mut wire);
            }
            wire.truncate(wire.len().saturating_sub(cut.unwrap_or(0)));
            wire
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_server_reads_what_tungstenite_reads(wire in any_wire(true), step in 1..2000_usize) {
        assert_same(ws::Role::Server, &wire, step);
    }

    #[test]
    fn a_client_reads_what_tungstenite_reads(wire in any_wire(false), step in 1..2000_usize) {
        assert_same(ws::Role::Client, &wire, step);
    }

    #[test]
    fn tungstenite_reads_what_we_write(
        payloads in prop::collection::vec((any::<bool>(), "[a-zé]{0,300}"), 0..6),
        mask in prop_oneof![Just(Mask::None), Just(Mask::Zero), Just(Mask::Random)],
    ) {
        let mut out = BytesMut::new();
        let mut expected = Vec::new();
        for (is_text, text) in payloads {
            let opcode = if is_text { Opcode::Text } else { Opcode::Binary };
            ws::write_message(&mut out, opcode, text.as_bytes(), mask);
            expected.push(match opcode {
                Opcode::Text => Message::Text(text.into()),
                _ => Message::Binary(text.into()),
            });
        }
        ws::write_close(&mut out, 1001, "done", mask);
        expected.push(Message::Close(Some(ws::CloseFrame { code: 1001, reason: "done".into() })));
        let role = if mask == Mask::None { Role::Client } else { Role::Server };
        let (messages, end) = read_theirs(role, &out);
        prop_assert!(matches!(end, End::Closed), "{:?}", end);
        prop_assert_eq!(messages, expected);
    }

    #[test]
    fn we_read_what_tungstenite_writes(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..900), 0..6),
        is_server in any::<bool>(),
        step in 1..2000_usize,
    ) {
        let (role, our_role) = if is_server {
            (Role::Server, ws::Role::Client)
        } else {
            (Role::Client, ws::Role::Server)
        };
        let mut socket = theirs(role, &[]);
        for payload in &payloads {
            socket.send(Theirs::Binary(payload.clone().into())).unwrap();
        }
        socket.close(None).unwrap();
        let wire = &socket.get_ref().output;
        let (messages, end) = read_ours(our_role, wire, step);
        let expected: Vec<_> = payloads
            .into_iter()
            .map(|payload| Message::Binary(payload.into()))
            .chain([Message::Close(None)])
            .collect();
        prop_assert_eq!(end, End::Closed);
        prop_assert_eq!(messages, expected);
    }
}
