//! What `/mesh` answers to those who are no hubs.

use nowconnect_hub::config::HaMode;
use nowconnect_testkit::http;

use crate::member::Member;
use crate::stranger::{Got, PLAIN, SEALED, join};
use nowconnect_testkit::captured_log::CapturedLog;

fn upgrade<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut headers = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", PLAIN),
    ];
    headers.extend_from_slice(more);
    headers
}

#[tokio::test]
async fn only_the_exact_path_and_no_browser() {
    let log = CapturedLog::start();
    let hub = Member::start("hub-b", |_| ()).await;
    let address = hub.address();
    for path in [
        "/mesh/",
        "//mesh",
        "/%6desh",
        "/MESH",
        "/mesh;x",
        "/tunnel/../mesh",
    ] {
        let answer = http::request(address, "GET", path, &upgrade(&[]), "").await;
        assert_eq!(answer.unwrap().status, 404, "{path}");
    }
    let origin = upgrade(&[("Origin", "https://example.com")]);
    let answer = http::request(address, "GET", "/mesh", &origin, "")
        .await
        .unwrap();
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("browser_origin"), "{}", answer.body);
    log.wait_line(&["mesh_refused", "browser_origin"])
        .await
        .unwrap();
    assert_eq!(http::get(address, "/mesh").await.unwrap().status, 426);
    let got = join(&hub.url(), None, &["nowconnect.v2"], "hub-a").await;
    assert_eq!(got, Got::Refused(400, "no_mesh_subprotocol".to_owned()));
    let got = join(&hub.url(), None, &[SEALED], "hub-a").await;
    assert_eq!(
        got,
        Got::Refused(400, "no_mesh_subprotocol".to_owned()),
        "it has no certificates"
    );
}

#[tokio::test]
async fn a_hub_without_high_availability_takes_none() {
    let hub = Member::start("hub-b", |config| config.ha.mode = HaMode::Off).await;
    let got = join(&hub.url(), None, &[PLAIN], "hub-a").await;
    assert_eq!(got, Got::Refused(503, "ha_off".to_owned()));
}

#[tokio::test]
async fn a_port_for_hubs_alone_serves_nothing_else() {
    let listen = Some("127.0.0.11:0".parse().unwrap());
    let hub = Member::start("hub-b", |config| config.ha.mesh.listen = listen).await;
    assert_eq!(
        http::get(hub.address(), "/healthz").await.unwrap().status,
        404
    );
    let tunnel = hub.hub.addresses().tunnel;
    assert_eq!(http::get(tunnel, "/mesh").await.unwrap().status, 404);
    let url = format!("ws://{}/mesh", hub.address());
    let got = join(&url, None, &[PLAIN], "hub-a").await;
    assert_eq!(got, Got::Linked("hub-b".to_owned()));
}
