//! A hub that asks a decision point, and who comes to it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nowconnect_testkit::lab::{Agent, Hub, HubPlan, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::pdp::{Asked, Pdp, Reply};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};

const DECISIONS: &str = "nowconnect_pdp_decisions_total";
const ERRORS: &str = "nowconnect_listener_errors_total";

pub(crate) fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// A hub with a decision point, an agent behind it, and what the agent leads to.
pub(crate) struct Site {
    pub(crate) hub: Hub,
    _agent: Agent,
    pub(crate) target: Target,
}

impl Site {
    pub(crate) async fn start(lab: &Lab, plan: HubPlan<'_>) -> Result<Self> {
        let target = Target::echo().await?;
        let hub = plan.listener("echo").start().await?;
        let agent = lab.attach(&hub, &[("echo", target.addr())]).await?;
        Ok(Self {
            hub,
            _agent: agent,
            target,
        })
    }
}

pub(crate) async fn served(hub: &Hub) -> Result<TcpStream> {
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;
    Ok(client)
}

/// Turns a client away, and counts it as `why`.
pub(crate) async fn turned_away(hub: &Hub, why: &str) -> Result<()> {
    let before = hub.metric(ERRORS, &[("type", why)]).await?;
    hub.turns_away("echo").await?;
    hub.wait_metric(ERRORS, &[("type", why)], |value| value == before + 1.0)
        .await?;
    Ok(())
}

pub(crate) async fn decisions(hub: &Hub, result: &str) -> Result<f64> {
    let labels = [("result", result), ("connector", "echo")];
    let by_connector = hub.metric(DECISIONS, &labels).await?;
    let total = match result {
        "error" => "nowconnect_pdp_errors_total".to_owned(),
        result => format!("nowconnect_pdp_{result}_total"),
    };
    ensure!(hub.metric(&total, &[]).await? == by_connector);
    Ok(by_connector)
}

pub(crate) async fn configure(hub: &mut Hub, pdp: Value) -> Result<()> {
    let mark = hub.log().mark();
    hub.rewrite("pdp", pdp)?;
    hub.reload().await?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    Ok(())
}

/// A client at `echo` that comes from `address`.
pub(crate) async fn from(address: [u8; 4], hub: &Hub) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    Ok(socket.connect(hub.listener_addr("echo")?).await?)
}

/// `hub-a`, which asks `pdp` and waits so long for it.
pub(crate) fn asking<'a>(lab: &'a Lab, pdp: &Pdp, timeout_ms: u64) -> HubPlan<'a> {
    let plan = lab.hub("hub-a").set("pdp.url", pdp.url());
    plan.set("pdp.timeout_ms", timeout_ms)
}

/// Allows `site-2` alone.
pub(crate) fn only_site_2(asked: &Asked) -> Reply {
    match asked.agent() {
        "site-2" => Reply::allow(),
        _ => Reply::deny(),
    }
}
