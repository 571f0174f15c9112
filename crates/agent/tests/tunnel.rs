//! The agent against a hub: real links, real sockets.
#![allow(clippy::expect_used, clippy::panic, reason = "a test")]

use std::time::Duration;

use http::StatusCode;
use nowconnect_agent::config::{Protocol, TunnelMode};
use nowconnect_proto::hello::{Body, Token, TokenAck, Update};
use nowconnect_proto::{Cid, Frame, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[path = "tunnel/hub.rs"]
mod hub;
#[path = "tunnel/several.rs"]
mod several;

use hub::{Hub, Silent, Site, echo_target, soon, targets};

#[tokio::test]
async fn a_tunnel_carries_flows() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let agent = site.start().await;
    let session = hub.session().await;
    assert_eq!(session.bearer, "Bearer first.token.x");
    assert_eq!(session.hello.agent_id, "premise-01");
    assert_eq!(session.hello.connectors, ["ldap"]);
    assert_eq!(session.hello.epoch_seen, 0);
    soon(agent.readiness().becomes(true)).await;
    let mut word = String::new();
    let mut probe = TcpStream::connect(agent.health_address().expect("on"))
        .await
        .expect("open");
    soon(probe.read_to_string(&mut word)).await.expect("a word");
    assert_eq!(word, "READY");

    let mut client = hub.client(&session, "ldap").await;
    client.echo("hello").await;
    assert_eq!(agent.flows(), 1);
    client.socket.shutdown().await.expect("half-closed");
    let mut rest = Vec::new();
    soon(client.socket.read_to_end(&mut rest))
        .await
        .expect("an end");
    assert_eq!(client.closed().await, Reason::Finished);
    agent.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn flows_outlive_their_tunnel() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let agent = site.start().await;
    let first = hub.session().await;
    let mut client = hub.client(&first, "ldap").await;
    client.echo("before").await;
    first.driver.abort();
    client.path_lost().await;
    let second = hub.session().await;
    assert_eq!(second.hello.instance, first.hello.instance);
    assert_eq!(second.hello.epoch_seen, 7, "what the first hub told");
    hub.attach(&client, &second);
    client.echo("after").await;
    assert_eq!(agent.flows(), 1);
}

#[tokio::test]
async fn a_flow_is_attached_only_with_its_secret() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let _agent = site.start().await;
    let session = hub.session().await;
    let cid = Cid::generate();
    let mut client = hub.client_named(cid, &session, "ldap").await;
    client.echo("mine").await;
    let thief = hub.client_named(cid, &session, "ldap").await;
    assert_eq!(thief.closed().await, Reason::Denied);
    client.echo("still mine").await;
}

#[tokio::test]
async fn refusals_say_why() {
    let mut hub = Hub::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let nobody = closed.local_addr().expect("address");
    drop(closed);
    let mut site = Site::new(
        &[hub.url()],
        &[("ldap", echo_target().await), ("dead", nobody)],
    );
    site.config.limits.max_inflight_cids = 1;
    let _agent = site.start().await;
    let session = hub.session().await;
    for (connector, reason) in [
        ("other", Reason::UnknownConnector),
        ("dead", Reason::ConnectFailed),
    ] {
        let client = hub.client(&session, connector).await;
        assert_eq!(client.closed().await, reason);
    }
    let mut only = hub.client(&session, "ldap").await;
    only.echo("x").await;
    let more = hub.client(&session, "ldap").await;
    assert_eq!(more.closed().await, Reason::Limit);
}

