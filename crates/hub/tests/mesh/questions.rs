//! Hubs that ask, and answer, as they should not.

use std::time::{Duration, Instant};

use ::http::HeaderMap;
use bytes::Bytes;
use nowconnect_link::dial::{Dialer, ProxyRules, TcpOptions, WsUrl};
use nowconnect_link::session::Carrier;
use nowconnect_link::stream::Stream;
use nowconnect_link::upgrade::{self, ClientRequest};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::Role;
use nowconnect_proto::Frame;
use nowconnect_proto::hello::Body;
use nowconnect_proto::mesh_hello::{MeshHello, QUERY};
use nowconnect_testkit::{http, wait};
use serde_json::{Value, json};

use crate::member::Member;
use crate::stranger::PLAIN;

/// A hub of the mesh that says what a test wants it to say.
struct Odd(Carrier<Stream>);

impl Odd {
    async fn join(member: &Member, features: &[&str]) -> Self {
        let url: WsUrl = member.url().parse().unwrap();
        let dialer = Dialer {
            tls: None,
            proxies: ProxyRules::none(),
            timeout: Duration::from_secs(5),
            tcp: TcpOptions::default(),
        };
        let request = ClientRequest {
            uri: url.uri(),
            protocols: &[PLAIN],
            bearer: None,
            user_agent: "odd",
            headers: HeaderMap::new(),
        };
        let stream = dialer.dial(&url).await.unwrap();
        let upgraded = upgrade::connect(stream, &request).await.unwrap();
        let wire = Wire::V2 { max_payload: 65536 };
        let (io, leftover) = (upgraded.io, upgraded.leftover);
        let mut carrier = Carrier::new(io, leftover, Role::Client, url.mask(), wire, 65536);
        let hello = MeshHello {
            hub: "hub-odd".to_owned(),
            instance: None,
            via: String::new(),
            version: "0".to_owned(),
            initial_window: 4096,
            max_payload: 65536,
            features: features.iter().map(ToString::to_string).collect(),
        };
        let hello = Frame::Hello(hello.encode().unwrap().into());
        carrier.send(hello).await.unwrap();
        let mut odd = Self(carrier);
        let Frame::HelloAck(ack) = odd.hear().await.unwrap() else {
            panic!("no HELLO_ACK");
        };
        assert!(MeshHello::decode(&ack).unwrap().answers());
        odd
    }

    /// The next frame but pings; `None` when the link is closed.
    async fn hear(&mut self) -> Option<Frame> {
        loop {
            match wait::within("a frame", self.0.receive()).await.unwrap() {
                Ok(Frame::Ping(value)) => self.0.send(Frame::Pong(value)).await.unwrap(),
                Ok(Frame::Pong(_) | Frame::GoAway { .. }) => {}
                Ok(frame) => return Some(frame),
                Err(_) => return None,
            }
        }
    }

    async fn say(&mut self, number: u32, body: Bytes) {
        let question = Frame::Query { number, body };
        self.0.send(question).await.unwrap();
    }

    /// The answer to the question of this number.
    async fn told(&mut self, number: u32) -> Value {
        let mut pieces = Vec::new();
        loop {
            match self.hear().await.expect("an answer") {
                Frame::Answer {
                    number: to,
                    more,
                    body,
                } if to == number => {
                    pieces.extend_from_slice(&body);
                    if !more {
                        return serde_json::from_slice(&pieces).unwrap();
                    }
                }
                _ => {}
            }
        }
    }

    async fn asks(&mut self, method: &str, path: &str) -> Value {
        let body = json!({ "method": method, "path": path, "by": "192.0.2.1:5" });
        self.say(7, body.to_string().into()).await;
        self.told(7).await
    }
}

fn piece(number: u32, more: bool, body: Bytes) -> Frame {
    Frame::Answer { number, more, body }
}

/// What is sent in answer to the question of a number.
type Way = dyn Fn(u32) -> Vec<Frame>;

/// What the hub tells its operator of the odd one, and how long that took.
async fn status_of_odd(member: &Member) -> (String, Duration) {
    let begun = Instant::now();
    let answer = http::get(member.hub.addresses().admin, "/api/v1/status").await;
    let took = begun.elapsed();
    let report: Value = serde_json::from_str(&answer.unwrap().body).unwrap();
    let hubs = report["hubs"].as_array().unwrap().iter();
    let mut odd = hubs.filter(|hub| hub["hub"] == "hub-odd");
    let reason = odd.next().unwrap()["reason"].clone();
    (reason.as_str().unwrap_or("answered").to_owned(), took)
}

