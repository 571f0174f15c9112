//! Agents that come, fight, change and leave.

use nowconnect_proto::frame::{Frame, Open};
use nowconnect_proto::hello::{Body, Token, TokenAck, Update};
use nowconnect_proto::{Cid, FlowId, Reason, Secret};
use nowconnect_testkit::issuer::claims;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::transfer::{self, End};
use nowconnect_testkit::wait;

use crate::agent::{Process, dial};
use crate::rig::{Rig, echo};

#[tokio::test]
async fn every_start_gets_a_higher_epoch_and_tunnels_of_one_share_it() {
    let rig = Rig::start().await;
    let first = Process::new("site-1", 1).await;
    let (one, two) = (rig.tunnel(&first).await, rig.tunnel(&first).await);
    assert_eq!(one.ack.epoch, two.ack.epoch);
    rig.wait_metric("nowconnect_agents_connected", &[], 1.0)
        .await;
    let restarted = rig.tunnel(&Process::new("site-1", 2).await).await;
    assert!(restarted.ack.epoch > one.ack.epoch);
    for displaced in [one, two] {
        assert_eq!(displaced.closed().await.reason, Reason::Superseded);
    }
    rig.wait_metric("nowconnect_agents_connected", &[], 1.0)
        .await;
    assert!(restarted.link.takes_flows());
}

#[tokio::test]
async fn rivals_are_damped() {
    let rig = Rig::start().await;
    let mut tunnels = Vec::new();
    for start in 0..4 {
        tunnels.push(rig.tunnel(&Process::new("site-1", start).await).await);
    }
    let token = rig.issuer.token("site-1").unwrap();
    let fifth = Process::new("site-1", 9)
        .await
        .connect(rig.http(), &token)
        .await;
    assert!(fifth.is_err());
    assert!(tunnels[3].link.takes_flows(), "the incumbent stays");
    rig.wait_metric("nowconnect_agent_identity_conflicts_total", &[], 1.0)
        .await;
}

#[tokio::test]
async fn hello_must_name_the_agent_of_the_token() {
    let rig = Rig::start().await;
    let token = rig.issuer.token("site-1").unwrap();
    let other = Process::new("site-2", 1)
        .await
        .connect(rig.http(), &token)
        .await;
    assert!(other.is_err());
    let labels = [("reason", "agent_id_mismatch")];
    rig.wait_metric("nowconnect_auth_failures_total", &labels, 1.0)
        .await;
}

#[tokio::test]
async fn something_else_than_hello_ends_the_tunnel() {
    let rig = Rig::start().await;
    let mut carrier = dial(rig.http(), &rig.issuer.token("site-1").unwrap())
        .await
        .unwrap();
    carrier.send(Frame::Ping(1)).await.unwrap();
    let goodbye = carrier.receive().await.unwrap();
    assert!(
        matches!(
            goodbye,
            Frame::GoAway {
                reason: Reason::ProtocolError,
                ..
            }
        ),
        "{goodbye:?}"
    );
    let labels = [("interface", "tunnel"), ("kind", "bad_hello")];
    rig.wait_metric("nowconnect_protocol_errors_total", &labels, 1.0)
        .await;
}

#[tokio::test]
async fn frames_of_flows_that_never_were_are_counted_and_reset() {
    let rig = Rig::start().await;
    let agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    agent.link.send(Frame::Fin {
        id: FlowId(1),
        offset: 0,
    });
    let labels = [("interface", "tunnel"), ("kind", "unknown_flow")];
    rig.wait_metric("nowconnect_protocol_errors_total", &labels, 1.0)
        .await;
    assert!(agent.link.takes_flows());
}

#[tokio::test]
async fn a_frame_that_breaks_a_rule_is_counted_and_ends_its_flow_alone() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let agent = rig.tunnel(&process).await;
    let mut bystander = rig.client().await;
    echo(&mut bystander, 0, 1000).await;
    let mut client = rig.client().await;
    transfer::echo(&mut client, Pattern(2), 0, 1000)
        .await
        .unwrap();
    agent.link.send(Frame::Fin {
        id: FlowId(2),
        offset: 5000,
    });
    let (_, end) = transfer::read_to_end(&mut client).await.unwrap();
    assert_eq!(end, End::Reset);
    let labels = [("interface", "tunnel"), ("kind", "offset_gap")];
    rig.wait_metric("nowconnect_protocol_errors_total", &labels, 1.0)
        .await;
    echo(&mut bystander, 1000, 1000).await;
}

#[tokio::test]
async fn a_flood_of_updates_closes_the_tunnel_and_is_one_offence() {
    let rig = Rig::start().await;
    let agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let update = Update {
        connectors: vec!["echo".into()],
    };
    let body = update.encode().unwrap();
    for _ in 0..5000 {
        agent.link.send(Frame::Update(body.clone().into()));
    }
    // How it learns that is open: the reset of a socket with unread bytes may overtake the reason.
    agent.closed().await;
    let labels = [("interface", "tunnel"), ("kind", "control_flood")];
    rig.wait_metric("nowconnect_protocol_errors_total", &labels, 1.0)
        .await;
}

#[tokio::test]
async fn an_agent_must_not_open_flows() {
    let rig = Rig::start().await;
    let agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let open = Open {
        epoch: agent.ack.epoch,
        limit: 1024,
        ..Open::new(Cid::generate(), Secret::generate(), "echo")
    };
    agent.link.send(Frame::Open {
        id: FlowId(1),
        open: Box::new(open),
    });
    assert_eq!(agent.closed().await.reason, Reason::ProtocolError);
}

