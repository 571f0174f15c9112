//! The configuration changes while links stand.

use std::sync::Arc;

use nowconnect_hub::config::HaMode;
use nowconnect_testkit::authority::{Authority, Certificate};

use crate::member::{Member, both_linked, pair, with_mtls};
use nowconnect_testkit::captured_log::CapturedLog;

#[tokio::test]
async fn peers_are_added_and_removed() {
    let authority = Authority::new("mesh").unwrap();
    let (mut a, mut b) = pair(|config, name| with_mtls(config, &authority, name)).await;
    let (to_b, _) = both_linked(&a, &b).await;
    let mut c = Member::start("hub-c", |config| with_mtls(config, &authority, "hub-c")).await;
    a.dial(&[b.url(), c.url()]).await;
    c.dial(&[a.url()]).await;
    both_linked(&a, &c).await;
    let now = a.linked("hub-b").await;
    assert!(Arc::ptr_eq(&to_b, &now), "the link to the first stays");
    let log = CapturedLog::start();
    a.dial(&[c.url()]).await;
    log.wait_line(&["mesh_link_down", "outbound", "hub-b"])
        .await
        .unwrap();
    log.wait_line(&["mesh_link_down", "inbound", "hub-b", "denied"])
        .await
        .unwrap();
    b.fails("127.0.0.10", "not for the host of any of its ha.mesh.peers")
        .await;
    b.dial(&[]).await;
    b.is_alone().await;
    assert!(a.linked("hub-c").await.takes_flows());
}

#[tokio::test]
async fn high_availability_goes_off_and_on() {
    let (mut a, b) = pair(|_, _| ()).await;
    let (to_b, _) = both_linked(&a, &b).await;
    a.change(|config| config.ha.mode = HaMode::Off).await;
    a.is_alone().await;
    assert!(to_b.is_closed());
    b.fails("127.0.0.10", "ha_off").await;
    let closed = [("peer", "127.0.0.11"), ("state", "closed")];
    a.measures("nowconnect_mesh_links", &closed, |n| n == 1.0)
        .await;
    a.change(|config| config.ha.mode = HaMode::Shadow).await;
    both_linked(&a, &b).await;
}

#[tokio::test]
async fn the_port_for_hubs_follows_the_mode() {
    let listen = Some("127.0.0.11:0".parse().unwrap());
    let mut b = Member::start("hub-b", |config| config.ha.mesh.listen = listen).await;
    let first = b.hub.addresses().mesh.expect("open");
    b.change(|config| config.ha.mode = HaMode::Off).await;
    assert_eq!(b.hub.addresses().mesh, None);
    nowconnect_testkit::wait::until("the port to be closed", async || {
        let refused = tokio::net::TcpStream::connect(first).await.is_err();
        nowconnect_testkit::anyhow::ensure!(refused, "open");
        Ok(())
    })
    .await
    .unwrap();
    b.change(|config| config.ha.mode = HaMode::Active).await;
    assert!(b.hub.addresses().mesh.is_some());
}

#[tokio::test]
async fn certificates_are_exchanged_under_standing_links() {
    let authority = Authority::new("mesh").unwrap();
    let (a, b) = pair(|config, name| with_mtls(config, &authority, name)).await;
    let (to_b, _) = both_linked(&a, &b).await;
    let mesh = [("use", "mesh")];
    let month = 30.0 * 24.0 * 3600.0;
    a.measures("nowconnect_cert_expiry_seconds", &mesh, |left| {
        left > 0.9 * month
    })
    .await;

    let log = CapturedLog::start();
    std::fs::write(authority.file("hub-a.key"), "nonsense").unwrap();
    a.hub.mesh().tend();
    log.wait_line(&["certificate_kept", "mesh", "hub-a.key"])
        .await
        .unwrap();
    a.measures("nowconnect_cert_expiry_seconds", &mesh, |left| {
        left > 0.9 * month
    })
    .await;

    let mut longer = Certificate::good(&["127.0.0.10"]);
    longer.until += std::time::Duration::from_secs(30 * 24 * 3600);
    authority.issue("hub-a", &longer).unwrap();
    a.hub.mesh().tend();
    log.wait_line(&["certificate_changed", "mesh"])
        .await
        .unwrap();
    a.measures("nowconnect_cert_expiry_seconds", &mesh, |left| {
        left > 1.9 * month
    })
    .await;
    assert!(to_b.takes_flows());
    to_b.close(nowconnect_proto::Reason::Operator);
    a.relinked("hub-b", &to_b).await;
}

#[tokio::test]
async fn a_mesh_that_starts_to_demand_certificates_cuts_off_who_has_shown_none() {
    let authority = Authority::new("mesh").unwrap();
    let (mut a, mut b) = pair(|_, _| ()).await;
    let (to_b, to_a) = both_linked(&a, &b).await;
    let urls = (
        a.config.ha.mesh.peers.clone(),
        b.config.ha.mesh.peers.clone(),
    );
    a.change(|config| with_mtls(config, &authority, "hub-a"))
        .await;
    b.fails("127.0.0.10", "certificate_missing").await;
    b.change(|config| with_mtls(config, &authority, "hub-b"))
        .await;
    a.relinked("hub-b", &to_b).await;
    b.relinked("hub-a", &to_a).await;
    assert_eq!(
        urls,
        (
            a.config.ha.mesh.peers.clone(),
            b.config.ha.mesh.peers.clone()
        )
    );
}
