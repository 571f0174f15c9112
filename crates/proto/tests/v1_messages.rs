//! The messages of version 1: their wire form, their bounds, and what hostile ones get.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;

use bytes::Bytes;
use nowconnect_proto::Cid;
use nowconnect_proto::frame::MAX_PAYLOAD;
use nowconnect_proto::json_v1::{Direction, MAX_TEXT, Message};

const CID: &str = "0190f5c4-7a3e-7000-8000-0000000000ff";

fn cid() -> Cid {
    CID.parse().unwrap()
}

fn read(text: &str) -> Message {
    Message::decode(text.as_bytes()).unwrap().unwrap()
}

fn refused(text: &str) -> String {
    Message::decode(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn the_wire_form_is_fixed() {
    let payload = Bytes::from_static(b"\x00\xff~?>");
    for (message, text) in [
        (
            Message::Hello {
                agent_id: "premise-01".into(),
                connectors: vec!["ldap".into(), "pg".into()],
                ver: "1.5".into(),
            },
            r#"{"t":"HELLO","agent_id":"premise-01","connectors":["ldap","pg"],"ver":"1.5"}"#
                .to_owned(),
        ),
        (
            Message::HelloAck { epoch: None },
            r#"{"t":"HELLO_ACK"}"#.to_owned(),
        ),
        (
            Message::HelloAck { epoch: Some(7) },
            r#"{"t":"HELLO_ACK","epoch":7}"#.to_owned(),
        ),
        (
            Message::Open {
                cid: cid(),
                connector: "ldap".into(),
            },
            format!(r#"{{"t":"OPEN","cid":"{CID}","connector":"ldap"}}"#),
        ),
        (
            Message::Data {
                cid: cid(),
                seq: u64::MAX,
                payload,
            },
            format!(r#"{{"t":"DATA","cid":"{CID}","seq":18446744073709551615,"b64":"AP9+Pz4="}}"#),
        ),
        (
            Message::Fin {
                cid: cid(),
                dir: Direction::C2a,
            },
            format!(r#"{{"t":"FIN","cid":"{CID}","dir":"c2a"}}"#),
        ),
        (
            Message::Rst {
                cid: cid(),
                err: "connect_failed".into(),
            },
            format!(r#"{{"t":"RST","cid":"{CID}","err":"connect_failed"}}"#),
        ),
    ] {
        assert_eq!(message.encode(), text);
        assert_eq!(read(&text), message);
    }
}

#[test]
fn keys_come_in_any_order_and_unknown_ones_are_ignored() {
    let text = format!(
        r#"{{ "b64":"aGk=", "later":[{{"x":null}}], "seq":0, "cid":"{}", "\u0074":"DATA" }}"#,
        CID.to_uppercase()
    );
    let payload = Bytes::from_static(b"hi");
    assert_eq!(
        read(&text),
        Message::Data {
            cid: cid(),
            seq: 0,
            payload
        }
    );
    let open = format!(r#"{{"t":"OPEN","cid":"{CID}","connector":"ldap","seq":-1}}"#);
    assert!(matches!(read(&open), Message::Open { .. }));
    assert_eq!(Message::decode(br#"{"t":"PAUSE","cid":7}"#), Ok(None));
}

#[test]
fn an_error_in_many_words_is_no_reason_to_end_the_link() {
    let said = "dial tcp: lookup directory.site-1.internal.example.com: no such host";
    for err in [said, "two\\nlines"] {
        let text = format!(r#"{{"t":"RST","cid":"{CID}","err":"{err}"}}"#);
        let (cid, err) = (cid(), String::new());
        assert_eq!(read(&text), Message::Rst { cid, err });
    }
}

#[test]
fn hostile_texts_are_one_error() {
    let data = |seq: &str, b64: &str| {
        refused(&format!(
            r#"{{"t":"DATA","cid":"{CID}","seq":{seq},"b64":{b64}}}"#
        ))
    };
    for seq in ["-1", "18446744073709551616", "1.0", "NaN", "\"0\"", "null"] {
        assert!(
            data(seq, r#""""#).starts_with("DATA: ") || seq == "NaN",
            "{seq}"
        );
    }
    for b64 in [r#""a""#, r#""aGk""#, r#""aGl=""#, r#""a-_=""#, r#""aG k=""#] {
        assert_eq!(data("0", b64), "DATA: `b64` is no base64");
    }
    let deep = format!(r#"{{"t":"DATA","x":{}"#, "[".repeat(100_000));
    assert!(refused(&deep).contains("nested deeper"));
    let twice = format!(r#"{{"t":"FIN","cid":"{CID}","dir":"c2a","dir":"a2c"}}"#);
    assert!(refused(&twice).starts_with("FIN: duplicate field `dir`"));
    assert!(refused(r#"{"t":"FIN","t":"RST"}"#).contains("duplicate field `t`"));
    assert!(refused(r#"{"t":"OPEN","cid":"x","connector":"ldap"}"#).contains("no UUID"));
    assert!(refused(&format!(r#"{{"t":"FIN","cid":"{CID}","dir":"up"}}"#)).contains("FIN"));
    assert!(
        refused(r#"{"t":"HELLO","agent_id":"a\u001b[0m","connectors":[]}"#).contains("`agent_id`")
    );
    let many = vec!["c"; 257].join("\",\"");
    let many = format!(r#"{{"t":"HELLO","agent_id":"a","connectors":["{many}"]}}"#);
    assert_eq!(refused(&many), "HELLO: `connectors` is too long a list");
    refused("");
    refused("[]");
    refused("{}");
    refused(&" ".repeat(MAX_TEXT + 1));
}

#[test]
fn the_largest_payload_fits_and_no_larger() {
    let data = |len| Message::Data {
        cid: cid(),
        seq: 0,
        payload: vec![7; len].into(),
    };
    assert_eq!(read(&data(MAX_PAYLOAD).encode()), data(MAX_PAYLOAD));
    assert!(refused(&data(MAX_PAYLOAD + 1).encode()).contains("`b64` is too long"));
}

proptest! {
    #[test]
    fn data_survives(payload: Vec<u8>, seq: u64) {
        let message = Message::Data { cid: Cid::generate(), seq, payload: payload.into() };
        prop_assert_eq!(Message::decode(message.encode().as_bytes()), Ok(Some(message)));
    }

    #[test]
    fn no_text_panics(text in r#"\{"t":"(DATA|FIN|RST|OPEN|HELLO)",[ -~]{0,80}"#) {
        let _ = Message::decode(text.as_bytes());
    }
}
