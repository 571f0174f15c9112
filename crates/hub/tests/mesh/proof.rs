//! Who may join.

use std::net::SocketAddr;
use std::time::Duration;

use nowconnect_link::tls::CertificateFault;
use nowconnect_proto::Reason;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::fault_proxy::FaultProxy;

use crate::member::{Member, both_linked, host, pair, with_mtls, with_tls};
use crate::stranger::{Got, PLAIN, SEALED, join, tls};
use nowconnect_testkit::captured_log::CapturedLog;

/// Where TLS ends on the way to a hub, and how it learns who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// In the hub, on the port for agents too.
    Shared,
    /// In the hub, on a port for hubs alone.
    Own,
    /// Inside the WebSocket.
    Sealed,
}

const DOORS: [Door; 3] = [Door::Shared, Door::Own, Door::Sealed];

async fn member(door: Door, authority: &Authority) -> Member {
    Member::start("hub-b", |config| {
        with_mtls(config, authority, "hub-b");
        match door {
            Door::Shared => with_tls(config, authority, "hub-b"),
            Door::Own => config.ha.mesh.listen = Some(SocketAddr::new(host("hub-b"), 0)),
            Door::Sealed => {}
        }
        config.ha.mesh.peers = vec!["wss://127.0.0.10:1/mesh".parse().unwrap()];
    })
    .await
}

#[tokio::test]
async fn two_hubs_prove_each_other_through_every_door() {
    for door in DOORS {
        let authority = Authority::new("mesh").unwrap();
        let (a, b) = pair(|config, name| {
            with_mtls(config, &authority, name);
            match door {
                Door::Shared => with_tls(config, &authority, name),
                Door::Own => config.ha.mesh.listen = Some(SocketAddr::new(host(name), 0)),
                Door::Sealed => {}
            }
        })
        .await;
        both_linked(&a, &b).await;
        b.is_dialed_by("hub-a").await;
    }
}

#[tokio::test]
async fn bad_certificates_are_told_apart() {
    let (authority, other) = (
        Authority::new("mesh").unwrap(),
        Authority::new("other").unwrap(),
    );
    let good = Certificate::good(&["127.0.0.10"]);
    authority.issue("good", &good).unwrap();
    authority.issue("expired", &good.clone().expired()).unwrap();
    authority
        .issue("early", &good.clone().not_yet_valid())
        .unwrap();
    authority
        .issue("server", &good.clone().for_servers())
        .unwrap();
    let elsewhere = Certificate::good(&["127.0.0.99", "c.example.com"]);
    authority.issue("elsewhere", &elsewhere).unwrap();
    other.issue("foreign", &good).unwrap();
    authority.self_signed("self", &good).unwrap();
    let cases = [
        (Some((&other, "foreign")), CertificateFault::UnknownCa),
        (Some((&authority, "self")), CertificateFault::UnknownCa),
        (Some((&authority, "expired")), CertificateFault::Expired),
        (Some((&authority, "early")), CertificateFault::NotYetValid),
        (Some((&authority, "server")), CertificateFault::WrongUse),
        (Some((&authority, "elsewhere")), CertificateFault::WrongName),
        (None, CertificateFault::Missing),
    ];
    for door in DOORS {
        let hub = member(door, &authority).await;
        let protocols: &'static [_] = if door == Door::Sealed {
            &[SEALED]
        } else {
            &[PLAIN]
        };
        for (shown, fault) in cases {
            let log = CapturedLog::start();
            let client = tls(&authority, shown);
            let got = join(&hub.url(), Some(&client), protocols, "hub-a").await;
            let fits = match (door, fault, &got) {
                (Door::Sealed, CertificateFault::WrongName, got) => {
                    *got == Got::Farewell(Reason::AuthFailed)
                }
                (Door::Own, CertificateFault::WrongName, Got::Refused(403, code))
                | (Door::Shared, _, Got::Refused(403, code)) => code == fault.code(),
                (Door::Own | Door::Sealed, _, Got::Alert(_) | Got::Cut) => true,
                _ => false,
            };
            assert!(fits, "{door:?} {shown:?} {fault:?}: {got:?}");
            // Two of a kind within a second are logged once.
            if shown.is_none_or(|(_, name)| name != "self") {
                let words = ["mesh_refused", fault.code(), "remote=127.0.0.1"];
                log.wait_line(&words).await.unwrap();
            }
            drop(log);
        }
        let client = tls(&authority, Some((&authority, "good")));
        let got = join(&hub.url(), Some(&client), protocols, "hub-a").await;
        assert_eq!(got, Got::Linked("hub-b".to_owned()), "{door:?}");
    }
}

#[tokio::test]
async fn a_forwarded_header_or_a_plain_connection_proves_nothing() {
    let authority = Authority::new("mesh").unwrap();
    let hub = member(Door::Sealed, &authority).await;
    let got = join(&hub.url(), None, &[PLAIN], "hub-a").await;
    assert_eq!(got, Got::Refused(403, "certificate_missing".to_owned()));
    let got = join(&hub.url(), None, &[PLAIN, SEALED], "hub-a").await;
    assert_eq!(
        got,
        Got::Cut,
        "the hub goes on with TLS inside the WebSocket"
    );
}