#[tokio::test]
async fn a_target_that_swallows_attempts_holds_up_nobody_else() {
    let mut hub = Hub::start().await;
    let silent = Silent::new().await;
    let mut site = Site::new(
        &[hub.url()],
        &[("ldap", echo_target().await), ("deaf", silent.address)],
    );
    site.config.limits.connect_timeout = Duration::from_millis(700);
    let _agent = site.start().await;
    let session = hub.session().await;
    let mut deaf = Vec::new();
    for _ in 0..70 {
        deaf.push(hub.client(&session, "deaf").await);
    }
    let mut client = hub.client(&session, "ldap").await;
    client.echo("x").await;
    for waiting in deaf {
        let reason = waiting.closed().await;
        assert!(
            matches!(reason, Reason::ConnectTimeout | Reason::Limit),
            "{reason}"
        );
    }
    client.echo("y").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_dial() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let agent = site.start().await;
    let session = hub.session().await;
    for _ in 0..20 {
        let client = hub.client(&session, "ldap").await;
        client.flow.abort(Reason::SocketReset);
        drop(client.socket);
    }
    let mut client = hub.client(&session, "ldap").await;
    client.echo("x").await;
    client.socket.shutdown().await.expect("half-closed");
    assert_eq!(client.closed().await, Reason::Finished);
    let no_flows = async {
        while agent.flows() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(no_flows).await;
}

#[tokio::test]
async fn a_replaced_token_is_presented_in_band() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let _agent = site.start().await;
    let mut session = hub.session().await;
    let mut client = hub.client(&session, "ldap").await;
    client.echo("x").await;
    site.replace_token("second.token.x");
    let Some(Frame::Token(body)) = soon(session.controls.recv()).await else {
        panic!("no TOKEN")
    };
    assert_eq!(
        Token::decode(&body).expect("a token").token,
        "second.token.x"
    );
    let ack = TokenAck::Refused {
        error: "expired".into(),
        nonce: None,
    }
    .encode()
    .expect("fits");
    session.link.send(Frame::TokenAck(ack.into()));
    client.echo("y").await;
    assert!(!hub.has_session());
}

#[tokio::test]
async fn the_next_tunnel_is_up_before_a_draining_one_ends() {
    let (mut first, mut second) = (Hub::start().await, Hub::start().await);
    let urls = [first.url(), second.url()];
    let mut site = Site::new(&urls, &[("ldap", echo_target().await)]);
    site.config.tunnel.mode = TunnelMode::First;
    let _agent = site.start().await;
    let old = first.session().await;
    let mut client = first.client(&old, "ldap").await;
    client.echo("x").await;
    first.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    old.link.go_away(Reason::Draining, Duration::from_secs(30));
    let new = second.session().await;
    client.echo("over the old one").await;
    let mut other = second.client(&new, "ldap").await;
    other.echo("over the new one").await;
}

#[tokio::test]
async fn an_agent_that_stops_does_not_wait_for_flows_without_a_path() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let agent = site.start().await;
    let session = hub.session().await;
    let mut client = hub.client(&session, "ldap").await;
    client.echo("x").await;
    hub.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    session.driver.abort();
    soon(agent.readiness().becomes(false)).await;
    assert_eq!(agent.flows(), 1);
    soon(agent.shutdown(Duration::from_secs(600))).await;
}

#[tokio::test]
async fn hubs_that_cannot_be_reached_are_passed_over() {
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("ws://{}/tunnel", dead.local_addr().expect("address"));
    drop(dead);
    let mut hub = Hub::start().await;
    let site = Site::new(&[url, hub.url()], &[("ldap", echo_target().await)]);
    let _agent = site.start().await;
    let session = hub.session().await;
    session.link.close(Reason::Operator);
    hub.session().await;
}

