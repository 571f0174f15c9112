//! Whoever dials `/mesh`: strangers, hubs with a wrong certificate, and hubs with the right one that keep
//! to nothing else.

use anyhow::{Result, bail, ensure};
use nowconnect_proto::Reason;
use nowconnect_testkit::anyhow;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::lab::{Hub, HubPlan, Lab};
use nowconnect_testkit::raw_ws::{RawWs, v2};
use nowconnect_testkit::{http, ports};
use serde_json::{Value, json};

use crate::list::cases;
use crate::scene::{ERRORS, Open, Scene, kind, numbers, refused};
use crate::stranger::{Got, PLAIN, SEALED, join, tls};

cases! { "Hubs at /mesh";
    no_certificate_on_the_shared_port: "403 `certificate_missing`", "`mesh_refused`" => wrong(Door::Shared, Wrong::None);
    another_ca_on_the_shared_port: "403 `certificate_unknown_ca`", "`mesh_refused`" => wrong(Door::Shared, Wrong::OtherCa);
    an_expired_certificate_on_the_shared_port: "403 `certificate_expired`", "`mesh_refused`" => wrong(Door::Shared, Wrong::Expired);
    a_certificate_from_tomorrow_on_the_shared_port: "403 `certificate_not_yet_valid`", "`mesh_refused`" => wrong(Door::Shared, Wrong::Early);
    a_certificate_for_servers_on_the_shared_port: "403 `certificate_wrong_use`", "`mesh_refused`" => wrong(Door::Shared, Wrong::ForServers);
    a_certificate_of_no_peer_on_the_shared_port: "403 `certificate_wrong_name`", "`mesh_refused`" => wrong(Door::Shared, Wrong::Name);
    no_certificate_on_the_mesh_port: "a TLS alert or the end", "`mesh_refused`, `certificate_missing`" => wrong(Door::Own, Wrong::None);
    another_ca_on_the_mesh_port: "a TLS alert or the end", "`mesh_refused`, `certificate_unknown_ca`" => wrong(Door::Own, Wrong::OtherCa);
    an_expired_certificate_on_the_mesh_port: "a TLS alert or the end", "`mesh_refused`, `certificate_expired`" => wrong(Door::Own, Wrong::Expired);
    a_certificate_from_tomorrow_on_the_mesh_port: "a TLS alert or the end", "`mesh_refused`, `certificate_not_yet_valid`" => wrong(Door::Own, Wrong::Early);
    a_certificate_for_servers_on_the_mesh_port: "a TLS alert or the end", "`mesh_refused`, `certificate_wrong_use`" => wrong(Door::Own, Wrong::ForServers);
    a_certificate_of_no_peer_on_the_mesh_port: "403 `certificate_wrong_name`", "`mesh_refused`" => wrong(Door::Own, Wrong::Name);
    no_certificate_inside_the_websocket: "a TLS alert or the end", "`mesh_refused`, `certificate_missing`" => wrong(Door::Sealed, Wrong::None);
    another_ca_inside_the_websocket: "a TLS alert or the end", "`mesh_refused`, `certificate_unknown_ca`" => wrong(Door::Sealed, Wrong::OtherCa);
    an_expired_certificate_inside_the_websocket: "a TLS alert or the end", "`mesh_refused`, `certificate_expired`" => wrong(Door::Sealed, Wrong::Expired);
    a_certificate_from_tomorrow_inside_the_websocket: "a TLS alert or the end", "`mesh_refused`, `certificate_not_yet_valid`" => wrong(Door::Sealed, Wrong::Early);
    a_certificate_for_servers_inside_the_websocket: "a TLS alert or the end", "`mesh_refused`, `certificate_wrong_use`" => wrong(Door::Sealed, Wrong::ForServers);
    a_certificate_of_no_peer_inside_the_websocket: "GOAWAY `auth_failed`", "`mesh_refused`, `certificate_wrong_name`" => wrong(Door::Sealed, Wrong::Name);
    the_plain_protocol_around_the_ingress: "403 `certificate_missing`", "`mesh_refused`" => around();
    the_replica_id_of_another_hub: "GOAWAY `identity_conflict`", "`mesh_refused`, `mesh_peer_conflict`" => other_id();
    the_replica_id_of_the_hub_itself: "GOAWAY `identity_conflict`", "`mesh_refused`, `mesh_peer_conflict`" => own_id();
    a_page_in_a_browser_dials_the_mesh: "403 `browser_origin`, the end", "`mesh_refused`" => browser();
    the_mesh_while_high_availability_is_off: "503 `ha_off` with Retry-After", "`mesh_refused`" => off();
    an_agent_at_the_mesh: "400 `no_mesh_subprotocol`", "`mesh_refused`" => agent_at_mesh();
    a_mesh_link_that_says_nothing: "the end after 10 s", "`mesh_refused`, `handshake_timeout`" => mute();
    a_tls_hello_that_is_garbage_inside_the_websocket: "the end", "`mesh_refused`, `tls`" => garbage_sealed();
    data_before_the_hello_of_a_hub: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"bad_hello\"}` +1, `mesh_refused`" => first(v2(kind::DATA, 1, &[0; 9]));
    a_replica_id_with_a_newline: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"bad_hello\"}` +1, `mesh_refused`" => named("hub\n-b");
    a_replica_id_of_300_letters: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"bad_hello\"}` +1, `mesh_refused`" => named(&"x".repeat(300));
    a_second_hello_of_a_hub: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"unexpected_frame\"}` +1" => on_link(v2(kind::HELLO, 0, mesh_hello("hub-x").as_bytes()), "unexpected_frame");
    an_update_of_a_hub: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"unexpected_frame\"}` +1" => on_link(v2(kind::UPDATE, 0, br#"{"connectors":["echo"]}"#), "unexpected_frame");
    a_token_of_a_hub: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"unexpected_frame\"}` +1" => on_link(v2(kind::TOKEN, 0, br#"{"token":"x"}"#), "unexpected_frame");
    half_a_frame_of_a_hub: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"truncated\"}` +1" => on_link(vec![0, 0, 9], "truncated");
    an_open_for_an_agent_that_is_not_there: "REFUSE `stale_epoch`", "`nowconnect_owner_epoch_mismatch_total` +1" => opened(|epoch| open("site-9", "echo", epoch), 37, 1.0);
    an_open_under_an_old_epoch: "REFUSE `stale_epoch`", "`nowconnect_owner_epoch_mismatch_total` +1" => opened(|epoch| open("site-1", "echo", epoch - 1), 37, 1.0);
    an_open_under_the_highest_epoch: "REFUSE `stale_epoch`; the agent stays", "`nowconnect_owner_epoch_mismatch_total` +1" => opened(|_| open("site-1", "echo", u64::MAX), 37, 1.0);
    an_open_for_a_connector_that_the_agent_does_not_export: "REFUSE `unknown_connector`", "`nowconnect_mesh_frames_total{dir=\"out\",type=\"M_REFUSE\"}` +1" => opened(|epoch| open("site-1", "evil", epoch), 19, 0.0);
    an_open_for_a_client_that_may_not_connect: "REFUSE `denied`", "`nowconnect_mesh_frames_total{dir=\"out\",type=\"M_REFUSE\"}` +1" => denied();
    an_open_with_a_number_that_is_in_use: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"repeated_open\"}` +1" => twice();
    a_resume_of_a_flow_that_never_was: "REFUSE `unknown_flow`, from the agent", "`nowconnect_agent_refused_total{reason=\"unknown_flow\"}` of the agent +1" => resume();
    a_flow_s_name_with_another_secret: "REFUSE `denied`, from the agent; the flow goes on", "`nowconnect_agent_refused_total{reason=\"denied\"}` of the agent +1" => stolen();
    opens_until_the_limit: "REFUSE `limit` beyond `limits.max_conn_total`", "`nowconnect_mesh_backpressure_total{reason=\"refused\"}` and `nowconnect_mesh_backpressure_drops_total` +5" => limit();
    data_of_a_hub_beyond_the_credit: "RST `beyond_credit`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"beyond_credit\"}` +1" => beyond_credit();
    data_of_a_hub_with_a_gap: "RST `offset_gap`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"offset_gap\"}` +1" => gap();
    detach_and_reset_of_flows_that_never_were: "RST `unknown_flow`, once for each RST", "the link stays; `nowconnect_mesh_frames_total{dir=\"in\",type=\"M_DETACH\"}` +100" => detach();
    opens_and_resets_as_fast_as_they_can_be_written: "RST, once for each; their places are given back", "`nowconnect_mesh_links` stays; no flow is left" => rapid();
    a_flood_of_a_hub: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"mesh\",kind=\"flood\"}` +1" => flood();
}

/// Where TLS ends on the way to a hub.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Shared,
    Own,
    Sealed,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    None,
    OtherCa,
    Expired,
    Early,
    ForServers,
    Name,
}

impl Wrong {
    fn code(self) -> &'static str {
        match self {
            Self::None => "certificate_missing",
            Self::OtherCa => "certificate_unknown_ca",
            Self::Expired => "certificate_expired",
            Self::Early => "certificate_not_yet_valid",
            Self::ForServers => "certificate_wrong_use",
            Self::Name => "certificate_wrong_name",
        }
    }
}

/// Makes a hub a member of the mesh of `authority` whose one peer has 127.0.0.10 for a host.
pub(crate) fn certified<'a>(plan: HubPlan<'a>, authority: &Authority, name: &str) -> HubPlan<'a> {
    let file = |name: &str| authority.file(name).display().to_string();
    let tls = json!({
        "ca_bundle": file("ca.pem"),
        "cert_file": file(&format!("{name}.crt")),
        "key_file": file(&format!("{name}.key")),
    });
    member(plan)
        .set("ha.replica_id", name)
        .set("ha.mesh.require_mtls", true)
        .set("ha.mesh.peers", json!(["wss://127.0.0.10:1/mesh"]))
        .set("ha.mesh.tls", tls)
}