#[tokio::test]
async fn the_dialer_demands_a_certificate_for_the_host_that_it_dials() {
    let (authority, other) = (
        Authority::new("mesh").unwrap(),
        Authority::new("other").unwrap(),
    );
    let a = |config: &mut _| with_mtls(config, &authority, "hub-a");
    let mut a = Member::start("hub-a", a).await;
    let b = Member::start("hub-b", |config| {
        with_mtls(config, &other, "hub-b");
        with_tls(config, &other, "hub-b");
    })
    .await;
    let plain = Member::start("hub-c", |config| with_mtls(config, &other, "hub-c")).await;
    // This one proves to be 127.0.0.13, and is reached as 127.0.0.1.
    let d = Member::start("hub-d", |config| with_mtls(config, &authority, "hub-d")).await;
    let proxy = FaultProxy::start(d.address()).await.unwrap();
    let through = format!("ws://{}/mesh", proxy.addr());
    let open = Member::start("hub-e", |_| ()).await;
    a.dial(&[b.url(), plain.url(), through, open.url()]).await;
    a.fails("127.0.0.11", "no CA that is trusted here").await;
    a.fails("127.0.0.12", "no CA that is trusted here").await;
    a.fails("127.0.0.1", "for another host").await;
    a.fails("127.0.0.14", "no_mesh_subprotocol").await;
    a.readiness("mesh link to 127.0.0.12 is down").await;
    a.measures(
        "nowconnect_mesh_link_errors_total",
        &[("peer", "127.0.0.11")],
        |n| n >= 1.0,
    )
    .await;
}

#[tokio::test]
async fn a_hub_that_its_peer_does_not_list_learns_why_it_is_refused() {
    let authority = Authority::new("mesh").unwrap();
    let a = |config: &mut _| with_mtls(config, &authority, "hub-a");
    let mut a = Member::start("hub-a", a).await;
    let b = Member::start("hub-b", |config| with_mtls(config, &authority, "hub-b")).await;
    a.dial(&[b.url()]).await;
    a.fails("127.0.0.11", "not for the host of any of its ha.mesh.peers")
        .await;
}

#[tokio::test]
async fn mutual_tls_passes_a_proxy_that_is_slow() {
    let authority = Authority::new("mesh").unwrap();
    let mut b = Member::start("hub-b", |config| with_mtls(config, &authority, "hub-b")).await;
    let localhost = Certificate::good(&["127.0.0.1", "127.0.0.11"]);
    authority.issue("hub-b", &localhost).unwrap();
    b.change(|_| ()).await;
    let mut a = Member::start("hub-a", |config| with_mtls(config, &authority, "hub-a")).await;
    let proxy = FaultProxy::start(b.address()).await.unwrap();
    proxy.delay(Duration::from_millis(20));
    b.dial(&[a.url()]).await;
    a.dial(&[format!("ws://{}/mesh", proxy.addr())]).await;
    both_linked(&a, &b).await;
}

/// One port, two kinds of client certificates: each path takes its own and no other.
#[tokio::test]
async fn a_certificate_of_an_agent_opens_no_mesh_and_that_of_a_hub_no_tunnel() {
    let (mesh, agents) = (
        Authority::new("mesh").unwrap(),
        Authority::new("agents").unwrap(),
    );
    let certificate = Certificate::good(&["127.0.0.10"]);
    mesh.issue("hub", &certificate).unwrap();
    agents.issue("agent", &certificate).unwrap();
    let hub = Member::start("hub-b", |config| {
        with_mtls(config, &mesh, "hub-b");
        with_tls(config, &mesh, "hub-b");
        config.tunnel.tls.as_mut().unwrap().client_ca = Some(agents.bundle());
        config.ha.mesh.peers = vec!["wss://127.0.0.10:1/mesh".parse().unwrap()];
    })
    .await;
    let tunnel = hub.url().replace("/mesh", "/tunnel");
    let refused = |status, code: &str| Got::Refused(status, code.to_owned());
    let agent = tls(&mesh, Some((&agents, "agent")));
    let got = join(&hub.url(), Some(&agent), &[PLAIN], "hub-a").await;
    assert_eq!(got, refused(403, "certificate_unknown_ca"));
    let got = join(&tunnel, Some(&agent), &["nowconnect.v2"], "hub-a").await;
    assert_eq!(
        got,
        refused(401, "missing_token"),
        "only the token is missing"
    );
    let peer = tls(&mesh, Some((&mesh, "hub")));
    let got = join(&tunnel, Some(&peer), &["nowconnect.v2"], "hub-a").await;
    assert_eq!(got, refused(403, "client_certificate"));
    let got = join(&hub.url(), Some(&peer), &[PLAIN], "hub-a").await;
    assert_eq!(got, Got::Linked("hub-b".to_owned()));
}
