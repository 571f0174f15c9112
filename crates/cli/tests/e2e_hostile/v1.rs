//! An agent of the older generation with a good token and bad JSON.

use anyhow::{Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::raw_ws::RawWs;
use nowconnect_testkit::transfer::{End, read_to_end};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::list::cases;
use crate::scene::{ERRORS, Scene, closed_with};

cases! { "JSON of an agent, version 1";
    nesting_of_100000: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(&"[".repeat(70_000), "json");
    an_unknown_key_that_nests_deep: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(&format!(r#"{{"t":"DATA","x":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000)), "json");
    a_key_given_twice: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"RST","cid":"00000000-0000-0000-0000-000000000001","cid":"00000000-0000-0000-0000-000000000002","err":"x"}"#, "json");
    a_sequence_of_2_to_the_64: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"DATA","cid":"00000000-0000-0000-0000-000000000001","seq":18446744073709551616,"b64":""}"#, "json");
    a_sequence_that_is_no_number: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"DATA","cid":"00000000-0000-0000-0000-000000000001","seq":NaN,"b64":""}"#, "json");
    a_negative_sequence: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"DATA","cid":"00000000-0000-0000-0000-000000000001","seq":-1,"b64":""}"#, "json");
    base64_that_is_none: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"DATA","cid":"00000000-0000-0000-0000-000000000001","seq":0,"b64":"%%%"}"#, "json");
    a_cid_that_is_none: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"DATA","cid":"../../etc/passwd","seq":0,"b64":""}"#, "json");
    a_lone_surrogate: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"json\"}` +1" => text(r#"{"t":"\ud800"}"#, "json");
    bytes_instead_of_text: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"wrong_message_type\"}` +1" => binary();
    a_text_of_5_mb: "close 1009 `protocol_error` at its header", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => huge();
    a_type_that_nobody_knows: "nothing", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unknown_type\"}` +1" => tolerated(json!({ "t": "SUDO" }), "unknown_type");
    data_of_a_flow_that_never_was: "RST `unknown_flow`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unknown_flow\"}` +1" => tolerated(json!({ "t": "DATA", "cid": "00000000-0000-0000-0000-000000000001", "seq": 0, "b64": "eA==" }), "unknown_flow");
    a_fin_in_the_wrong_direction: "nothing, or a reset of the flow", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"fin\"}` +1" => on_flow(|cid| vec![json!({ "t": "FIN", "cid": cid, "dir": "c2a" })], "fin", false);
    a_sequence_that_skips: "RST; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"seq\"}` +1" => on_flow(|cid| vec![json!({ "t": "DATA", "cid": cid, "seq": 9, "b64": "eA==" })], "seq", true);
    a_sequence_that_repeats: "RST; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"seq\"}` +1" => on_flow(|cid| vec![json!({ "t": "DATA", "cid": cid, "seq": 0, "b64": "eA==" }), json!({ "t": "DATA", "cid": cid, "seq": 0, "b64": "eA==" })], "seq", true);
    data_behind_its_own_fin: "RST; the client has its end of file or a reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"data_after_fin\"}` +1" => on_flow(|cid| vec![json!({ "t": "FIN", "cid": cid, "dir": "a2c" }), json!({ "t": "DATA", "cid": cid, "seq": 0, "b64": "eA==" })], "data_after_fin", false);
    an_open_by_an_older_agent: "close 1002 `protocol_error`, or nothing; no way into the cloud", "`nowconnect_protocol_errors_total{interface=\"tunnel\"}` +1" => open();
    a_hello_of_an_older_agent_for_another: "close 1008 `auth_failed`", "`nowconnect_auth_failures_total{reason=\"agent_id_mismatch\"}` +1, `agent_refused`" => other_hello();
    a_reason_in_many_words: "nothing; the client alone is reset", "nothing; its tunnel goes on" => wordy();
    a_flood_in_place_of_a_hello: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1, `agent_refused`" => no_hello();
    a_flood_of_unknown_types: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood();
}

async fn old(scene: &Scene) -> Result<RawWs> {
    let mut ws = RawWs::tunnel(scene.tunnel(), &scene.token("old"), None).await?;
    let hello = json!({ "t": "HELLO", "agent_id": "old", "connectors": ["evil"], "ver": "1.5" });
    ws.text(&hello.to_string()).await?;
    let ack = ws.receive_json().await?;
    ensure!(ack["t"] == "HELLO_ACK", "{ack}");
    Ok(ws)
}