fn member(plan: HubPlan<'_>) -> HubPlan<'_> {
    plan.set("ha.enabled", true)
        .set("ha.mode", "active")
        .set("ha.replica_id", "hub-a")
        .set("ha.mesh.require_mtls", false)
}

/// A hub behind `door`, its URL, and the CA of its mesh.
async fn guarded(lab: &Lab, door: Door) -> Result<(Hub, String, Authority)> {
    let authority = Authority::new("mesh")?;
    authority.issue("hub-a", &Certificate::good(&["127.0.0.1"]))?;
    let plan = certified(lab.hub("hub-a").listener("echo"), &authority, "hub-a");
    let file = |name: &str| authority.file(name).display().to_string();
    let own = ports::local(ports::reserve()?);
    let plan = match door {
        Door::Shared => plan
            .set("tunnel.tls.cert_file", file("hub-a.crt"))
            .set("tunnel.tls.key_file", file("hub-a.key")),
        Door::Own => plan.set("ha.mesh.listen", own.to_string()),
        Door::Sealed => plan,
    };
    let hub = plan.start().await?;
    let url = match door {
        Door::Shared => format!("wss://{}/mesh", hub.tunnel_addr()?),
        Door::Own => format!("wss://{own}/mesh"),
        Door::Sealed => format!("ws://{}/mesh", hub.tunnel_addr()?),
    };
    Ok((hub, url, authority))
}

async fn wrong(door: Door, wrong: Wrong) -> Result<()> {
    let lab = crate::scene::lab()?;
    let (hub, url, authority) = guarded(&lab, door).await?;
    let other = Authority::new("other")?;
    let good = Certificate::good(&["127.0.0.10"]);
    let bad = match wrong {
        Wrong::None | Wrong::OtherCa => good.clone(),
        Wrong::Expired => good.clone().expired(),
        Wrong::Early => good.clone().not_yet_valid(),
        Wrong::ForServers => good.clone().for_servers(),
        Wrong::Name => Certificate::good(&["127.0.0.99"]),
    };
    let by = if wrong == Wrong::OtherCa {
        &other
    } else {
        &authority
    };
    by.issue("bad", &bad)?;
    let shown = (wrong != Wrong::None).then_some((by, "bad"));
    let protocols: &'static [&'static str] = if door == Door::Sealed {
        &[SEALED]
    } else {
        &[PLAIN]
    };
    let got = join(&url, Some(&tls(&authority, shown)), protocols, "hub-b").await;
    let fits = match (door, wrong, &got) {
        (Door::Sealed, Wrong::Name, got) => *got == Got::Farewell(Reason::AuthFailed),
        (Door::Own, Wrong::Name, Got::Refused(403, code))
        | (Door::Shared, _, Got::Refused(403, code)) => code == wrong.code(),
        (Door::Own | Door::Sealed, _, Got::Alert(_) | Got::Cut) => true,
        _ => false,
    };
    ensure!(fits, "{wrong:?}: {got:?}");
    told(&hub, wrong.code()).await?;
    // The honest one comes in by the same door.
    authority.issue("good", &good)?;
    let client = tls(&authority, Some((&authority, "good")));
    let got = join(&url, Some(&client), protocols, "hub-b").await;
    ensure!(got == Got::Linked("hub-a".to_owned()), "{got:?}");
    Ok(())
}