#[tokio::test]
async fn one_agent_has_a_bounded_number_of_tunnels() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let mut tunnels = Vec::new();
    for _ in 0..16 {
        tunnels.push(rig.tunnel(&process).await);
    }
    let token = rig.issuer.token("site-1").unwrap();
    let refused = process
        .connect(rig.http(), &token)
        .await
        .err()
        .expect("refused");
    assert!(
        refused.to_string().contains("too_many_tunnels"),
        "{refused}"
    );
    tunnels.pop().unwrap().cut().await;
    wait::until("a place", async || {
        process.connect(rig.http(), &token).await.map(drop)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn new_scopes_take_effect_on_living_tunnels() {
    let rig = Rig::start().await;
    let mut process = Process::new("site-1", 1).await;
    process.connectors.push("pg".into());
    let mut agent = rig.tunnel(&process).await;
    let mut config = rig.config();
    config.security.require_connector_scopes = true;
    rig.hub.reload(config).await.expect("applied");
    let heard = agent.update_ack().await;
    assert!(heard.accepted.is_empty());

    let mut scoped = claims("site-1", 3600);
    scoped["connectors"] = serde_json::json!(["pg"]);
    let renewal = Token {
        token: rig.issuer.sign(&scoped).unwrap(),
        proof: None,
    };
    agent
        .link
        .send(Frame::Token(renewal.encode().unwrap().into()));
    let heard = agent.update_ack().await;
    assert_eq!(heard.accepted, ["pg"]);
}

#[tokio::test]
async fn a_withdrawn_key_ends_the_tunnels_of_its_tokens() {
    let rig = Rig::start().await;
    let mut agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    rig.issuer.add_key().unwrap();
    let other = Process::new("site-2", 2).await;
    let token = rig.issuer.token("site-2").unwrap();
    let second = wait::until("the new key", async || {
        other.connect(rig.http(), &token).await
    })
    .await
    .unwrap();
    rig.issuer.retire_old_keys().unwrap();
    assert_eq!(agent.sent_away().await, Reason::TokenRevoked);
    assert!(second.link.takes_flows());
}

#[tokio::test]
async fn scopes_bound_what_an_agent_exports() {
    let rig = Rig::start_with(|config| config.security.require_connector_scopes = true).await;
    let mut process = Process::new("site-1", 1).await;
    process.connectors = vec!["echo".into(), "pg".into()];
    let mut scoped = claims("site-1", 3600);
    scoped["scope"] = "openid echo".into();
    let token = rig.issuer.sign(&scoped).unwrap();
    let mut agent = process.connect(rig.http(), &token).await.unwrap();
    let ack = agent.update_ack().await;
    assert_eq!(ack.accepted, ["echo"]);
    assert_eq!(ack.rejected[0].name, "pg");

    let wanted = Update {
        connectors: vec!["pg".into(), "echo".into()],
    };
    agent
        .link
        .send(Frame::Update(wanted.encode().unwrap().into()));
    let heard = agent.update_ack().await;
    assert_eq!(heard, ack);

    let bare = rig.issuer.token("site-1").unwrap();
    assert!(
        Process::new("site-1", 2)
            .await
            .connect(rig.http(), &bare)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_token_that_expires_ends_the_tunnel_unless_it_is_renewed() {
    let rig = Rig::start().await;
    // The hub grants 30 s of leeway, and 5 s after the notice.
    let short = |agent: &str, lifetime| rig.issuer.sign(&claims(agent, lifetime)).unwrap();
    let renewing = Process::new("site-1", 1).await;
    let mut renewing = renewing
        .connect(rig.http(), &short("site-1", -26))
        .await
        .unwrap();
    let ending = Process::new("site-2", 2).await;
    let mut ending = ending
        .connect(rig.http(), &short("site-2", -28))
        .await
        .unwrap();

    let renewal = Token {
        token: rig.issuer.token("site-1").unwrap(),
        proof: None,
    };
    renewing
        .link
        .send(Frame::Token(renewal.encode().unwrap().into()));
    let heard = renewing.token_ack().await;
    assert!(matches!(heard, TokenAck::Renewed { .. }), "{heard:?}");
    let foreign = Token {
        token: rig.issuer.token("site-2").unwrap(),
        proof: None,
    };
    renewing
        .link
        .send(Frame::Token(foreign.encode().unwrap().into()));
    let heard = renewing.token_ack().await;
    assert_eq!(
        heard,
        TokenAck::Refused {
            error: "agent_id_mismatch".into(),
            nonce: None,
        }
    );

    assert_eq!(ending.sent_away().await, Reason::TokenExpired);
    assert_eq!(ending.closed().await.reason, Reason::TokenExpired);
    assert!(renewing.link.takes_flows());
}

#[tokio::test]
async fn the_return_of_an_agent_is_counted_by_how_it_left() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    rig.tunnel(&process).await.cut().await;
    rig.wait_metric("nowconnect_agents_connected", &[], 0.0)
        .await;
    let _back = rig.tunnel(&process).await;
    let labels = [("agent", "site-1"), ("reason", "connection_lost")];
    rig.wait_metric("nowconnect_tunnel_reconnects_total", &labels, 1.0)
        .await;
    let scrape = rig.scrape().await;
    assert!(
        scrape
            .get("nowconnect_tunnel_uptime_seconds", &[("agent", "site-1")])
            .is_some()
    );
}
