//! The bridge between version 1's texts and the flow engine's frames.

#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::Bytes;
use nowconnect_proto::frame::{Open, OpenMode};
use nowconnect_proto::hello::{
    Body, Hello, HelloAck, Instance, Token, TokenAck, Update, UpdateAck,
};
use nowconnect_proto::json_v1::bridge::{
    Bridge, BridgeConfig, EARLY_WINDOW, Event, Exchange, Role,
};
use nowconnect_proto::json_v1::{Direction, Message};
use nowconnect_proto::{Cid, FlowId, Frame, Reason, Secret};

const CONSENT_MS: u64 = 5000;
const DEPTH: usize = 4;

fn bridge(role: Role) -> Bridge {
    Bridge::new(BridgeConfig {
        role,
        instance: Instance(7),
        max_payload: 8192,
        queue_depth: DEPTH,
        queue_bytes: 1 << 20,
        consent_ms: CONSENT_MS,
        ping_ms: (5000, 10_000),
    })
}

/// One end with one flow, opened at 0 ms.
struct End {
    bridge: Bridge,
    cid: Cid,
    id: FlowId,
}

impl End {
    fn hub() -> Self {
        let mut end = Self {
            bridge: bridge(Role::Hub),
            cid: Cid::generate(),
            id: FlowId(1),
        };
        let out = end.send(end.open(OpenMode::New));
        assert_eq!(
            out,
            (
                vec![Message::Open {
                    cid: end.cid,
                    connector: "ldap".into()
                }],
                vec![]
            )
        );
        end
    }

    fn agent() -> Self {
        let mut end = Self {
            bridge: bridge(Role::Agent),
            cid: Cid::generate(),
            id: FlowId(1),
        };
        let cid = end.cid;
        let (texts, frames) = end.receive(Message::Open {
            cid,
            connector: "ldap".into(),
        });
        assert!(texts.is_empty() && frames.len() == 1 && frames[0].starts_with("OPEN 1"));
        end
    }

    fn open(&self, mode: OpenMode) -> Frame {
        let open = Open {
            epoch: 1,
            mode,
            limit: 10,
            client: "192.0.2.1:5000".into(),
            listener: "l1".into(),
            destination: "192.0.2.10:389".into(),
            ..Open::new(self.cid, Secret::generate(), "ldap")
        };
        Frame::Open {
            id: self.id,
            open: Box::new(open),
        }
    }

    fn send(&mut self, frame: Frame) -> (Vec<Message>, Vec<String>) {
        let mut out = Exchange::default();
        self.bridge.send(frame, 0, &mut out);
        assert_eq!(out.events, []);
        shown(out)
    }

    fn receive(&mut self, message: Message) -> (Vec<Message>, Vec<String>) {
        let mut out = Exchange::default();
        self.bridge
            .receive(message.encode().as_bytes(), &mut out)
            .unwrap();
        assert_eq!(out.events, []);
        shown(out)
    }

    /// Like `receive`, for what breaks a rule.
    fn offend(&mut self, message: Message) -> (Vec<Message>, Vec<String>, Vec<Event>) {
        let mut out = Exchange::default();
        self.bridge
            .receive(message.encode().as_bytes(), &mut out)
            .unwrap();
        let events = out.events.clone();
        let (texts, frames) = shown(out);
        (texts, frames, events)
    }

    fn data(&self, offset: u64, len: usize) -> Frame {
        Frame::Data {
            id: self.id,
            offset,
            payload: vec![b'x'; len].into(),
        }
    }

