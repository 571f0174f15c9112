//! Links come, go and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_hub::config::HaMode;
use nowconnect_hub::mesh::{MeshEvents, Peer, Question};
use nowconnect_link::session::{Link, LinkClosed};
use nowconnect_proto::frame::Open;
use nowconnect_proto::{FlowId, Reason};
use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy, Way};
use nowconnect_testkit::wait;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::member::{Member, both_linked, pair, with_mtls};
use nowconnect_testkit::captured_log::CapturedLog;

/// What a hub's forwarding is told.
struct Told(Sender<(String, Option<Reason>)>);

impl MeshEvents for Told {
    fn on_open(&self, _: &Arc<Link>, _: &Arc<Peer>, _: FlowId, _: Open) {}

    fn on_question(&self, _: Question) {}

    fn link_up(&self, hub: &str) {
        let _ = self.0.try_send((hub.to_owned(), None));
    }

    fn link_down(&self, hub: &str, closed: &LinkClosed) {
        let _ = self.0.try_send((hub.to_owned(), Some(closed.reason)));
    }
}

fn listen(member: &Member) -> (Arc<Told>, Receiver<(String, Option<Reason>)>) {
    let (sender, words) = channel(16);
    let told = Arc::new(Told(sender));
    let events: Arc<dyn MeshEvents> = told.clone();
    member.hub.mesh().set_events(Arc::downgrade(&events));
    (told, words)
}

async fn word(words: &mut Receiver<(String, Option<Reason>)>) -> Option<Reason> {
    let (hub, word) = wait::within("a word", words.recv()).await.unwrap().unwrap();
    assert_eq!(hub, "hub-b");
    word
}

#[tokio::test]
async fn two_hubs_have_a_link_in_each_direction() {
    let log = CapturedLog::start();
    let (a, b) = pair(|_, _| ()).await;
    let (to_b, to_a) = both_linked(&a, &b).await;
    assert_eq!((&*to_b.peer().name, &*to_a.peer().name), ("hub-b", "hub-a"));
    a.is_ready().await;
    let peer = [("peer", "127.0.0.11")];
    let up = [("peer", "127.0.0.11"), ("state", "established")];
    a.measures("nowconnect_mesh_links", &up, |n| n == 1.0).await;
    a.measures("nowconnect_mesh_rtt_seconds_count", &peer, |n| n >= 1.0)
        .await;
    a.measures("nowconnect_mesh_rtt_ms_count", &peer, |n| n >= 1.0)
        .await;
    for dir in ["in", "out"] {
        let hello = [("dir", dir), ("type", "M_HELLO")];
        a.measures("nowconnect_mesh_frames_total", &hello, |n| n == 1.0)
            .await;
        let bytes = [("dir", dir), ("peer", "127.0.0.11")];
        a.measures("nowconnect_mesh_bytes_total", &bytes, |n| n > 0.0)
            .await;
    }
    log.wait_line(&["mesh_unprotected"]).await.unwrap();
    for direction in ["inbound", "outbound"] {
        log.wait_line(&["mesh_link_up", direction, "hub-b"])
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_link_that_is_cut_comes_back() {
    let mut a = Member::start("hub-a", |_| ()).await;
    let b = Member::start("hub-b", |_| ()).await;
    let proxy = FaultProxy::start(b.address()).await.unwrap();
    let (_told, mut words) = listen(&a);
    a.dial(&[format!("ws://{}/mesh", proxy.addr())]).await;
    assert_eq!(word(&mut words).await, None);
    let first = a.linked("hub-b").await;
    for how in [Cut::Reset, Cut::Fin] {
        proxy.cut(how);
        assert_eq!(word(&mut words).await, Some(Reason::ConnectionLost));
        assert_eq!(word(&mut words).await, None);
    }
    a.relinked("hub-b", &first).await;
    let peer = [("peer", "127.0.0.1")];
    a.measures("nowconnect_mesh_link_reconnects_total", &peer, |n| n == 2.0)
        .await;
    a.measures("nowconnect_mesh_link_errors_total", &peer, |n| n >= 2.0)
        .await;
}

#[tokio::test]
async fn an_unreachable_peer_is_tried_again_at_growing_distances() {
    let mut a = Member::start("hub-a", |_| ()).await;
    let b = Member::start("hub-b", |_| ()).await;
    let proxy = FaultProxy::start(b.address()).await.unwrap();
    proxy.refuse();
    a.dial(&[format!("ws://{}/mesh", proxy.addr())]).await;
    let waits = [("peer", "127.0.0.1"), ("state", "backoff")];
    a.measures("nowconnect_mesh_links", &waits, |n| n == 1.0)
        .await;
    a.readiness("degraded").await;
    let begun = Instant::now();
    proxy.wait_accepted(proxy.accepted() + 8).await.unwrap();
    assert!(begun.elapsed() > Duration::from_millis(300), "{begun:?}");
    proxy.heal();
    a.linked("hub-b").await;
    a.is_ready().await;
}

/// A hub that is back dials its peers; those had been told to stay away for five seconds, or had waited
/// longer after each attempt.
#[tokio::test]
async fn a_peer_that_calls_is_called_back_at_once() {
    let authority = Authority::new("mesh").unwrap();
    let a = Member::start("hub-a", |config| with_mtls(config, &authority, "hub-a"));
    let b = Member::start("hub-b", |config| {
        with_mtls(config, &authority, "hub-b");
        config.ha.mode = HaMode::Off;
    });
    let (mut a, mut b) = (a.await, b.await);
    a.dial(&[b.url()]).await;
    a.fails("127.0.0.11", "ha_off").await;
    let begun = Instant::now();
    let url = a.url().parse().unwrap();
    b.change(|config| {
        config.ha.mode = HaMode::Active;
        config.ha.mesh.peers = vec![url];
    })
    .await;
    a.linked("hub-b").await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{begun:?}");
}

#[tokio::test]
async fn a_path_that_died_in_silence_is_left() {
    let mut a = Member::start("hub-a", |config| {
        config.tunnel.ping_interval = Duration::from_millis(200);
        config.tunnel.ping_timeout = Duration::from_millis(400);
    })
    .await;
    let b = Member::start("hub-b", |_| ()).await;
    let proxy = FaultProxy::start(b.address()).await.unwrap();
    let (_told, mut words) = listen(&a);
    a.dial(&[format!("ws://{}/mesh", proxy.addr())]).await;
    assert_eq!(word(&mut words).await, None);
    proxy.swallow(Way::Down);
    assert_eq!(word(&mut words).await, Some(Reason::PingTimeout));
    assert_eq!(word(&mut words).await, None);
}

#[tokio::test]
async fn a_hub_that_leaves_is_not_sent_flows_any_more() {
    let (a, b) = pair(|_, _| ()).await;
    let (link, _) = both_linked(&a, &b).await;
    let (_told, mut words) = listen(&a);
    b.hub
        .mesh()
        .send_away(Reason::Draining, Duration::from_secs(5));
    assert_eq!(word(&mut words).await, Some(Reason::Draining));
    assert!(!link.takes_flows());
    assert!(a.hub.mesh().link("hub-b").is_none());
    assert!(b.hub.mesh().link("hub-a").is_some(), "its own flows go on");
    a.fails("127.0.0.11", "draining").await;
    b.hub.stop().await;
    a.is_alone().await;
}