async fn ended(scene: &mut Scene, ws: RawWs, kind: &str) -> Result<()> {
    ended_with(scene, ws, 1002, kind).await
}

async fn ended_with(scene: &mut Scene, mut ws: RawWs, code: u16, kind: &str) -> Result<()> {
    closed_with(&ws.closed().await?, code, "protocol_error")?;
    counted(scene, kind).await?;
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}

async fn counted(scene: &Scene, kind: &str) -> Result<()> {
    let labels = [("interface", "tunnel"), ("kind", kind)];
    scene.counted(ERRORS, &labels, 1.0).await
}

async fn text(text: &str, kind: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    ws.text(text).await?;
    ended(&mut scene, ws, kind).await
}

async fn binary() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    ws.binary(b"{}").await?;
    ended(&mut scene, ws, "wrong_message_type").await
}

async fn huge() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    // The header of a masked text of 5 MB is enough.
    ws.write(&[0x81, 0xff, 0, 0, 0, 0, 0, 0x4c, 0x4b, 0x40])
        .await?;
    ended_with(&mut scene, ws, 1009, "websocket").await
}

async fn tolerated(message: Value, kind: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    ws.text(&message.to_string()).await?;
    counted(&scene, kind).await?;
    scene.hub.wait_agents(2).await?;
    scene.serves().await
}

async fn opened(scene: &Scene, ws: &mut RawWs) -> Result<(TcpStream, String)> {
    let client = scene.hub.connect("evil").await?;
    loop {
        let frame = ws.receive_json().await?;
        if frame["t"] == "OPEN" {
            return Ok((client, frame["cid"].as_str().unwrap_or_default().to_owned()));
        }
    }
}

async fn on_flow(messages: fn(&str) -> Vec<Value>, kind: &str, resets: bool) -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    let (mut client, cid) = opened(&scene, &mut ws).await?;
    for message in messages(&cid) {
        ws.text(&message.to_string()).await?;
    }
    counted(&scene, kind).await?;
    if resets {
        ensure!(read_to_end(&mut client).await?.1 == End::Reset, "no reset");
    }
    scene.hub.wait_agents(2).await?;
    scene.serves().await
}

async fn open() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    let open =
        json!({ "t": "OPEN", "cid": "00000000-0000-0000-0000-000000000001", "connector": "echo" });
    ws.text(&open.to_string()).await?;
    scene
        .hub
        .wait_metric(ERRORS, &[("interface", "tunnel")], |n| n >= 1.0)
        .await?;
    ensure!(scene.server.accepted() == 0, "a target was dialed");
    scene.serves().await
}

async fn other_hello() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = RawWs::tunnel(scene.tunnel(), &scene.token("old"), None).await?;
    let hello = json!({ "t": "HELLO", "agent_id": "site-1", "connectors": ["echo"], "ver": "1.5" });
    ws.text(&hello.to_string()).await?;
    closed_with(&ws.closed().await?, 1008, "auth_failed")?;
    let labels = [("reason", "agent_id_mismatch")];
    scene.counted(crate::scene::AUTH, &labels, 1.0).await?;
    scene.serves().await
}

async fn wordy() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    let (mut client, cid) = opened(&scene, &mut ws).await?;
    let said = "dial tcp: lookup directory.site-1.internal.example.com: no such host";
    ws.text(&json!({ "t": "RST", "cid": cid, "err": said }).to_string())
        .await?;
    ensure!(read_to_end(&mut client).await?.1 == End::Reset, "no reset");
    scene.hub.wait_agents(2).await?;
    scene.serves().await
}

async fn no_hello() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = RawWs::tunnel(scene.tunnel(), &scene.token("old"), None).await?;
    let before = scene.hub.resident_bytes()?;
    for n in 0_u32.. {
        let cid = format!("00000000-0000-0000-0000-{n:012}");
        let fin = json!({ "t": "FIN", "cid": cid, "dir": "a2c" });
        if ws.text(&fin.to_string()).await.is_err() {
            break;
        }
    }
    let grown = scene.hub.resident_bytes()?.saturating_sub(before);
    ensure!(grown < 16 << 20, "{} MiB more", grown >> 20);
    counted(&scene, "flood").await?;
    scene.logged("agent_refused", "flood").await?;
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}

async fn flood() -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = old(&scene).await?;
    let message = json!({ "t": "SUDO" }).to_string();
    while ws.text(&message).await.is_ok() {}
    counted(&scene, "flood").await?;
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}
