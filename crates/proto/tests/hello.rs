//! The handshake bodies: their wire form, their bounds, and what hostile ones get.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;

use nowconnect_proto::JsonError;
use nowconnect_proto::frame::{MAX_JSON_BODY, MAX_NAME};
use nowconnect_proto::hello::*;

fn hello() -> Hello {
    Hello {
        agent_id: "premise-01".into(),
        instance: Instance(0xabc),
        connectors: vec!["ldap".into(), "ldaps_dc2".into()],
        version: "0.1.0".into(),
        epoch_seen: u64::MAX,
        epoch_held: Some(7),
        initial_window: 65_536,
        max_payload: 65_536,
        features: vec!["resume".into()],
    }
}

fn mangled(from: &str, to: &str) -> Result<Hello, HelloError> {
    let text = String::from_utf8(hello().encode().unwrap()).unwrap();
    assert!(text.contains(from), "{text}");
    Hello::decode(text.replacen(from, to, 1).as_bytes())
}

#[test]
fn the_wire_form_is_fixed() {
    let text = String::from_utf8(hello().encode().unwrap()).unwrap();
    assert_eq!(
        text,
        r#"{"agent_id":"premise-01","instance":"00000000000000000000000000000abc","connectors":["ldap","ldaps_dc2"],"version":"0.1.0","epoch_seen":18446744073709551615,"epoch_held":7,"initial_window":65536,"max_payload":65536,"features":["resume"]}"#
    );
    assert_eq!(Hello::decode(text.as_bytes()), Ok(hello()));
}

#[test]
fn newer_peers_may_add_keys_and_older_ones_lack_features() {
    assert_eq!(mangled("{", r#"{"shiny":{"a":[1]},"#), Ok(hello()));
    let without = mangled(r#","features":["resume"]"#, "").unwrap();
    assert!(without.features.is_empty());
}

#[test]
fn every_value_is_bounded() {
    let name = HelloError::Name { key: "agent_id" };
    assert_eq!(mangled("premise-01", ""), Err(name.clone()));
    assert_eq!(mangled("premise-01", &"x".repeat(65)), Err(name.clone()));
    assert_eq!(mangled("premise-01", r"a\u001b[31m"), Err(name));
    assert_eq!(
        mangled("ldaps_dc2", "ldap"),
        Err(HelloError::Repeated { key: "connectors" })
    );
    assert!(matches!(
        mangled("65536", "12"),
        Err(HelloError::TooSmall { .. })
    ));
    assert!(matches!(mangled("0abc", "0ABC"), Err(HelloError::Json(_))));
    assert!(matches!(
        mangled("0.1.0", r"a\nb"),
        Err(HelloError::Text { .. })
    ));
    assert!(matches!(
        mangled(r#""agent_id":"premise-01","#, ""),
        Err(HelloError::Json(_))
    ));
    assert!(matches!(
        mangled("{", r#"{"agent_id":"x","#),
        Err(HelloError::Json(_))
    ));
    assert!(matches!(
        mangled("18446744073709551615", "-1"),
        Err(HelloError::Json(_))
    ));
    let many = Update {
        connectors: (0..257).map(|n| format!("c{n}")).collect(),
    };
    assert_eq!(
        many.encode(),
        Err(HelloError::List {
            key: "connectors",
            len: 257,
            max: MAX_CONNECTORS
        })
    );
    let long = vec![b' '; MAX_JSON_BODY + 1];
    assert!(matches!(
        Hello::decode(&long),
        Err(HelloError::Json(JsonError::TooLong { .. }))
    ));
}

#[test]
fn a_full_list_of_the_longest_names_fits() {
    let connectors: Vec<_> = (0..MAX_CONNECTORS)
        .map(|n| format!("{n:0>width$}", width = MAX_NAME))
        .collect();
    let full = Hello {
        connectors,
        ..hello()
    };
    assert_eq!(Hello::decode(&full.encode().unwrap()), Ok(full));
}

#[test]
fn a_token_is_never_shown() {
    let token = Token {
        token: "eyJhbGci.e30.c2ln".into(),
        proof: Some("eyJ0eXAi.e30.c2ln".into()),
    };
    assert_eq!(format!("{token:?}"), "Token(***)");
    assert_eq!(Token::decode(&token.encode().unwrap()), Ok(token));
    let error = Token::decode(br#"{"token":{"eyJhbGci":1}}"#).unwrap_err();
    assert!(!error.to_string().contains("eyJ"));
    for bad in ["", "with space", r"with\nnewline"] {
        assert!(Token::decode(format!(r#"{{"token":"{bad}"}}"#).as_bytes()).is_err());
        assert!(Token::decode(format!(r#"{{"token":"a","proof":"{bad}"}}"#).as_bytes()).is_err());
    }
    // A peer that knows no proofs neither sends nor needs one.
    let plain = Token {
        token: "a.b.c".into(),
        proof: None,
    };
    assert_eq!(plain.encode().unwrap(), br#"{"token":"a.b.c"}"#);
}

#[test]
fn a_token_answer_that_holds_an_error_is_a_refusal() {
    let ack = TokenAck::Renewed {
        expires_at: 1_900_000_000,
    };
    assert_eq!(TokenAck::decode(&ack.encode().unwrap()), Ok(ack));
    let both = TokenAck::decode(br#"{"expires_at":1,"error":"expired"}"#);
    assert_eq!(
        both,
        Ok(TokenAck::Refused {
            error: "expired".into(),
            nonce: None,
        })
    );
    assert!(TokenAck::decode(b"{}").is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..200, byte: u8) {
        let _ = Hello::decode(&bytes);
        let mut near = hello().encode().unwrap();
        near[at] = byte;
        if let Ok(read) = Hello::decode(&near) {
            prop_assert_eq!(read.check(), Ok(()));
        }
    }
}
