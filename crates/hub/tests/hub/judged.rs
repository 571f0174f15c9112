//! Tokens that were good when they were shown and are judged again.

use nowconnect_hub::config::{HubConfig, JwksSource, SecurityConfig};
use nowconnect_proto::Reason;
use nowconnect_testkit::issuer::Issuer;

use crate::agent::Process;
use crate::rig::Rig;

async fn reload(rig: &Rig, change: impl FnOnce(&mut SecurityConfig)) {
    let mut config: HubConfig = rig.config();
    change(&mut config.security);
    rig.hub.reload(config).await.expect("applied");
}

#[tokio::test]
async fn rules_that_a_token_does_not_meet_end_its_tunnel() {
    for change in [
        (|security| security.audience = "other".into()) as fn(&mut SecurityConfig),
        |security| security.issuer = Some("https://idp.example".into()),
        |security| security.jwks = None,
    ] {
        let rig = Rig::start().await;
        let mut agent = rig.tunnel(&Process::new("site-1", 1).await).await;
        reload(&rig, change).await;
        assert_eq!(agent.sent_away().await, Reason::TokenRevoked);
    }
}

#[tokio::test]
async fn keys_from_elsewhere_end_the_tunnels_of_other_keys() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start().await;
    let mut agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let elsewhere = Issuer::new(dir.path()).unwrap();
    let url = elsewhere.jwks_url();
    let path = url.strip_prefix("file://").unwrap();
    reload(&rig, |security| {
        security.jwks = Some(JwksSource::File(path.into()));
    })
    .await;
    assert_eq!(agent.sent_away().await, Reason::TokenRevoked);
}

#[tokio::test]
async fn rules_that_a_token_meets_leave_its_tunnel_alone() {
    let rig = Rig::start().await;
    let mut agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    reload(&rig, |security| {
        security.allow_cidrs = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    reload(&rig, |security| security.require_connector_scopes = true).await;
    agent.update_ack().await;
    assert!(agent.link.takes_flows());
}
