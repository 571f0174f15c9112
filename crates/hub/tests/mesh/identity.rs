//! A replica id is a claim: who may make it.

use nowconnect_proto::Reason;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::fault_proxy::FaultProxy;

use crate::member::{Member, both_linked, pair, with_mtls};
use crate::stranger::{Got, PLAIN, SEALED, join, tls};
use nowconnect_testkit::captured_log::CapturedLog;

#[tokio::test]
async fn a_hub_is_not_its_own_peer() {
    let log = CapturedLog::start();
    let mut a = Member::start("hub-a", |_| ()).await;
    a.dial(&[a.url()]).await;
    a.fails("127.0.0.10", "identity_conflict").await;
    log.wait_line(&["mesh_peer_conflict", "127.0.0.10"])
        .await
        .unwrap();
    a.measures(
        "nowconnect_mesh_link_errors_total",
        &[("peer", "127.0.0.10")],
        |n| n >= 1.0,
    )
    .await;
    let got = join(&a.url(), None, &[PLAIN], "hub-a").await;
    assert_eq!(got, Got::Farewell(Reason::IdentityConflict));
}

#[tokio::test]
async fn one_hub_behind_two_urls_gets_one_link() {
    let mut a = Member::start("hub-a", |_| ()).await;
    let b = Member::start("hub-b", |_| ()).await;
    let proxy = FaultProxy::start(b.address()).await.unwrap();
    a.dial(&[b.url()]).await;
    let link = a.linked("hub-b").await;
    a.dial(&[b.url(), format!("ws://{}/mesh", proxy.addr())])
        .await;
    a.fails("127.0.0.1", "by two URLs").await;
    assert!(link.takes_flows());
}

#[tokio::test]
async fn nobody_takes_the_replica_id_of_another_certificate() {
    let authority = Authority::new("mesh").unwrap();
    let (mut a, b) = pair(|config, name| with_mtls(config, &authority, name)).await;
    let (link, _) = both_linked(&a, &b).await;
    a.is_dialed_by("hub-b").await;
    a.dial(&[b.url(), "ws://127.0.0.12:1/mesh".to_owned()])
        .await;
    let certificate = Certificate::good(&["127.0.0.12"]);
    authority.issue("hub-c", &certificate).unwrap();
    let client = tls(&authority, Some((&authority, "hub-c")));
    let got = join(&a.url(), Some(&client), &[SEALED], "hub-b").await;
    assert_eq!(got, Got::Farewell(Reason::IdentityConflict));
    let got = join(&a.url(), Some(&client), &[SEALED], "hub-c").await;
    assert_eq!(got, Got::Linked("hub-a".to_owned()));
    assert!(link.takes_flows());
}

#[tokio::test]
async fn a_hub_that_was_started_again_takes_its_own_place() {
    let authority = Authority::new("mesh").unwrap();
    let (a, b) = pair(|config, name| with_mtls(config, &authority, name)).await;
    let (_, old) = both_linked(&a, &b).await;
    a.is_dialed_by("hub-b").await;
    let client = tls(&authority, Some((&authority, "hub-b")));
    let log = CapturedLog::start();
    let got = join(&a.url(), Some(&client), &[SEALED], "hub-b").await;
    assert_eq!(got, Got::Linked("hub-a".to_owned()));
    b.fails("127.0.0.10", "superseded").await;
    assert!(!old.takes_flows());
    log.wait_line(&["mesh_link_down", "inbound", "superseded"])
        .await
        .unwrap();
}
