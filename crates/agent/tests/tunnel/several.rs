//! An agent with several hubs: tunnels to all of them, under one epoch.

use std::time::Duration;

use http::StatusCode;
use nowconnect_agent::Agent;
use nowconnect_agent::config::TunnelMode;
use nowconnect_link::metrics::Format;
use nowconnect_proto::hello::{Body, Token, Update};
use nowconnect_proto::{Frame, Reason};

use crate::hub::{Hub, Session, Site, echo_target, soon, targets};

struct Pair {
    hubs: [Hub; 2],
    site: Site,
    agent: Agent,
}

impl Pair {
    async fn start() -> (Self, [Session; 2]) {
        let (mut a, mut b) = (Hub::start().await, Hub::start().await);
        let site = Site::new(&[a.url(), b.url()], &[("ldap", echo_target().await)]);
        let agent = site.start().await;
        let sessions = [a.session().await, b.session().await];
        let hubs = [a, b];
        (Self { hubs, site, agent }, sessions)
    }

    /// Waits until the health port would speak of so many tunnels.
    async fn has_tunnels(&self, count: usize) {
        let counted = async {
            while self.agent.readiness().tunnels() != count {
                tokio::task::yield_now().await;
            }
        };
        soon(counted).await;
    }
}

fn held(session: &Session) -> u64 {
    session.hello.epoch_held.expect("said")
}

async fn is_cut(session: Session) {
    soon(session.driver).await.expect("ended");
}

#[tokio::test]
async fn every_hub_gets_a_tunnel_under_one_epoch() {
    let (pair, [first, second]) = Pair::start().await;
    let mut said = [held(&first), held(&second)];
    said.sort_unstable();
    assert_eq!(said, [0, 7], "one founds, the other joins");
    assert_eq!(first.hello.instance, second.hello.instance);
    pair.has_tunnels(2).await;
    let metrics = pair
        .agent
        .metrics()
        .render(Format::Prometheus)
        .expect("text");
    assert!(
        metrics.contains("nowconnect_agent_tunnels 2\n"),
        "{metrics}"
    );
    for (hub, session) in pair.hubs.iter().zip([&first, &second]) {
        hub.client(session, "ldap").await.echo("x").await;
    }
}

#[tokio::test]
async fn a_lost_tunnel_joins_the_living_ones_again() {
    let (mut pair, [first, second]) = Pair::start().await;
    let mut client = pair.hubs[0].client(&first, "ldap").await;
    let mut other = pair.hubs[1].client(&second, "ldap").await;
    client.echo("before").await;
    other.echo("before").await;
    first.link.close(Reason::Operator);
    client.path_lost().await;
    other.echo("not concerned").await;
    assert!(pair.agent.readiness().is_ready());
    let again = pair.hubs[0].session().await;
    assert_eq!((held(&again), again.hello.epoch_seen), (7, 7));
    pair.hubs[0].attach(&client, &again);
    client.echo("after").await;
    pair.has_tunnels(2).await;
    let metrics = pair
        .agent
        .metrics()
        .render(Format::Prometheus)
        .expect("text");
    let counted = r#"nowconnect_tunnel_reconnects_total{agent="premise-01",reason="operator"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert!(!pair.hubs[1].has_session(), "its tunnel stayed");
}

#[tokio::test]
async fn a_flow_goes_on_over_the_other_hub() {
    let (pair, [first, second]) = Pair::start().await;
    let mut client = pair.hubs[0].client(&first, "ldap").await;
    client.echo("before").await;
    pair.hubs[0].refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    first.driver.abort();
    client.path_lost().await;
    pair.hubs[1].attach(&client, &second);
    client.echo("after").await;
    assert_eq!(pair.agent.flows(), 1);
}

#[tokio::test]
async fn an_agent_without_any_tunnel_founds_anew() {
    let (mut pair, sessions) = Pair::start().await;
    for hub in &pair.hubs {
        hub.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    }
    for session in sessions {
        session.link.close(Reason::Operator);
        is_cut(session).await;
    }
    pair.has_tunnels(0).await;
    for hub in &pair.hubs {
        hub.grant(8);
        hub.refuse(None);
    }
    let [a, b] = &mut pair.hubs;
    let mut said = [held(&a.session().await), held(&b.session().await)];
    said.sort_unstable();
    assert_eq!(said, [0, 8]);
}