async fn told(hub: &Hub, reason: &str) -> Result<()> {
    let log = hub.log();
    let event = log
        .wait_event_where("mesh_refused", Default::default(), |event| {
            event.text("reason") == reason
        })
        .await?;
    ensure!(event.json()["audit"] == true, "{}", event.json());
    Ok(())
}

async fn around() -> Result<()> {
    let lab = crate::scene::lab()?;
    let (hub, url, _) = guarded(&lab, Door::Sealed).await?;
    let got = join(&url, None, &[PLAIN], "hub-b").await;
    ensure!(
        got == Got::Refused(403, "certificate_missing".to_owned()),
        "{got:?}"
    );
    told(&hub, "certificate_missing").await
}

async fn other_id() -> Result<()> {
    let lab = crate::scene::lab()?;
    let authority = Authority::new("mesh")?;
    authority.issue("hub-a", &Certificate::good(&["127.0.0.1"]))?;
    let plan = certified(lab.hub("hub-a").listener("echo"), &authority, "hub-a");
    let peers = json!(["wss://127.0.0.10:1/mesh", "wss://127.0.0.11:1/mesh"]);
    let hub = plan.set("ha.mesh.peers", peers).start().await?;
    let url = format!("ws://{}/mesh", hub.tunnel_addr()?);
    // hub-b stands. A hub that holds the certificate of hub-c wants its place.
    authority.issue("hub-b", &Certificate::good(&["127.0.0.10"]))?;
    authority.issue("c", &Certificate::good(&["127.0.0.11"]))?;
    let standing = certified(lab.hub("hub-b"), &authority, "hub-b");
    let mut standing = standing.set("ha.mesh.peers", json!([url])).start().await?;
    hub.log().wait_event("mesh_link_up").await?;
    let c = tls(&authority, Some((&authority, "c")));
    let got = join(&url, Some(&c), &[SEALED], "hub-b").await;
    ensure!(got == Got::Farewell(Reason::IdentityConflict), "{got:?}");
    told(&hub, "mesh_peer_conflict").await?;
    standing.process().check_alive()?;
    let up = [("state", "established")];
    standing
        .wait_metric("nowconnect_mesh_links", &up, |links| links == 1.0)
        .await?;
    Ok(())
}