#[tokio::test]
async fn an_older_hub_is_named_and_not_waited_for() {
    let a = Member::start("hub-a", |_| ()).await;
    let _odd = Odd::join(&a, &["something"]).await;
    let (reason, took) = status_of_odd(&a).await;
    assert_eq!(reason, "unsupported");
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn answers_that_are_none_are_named() {
    let a = Member::start("hub-a", |_| ()).await;
    let mut odd = Odd::join(&a, &[QUERY]).await;
    let junk = |number| vec![piece(number, false, Bytes::from_static(b"[1, {"))];
    let long = |number| {
        let filler = Bytes::from(vec![b' '; 65_000]);
        vec![piece(number, true, filler); 40]
    };
    // Nobody has asked for it; and then the answer, in pieces.
    let good = |number: u32| {
        vec![
            piece(number + 1, false, Bytes::from_static(b"{}")),
            piece(number, true, Bytes::from_static(b"{\"found\":")),
            piece(number, false, Bytes::from_static(b"{}}")),
        ]
    };
    let ways: [(&str, &Way); 4] = [
        ("bad_answer", &junk),
        ("too_long", &long),
        ("answered", &good),
        ("timeout", &|_| Vec::new()),
    ];
    for (expected, way) in ways {
        let reply = async {
            let Some(Frame::Query { number, .. }) = odd.hear().await else {
                panic!("no question");
            };
            for frame in way(number) {
                odd.0.send(frame).await.unwrap();
            }
        };
        let ((reason, took), ()) = tokio::join!(status_of_odd(&a), reply);
        assert_eq!(reason, expected);
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }
}

#[tokio::test]
async fn a_hub_answers_others_about_itself_alone() {
    let a = Member::start("hub-a", |_| ()).await;
    let mut odd = Odd::join(&a, &[QUERY]).await;
    let status = odd.asks("GET", "status?").await;
    assert_eq!(status["found"]["mode"], "active");
    for (method, path, code) in [
        ("GET", "config", "not_through_a_peer"),
        ("POST", "reload", "not_through_a_peer"),
        ("POST", "drain", "not_through_a_peer"),
        ("POST", "policy/explain", "not_through_a_peer"),
        ("GET", "../../metrics", "not_through_a_peer"),
        ("POST", "status", "method_not_allowed"),
        ("GET", "agents/site-1/disconnect", "method_not_allowed"),
        ("GET", "flows?limit=0", "bad_query"),
        ("GET", "flows?cursor=x", "bad_query"),
    ] {
        assert_eq!(
            odd.asks(method, path).await["error"],
            code,
            "{method} {path}"
        );
    }
    for body in ["", "[]", "{\"method\":1}", &"[".repeat(4000)] {
        odd.say(9, body.to_owned().into()).await;
        assert_eq!(odd.told(9).await["error"], "bad_question", "{body:.9}");
    }
    let gone = odd.asks("POST", "agents/site-1/disconnect").await;
    assert_eq!(gone["found"], json!({ "tunnels": 0, "untold": 0 }));
}

#[tokio::test]
async fn a_question_that_is_too_long_closes_the_link() {
    let a = Member::start("hub-a", |_| ()).await;
    let mut odd = Odd::join(&a, &[QUERY]).await;
    odd.say(1, vec![b' '; 4097].into()).await;
    assert!(odd.hear().await.is_none());
    let kind = [("interface", "mesh"), ("kind", "unexpected_frame")];
    a.measures("nowconnect_protocol_errors_total", &kind, |n| n == 1.0)
        .await;
}

/// Each is answered, if only with a refusal; the hub does not fall behind for others.
#[tokio::test]
async fn a_flood_of_questions_is_answered_one_by_one() {
    let a = Member::start("hub-a", |_| ()).await;
    let mut odd = Odd::join(&a, &[QUERY]).await;
    let body = json!({ "method": "GET", "path": "flows?", "by": "" }).to_string();
    for number in 0..2000 {
        let body = body.clone().into();
        odd.0.queue(Frame::Query { number, body });
    }
    odd.say(2000, body.into()).await;
    let mut answered = 0;
    while answered <= 2000 {
        if let Some(Frame::Answer { .. }) = odd.hear().await {
            answered += 1;
        }
    }
    let mut status = odd.asks("GET", "status").await;
    // For a hundredth of a second.
    while status["error"] == "busy" {
        status = odd.asks("GET", "status").await;
    }
    assert_eq!(status["found"]["status"], "ready");
}

#[tokio::test]
async fn questions_are_answered_at_a_bounded_rate() {
    let a = Member::start("hub-a", |_| ()).await;
    let mut odd = Odd::join(&a, &[QUERY]).await;
    let (begun, mut found) = (Instant::now(), 0.0);
    for _ in 0..500 {
        if odd.asks("GET", "status").await["found"].is_object() {
            found += 1.0;
        }
    }
    let most = 100.0 * (begun.elapsed().as_secs_f64() + 1.0) + 1.0;
    assert!((100.0..=most).contains(&found), "{found} of {most}");
}
