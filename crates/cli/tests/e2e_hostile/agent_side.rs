//! A hub that an agent trusts and should not.
//!
//! The agent keeps a tunnel to an honest hub as well; clients of that one are served throughout.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::lab::{Agent, Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::raw_ws::{RawWs, put_frame, v2};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::{until, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::list::cases;
use crate::scene::{ERRORS, Open, V2, kind, lab};

const FAILED: &str = "nowconnect_agent_connect_failures_total";
const REFUSED: &str = "nowconnect_agent_refused_total";

cases! { "A hub, as its agent sees it";
    a_hub_that_answers_with_a_page: "the end; the agent tries again later", "`nowconnect_agent_connect_failures_total{reason=\"upgrade\"}` of the agent +1, `tunnel_failed`" => answered(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml", "upgrade");
    a_hub_that_redirects: "the end; the redirect is not followed, the token goes nowhere else", "`nowconnect_agent_connect_failures_total{reason=\"upgrade\"}` of the agent +1, `tunnel_failed`" => redirected();
    a_hub_that_accepts_another_key: "the end", "`nowconnect_agent_connect_failures_total{reason=\"upgrade\"}` of the agent +1, `tunnel_failed`" => answered(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n", "upgrade");
    a_hub_that_speaks_http_2: "the end", "`nowconnect_agent_connect_failures_total{reason=\"upgrade\"}` of the agent +1, `tunnel_failed`" => answered(b"\0\0\x12\x04\0\0\0\0\0", "upgrade");
    a_hub_with_a_megabyte_of_header: "the end", "`nowconnect_agent_connect_failures_total{reason=\"upgrade\"}` of the agent +1, `tunnel_failed`" => huge_head();
    a_hub_that_never_answers: "the end after 10 s", "`nowconnect_agent_connect_failures_total{reason=\"handshake_timeout\"}` of the agent +1, `tunnel_failed`" => silent();
    a_hub_that_never_acknowledges: "the end after 10 s", "`nowconnect_agent_connect_failures_total{reason=\"handshake_timeout\"}` of the agent +1, `tunnel_failed`" => no_ack();
    a_hub_that_chooses_a_protocol_that_was_not_offered: "the end", "`nowconnect_agent_connect_failures_total{reason=\"upgrade\"}` of the agent +1, `tunnel_failed`" => odd_protocol();
    an_acknowledgement_that_is_no_json: "the end", "`nowconnect_agent_connect_failures_total{reason=\"protocol\"}` of the agent +1, `tunnel_failed`" => bad_ack(b"]");
    an_acknowledgement_without_a_window: "the end", "`nowconnect_agent_connect_failures_total{reason=\"protocol\"}` of the agent +1, `tunnel_failed`" => bad_ack(br#"{"hub":"x","epoch":1,"initial_window":0,"max_payload":0,"ping_interval_ms":1,"ping_timeout_ms":1,"resume_grace_ms":1}"#);
    a_hub_with_a_name_in_colours: "the end", "`nowconnect_agent_connect_failures_total{reason=\"protocol\"}` of the agent +1, `tunnel_failed` in one clean line" => coloured();
    a_masked_frame_of_a_hub: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` of the agent +1" => on_link(masked(), "websocket");
    a_hub_s_frame_of_2_to_the_62: "close 1009 `protocol_error` before a byte is set aside", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"websocket\"}` of the agent +1" => closed_with(1009, vec![0x82, 0x7f, 0x40, 0, 0, 0, 0, 0, 0, 0], "websocket");
    a_hub_s_hello: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unexpected_frame\"}` of the agent +1" => on_link(whole(&v2(kind::HELLO, 0, b"{}")), "unexpected_frame");
    an_update_for_an_agent: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"unexpected_frame\"}` of the agent +1" => on_link(whole(&v2(kind::UPDATE, 0, br#"{"connectors":["x"]}"#)), "unexpected_frame");
    an_open_that_is_cut_short: "close 1002 `protocol_error`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"malformed\"}` of the agent +1" => on_link(whole(&v2(kind::OPEN, 1, &[0; 20])), "malformed");
    an_open_whose_name_is_a_path: "REFUSE `unknown_connector`; nothing is dialed", "`nowconnect_agent_refused_total{connector=\"other\",reason=\"unknown_connector\"}` of the agent +1, `flow_refused`" => refuses("127.0.0.1:22", 0, 19, "unknown_connector");
    an_open_for_a_connector_that_is_not_exported: "REFUSE `unknown_connector`; nothing is dialed", "`nowconnect_agent_refused_total{connector=\"other\",reason=\"unknown_connector\"}` of the agent +1, `flow_refused`" => refuses("pg", 0, 19, "unknown_connector");
    an_open_under_an_epoch_that_was_not_granted: "REFUSE `stale_epoch`; nothing is dialed", "`nowconnect_agent_refused_total{connector=\"echo\",reason=\"stale_epoch\"}` of the agent +1" => refuses("echo", 1, 37, "stale_epoch");
    an_honest_hub_s_flow_with_another_secret: "REFUSE `denied`; the flow goes on", "`nowconnect_agent_refused_total{connector=\"echo\",reason=\"denied\"}` of the agent +1" => stolen();
    opens_beyond_what_the_agent_may_hold: "REFUSE `limit`", "`nowconnect_agent_refused_total{connector=\"echo\",reason=\"limit\"}` of the agent +5" => limit();
    opens_and_resets_as_fast_as_a_hub_can_write: "RST, once for each", "`nowconnect_tcp_active_connections` of the agent is back at 0, its descriptors too; the log stays small" => rapid();
    data_of_a_hub_for_no_flow_without_end: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` of the agent +1; the log stays small" => flood(v2(kind::DATA, 77, &[0; 9]));
    pings_of_a_hub_without_end: "close 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"flood\"}` of the agent +1" => flood(v2(kind::PING, 0, &[0; 8]));
    answers_that_nobody_asked_for: "close 1002 `protocol_error` or 1008 `flood`", "`nowconnect_protocol_errors_total{interface=\"tunnel\",kind=\"control_flood\"}` or `flood` of the agent +1" => flood(v2(0x04, 0, br#"{"accepted":[],"rejected":[]}"#));
    the_highest_epoch_of_a_hub: "the end: no tunnel of an honest hub is given up for it", "`nowconnect_agent_connect_failures_total{reason=\"protocol\"}` of the agent +1, `tunnel_failed`" => highest_epoch();
}

/// A hub of our own making, and the agent that dials it besides an honest one.
struct Trap {
    _lab: Lab,
    rogue: TcpListener,
    hub: Hub,
    agent: Agent,
    server: Target,
}

impl Trap {
    async fn set() -> Result<Self> {
        Self::set_with(&[]).await
    }

    async fn set_with(more: &[(&str, u64)]) -> Result<Self> {
        let (lab, server) = (lab()?, Target::echo().await?);
        let hub = lab.hub("hub-a").listener("echo").start().await?;
        let rogue = TcpListener::bind("127.0.0.1:0").await?;
        let urls = [hub.tunnel_addr()?, rogue.local_addr()?];
        let urls: Vec<_> = urls.iter().map(|to| format!("ws://{to}/tunnel")).collect();
        let agent = lab.agent("site-1").target("echo", server.addr());
        let agent = more
            .iter()
            .fold(agent, |agent, (key, value)| agent.set(key, *value));
        let agent = agent.set("tunnel.urls", json!(urls)).start().await?;
        hub.wait_agents(1).await?;
        Ok(Self {
            _lab: lab,
            rogue,
            hub,
            agent,
            server,
        })
    }

    async fn dialed(&self) -> Result<TcpStream> {
        Ok(within("the agent to dial", self.rogue.accept()).await??.0)
    }

    /// The agent's tunnel to the rogue, and the epoch that the agent says it holds.
    async fn upgraded(&self) -> Result<(RawWs, u64)> {
        let mut ws = RawWs::accept(self.dialed().await?, Some(V2)).await?;
        let hello = ws.frame_of(kind::HELLO).await?;
        let hello: Value = serde_json::from_slice(&hello.body)?;
        Ok((ws, hello["epoch_held"].as_u64().context("epoch_held")?))
    }

    /// A tunnel that the rogue has acknowledged, and its epoch.
    async fn tunnel(&self) -> Result<(RawWs, u64)> {
        let (mut ws, held) = self.upgraded().await?;
        let epoch = held.max(1);
        ws.binary(&v2(kind::HELLO_ACK, 0, ack(epoch).as_bytes()))
            .await?;
        Ok((ws, epoch))
    }

    async fn counted(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Result<()> {
        until(name, async || {
            let found = self.agent.metrics().await?.sum(name, labels);
            ensure!(found >= value, "{labels:?} is {found}");
            Ok(())
        })
        .await
        .with_context(|| self.agent.log().tail())
    }

    async fn serves(&mut self) -> Result<()> {
        self.agent.process().check_alive()?;
        echo(&mut self.hub.connect("echo").await?, Pattern(1), 0, 1000).await?;
        let log = self.agent.log().text();
        ensure!(log.lines().all(|line| line.starts_with('{')), "{log}");
        ensure!(!log.contains('\u{1b}'), "{log}");
        let token = std::fs::read_to_string(self.agent.token_file())?;
        ensure!(!log.contains(token.trim()), "the token is in the log");
        Ok(())
    }
}

fn ack(epoch: u64) -> String {
    json!({
        "hub": "rogue", "epoch": epoch, "initial_window": 32768, "max_payload": 65536,
        "ping_interval_ms": 5000, "ping_timeout_ms": 10000, "resume_grace_ms": 30000, "features": [],
    })
    .to_string()
}

async fn failed(trap: &mut Trap, reason: &str) -> Result<()> {
    trap.counted(FAILED, &[("reason", reason)], 1.0).await?;
    trap.agent.log().wait_event("tunnel_failed").await?;
    trap.serves().await
}

async fn answered(answer: &[u8], reason: &str) -> Result<()> {
    let mut trap = Trap::set().await?;
    let mut socket = trap.dialed().await?;
    socket.read_u8().await?;
    socket.write_all(answer).await?;
    socket.shutdown().await?;
    failed(&mut trap, reason).await
}

async fn redirected() -> Result<()> {
    let mut trap = Trap::set().await?;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await?;
    let mut socket = trap.dialed().await?;
    socket.read_u8().await?;
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{}/tunnel\r\nContent-Length: 0\r\n\r\n",
        elsewhere.local_addr()?
    );
    socket.write_all(answer.as_bytes()).await?;
    failed(&mut trap, "upgrade").await?;
    let followed = tokio::time::timeout(Duration::from_millis(300), elsewhere.accept()).await;
    ensure!(followed.is_err(), "the redirect was followed");
    Ok(())
}

async fn huge_head() -> Result<()> {
    let mut trap = Trap::set().await?;
    let mut socket = trap.dialed().await?;
    socket.read_u8().await?;
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    while head.len() < 1_000_000 {
        head.extend_from_slice(b"X-Filler: 0123456789012345678901234567890123456789\r\n");
    }
    let _ = socket.write_all(&head).await;
    failed(&mut trap, "upgrade").await
}

async fn silent() -> Result<()> {
    let mut trap = Trap::set().await?;
    let _socket = trap.dialed().await?;
    failed(&mut trap, "handshake_timeout").await
}

async fn no_ack() -> Result<()> {
    let mut trap = Trap::set().await?;
    let (_ws, _) = trap.upgraded().await?;
    failed(&mut trap, "handshake_timeout").await
}

async fn odd_protocol() -> Result<()> {
    let mut trap = Trap::set().await?;
    let _ws = RawWs::accept(trap.dialed().await?, Some("nowconnect.v9")).await?;
    failed(&mut trap, "upgrade").await
}

async fn bad_ack(body: &[u8]) -> Result<()> {
    let mut trap = Trap::set().await?;
    let (mut ws, _) = trap.upgraded().await?;
    ws.binary(&v2(kind::HELLO_ACK, 0, body)).await?;
    failed(&mut trap, "protocol").await
}

async fn coloured() -> Result<()> {
    let body = ack(1).replace("rogue", "\\u001b[31mrogue\\n{}");
    bad_ack(body.as_bytes()).await
}

async fn highest_epoch() -> Result<()> {
    bad_ack(ack(u64::MAX).as_bytes()).await
}

fn masked() -> Vec<u8> {
    let mut bytes = Vec::new();
    put_frame(&mut bytes, true, 0x82, b"x");
    bytes
}

fn whole(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_frame(&mut bytes, false, 0x82, frame);
    bytes
}

async fn on_link(bytes: Vec<u8>, kind: &str) -> Result<()> {
    closed_with(1002, bytes, kind).await
}

async fn closed_with(code: u16, bytes: Vec<u8>, kind: &str) -> Result<()> {
    let mut trap = Trap::set().await?;
    let (mut ws, _) = trap.tunnel().await?;
    ws.write(&bytes).await?;
    let closed = ws.closed().await?;
    ensure!(
        (closed.code, closed.reason.as_str()) == (Some(code), "protocol_error"),
        "{closed:?}"
    );
    let labels = [("interface", "tunnel"), ("kind", kind)];
    trap.counted(ERRORS, &labels, 1.0).await?;
    trap.serves().await
}

async fn refuses(connector: &str, off: u64, reason: u16, name: &str) -> Result<()> {
    let mut trap = Trap::set().await?;
    let (mut ws, epoch) = trap.tunnel().await?;
    let body = Open::new(connector, epoch + off).body();
    ws.binary(&v2(kind::OPEN, 1, &body)).await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(
        (refuse.flow, refuse.reason()) == (1, Some(reason)),
        "{refuse:?}"
    );
    trap.counted(REFUSED, &[("reason", name)], 1.0).await?;
    trap.agent.log().wait_event("flow_refused").await?;
    ensure!(trap.server.accepted() == 0, "a target was dialed");
    trap.serves().await
}

async fn stolen() -> Result<()> {
    let mut trap = Trap::set().await?;
    let (mut ws, epoch) = trap.tunnel().await?;
    let mut client = trap.hub.connect("echo").await?;
    echo(&mut client, Pattern(4), 0, 100).await?;
    let cid = trap
        .agent
        .log()
        .wait_event("flow_opened")
        .await?
        .text("cid");
    let cid = u128::from_str_radix(&cid.replace('-', ""), 16)?;
    let thief = Open {
        cid,
        ..Open::new("echo", epoch)
    };
    ws.binary(&v2(kind::OPEN, 1, &thief.body())).await?;
    let refuse = ws.frame_of(kind::REFUSE).await?;
    ensure!(refuse.reason() == Some(20), "{refuse:?}");
    trap.counted(REFUSED, &[("reason", "denied")], 1.0).await?;
    echo(&mut client, Pattern(4), 100, 100).await?;
    trap.serves().await
}

async fn limit() -> Result<()> {
    let mut trap = Trap::set_with(&[("limits.max_inflight_cids", 20)]).await?;
    let (mut ws, epoch) = trap.tunnel().await?;
    for id in 1..=25u32 {
        let open = Open {
            cid: id.into(),
            ..Open::new("echo", epoch)
        };
        ws.binary(&v2(kind::OPEN, id, &open.body())).await?;
    }
    for _ in 0..5 {
        let refuse = ws.frame_of(kind::REFUSE).await?;
        ensure!(refuse.reason() == Some(21), "{refuse:?}");
    }
    trap.counted(REFUSED, &[("reason", "limit")], 5.0).await?;
    drop(ws);
    // The flows of the rogue wait for their path, and honest ones find room when some are reset.
    trap.agent.process().check_alive()
}

async fn rapid() -> Result<()> {
    const OPENS: u32 = 2000;
    let mut trap = Trap::set().await?;
    let (mut ws, epoch) = trap.tunnel().await?;
    let files = trap.agent.open_files()?;
    let lines = trap.agent.log().text().lines().count();
    for id in 1..=OPENS {
        let open = Open {
            cid: id.into(),
            ..Open::new("echo", epoch)
        };
        let frames = [
            v2(kind::OPEN, id, &open.body()),
            v2(kind::RST, id, &[0, 32]),
        ]
        .concat();
        ws.binary(&frames).await?;
    }
    for _ in 1..=OPENS {
        ws.frame_of(kind::RST).await?;
    }
    until("the flows to end", async || {
        let metrics = trap.agent.metrics().await?;
        let active = metrics.sum("nowconnect_tcp_active_connections", &[]);
        let now = trap.agent.open_files()?;
        ensure!(
            active == 0.0 && now <= files + 8,
            "{active} flows, {now} descriptors"
        );
        Ok(())
    })
    .await?;
    let logged = trap.agent.log().text().lines().count() - lines;
    ensure!(logged < 3 * OPENS as usize, "{logged} lines");
    let opened = trap.server.accepted();
    ensure!(opened <= OPENS as usize, "{opened}");
    trap.serves().await
}

async fn flood(frame: Vec<u8>) -> Result<()> {
    let mut trap = Trap::set().await?;
    let (mut ws, _) = trap.tunnel().await?;
    let frames = frame.repeat(2000 / frame.len() + 1);
    let drowned = tokio::time::timeout(Duration::from_secs(20), async {
        while ws.binary(&frames).await.is_ok() {}
    });
    ensure!(drowned.await.is_ok(), "the agent still listens");
    let kinds = ["flood", "control_flood"];
    until("the agent to count", async || {
        let metrics = trap.agent.metrics().await?;
        let found = kinds.map(|kind| metrics.sum(ERRORS, &[("kind", kind)]));
        ensure!(found.iter().sum::<f64>() >= 1.0, "{found:?}");
        Ok(())
    })
    .await?;
    let lines = trap
        .agent
        .log()
        .events("protocol_error", Default::default())
        .len();
    ensure!(lines < 25, "{lines} lines of log");
    trap.serves().await?;
    Ok(())
}