async fn own_id() -> Result<()> {
    let mut scene = Scene::set_with(member).await?;
    let mut ws = RawWs::mesh(scene.tunnel()).await?;
    ws.binary(&v2(kind::HELLO, 0, mesh_hello("hub-a").as_bytes()))
        .await?;
    let closed = ws.closed().await?;
    ensure!(closed.reason == "identity_conflict", "{closed:?}");
    told(&scene.hub, "mesh_peer_conflict").await?;
    scene.serves().await
}

async fn browser() -> Result<()> {
    let mut scene = Scene::set_with(member).await?;
    let mut headers = http::upgrade_headers("Bearer x");
    headers.push(("Origin", "https://evil.example"));
    let answer = http::request(scene.tunnel(), "GET", "/mesh", &headers, "").await?;
    refused(&answer, 403, "browser_origin")?;
    told(&scene.hub, "browser_origin").await?;
    scene.serves().await
}

async fn off() -> Result<()> {
    let mut scene = Scene::set().await?;
    let headers = http::upgrade_headers("Bearer x");
    let answer = http::request(scene.tunnel(), "GET", "/mesh", &headers, "").await?;
    refused(&answer, 503, "ha_off")?;
    ensure!(answer.header("retry-after").is_some(), "{answer:?}");
    told(&scene.hub, "ha_off").await?;
    scene.serves().await
}

