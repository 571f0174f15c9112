//! An agent with a good token that keeps to nothing else.

use std::time::Duration;

use anyhow::{Result, ensure};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::raw_ws::{RawWs, opcode, put_frame, v2};
use nowconnect_testkit::transfer::{End, read_to_end};
use nowconnect_testkit::wait::until;
use nowconnect_testkit::{anyhow, metrics::Scrape};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::list::cases;
use crate::scene::{Open, Scene, closed_with, hello, kind, numbers};

/// Codes of RST and REFUSE.
pub(crate) mod code {
    pub(crate) const UNKNOWN_FLOW: u16 = 35;
    pub(crate) const PROTOCOL_ERROR: u16 = 64;
    pub(crate) const BEYOND_CREDIT: u16 = 65;
    pub(crate) const AFTER_FIN: u16 = 66;
    pub(crate) const OFFSET_GAP: u16 = 67;
    pub(crate) const BAD_ACK: u16 = 68;
}

const BINARY: u8 = 0x80 | opcode::BINARY;

cases! { "Frames of an agent, version 2";
    reserved_bits: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0xc2, 0x80, 0, 0, 0, 0], "websocket");
    a_frame_without_a_mask: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x82, 1, 0], "websocket");
    a_length_of_2_to_the_62: "close 1009 `protocol_error` before a byte is set aside", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => broken(&[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1009);
    a_length_with_its_highest_bit_set: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4], "websocket");
    a_short_length_written_long: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x82, 0xfe, 0, 1, 0, 0, 0, 0, 7], "websocket");
    an_opcode_that_does_not_exist: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x83, 0x80, 0, 0, 0, 0], "websocket");
    a_control_opcode_that_does_not_exist: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x8b, 0x80, 0, 0, 0, 0], "websocket");
    a_ping_in_pieces: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x09, 0x80, 0, 0, 0, 0], "websocket");
    a_ping_of_126_bytes: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], "websocket");
    a_continuation_of_nothing: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x80, 0x80, 0, 0, 0, 0], "websocket");
    a_message_within_a_message: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x02, 0x80, 0, 0, 0, 0, 0x82, 0x80, 0, 0, 0, 0], "websocket");
    a_close_code_that_is_never_sent: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed], "websocket");
    a_close_of_one_byte: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => bytes(&[0x88, 0x81, 0, 0, 0, 0, 0x03], "websocket");
    a_text_that_is_not_utf_8: "close 1007 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1" => broken(&[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28], 1007);
    a_text_where_frames_are_due: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"wrong_message_type\"}` +1" => bytes(&[0x81, 0x82, 0, 0, 0, 0, b'{', b'}'], "wrong_message_type");
    a_message_of_5000_pieces: "close 1008 `protocol_error` or `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` +1 or `flood` +1" => pieces();
    half_a_frame: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"truncated\"}` +1" => message(&[0, 0, 8, kind::PING], "truncated");
    a_frame_that_claims_16_mb: "close 1002 `protocol_error` before a byte is set aside", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"too_long\"}` +1" => message(&[0xff, 0xff, 0xff, kind::DATA, 0, 0, 0, 0, 1], "too_long");
    a_ping_without_its_number: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"malformed\"}` +1" => message(&v2(kind::PING, 0, &[1]), "malformed");
    a_frame_of_the_link_on_a_flow: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"wrong_flow\"}` +1" => message(&v2(kind::PING, 5, &[0; 8]), "wrong_flow");
    a_frame_of_a_flow_on_the_link: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"wrong_flow\"}` +1" => message(&v2(kind::DATA, 0, &[0; 9]), "wrong_flow");
    a_second_hello: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unexpected_frame\"}` +1" => message(&v2(kind::HELLO, 0, hello("evil", &["echo"]).to_string().as_bytes()), "unexpected_frame");
    a_hello_ack_of_an_agent: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unexpected_frame\"}` +1" => message(&v2(kind::HELLO_ACK, 0, b"{}"), "unexpected_frame");
    an_open_of_an_agent: "close 1002 `protocol_error`; no way into the cloud", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"open_from_agent\"}` +1" => message(&v2(kind::OPEN, 1, &Open::new("echo", 1).body()), "open_from_agent");
    an_update_that_is_no_json: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_body\"}` +1" => message(&v2(kind::UPDATE, 0, b"]["), "bad_body");
    an_update_with_257_connectors: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_body\"}` +1" => message(&v2(kind::UPDATE, 0, many(257).as_bytes()), "bad_body");
    a_token_frame_of_60_kb: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_body\"}` +1" => message(&v2(kind::TOKEN, 0, json!({ "token": "x".repeat(60_000) }).to_string().as_bytes()), "bad_body");
    data_before_hello: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => first(v2(kind::DATA, 1, &[0; 9]));
    an_open_before_hello: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => first(v2(kind::OPEN, 1, &Open::new("echo", 1).body()));
    a_hello_that_is_no_json: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => first(v2(kind::HELLO, 0, b"no json"));
    a_hello_with_257_connectors: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => greeting(|h| h["connectors"] = names(257));
    a_hello_with_100000_connectors: "close 1009 `protocol_error` before it is read to its end", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => long_greeting();
    a_connector_name_of_65_letters: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => greeting(|h| h["connectors"] = json!(["x".repeat(65)]));
    a_connector_name_with_a_newline: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused` in one clean line" => greeting(|h| h["connectors"] = json!(["a\n{}"]));
    a_connector_listed_twice: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => greeting(|h| h["connectors"] = json!(["evil", "evil"]));
    a_version_with_colours: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused` in one clean line" => greeting(|h| h["version"] = json!("\u{1b}[31m1"));
    a_window_of_nothing: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => greeting(|h| h["initial_window"] = json!(0));
    an_epoch_beyond_64_bits: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_hello\"}` +1, `agent_refused`" => greeting(|h| h["epoch_seen"] = json!(1.8446744073709552e19));
    the_highest_epoch_in_hello: "HELLO_ACK; the epoch granted is within a day and a half of the clock, and the next one is above it", "`agent_connected` with that epoch" => poisoned_epoch();
    data_for_a_flow_that_never_was: "RST `unknown_flow`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unknown_flow\"}` +1" => unknown();
    data_beyond_the_credit: "RST `beyond_credit`; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"beyond_credit\"}` +1" => on_flow(beyond_credit, code::BEYOND_CREDIT, "beyond_credit");
    data_behind_a_fin: "RST `after_fin`; the client has its end of file", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"after_fin\"}` +1" => on_flow(after_fin, code::AFTER_FIN, "after_fin");
    a_gap_in_the_offsets: "RST `offset_gap`; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"offset_gap\"}` +1" => on_flow(gap, code::OFFSET_GAP, "offset_gap");
    an_acknowledgement_of_bytes_never_sent: "RST `bad_ack`; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_ack\"}` +1" => on_flow(bad_ack, code::BAD_ACK, "bad_ack");
    an_acknowledgement_of_everything: "RST `bad_ack`; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"bad_ack\"}` +1" => on_flow(ack_max, code::BAD_ACK, "bad_ack");
    an_offset_that_overflows: "RST `protocol_error`; the client is reset", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"protocol_error\"}` +1" => on_flow(overflow, code::PROTOCOL_ERROR, "protocol_error");
    an_agent_that_grants_everything_and_acknowledges_nothing: "no more bytes than the hub may keep; the client waits", "resident memory stays within `limits.memory_budget_mb`" => hoarder();
    an_agent_that_never_answers_an_open: "nothing; the client ends it, and the hub forgets it", "`nowconnect_tcp_active_connections` is back at 0" => mute();
    an_agent_that_never_reads: "the end within ping interval and timeout", "`agent_disconnected`, `reason` `ping_timeout`; resident memory stays" => deaf();
    a_flood_of_pings: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood(v2(kind::PING, 0, &[7; 8]));
    a_flood_of_pongs: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood(v2(0x08, 0, &[7; 8]));
    a_flood_of_credit: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood_on_flow(|n| v2(kind::CREDIT, 1, &numbers(&[0, 1_000_000 + n])));
    a_flood_of_empty_data: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood_on_flow(|_| v2(kind::DATA, 1, &numbers(&[0])));
    a_flood_of_frames_of_no_known_type: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood(v2(0x7f, 0, b""));
    a_flood_of_data_for_no_flow: "close 1008 `flood`, or 1000 `write_stalled` when it reads no answers", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1, `agent_disconnected`" => flood(v2(kind::DATA, 77, &[0; 9]));
    a_flood_of_resets_for_no_flow: "close 1008 `flood`, or 1000 `write_stalled` when it reads no answers", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood(v2(kind::RST, 77, &[0, 32]));
    a_flood_of_detaches: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => flood(v2(kind::DETACH, 77, &[0, 109]));
    a_flood_of_updates: "close 1002 `protocol_error` or 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"control_flood\"}` or `flood` +1" => flood(v2(kind::UPDATE, 0, br#"{"connectors":["evil"]}"#));
    a_flood_of_tokens: "close 1002 `protocol_error` or 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"control_flood\"}` or `flood` +1" => token_flood();
    a_flood_of_empty_messages: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => ws_flood(BINARY, b"");
    a_flood_of_websocket_pings: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => ws_flood(0x80 | opcode::PING, b"x");
    a_flood_of_websocket_pongs: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` +1" => ws_flood(0x80 | opcode::PONG, b"x");
    names_that_would_become_metrics: "HELLO_ACK; at most 1024 names of a kind", "no series is named after connectors that no listener has" => cardinality();
}

fn names(count: usize) -> Value {
    (0..count).map(|n| format!("c{n}")).collect()
}

fn many(count: usize) -> String {
    json!({ "connectors": names(count) }).to_string()
}

async fn bytes(bytes: &[u8], kind: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    ws.write(bytes).await?;
    judge(&mut scene, ws, kind).await
}

async fn message(frame: &[u8], kind: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    ws.binary(frame).await?;
    judge(&mut scene, ws, kind).await
}

async fn broken(bytes: &[u8], code: u16) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    ws.write(bytes).await?;
    judge_closed(&mut scene, ws, code, "websocket").await
}

async fn judge(scene: &mut Scene, ws: RawWs, kind: &str) -> Result<()> {
    judge_closed(scene, ws, 1002, kind).await
}

async fn judge_closed(scene: &mut Scene, mut ws: RawWs, code: u16, kind: &str) -> Result<()> {
    closed_with(&ws.closed().await?, code, "protocol_error")?;
    let labels = [("interface", "tunnel"), ("kind", kind)];
    scene.counted(crate::scene::ERRORS, &labels, 1.0).await?;
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}

async fn pieces() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    let mut bytes = Vec::new();
    put_frame(&mut bytes, true, opcode::BINARY, b"");
    for _ in 0..5000 {
        put_frame(&mut bytes, true, opcode::CONTINUATION, b"");
    }
    let _ = ws.write(&bytes).await;
    ws.closed().await?;
    let labels = [("interface", "tunnel")];
    scene.counted(crate::scene::ERRORS, &labels, 1.0).await?;
    scene.serves().await
}

async fn first(frame: Vec<u8>) -> Result<()> {
    first_closed(frame, 1002).await
}

async fn first_closed(frame: Vec<u8>, code: u16) -> Result<()> {
    let mut scene = Scene::set().await?;
    let mut ws = scene.upgraded().await?;
    let _ = ws.binary(&frame).await;
    let closed = ws.closed().await?;
    // Whoever sends more than is read may be reset before it reads the reason.
    ensure!(closed.code.is_none_or(|said| said == code), "{closed:?}");
    scene.offended("tunnel", "bad_hello", 1.0).await?;
    scene.logged("agent_refused", "protocol_error").await?;
    let log = scene.hub.log().text();
    ensure!(log.lines().all(|line| line.starts_with('{')), "{log}");
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}

async fn greeting(adjust: impl Fn(&mut Value)) -> Result<()> {
    let mut hello = hello("evil", &["evil"]);
    adjust(&mut hello);
    let body = hello.to_string();
    first(v2(kind::HELLO, 0, body.as_bytes())).await
}

async fn long_greeting() -> Result<()> {
    let mut hello = hello("evil", &[]);
    hello["connectors"] = names(100_000);
    let body = hello.to_string();
    first_closed(v2(kind::HELLO, 0, body.as_bytes()), 1009).await
}

async fn poisoned_epoch() -> Result<()> {
    let mut scene = Scene::set().await?;
    let now = u64::try_from(nowconnect_testkit::issuer::now())? * 1000;
    let mut lie = hello("evil", &["evil"]);
    lie["epoch_seen"] = json!(u64::MAX);
    lie["epoch_held"] = json!(u64::MAX);
    let (first, epoch) = scene.evil_saying(&lie).await?;
    ensure!(epoch < now + 36 * 3600 * 1000, "{epoch}");
    drop(first);
    scene.hub.wait_agents(1).await?;
    let mut next = lie.clone();
    next["instance"] = json!("ffffffffffffffffffffffffffffffff");
    let (_second, later) = scene.evil_saying(&next).await?;
    ensure!(
        later > epoch && later < epoch + 1000,
        "{epoch}, then {later}"
    );
    scene
        .hub
        .log()
        .wait_event_where("agent_connected", Default::default(), |event| {
            event.number("epoch") == Some(later)
        })
        .await?;
    scene.serves().await
}

async fn unknown() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    ws.binary(&v2(kind::DATA, 99, &[0; 12])).await?;
    let rst = ws.frame_of(kind::RST).await?;
    ensure!(
        (rst.flow, rst.reason()) == (99, Some(code::UNKNOWN_FLOW)),
        "{rst:?}"
    );
    scene.offended("tunnel", "unknown_flow", 1.0).await?;
    scene.hub.wait_agents(2).await?;
    scene.serves().await
}

/// A client whose flow the evil agent has accepted, and the flow's number and OPEN.
async fn accepted(scene: &Scene, ws: &mut RawWs, limit: u64) -> Result<(TcpStream, u32)> {
    let client = scene.hub.connect("evil").await?;
    let open = ws.frame_of(kind::OPEN).await?;
    ws.binary(&v2(kind::OPEN_ACK, open.flow, &numbers(&[0, limit])))
        .await?;
    Ok((client, open.flow))
}

fn beyond_credit(flow: u32) -> Vec<u8> {
    let payload = vec![0; 65_000];
    let pieces = (0..10u64).map(|n| {
        let body = [&numbers(&[n * 65_000])[..], &payload].concat();
        v2(kind::DATA, flow, &body)
    });
    pieces.collect::<Vec<_>>().concat()
}

fn after_fin(flow: u32) -> Vec<u8> {
    let data = [&numbers(&[0])[..], b"x"].concat();
    [
        v2(kind::FIN, flow, &numbers(&[0])),
        v2(kind::DATA, flow, &data),
    ]
    .concat()
}

fn gap(flow: u32) -> Vec<u8> {
    v2(kind::DATA, flow, &[&numbers(&[5])[..], b"x"].concat())
}

fn bad_ack(flow: u32) -> Vec<u8> {
    v2(kind::CREDIT, flow, &numbers(&[1_000, 100_000]))
}

fn ack_max(flow: u32) -> Vec<u8> {
    v2(kind::CREDIT, flow, &numbers(&[u64::MAX, u64::MAX]))
}

fn overflow(flow: u32) -> Vec<u8> {
    v2(
        kind::DATA,
        flow,
        &[&numbers(&[u64::MAX])[..], b"xx"].concat(),
    )
}

async fn on_flow(frames: fn(u32) -> Vec<u8>, reason: u16, kind: &str) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    let (mut client, flow) = accepted(&scene, &mut ws, 32_768).await?;
    send_whole(&mut ws, &frames(flow)).await?;
    let rst = ws.frame_of(kind::RST).await?;
    ensure!((rst.flow, rst.reason()) == (flow, Some(reason)), "{rst:?}");
    let (_, end) = read_to_end(&mut client).await?;
    ensure!(end == End::Reset || reason == code::AFTER_FIN, "{end:?}");
    let labels = [("interface", "tunnel"), ("kind", kind)];
    scene.counted(crate::scene::ERRORS, &labels, 1.0).await?;
    // The tunnel itself stays.
    scene.hub.wait_agents(2).await?;
    scene.serves().await
}

/// Sends frames in messages that are not too long.
async fn send_whole(ws: &mut RawWs, mut frames: &[u8]) -> Result<()> {
    while !frames.is_empty() {
        let length =
            usize::from(frames[0]) << 16 | usize::from(frames[1]) << 8 | usize::from(frames[2]);
        let (frame, rest) = frames.split_at(9 + length);
        ws.binary(frame).await?;
        frames = rest;
    }
    Ok(())
}

async fn hoarder() -> Result<()> {
    let mut scene = Scene::set_with(|plan| plan.set("limits.memory_budget_mb", 64)).await?;
    let mut greedy = hello("evil", &["evil"]);
    greedy["initial_window"] = json!(u32::MAX);
    let (mut ws, _) = scene.evil_saying(&greedy).await?;
    let before = scene.hub.resident_bytes()?;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut client, _) = accepted(&scene, &mut ws, u64::MAX).await?;
        writers.spawn(async move {
            let chunk = vec![7; 64 * 1024];
            for _ in 0..4096 {
                client.write_all(&chunk).await?;
            }
            anyhow::Ok(())
        });
    }
    // It reads on, so that nothing but the missing acknowledgement holds the clients up.
    let mut received = 0;
    let quiet = Duration::from_secs(2);
    while let Ok(Ok(frame)) = tokio::time::timeout(quiet, ws.frame()).await {
        received += frame.body.len();
    }
    let grown = scene.hub.resident_bytes()?.saturating_sub(before);
    ensure!(
        grown < 160 << 20,
        "{} MiB more, {received} bytes sent",
        grown >> 20
    );
    ensure!(
        received < 64 << 20,
        "{received} bytes without an acknowledgement"
    );
    scene.serves().await?;
    writers.abort_all();
    Ok(())
}

async fn mute() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(scene.hub.connect("evil").await?);
        ws.frame_of(kind::OPEN).await?;
    }
    for client in clients {
        nowconnect_testkit::transfer::reset(client)?;
    }
    scene.hub.wait_idle("evil").await?;
    scene.serves().await
}

async fn deaf() -> Result<()> {
    let mut scene = Scene::set_with(|plan| {
        plan.set("tunnel.ping_interval_sec", 1)
            .set("tunnel.ping_timeout_sec", 2)
    })
    .await?;
    let (ws, _) = scene.evil().await?;
    let before = scene.hub.resident_bytes()?;
    let gone = scene.evil_gone().await?;
    ensure!(gone.text("reason") == "ping_timeout", "{}", gone.json());
    ensure!(
        scene.hub.resident_bytes()? < before + (32 << 20),
        "memory grew"
    );
    drop(ws);
    scene.serves().await
}

/// Sends what `message` makes, over and over, until the hub has had enough.
async fn drown(scene: &mut Scene, ws: RawWs, message: impl Fn(u64) -> Vec<u8>) -> Result<()> {
    let honest = scene.hub.connect("echo").await?;
    let mut honest = honest;
    let mut ws = ws;
    let mut sent = 0u64;
    let drowned = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let bytes = message(sent);
            if ws.write(&bytes).await.is_err() {
                return;
            }
            sent += 1;
        }
    });
    let (drowned, served) = tokio::join!(drowned, async {
        for round in 0..10 {
            nowconnect_testkit::transfer::echo(&mut honest, Pattern(3), round * 1000, 1000).await?;
        }
        anyhow::Ok(())
    });
    served?;
    ensure!(
        drowned.is_ok(),
        "the hub still listens after {sent} messages"
    );
    // What it wrote may have made a reset of the farewell; the log has it.
    let gone = scene.evil_gone().await?;
    let scrape: Scrape = scene.hub.metrics().await?;
    let of = |kind| {
        scrape.sum(
            crate::scene::ERRORS,
            &[("interface", "tunnel"), ("kind", kind)],
        )
    };
    match gone.text("reason").as_str() {
        "flood" => ensure!(of("flood") == 1.0, "{}", gone.json()),
        "protocol_error" => ensure!(of("control_flood") == 1.0, "{}", gone.json()),
        // It wants answers and reads none.
        reason => ensure!(reason == "write_stalled", "{}", gone.json()),
    }
    let lines = scene
        .hub
        .log()
        .events("protocol_error", Default::default())
        .len();
    ensure!(lines < 25, "{lines} lines of log");
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}

fn repeated(frame: &[u8]) -> Vec<u8> {
    let payload = frame.repeat(2000 / frame.len() + 1);
    let mut message = Vec::new();
    put_frame(&mut message, true, BINARY, &payload);
    message
}

async fn flood(frame: Vec<u8>) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (ws, _) = scene.evil().await?;
    let message = repeated(&frame);
    drown(&mut scene, ws, |_| message.clone()).await
}

async fn flood_on_flow(frame: impl Fn(u64) -> Vec<u8>) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (mut ws, _) = scene.evil().await?;
    let (client, flow) = accepted(&scene, &mut ws, 32_768).await?;
    ensure!(flow == 1, "{flow}");
    let message = |round: u64| {
        let frames: Vec<_> = (0..100).flat_map(|n| frame(round * 100 + n)).collect();
        let mut message = Vec::new();
        put_frame(&mut message, true, BINARY, &frames);
        message
    };
    drown(&mut scene, ws, message).await?;
    drop(client);
    Ok(())
}

async fn token_flood() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (ws, _) = scene.evil().await?;
    let body = json!({ "token": scene.token("evil") }).to_string();
    let message = repeated(&v2(kind::TOKEN, 0, body.as_bytes()));
    drown(&mut scene, ws, |_| message.clone()).await
}

async fn ws_flood(first: u8, payload: &[u8]) -> Result<()> {
    let mut scene = Scene::set().await?;
    let (ws, _) = scene.evil().await?;
    let mut messages = Vec::new();
    for _ in 0..200 {
        put_frame(&mut messages, true, first, payload);
    }
    drown(&mut scene, ws, |_| messages.clone()).await
}

async fn cardinality() -> Result<()> {
    let mut scene = Scene::set().await?;
    let connectors: Vec<String> = (0..256).map(|n| format!("made-up-{n}")).collect();
    let connectors: Vec<&str> = connectors.iter().map(String::as_str).collect();
    let (_ws, _) = scene.evil_saying(&hello("evil", &connectors)).await?;
    scene.hub.wait_agents(2).await?;
    until("the series", async || {
        let text = nowconnect_testkit::http::get(scene.hub.http_addr()?, "/metrics").await?;
        ensure!(
            !text.body.contains("made-up"),
            "an agent has named a series"
        );
        Ok(())
    })
    .await?;
    scene.serves().await
}
