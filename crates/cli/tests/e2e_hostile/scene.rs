//! The place of a crime: a hub, an honest agent, and a target behind it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::http::{self, Answer};
use nowconnect_testkit::lab::{Agent, Hub, HubPlan, Lab};
use nowconnect_testkit::log::Event;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::raw_ws::{Closed, RawWs, v2};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use serde_json::json;

pub(crate) const V2: &str = "nowconnect.v2";
pub(crate) const ERRORS: &str = "nowconnect_protocol_errors_total";
pub(crate) const AUTH: &str = "nowconnect_auth_failures_total";
pub(crate) const LISTENER: &str = "nowconnect_listener_errors_total";

/// Frame types of version 2.
pub(crate) mod kind {
    pub(crate) const HELLO: u8 = 0x01;
    pub(crate) const HELLO_ACK: u8 = 0x02;
    pub(crate) const UPDATE: u8 = 0x03;
    pub(crate) const TOKEN: u8 = 0x05;
    pub(crate) const TOKEN_ACK: u8 = 0x06;
    pub(crate) const PING: u8 = 0x07;
    pub(crate) const OPEN: u8 = 0x10;
    pub(crate) const OPEN_ACK: u8 = 0x11;
    pub(crate) const REFUSE: u8 = 0x12;
    pub(crate) const DATA: u8 = 0x13;
    pub(crate) const FIN: u8 = 0x14;
    pub(crate) const CREDIT: u8 = 0x15;
    pub(crate) const RST: u8 = 0x16;
    pub(crate) const DETACH: u8 = 0x17;
}

pub(crate) fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Numbers of the wire, big endian, one after another.
pub(crate) fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// The body of an OPEN.
pub(crate) struct Open<'a> {
    pub(crate) cid: u128,
    pub(crate) secret: u128,
    pub(crate) epoch: u64,
    pub(crate) limit: u64,
    pub(crate) connector: &'a str,
    pub(crate) agent: &'a str,
}

impl<'a> Open<'a> {
    /// One that is as it should be, over a tunnel.
    pub(crate) fn new(connector: &'a str, epoch: u64) -> Self {
        Self {
            cid: 7,
            secret: 7,
            epoch,
            limit: 100_000,
            connector,
            agent: "",
        }
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = self.cid.to_be_bytes().to_vec();
        body.extend(self.secret.to_be_bytes());
        body.extend(numbers(&[self.epoch, 0, self.limit]));
        body.push(u8::try_from(self.connector.len()).unwrap());
        body.extend(self.connector.as_bytes());
        if !self.agent.is_empty() {
            body.push(3);
            body.extend(u16::try_from(self.agent.len()).unwrap().to_be_bytes());
            body.extend(self.agent.as_bytes());
        }
        body
    }
}

/// A HELLO as an agent of ours says it.
pub(crate) fn hello(agent_id: &str, connectors: &[&str]) -> serde_json::Value {
    json!({
        "agent_id": agent_id, "instance": "00112233445566778899aabbccddeeff",
        "connectors": connectors, "version": "9", "epoch_seen": 0, "epoch_held": 0,
        "initial_window": 32768, "max_payload": 65536, "features": [],
    })
}

/// A hub `hub-a` with the listeners `echo` (served by the honest agent) and `evil` (for whoever exports
/// that), the honest agent `site-1`, and its target.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) hub: Hub,
    pub(crate) agent: Agent,
    pub(crate) server: Target,
}

impl Scene {
    pub(crate) async fn set() -> Result<Self> {
        Self::set_with(|plan| plan).await
    }