#[tokio::test]
async fn a_hub_that_is_silently_gone_does_not_cost_its_whole_deadline() {
    let silent = Silent::new().await;
    let mut hub = Hub::start().await;
    let urls = [format!("ws://{}/tunnel", silent.address), hub.url()];
    let site = Site::new(&urls, &[("ldap", echo_target().await)]);
    let began = std::time::Instant::now();
    let _agent = site.start().await;
    hub.session().await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_new_token_ends_the_wait_of_a_refused_agent() {
    let mut hub = Hub::start().await;
    hub.refuse(Some(StatusCode::UNAUTHORIZED));
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let agent = site.start().await;
    hub.has_refused(5).await;
    assert!(!agent.readiness().is_ready());
    hub.refuse(None);
    site.replace_token("second.token.x");
    assert_eq!(hub.session().await.bearer, "Bearer second.token.x");
}

#[tokio::test]
async fn a_reload_changes_connectors_and_targets_and_keeps_other_flows() {
    let mut hub = Hub::start().await;
    let echo = echo_target().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo), ("pg", echo)]);
    let agent = site.start().await;
    let mut session = hub.session().await;
    let mut kept = hub.client(&session, "ldap").await;
    let mut gone = hub.client(&session, "pg").await;
    kept.echo("x").await;
    gone.echo("x").await;

    let mut next = site.config.clone();
    next.tunnel.exported_connectors = vec!["ldap".into(), "web".into()];
    next.targets = targets(&[("ldap", echo), ("web", echo)]);
    next.limits.memory_budget *= 2;
    next.tunnel.agent_id = "premise-02".into();
    for time in ["first", "again"] {
        assert_eq!(
            agent.reload(next.clone()).await.expect("taken"),
            ["tunnel.agent_id", "limits.memory_budget_mb"],
            "{time}"
        );
    }
    let mut hungry = next.clone();
    hungry.limits.max_inflight_cids = 1_000_000;
    let error = agent.reload(hungry).await.expect_err("refused").to_string();
    assert!(error.contains("limits.max_inflight_cids"), "{error}");
    let Some(Frame::Update(body)) = soon(session.controls.recv()).await else {
        panic!("no UPDATE")
    };
    assert_eq!(
        Update::decode(&body).expect("an update").connectors,
        ["ldap", "web"]
    );
    assert_eq!(gone.closed().await, Reason::Removed);
    kept.echo("y").await;
    hub.client(&session, "web").await.echo("z").await;

    let mut broken = site.config.clone();
    broken.proxy.ca_bundle = Some("/nonexistent/ca.pem".into());
    broken.tunnel.urls = vec!["wss://hub.example/tunnel".parse().expect("a URL")];
    let error = agent.reload(broken).await.expect_err("refused").to_string();
    assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    kept.echo("still").await;

    session.link.close(Reason::Operator);
    let next = hub.session().await.hello;
    assert_eq!(
        (next.agent_id.as_str(), next.connectors.len()),
        ("premise-01", 2)
    );
}

#[tokio::test]
async fn stopping_lets_flows_end_and_resets_the_rest() {
    let mut hub = Hub::start().await;
    let site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
    let agent = site.start().await;
    let mut session = hub.session().await;
    let mut polite = hub.client(&session, "ldap").await;
    let mut stuck = hub.client(&session, "ldap").await;
    polite.echo("x").await;
    stuck.echo("x").await;
    let health = agent.health_address().expect("on");
    let stopping = tokio::spawn(agent.shutdown(Duration::from_secs(1)));
    assert_eq!(session.goodbye().await, Reason::Shutdown);
    assert_eq!(
        hub.client(&session, "ldap").await.closed().await,
        Reason::Draining
    );
    polite.echo("last words").await;
    polite.socket.shutdown().await.expect("half-closed");
    assert_eq!(polite.closed().await, Reason::Finished);
    assert_eq!(stuck.closed().await, Reason::Shutdown);
    let error = soon(stuck.socket.read_u8()).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    soon(stopping).await.expect("stopped");
    assert_eq!(
        soon(session.driver).await.expect("ended").reason,
        Reason::Shutdown
    );
    assert!(TcpStream::connect(health).await.is_err());
}

#[tokio::test]
async fn version_1_is_spoken_to_hubs_that_know_nothing_newer() {
    let mut hub = Hub::with(true, 0).await;
    for protocol in [Protocol::V1, Protocol::V2] {
        let mut site = Site::new(&[hub.url()], &[("ldap", echo_target().await)]);
        site.config.tunnel.protocol = protocol;
        let agent = site.start().await;
        let session = hub.session().await;
        assert!(session.link.is_v1());
        let mut client = hub.client(&session, "ldap").await;
        client.echo("hello").await;
        client.echo(&"long ".repeat(50_000)).await;
        let refused = hub.client(&session, "other").await;
        assert_eq!(refused.closed().await, Reason::UnknownConnector);
        client.socket.shutdown().await.expect("half-closed");
        assert_eq!(client.closed().await, Reason::Finished);
        let cut = hub.client(&session, "ldap").await;
        session.link.close(Reason::Operator);
        assert_eq!(cut.closed().await, Reason::WsBroken);
        agent.shutdown(Duration::from_secs(1)).await;
        while hub.has_session() {
            hub.session().await;
        }
    }
}
