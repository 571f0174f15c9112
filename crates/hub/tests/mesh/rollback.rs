//! High availability goes off while flows cross: their links are kept, and made anew, until the last of
//! them has ended.

use std::sync::Arc;

use nowconnect_hub::config::HaMode;
use nowconnect_hub::mesh::Need;
use nowconnect_link::session::Link;
use nowconnect_proto::Reason;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::captured_log::CapturedLog;
use nowconnect_testkit::{anyhow, wait};

use crate::member::{Member, both_linked, mesh_tls, pair, with_mtls};

impl Member {
    /// Stands for a flow of a client here that goes over `name`.
    fn needs(&self, name: &str) -> Need {
        self.hub.mesh().need(&name.into())
    }

    async fn goes(&mut self, mode: HaMode) {
        self.change(|config| config.ha.mode = mode).await;
    }

    /// Another link than `other`, for flows that cross already.
    async fn resumes_over(&self, name: &str, other: &Arc<Link>) -> Arc<Link> {
        wait::until("another link", async || {
            let link = self.hub.mesh().leftover(name);
            let link = link.filter(|link| !Arc::ptr_eq(link, other));
            link.ok_or_else(|| anyhow::anyhow!("{:?}", self.hub.mesh().hubs()))
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn a_link_is_made_anew_while_a_flow_needs_it() {
    let (mut a, mut b) = pair(|_, _| ()).await;
    let (to_b, to_a) = both_linked(&a, &b).await;
    let log = CapturedLog::start();
    let flow = a.needs("hub-b");
    a.goes(HaMode::Off).await;
    log.wait_line(&["mesh_link_kept", "outbound", "hub-b", "flows=1"])
        .await
        .unwrap();
    b.goes(HaMode::Off).await;
    wait::until("the idle link to end", async || {
        anyhow::ensure!(to_a.is_closed(), "it stands");
        Ok(())
    })
    .await
    .unwrap();
    let kept = a.peer("127.0.0.11").expect("it is kept");
    assert_eq!(
        (kept.kept_for, kept.outbound.state),
        (Some(1), "established")
    );

    let mut link = to_b;
    for _ in 0..3 {
        assert!(!link.is_closed());
        link.close(Reason::Unspecified);
        link = a.resumes_over("hub-b", &link).await;
    }
    drop(flow);
    log.wait_line(&["mesh_link_released", "hub-b", "kept_ms"])
        .await
        .unwrap();
    a.is_alone().await;
    b.is_alone().await;
    assert!(a.peer("127.0.0.11").is_none() && b.peer("127.0.0.10").is_none());
    let closed = [("peer", "127.0.0.11"), ("state", "closed")];
    a.measures("nowconnect_mesh_links", &closed, |n| n == 1.0)
        .await;

    a.goes(HaMode::Active).await;
    b.goes(HaMode::Active).await;
    both_linked(&a, &b).await;
}

#[tokio::test]
async fn a_link_that_was_kept_is_used_when_the_mode_is_on_again() {
    let (mut a, b) = pair(|_, _| ()).await;
    let (to_b, _) = both_linked(&a, &b).await;
    let _flow = a.needs("hub-b");
    a.goes(HaMode::Off).await;
    assert!(a.hub.mesh().leftover("hub-b").is_some());
    a.goes(HaMode::Active).await;
    assert!(Arc::ptr_eq(&a.linked("hub-b").await, &to_b));
    assert_eq!(a.peer("127.0.0.11").expect("a peer").kept_for, None);
    assert!(a.hub.mesh().leftover("hub-b").is_none());
}

#[tokio::test]
async fn a_hub_that_is_off_lets_in_whose_flows_wait_and_nobody_else() {
    let (a, mut b) = pair(|_, _| ()).await;
    let (to_b, _) = both_linked(&a, &b).await;
    let flow = a.needs("hub-b");
    b.goes(HaMode::Off).await;
    // The link is there for running flows: another one is not taken.
    a.fails("127.0.0.11", "high availability is off").await;
    assert!(a.hub.mesh().link("hub-b").is_none());
    let left = a.hub.mesh().leftover("hub-b").expect("a link");
    assert!(Arc::ptr_eq(&left, &to_b));
    left.close(Reason::Unspecified);
    let again = a.resumes_over("hub-b", &left).await;
    wait::until("the word that it is for running flows", async || {
        anyhow::ensure!(!again.takes_flows(), "it takes flows");
        Ok(())
    })
    .await
    .unwrap();
    assert!(!again.is_closed());
    drop(flow);
    b.is_alone().await;
    assert!(again.is_closed());
    a.fails("127.0.0.11", "its high availability is off").await;
}

#[tokio::test]
async fn the_port_and_the_certificates_stay_as_long_as_they_are_needed() {
    let authority = Authority::new("mesh").unwrap();
    let (mut a, mut b) = pair(|config, name| {
        with_mtls(config, &authority, name);
        config.ha.mesh.listen = Some(std::net::SocketAddr::new(crate::member::host(name), 0));
        config.limits.resume_grace = std::time::Duration::from_secs(2);
    })
    .await;
    let (to_b, _) = both_linked(&a, &b).await;
    let flow = a.needs("hub-b");
    a.goes(HaMode::Off).await;
    // Its certificate is replaced by one that the other does not know the file of.
    authority
        .issue("hub-b2", &Certificate::good(&["127.0.0.11"]))
        .unwrap();
    b.config.ha.mesh.tls = Some(mesh_tls(&authority, "hub-b2"));
    b.goes(HaMode::Off).await;
    to_b.close(Reason::Unspecified);
    let second = a.resumes_over("hub-b", &to_b).await;
    assert!(b.hub.addresses().mesh.is_some());

    // Files that do not load keep nobody from going off, nor the link from being made anew.
    let log = CapturedLog::start();
    a.config.ha.mesh.tls = Some(mesh_tls(&authority, "nobody"));
    a.goes(HaMode::Off).await;
    log.wait_line(&["certificate_kept", "nobody"])
        .await
        .unwrap();
    second.close(Reason::Unspecified);
    a.resumes_over("hub-b", &second).await;

    drop(flow);
    for member in [&a, &b] {
        member.is_alone().await;
        wait::until("port and certificates to be given up", async || {
            let (port, expiry) = (member.hub.addresses().mesh, member.hub.mesh().expiry());
            anyhow::ensure!(port.is_none() && expiry == (None, None), "{port:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_is_removed_is_not_dialed_again() {
    let (mut a, b) = pair(|_, _| ()).await;
    let (to_b, _) = both_linked(&a, &b).await;
    let _flow = a.needs("hub-b");
    a.config.ha.mesh.peers.clear();
    a.goes(HaMode::Off).await;
    assert!(a.peer("127.0.0.11").is_none_or(|peer| peer.url.is_none()));
    wait::until("the link to be left", async || {
        anyhow::ensure!(!to_b.takes_flows(), "it takes flows");
        Ok(())
    })
    .await
    .unwrap();
    assert!(a.hub.mesh().leftover("hub-b").is_none());
}