async fn agent_at_mesh() -> Result<()> {
    let mut scene = Scene::set_with(member).await?;
    let bearer = format!("Bearer {}", scene.token("evil"));
    let headers = http::upgrade_headers(&bearer);
    let answer = http::request(scene.tunnel(), "GET", "/mesh", &headers, "").await?;
    refused(&answer, 400, "no_mesh_subprotocol")?;
    told(&scene.hub, "no_mesh_subprotocol").await?;
    scene.serves().await
}

async fn mute() -> Result<()> {
    let mut scene = Scene::set_with(member).await?;
    let mut ws = RawWs::mesh(scene.tunnel()).await?;
    let closed = ws.closed().await?;
    ensure!(closed.reason == "handshake_timeout", "{closed:?}");
    told(&scene.hub, "handshake_timeout").await?;
    scene.serves().await
}

async fn garbage_sealed() -> Result<()> {
    let lab = crate::scene::lab()?;
    let (hub, _, _) = guarded(&lab, Door::Sealed).await?;
    let mut headers = http::upgrade_headers("");
    headers.retain(|(name, _)| !["Authorization", "Sec-WebSocket-Protocol"].contains(name));
    headers.push(("Sec-WebSocket-Protocol", SEALED));
    let mut ws = RawWs::open(hub.tunnel_addr()?, "/mesh", &headers).await?;
    ws.binary(&[0x5a; 4096]).await?;
    ws.closed().await?;
    told(&hub, "tls").await
}

fn mesh_hello(hub: &str) -> String {
    json!({
        "hub": hub, "instance": "00112233445566778899aabbccddeeff", "via": "wss://x/mesh",
        "version": "9", "initial_window": 8192, "max_payload": 65536, "features": [],
    })
    .to_string()
}

async fn first(frame: Vec<u8>) -> Result<()> {
    let mut scene = Scene::set_with(member).await?;
    let mut ws = RawWs::mesh(scene.tunnel()).await?;
    ws.binary(&frame).await?;
    let closed = ws.closed().await?;
    ensure!(closed.code == Some(1002), "{closed:?}");
    scene.offended("mesh", "bad_hello", 1.0).await?;
    told(&scene.hub, "protocol_error").await?;
    let log = scene.hub.log().text();
    ensure!(log.lines().all(|line| line.starts_with('{')), "{log}");
    scene.serves().await
}

async fn named(hub: &str) -> Result<()> {
    first(v2(kind::HELLO, 0, mesh_hello(hub).as_bytes())).await
}

/// A scene with a link of the hub `hub-x`, which no certificate was asked of.
async fn linked() -> Result<(Scene, RawWs, u64)> {
    linked_with(member).await
}

async fn linked_with(
    adjust: impl FnOnce(HubPlan<'_>) -> HubPlan<'_>,
) -> Result<(Scene, RawWs, u64)> {
    let scene = Scene::set_with(adjust).await?;
    let mut ws = RawWs::mesh(scene.tunnel()).await?;
    ws.binary(&v2(kind::HELLO, 0, mesh_hello("hub-x").as_bytes()))
        .await?;
    ws.frame_of(kind::HELLO_ACK).await?;
    let connected = scene.hub.log().wait_event("agent_connected").await?;
    let Some(epoch) = connected.number("epoch") else {
        bail!("no epoch")
    };
    Ok((scene, ws, epoch))
}

async fn on_link(frame: Vec<u8>, kind: &str) -> Result<()> {
    let (mut scene, mut ws, _) = linked().await?;
    ws.binary(&frame).await?;
    let closed = ws.closed().await?;
    ensure!(closed.code == Some(1002), "{closed:?}");
    let labels = [("interface", "mesh"), ("kind", kind)];
    scene.counted(ERRORS, &labels, 1.0).await?;
    scene.serves().await
}

fn open(agent: &'static str, connector: &'static str, epoch: u64) -> Open<'static> {
    Open {
        agent,
        ..Open::new(connector, epoch)
    }
}