    fn came(&self, seq: u64, payload: &'static str) -> Message {
        Message::Data {
            cid: self.cid,
            seq,
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    fn rst(&self, err: &str) -> Message {
        Message::Rst {
            cid: self.cid,
            err: err.into(),
        }
    }
}

fn shown(out: Exchange) -> (Vec<Message>, Vec<String>) {
    let texts = out
        .texts
        .iter()
        .map(|t| Message::decode(t.as_bytes()).unwrap().unwrap());
    (texts.collect(), out.frames.iter().map(show).collect())
}

fn show(frame: &Frame) -> String {
    const FAR: u64 = u64::MAX >> 1;
    match frame {
        Frame::Open { id, open } => format!("OPEN {id} {}", open.connector),
        Frame::OpenAck {
            id,
            received,
            limit: FAR,
        } => format!("OPEN_ACK {id} {received}"),
        Frame::Refuse { id, reason } => format!("REFUSE {id} {reason}"),
        Frame::Data {
            id,
            offset,
            payload,
        } => {
            format!("DATA {id} {offset} {}", String::from_utf8_lossy(payload))
        }
        Frame::Fin { id, offset } => format!("FIN {id} {offset}"),
        Frame::Credit {
            id,
            acked,
            limit: FAR,
        } => format!("CREDIT {id} {acked}"),
        Frame::Rst { id, reason } => format!("RST {id} {reason}"),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn the_agents_first_sign_of_life_answers_the_open() {
    let mut hub = End::hub();
    let (texts, frames) = hub.send(hub.data(0, 5));
    assert!(matches!(texts[..], [Message::Data { seq: 0, .. }]));
    assert!(
        frames.is_empty(),
        "kept for another agent until this one consents"
    );
    let (_, frames) = hub.receive(hub.came(0, "hi"));
    assert_eq!(frames, ["OPEN_ACK 1 0", "CREDIT 1 5", "DATA 1 0 hi"]);
    let (_, frames) = hub.send(hub.data(5, 3));
    assert_eq!(
        frames,
        ["CREDIT 1 8"],
        "what was sent counts as handed on at once"
    );
}

#[test]
fn a_full_early_window_answers_the_open() {
    let mut hub = End::hub();
    let half = EARLY_WINDOW as usize / 2;
    assert!(hub.send(hub.data(0, half)).1.is_empty());
    let (_, frames) = hub.send(hub.data(half as u64, half));
    assert_eq!(
        frames,
        [
            "OPEN_ACK 1 0".to_owned(),
            format!("CREDIT 1 {EARLY_WINDOW}")
        ]
    );
}

#[test]
fn long_silence_answers_the_open() {
    let mut hub = End::hub();
    assert_eq!(hub.bridge.deadline_ms(), Some(CONSENT_MS));
    let mut out = Exchange::default();
    hub.bridge.on_time(CONSENT_MS - 1, &mut out);
    assert!(out.frames.is_empty());
    hub.bridge.on_time(CONSENT_MS, &mut out);
    assert_eq!(shown(out).1, ["OPEN_ACK 1 0"]);
    assert_eq!(hub.bridge.deadline_ms(), None);
}

#[test]
fn a_reset_before_the_answer_is_a_refusal_and_after_it_a_reset() {
    for err in ["connect_failed", "timeout", "unknown_connector"] {
        let mut hub = End::hub();
        hub.send(hub.data(0, 5));
        assert_eq!(hub.receive(hub.rst(err)).1, [format!("REFUSE 1 {err}")]);
        assert_eq!(
            hub.send(hub.data(5, 5)),
            (vec![], vec![]),
            "the flow is forgotten"
        );
    }
    let mut hub = End::hub();
    assert_eq!(hub.receive(hub.rst("ws_broken")).1, ["RST 1 ws_broken"]);
    let mut hub = End::hub();
    hub.receive(hub.came(0, "hi"));
    assert_eq!(
        hub.receive(hub.rst("connect_failed")).1,
        ["RST 1 connect_failed"]
    );
    let mut hub = End::hub();
    assert_eq!(
        hub.receive(hub.rst("target went \"away\"")).1,
        ["RST 1 unspecified"]
    );
}

#[test]
fn a_flow_that_had_another_path_is_refused() {
    for mode in [OpenMode::Resume, OpenMode::ResumeOrNew] {
        let mut hub = End {
            bridge: bridge(Role::Hub),
            cid: Cid::generate(),
            id: FlowId(1),
        };
        assert_eq!(
            hub.send(hub.open(mode)),
            (vec![], vec!["REFUSE 1 unknown_flow".into()])
        );
    }
}

#[test]
fn half_closes_pass_both_ways_and_end_the_flow() {
    let mut hub = End::hub();
    let cid = hub.cid;
    hub.send(hub.data(0, 5));
    let (texts, frames) = hub.send(Frame::Fin {
        id: hub.id,
        offset: 5,
    });
    assert_eq!(
        texts,
        [Message::Fin {
            cid,
            dir: Direction::C2a
        }]
    );
    assert!(frames.is_empty());
    assert_eq!(
        hub.receive(hub.came(0, "answer")).1,
        ["OPEN_ACK 1 0", "CREDIT 1 6", "DATA 1 0 answer"]
    );
    assert_eq!(
        hub.receive(Message::Fin {
            cid,
            dir: Direction::A2c
        })
        .1,
        ["FIN 1 6"]
    );
    let late = hub.receive(hub.came(1, "late"));
    assert_eq!(
        late,
        (vec![], vec![]),
        "late messages of an ended flow are no offence"
    );
}

#[test]
fn what_the_engine_does_not_take_waits_in_order() {
    let mut hub = End::hub();
    assert_eq!(
        hub.receive(hub.came(0, "0123456789ab")).1,
        ["OPEN_ACK 1 0", "DATA 1 0 0123456789"]
    );
    assert!(hub.receive(hub.came(1, "cdef")).1.is_empty());
    let cid = hub.cid;
    assert!(
        hub.receive(Message::Fin {
            cid,
            dir: Direction::A2c
        })
        .1
        .is_empty()
    );
    let credit = |limit| Frame::Credit {
        id: FlowId(1),
        acked: 0,
        limit,
    };
    assert_eq!(hub.send(credit(13)).1, ["DATA 1 10 ab", "DATA 1 12 c"]);
    assert_eq!(hub.send(credit(12)).1, Vec::<String>::new());
    assert_eq!(hub.send(credit(99)).1, ["DATA 1 13 def", "FIN 1 16"]);
}

#[test]
fn a_queue_that_runs_over_resets_both_ways() {
    let mut hub = End::hub();
    hub.receive(hub.came(0, "0123456789"));
    for seq in 1..=DEPTH as u64 {
        assert!(hub.receive(hub.came(seq, "x")).1.is_empty());
    }
    let (texts, frames, events) = hub.offend(hub.came(DEPTH as u64 + 1, "x"));
    assert_eq!(texts, [hub.rst("queue_overflow")]);
    assert_eq!(frames, ["RST 1 queue_overflow"]);
    assert_eq!(events, [Event::QueueOverflow(hub.cid)]);
}

#[test]
fn all_flows_together_wait_within_one_bound() {
    let mut hub = End {
        bridge: bridge(Role::Hub),
        cid: Cid::generate(),
        id: FlowId(0),
    };
    let payload = Bytes::from(vec![0; 1 << 18]);
    let mut overflows = 0;
    for n in 1..=8 {
        (hub.cid, hub.id) = (Cid::generate(), FlowId(n));
        hub.send(hub.open(OpenMode::New));
        let (.., events) = hub.offend(Message::Data {
            cid: hub.cid,
            seq: 0,
            payload: payload.clone(),
        });
        overflows += events.len();
    }
    assert_eq!(
        overflows, 4,
        "four times 256 KiB fit into 1 MiB, less what the engine took"
    );
}

#[test]
fn sequence_errors_reset_that_flow_only() {
    for (first, second) in [(0, 0), (0, 2), (5, 0), (u64::MAX, 0)] {
        let mut hub = End::hub();
        let mut events = vec![];
        for seq in [first, second] {
            events.extend(hub.offend(hub.came(seq, "x")).2);
        }
        assert_eq!(events, [Event::ProtocolError("seq")], "{first} {second}");
        let mut out = Exchange::default();
        (hub.cid, hub.id) = (Cid::generate(), FlowId(2));
        hub.bridge.send(hub.open(OpenMode::New), 0, &mut out);
        assert_eq!(
            hub.receive(hub.came(0, "x")).1,
            ["OPEN_ACK 2 0", "DATA 2 0 x"]
        );
    }
    let mut hub = End::hub();
    hub.receive(Message::Fin {
        cid: hub.cid,
        dir: Direction::A2c,
    });
    let (texts, frames, _) = hub.offend(hub.came(0, "x"));
    assert_eq!(
        (texts, frames),
        (vec![hub.rst("after_fin")], vec!["RST 1 after_fin".into()])
    );
}

#[test]
fn data_of_an_unknown_flow_is_reset_once() {
    let mut hub = End::hub();
    hub.cid = Cid::generate();
    let (texts, frames, events) = hub.offend(hub.came(3, "x"));
    assert_eq!(texts, [hub.rst("unknown_flow")]);
    assert_eq!(
        (frames, events),
        (vec![], vec![Event::ProtocolError("unknown_flow")])
    );
    assert_eq!(hub.receive(hub.came(4, "x")), (vec![], vec![]));
    assert_eq!(
        hub.receive(hub.rst("whatever")),
        (vec![], vec![]),
        "a reset is never answered"
    );
}

#[test]
fn the_agents_engine_gets_nothing_before_it_answered() {
    let mut agent = End::agent();
    assert!(agent.receive(agent.came(0, "early")).1.is_empty());
    let ack = Frame::OpenAck {
        id: agent.id,
        received: 0,
        limit: 100,
    };
    assert_eq!(agent.send(ack), (vec![], vec!["DATA 1 0 early".into()]));
    let (texts, frames) = agent.send(agent.data(0, 2));
    assert!(matches!(texts[..], [Message::Data { seq: 0, .. }]));
    assert_eq!(frames, ["CREDIT 1 2"]);
    let (texts, frames) = agent.send(Frame::Fin {
        id: agent.id,
        offset: 2,
    });
    assert_eq!(
        texts,
        [Message::Fin {
            cid: agent.cid,
            dir: Direction::A2c
        }]
    );
    assert_eq!(frames, ["CREDIT 1 3"]);
}

#[test]
fn the_agents_refusal_is_a_reset() {
    let mut agent = End::agent();
    let refuse = Frame::Refuse {
        id: agent.id,
        reason: Reason::ConnectTimeout,
    };
    assert_eq!(agent.send(refuse), (vec![agent.rst("timeout")], vec![]));
    assert_eq!(agent.receive(agent.came(0, "late")), (vec![], vec![]));
    let cid = agent.cid;
    let again = agent.receive(Message::Open {
        cid,
        connector: "pg".into(),
    });
    assert_eq!(again.1, ["OPEN 2 pg"]);
    let (texts, _, events) = agent.offend(Message::Open {
        cid,
        connector: "pg".into(),
    });
    assert_eq!(texts, [agent.rst("protocol_error")]);
    assert_eq!(events, [Event::ProtocolError("repeated_open")]);
}

#[test]
fn greetings_are_translated() {
    let (mut hub, mut agent) = (bridge(Role::Hub), bridge(Role::Agent));
    let text = r#"{"t":"HELLO","agent_id":"premise-01","connectors":["ldap"],"ver":"1.5"}"#;
    let mut out = Exchange::default();
    hub.receive(text.as_bytes(), &mut out).unwrap();
    let Frame::Hello(body) = out.frames.remove(0) else {
        panic!("no HELLO")
    };
    let hello = Hello::decode(&body).unwrap();
    assert_eq!(
        (hello.agent_id.as_str(), hello.version.as_str()),
        ("premise-01", "1.5")
    );
    assert_eq!(
        (hello.instance, hello.initial_window),
        (Instance(7), EARLY_WINDOW)
    );
    agent.send(Frame::Hello(body), 0, &mut out);
    assert_eq!(out.texts.pop().as_deref(), Some(text));

    let mut out = Exchange::default();
    agent
        .receive(br#"{"t":"HELLO_ACK","epoch":12}"#, &mut out)
        .unwrap();
    let Frame::HelloAck(body) = out.frames.remove(0) else {
        panic!("no HELLO_ACK")
    };
    let ack = HelloAck::decode(&body).unwrap();
    assert_eq!(
        (ack.epoch, ack.resume_grace_ms, ack.ping_interval_ms),
        (12, 0, 5000)
    );
    hub.send(Frame::HelloAck(body), 0, &mut out);
    assert_eq!(out.texts, [r#"{"t":"HELLO_ACK","epoch":12}"#]);
}

#[test]
fn what_version_1_cannot_do_is_refused_at_once() {
    let mut agent = bridge(Role::Agent);
    let mut out = Exchange::default();
    let update = Update {
        connectors: vec!["pg".into()],
    };
    agent.send(Frame::Update(update.encode().unwrap().into()), 0, &mut out);
    let token = Token {
        token: "a.b.c".into(),
        proof: None,
    };
    agent.send(Frame::Token(token.encode().unwrap().into()), 0, &mut out);
    agent.send(Frame::Ping(1), 0, &mut out);
    assert!(
        out.texts.is_empty(),
        "a token never reaches a peer that does not know what it is"
    );
    let [Frame::UpdateAck(update), Frame::TokenAck(token)] = &out.frames[..] else {
        panic!("{:?}", out.frames)
    };
    assert_eq!(UpdateAck::decode(update).unwrap().rejected[0].name, "pg");
    assert!(matches!(
        TokenAck::decode(token).unwrap(),
        TokenAck::Refused { .. }
    ));
}

#[test]
fn the_wrong_side_and_malformed_texts_end_the_link() {
    let mut out = Exchange::default();
    let cid = Cid::generate();
    let open = Message::Open {
        cid,
        connector: "ldap".into(),
    }
    .encode();
    assert!(
        bridge(Role::Hub)
            .receive(open.as_bytes(), &mut out)
            .is_err()
    );
    assert!(
        bridge(Role::Hub)
            .receive(br#"{"t":"HELLO_ACK"}"#, &mut out)
            .is_err()
    );
    let hello = br#"{"t":"HELLO","agent_id":"a","connectors":["x","x"]}"#;
    assert!(bridge(Role::Hub).receive(hello, &mut out).is_err());
    assert!(bridge(Role::Agent).receive(hello, &mut out).is_err());
    assert!(bridge(Role::Agent).receive(b"\xff\xfe", &mut out).is_err());
    assert!(out.frames.is_empty() && out.texts.is_empty());
}