    pub(crate) async fn set_with(adjust: impl FnOnce(HubPlan<'_>) -> HubPlan<'_>) -> Result<Self> {
        let (lab, server) = (lab()?, Target::echo().await?);
        let plan = lab.hub("hub-a").listener("echo").listener("evil");
        let hub = adjust(plan.set("observability.log_level", "DEBUG"))
            .start()
            .await?;
        let agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
        Ok(Self {
            lab,
            hub,
            agent,
            server,
        })
    }

    pub(crate) fn tunnel(&self) -> SocketAddr {
        self.hub.tunnel_addr().unwrap()
    }

    pub(crate) fn token(&self, agent_id: &str) -> String {
        self.lab.issuer().token(agent_id).unwrap()
    }

    /// Asks for `/tunnel` with this Authorization header.
    pub(crate) async fn ask(&self, authorization: &str) -> Result<Answer> {
        let headers = http::upgrade_headers(authorization);
        http::request(self.tunnel(), "GET", "/tunnel", &headers, "").await
    }

    /// An upgraded WebSocket of the agent `evil`, which has said nothing yet.
    pub(crate) async fn upgraded(&self) -> Result<RawWs> {
        RawWs::tunnel(self.tunnel(), &self.token("evil"), Some(V2)).await
    }

    /// A tunnel of the agent `evil`, which exports `evil`, and its epoch.
    pub(crate) async fn evil(&self) -> Result<(RawWs, u64)> {
        self.evil_saying(&hello("evil", &["evil"])).await
    }

    pub(crate) async fn evil_saying(&self, hello: &serde_json::Value) -> Result<(RawWs, u64)> {
        let mut ws = self.upgraded().await?;
        ws.binary(&v2(kind::HELLO, 0, hello.to_string().as_bytes()))
            .await?;
        let ack = ws.frame_of(kind::HELLO_ACK).await?;
        let ack: serde_json::Value = serde_json::from_slice(&ack.body)?;
        let epoch = ack["epoch"].as_u64().context("epoch")?;
        Ok((ws, epoch))
    }

    /// Waits until a counter of the hub stands at exactly `value`.
    pub(crate) async fn counted(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) -> Result<()> {
        self.hub
            .wait_metric(name, labels, |found| found == value)
            .await?;
        Ok(())
    }

    /// Waits until `nowconnect_protocol_errors_total` for this interface and kind has reached `least`.
    pub(crate) async fn offended(&self, interface: &str, kind: &str, least: f64) -> Result<()> {
        let labels = [("interface", interface), ("kind", kind)];
        self.hub
            .wait_metric(ERRORS, &labels, |found| found >= least)
            .await?;
        Ok(())
    }

    pub(crate) async fn logged(&self, event: &str, reason: &str) -> Result<Event> {
        let log = self.hub.log();
        log.wait_event_where(event, Default::default(), |event| {
            event.text("reason") == reason
        })
        .await
    }

    /// Waits until the tunnel of `evil` has ended; the event says why.
    pub(crate) async fn evil_gone(&self) -> Result<Event> {
        let gone = |event: &Event| event.text("agent_id") == "evil";
        let log = self.hub.log();
        log.wait_event_where("agent_disconnected", Default::default(), gone)
            .await
    }

    /// Everybody lives, and an honest client is served through the honest agent.
    pub(crate) async fn serves(&mut self) -> Result<()> {
        self.hub.process().check_alive()?;
        self.agent.process().check_alive()?;
        echo(&mut self.hub.connect("echo").await?, Pattern(1), 0, 5000).await?;
        self.hub.metrics().await.map(drop)
    }
}

/// Checks status and error code of an answer, and that the connection serves nothing more.
pub(crate) fn refused(answer: &Answer, status: u16, code: &str) -> Result<()> {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    ensure!(
        answer.status == status && (code.is_empty() || body["error"] == code),
        "{status} {code} was due: {answer:?}"
    );
    ensure!(
        answer.header("connection") == Some("close"),
        "the connection stays open: {answer:?}"
    );
    Ok(())
}

/// Checks how a WebSocket was closed.
pub(crate) fn closed_with(closed: &Closed, code: u16, reason: &str) -> Result<()> {
    ensure!(
        (closed.code, closed.reason.as_str()) == (Some(code), reason),
        "{code} {reason} was due: {closed:?}"
    );
    Ok(())
}