async fn opened(what: impl Fn(u64) -> Open<'static>, reason: u16, stale: f64) -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    ws.binary(&v2(kind::OPEN, 1, &what(epoch).body())).await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(
        (refuse.flow, refuse.reason()) == (1, Some(reason)),
        "{refuse:?}"
    );
    scene
        .counted("nowconnect_owner_epoch_mismatch_total", &[], stale)
        .await?;
    let labels = [("dir", "out"), ("type", "M_REFUSE")];
    scene
        .counted("nowconnect_mesh_frames_total", &labels, 1.0)
        .await?;
    ensure!(scene.server.accepted() == 0, "a target was dialed");
    scene.serves().await
}

async fn denied() -> Result<()> {
    let (mut scene, mut ws, epoch) =
        linked_with(|plan| member(plan).set("security.allow_cidrs", json!(["127.0.0.0/8"])))
            .await?;
    let mut body = open("site-1", "echo", epoch).body();
    let client = b"203.0.113.9:4000";
    body.extend([1, 0, u8::try_from(client.len())?]);
    body.extend(client);
    ws.binary(&v2(kind::OPEN, 1, &body)).await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(refuse.reason() == Some(20), "{refuse:?}");
    // A hub that does not tell the address gains nothing.
    let silent = open("site-1", "echo", epoch);
    ws.binary(&v2(kind::OPEN, 2, &silent.body())).await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(refuse.reason() == Some(20), "{refuse:?}");
    scene.serves().await
}

/// Opens a flow to the honest agent's echo; returns what the agent granted.
async fn flow(ws: &mut RawWs, id: u32, open: &Open<'_>) -> Result<Vec<u8>> {
    ws.binary(&v2(kind::OPEN, id, &open.body())).await?;
    Ok(ws.frame_of(kind::OPEN_ACK).await?.body)
}

async fn twice() -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    flow(&mut ws, 1, &open("site-1", "echo", epoch)).await?;
    let again = Open {
        cid: 8,
        ..open("site-1", "echo", epoch)
    };
    ws.binary(&v2(kind::OPEN, 1, &again.body())).await?;
    let closed = ws.closed().await?;
    ensure!(closed.code == Some(1002), "{closed:?}");
    scene.offended("mesh", "repeated_open", 1.0).await?;
    scene.serves().await
}

/// A frame with the flag RESUME.
fn resuming(id: u32, open: &Open<'_>) -> Vec<u8> {
    let mut frame = v2(kind::OPEN, id, &open.body());
    frame[4] = 1;
    frame
}

async fn refused_by_agent(scene: &Scene, reason: &str) -> Result<()> {
    let labels = [("reason", reason)];
    nowconnect_testkit::wait::until("the agent to count", async || {
        let found = scene
            .agent
            .metrics()
            .await?
            .sum("nowconnect_agent_refused_total", &labels);
        ensure!(found == 1.0, "{found}");
        Ok(())
    })
    .await
}

async fn resume() -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    ws.binary(&resuming(1, &open("site-1", "echo", epoch)))
        .await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(refuse.reason() == Some(35), "{refuse:?}");
    refused_by_agent(&scene, "unknown_flow").await?;
    scene.serves().await
}

async fn stolen() -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    // A flow of the honest hub; its name stands in logs, its secret does not.
    let mut client = scene.hub.connect("echo").await?;
    nowconnect_testkit::transfer::echo(
        &mut client,
        nowconnect_testkit::pattern::Pattern(4),
        0,
        100,
    )
    .await?;
    let cid = scene.hub.log().wait_event("flow_opened").await?.text("cid");
    let cid = u128::from_str_radix(&cid.replace('-', ""), 16)?;
    let thief = Open {
        cid,
        secret: 0,
        ..open("site-1", "echo", epoch)
    };
    ws.binary(&resuming(1, &thief)).await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(refuse.reason() == Some(20), "{refuse:?}");
    refused_by_agent(&scene, "denied").await?;
    nowconnect_testkit::transfer::echo(
        &mut client,
        nowconnect_testkit::pattern::Pattern(4),
        100,
        100,
    )
    .await?;
    scene.serves().await
}