#[tokio::test]
async fn a_higher_epoch_renews_the_other_tunnels_before_they_are_left() {
    let (mut pair, [mut first, second]) = Pair::start().await;
    let mut client = pair.hubs[0].client(&first, "ldap").await;
    client.echo("x").await;
    pair.hubs[1].grant(9);
    second.link.close(Reason::Operator);
    assert_eq!(held(&pair.hubs[1].session().await), 7);
    // The first hub does not know of the new epoch yet: its tunnel of the old one stays.
    pair.has_tunnels(2).await;
    client.echo("y").await;
    pair.hubs[0].grant(9);
    let renewed = loop {
        let session = pair.hubs[0].session().await;
        if session.epoch == 9 {
            break session;
        }
        assert_eq!(held(&session), 9);
        is_cut(session).await;
    };
    assert_eq!(held(&renewed), 9);
    assert_eq!(first.goodbye().await, Reason::Moved);
    client.echo("over the old one").await;
    drop(client);
    is_cut(first).await;
    pair.has_tunnels(2).await;
}

#[tokio::test]
async fn with_mode_first_one_tunnel_is_enough() {
    let (mut a, mut b) = (Hub::start().await, Hub::start().await);
    let mut site = Site::new(&[a.url(), b.url()], &[("ldap", echo_target().await)]);
    site.config.tunnel.mode = TunnelMode::First;
    let agent = site.start().await;
    let first = a.session().await;
    assert_eq!(held(&first), 0);
    a.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    first.link.close(Reason::Operator);
    let second = b.session().await;
    assert_eq!(held(&second), 0, "there was no other");
    soon(agent.readiness().becomes(true)).await;
    assert_eq!(agent.readiness().tunnels(), 1);
    assert!(!b.has_session());

    let mut client = b.client(&second, "ldap").await;
    client.echo("x").await;
    a.refuse(None);
    let mut next = site.config.clone();
    next.tunnel.urls = vec![a.url().parse().expect("a URL")];
    agent.reload(next).await.expect("taken");
    assert_eq!(held(&a.session().await), 7, "made before the other is left");
    client.echo("y").await;
    drop(client);
    is_cut(second).await;
}

#[tokio::test]
async fn hubs_and_mode_change_live() {
    let (mut pair, [mut first, second]) = Pair::start().await;
    let mut client = pair.hubs[0].client(&first, "ldap").await;
    client.echo("x").await;
    let mut third = Hub::start().await;
    let mut next = pair.site.config.clone();
    next.tunnel.urls[0] = third.url().parse().expect("a URL");
    pair.agent.reload(next.clone()).await.expect("taken");
    assert_eq!(held(&third.session().await), 7);
    assert_eq!(first.goodbye().await, Reason::Moved);
    client.echo("to its end").await;
    drop(client);
    is_cut(first).await;
    pair.has_tunnels(2).await;

    next.tunnel.mode = TunnelMode::First;
    pair.agent.reload(next).await.expect("taken");
    assert_eq!(held(&third.session().await), 7);
    is_cut(second).await;
    pair.has_tunnels(1).await;

    pair.agent
        .reload(pair.site.config.clone())
        .await
        .expect("taken");
    for hub in &mut pair.hubs {
        assert_eq!(held(&hub.session().await), 7);
    }
    pair.has_tunnels(2).await;
}

#[tokio::test]
async fn every_hub_hears_of_tokens_and_connectors() {
    let (pair, sessions) = Pair::start().await;
    pair.has_tunnels(2).await;
    pair.site.replace_token("second.token.x");
    let mut next = pair.site.config.clone();
    let mut controls = sessions.map(|session| (session.controls, session.link, session.driver));
    for (controls, ..) in &mut controls {
        let Some(Frame::Token(body)) = soon(controls.recv()).await else {
            panic!("no TOKEN")
        };
        let token = Token::decode(&body).expect("a token").token.clone();
        assert_eq!(token, "second.token.x");
    }
    next.tunnel.exported_connectors = vec!["web".into()];
    next.targets = targets(&[("web", echo_target().await)]);
    pair.agent.reload(next).await.expect("taken");
    for (controls, ..) in &mut controls {
        let Some(Frame::Update(body)) = soon(controls.recv()).await else {
            panic!("no UPDATE")
        };
        let update = Update::decode(&body).expect("an update");
        assert_eq!(update.connectors, ["web"]);
    }
}

#[tokio::test]
async fn stopping_tells_every_hub() {
    let (pair, sessions) = Pair::start().await;
    pair.has_tunnels(2).await;
    soon(pair.agent.shutdown(Duration::from_secs(5))).await;
    for mut session in sessions {
        assert_eq!(session.goodbye().await, Reason::Shutdown);
        is_cut(session).await;
    }
}
