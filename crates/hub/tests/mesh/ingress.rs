//! A real nginx between hubs, which ends TLS.

use std::net::SocketAddr;

use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::http;
use nowconnect_testkit::nginx::Ingress;
use nowconnect_testkit::{ports, wait};

use crate::member::{both_linked, host, pair, with_mtls};
use crate::stranger::{Got, SEALED, join, tls};
use nowconnect_testkit::captured_log::CapturedLog;

fn ingress(authority: &Authority, name: &str, hub: SocketAddr) -> Ingress {
    Ingress {
        listen: SocketAddr::new(host(name), ports::reserve().unwrap()),
        certificate: authority.file(&format!("{name}.crt")),
        key: authority.file(&format!("{name}.key")),
        client_ca: Some(authority.bundle()),
        hub,
    }
}

#[tokio::test]
async fn hubs_prove_themselves_through_an_ingress_that_ends_tls() {
    let authority = Authority::new("mesh").unwrap();
    let (mut a, mut b) = pair(|config, name| with_mtls(config, &authority, name)).await;
    a.dial(&[]).await;
    b.dial(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let (at_a, at_b) = (
        ingress(&authority, "hub-a", a.address()),
        ingress(&authority, "hub-b", b.address()),
    );
    let _before_a = at_a.start(dir.path()).await.unwrap();
    let mut before_b = at_b.start(dir.path()).await.unwrap();
    let url = |ingress: &Ingress| format!("wss://{}/mesh", ingress.listen);
    let log = CapturedLog::start();
    a.dial(&[url(&at_b)]).await;
    b.dial(&[url(&at_a)]).await;
    let (to_b, _) = both_linked(&a, &b).await;
    log.wait_line(&["mesh_link_up", "outbound", "hub-b", "sealed=true"])
        .await
        .unwrap();
    let proven = "proven=127.0.0.10";
    log.wait_line(&["mesh_link_up", "inbound", "hub-a", proven, "sealed=true"])
        .await
        .unwrap();

    before_b.kill().await.unwrap();
    a.readiness("mesh link to 127.0.0.11 is down").await;
    let _again = at_b.start(dir.path()).await.unwrap();
    a.relinked("hub-b", &to_b).await;

    // Whoever has no certificate does not even get past the ingress, and past it gains nothing.
    let stranger = tls(&authority, None);
    let got = join(&url(&at_b), Some(&stranger), &[SEALED], "hub-a").await;
    assert_eq!(got, Got::Refused(403, String::new()));
    let around = format!("ws://{}/mesh", b.address());
    let got = join(&around, Some(&stranger), &[SEALED], "hub-a").await;
    assert!(matches!(got, Got::Alert(_) | Got::Cut), "{got:?}");
    log.wait_line(&["mesh_refused", "certificate_missing"])
        .await
        .unwrap();
    // Agents need none.
    let answer = wait::within("an answer", tunnel(&at_b, &authority))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

/// What the hub behind the ingress answers to an agent with a bad token and no certificate.
async fn tunnel(ingress: &Ingress, authority: &Authority) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stream = tokio::net::TcpStream::connect(ingress.listen)
        .await
        .unwrap();
    let name = rustls_pki_types::ServerName::from(ingress.listen.ip());
    let connector = tokio_rustls::TlsConnector::from(tls(authority, None));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let mut request = "GET /tunnel HTTP/1.1\r\nHost: hub\r\n".to_owned();
    for (name, value) in http::upgrade_headers("Bearer nonsense") {
        request += &format!("{name}: {value}\r\n");
    }
    stream
        .write_all(format!("{request}\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = vec![0; 1024];
    let size = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..size]).into_owned()
}