async fn limit() -> Result<()> {
    let (mut scene, mut ws, epoch) =
        linked_with(|plan| member(plan).set("limits.max_conn_total", 20)).await?;
    let mut refusals = 0;
    for id in 1..=25u32 {
        let open = Open {
            cid: id.into(),
            ..open("site-1", "echo", epoch)
        };
        ws.binary(&v2(kind::OPEN, id, &open.body())).await?;
    }
    for _ in 1..=25 {
        let answer = loop {
            let frame = ws.frame().await?;
            if [kind::OPEN_ACK, kind::REFUSE].contains(&frame.kind) {
                break frame;
            }
        };
        if answer.kind == kind::REFUSE {
            ensure!(answer.reason() == Some(21), "{answer:?}");
            refusals += 1;
        }
    }
    ensure!(refusals == 5, "{refusals}");
    let labels = [("reason", "refused")];
    scene
        .counted("nowconnect_mesh_backpressure_total", &labels, 5.0)
        .await?;
    scene
        .counted("nowconnect_mesh_backpressure_drops_total", &labels, 5.0)
        .await?;
    scene.serves().await
}

async fn beyond_credit() -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    flow(&mut ws, 1, &open("site-1", "echo", epoch)).await?;
    for piece in 0..40u64 {
        let body = [&numbers(&[piece * 60_000])[..], &[7; 60_000]].concat();
        if ws.binary(&v2(kind::DATA, 1, &body)).await.is_err() {
            break;
        }
    }
    let rst = ws.frame_of(kind::RST).await?;
    ensure!(rst.reason() == Some(65), "{rst:?}");
    scene.offended("mesh", "beyond_credit", 1.0).await?;
    scene.serves().await
}

async fn gap() -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    flow(&mut ws, 1, &open("site-1", "echo", epoch)).await?;
    ws.binary(&v2(kind::DATA, 1, &[&numbers(&[9])[..], b"x"].concat()))
        .await?;
    let rst = ws.frame_of(kind::RST).await?;
    ensure!(rst.reason() == Some(67), "{rst:?}");
    scene.offended("mesh", "offset_gap", 1.0).await?;
    scene.serves().await
}

async fn detach() -> Result<()> {
    let (mut scene, mut ws, _) = linked().await?;
    for id in 1..=100 {
        let frames = [v2(kind::DETACH, id, &[0, 109]), v2(kind::RST, id, &[0, 32])].concat();
        ws.binary(&frames).await?;
    }
    for id in 1..=100 {
        let rst = ws.frame_of(kind::RST).await?;
        ensure!((rst.flow, rst.reason()) == (id, Some(35)), "{rst:?}");
    }
    let labels = [("dir", "in"), ("type", "M_DETACH")];
    scene
        .counted("nowconnect_mesh_frames_total", &labels, 100.0)
        .await?;
    scene.serves().await
}

async fn rapid() -> Result<()> {
    let (mut scene, mut ws, epoch) = linked().await?;
    for id in 1..=2000u32 {
        let open = Open {
            cid: id.into(),
            ..open("site-1", "echo", epoch)
        };
        let frames = [
            v2(kind::OPEN, id, &open.body()),
            v2(kind::RST, id, &[0, 32]),
        ]
        .concat();
        ws.binary(&frames).await?;
    }
    for _ in 1..=2000 {
        ws.frame_of(kind::RST).await?;
    }
    nowconnect_testkit::wait::until("no flow to pass through", async || {
        let mesh: Value = scene.hub.mesh().await?;
        let status = http::get(scene.hub.admin_addr()?, "/api/v1/status").await?;
        let text = format!("{mesh} {}", status.body);
        let metrics = scene.agent.metrics().await?;
        let active = metrics.sum("nowconnect_tcp_active_connections", &[]);
        ensure!(active == 0.0, "{active} flows at the agent: {text}");
        Ok(())
    })
    .await?;
    scene.serves().await
}

async fn flood() -> Result<()> {
    let (mut scene, mut ws, _) = linked().await?;
    let frames = v2(kind::PING, 0, &[1; 8]).repeat(500);
    while ws.binary(&frames).await.is_ok() {}
    scene.offended("mesh", "flood", 1.0).await?;
    scene.serves().await
}
