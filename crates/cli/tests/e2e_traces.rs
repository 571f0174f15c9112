//! Spans of flows: one trace over all processes of a path, and a collector that fails harms nobody.
#![cfg(feature = "otel")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::collector::{Collector, Reply, Span};
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy};
use nowconnect_testkit::lab::{AgentPlan, HubPlan, Lab, peers};
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pdp::{Pdp, Reply as PdpReply};
use nowconnect_testkit::ports;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::wait::until;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const DROPPED: &str = "nowconnect_trace_spans_dropped_total";
const EXPORTED: &str = "nowconnect_trace_spans_exported_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Who is told of flows, and where they lead.
struct Scene {
    lab: Lab,
    collector: Collector,
    echo: Target,
}

impl Scene {
    /// With a collector that answers so.
    async fn new(reply: Reply) -> Result<Self> {
        Ok(Self {
            lab: lab()?,
            collector: Collector::start(reply).await?,
            echo: Target::echo().await?,
        })
    }

    /// A hub with the listener `echo` that tells the collector.
    fn hub(&self, name: &str) -> HubPlan<'_> {
        let hub = self.lab.hub(name).listener("echo");
        hub.env(ENDPOINT, &self.collector.url())
    }

    /// An agent that exports the target, and tells nobody.
    fn untraced_agent(&self) -> AgentPlan<'_> {
        self.lab.agent_for(&[("echo", self.echo.addr())])
    }

    /// An agent that exports the target and tells the collector.
    fn agent(&self) -> AgentPlan<'_> {
        self.untraced_agent().env(ENDPOINT, &self.collector.url())
    }

    /// The span of the flow that `client` makes, behind those of earlier ones.
    async fn flow_of(&self, client: impl Future<Output = Result<()>>) -> Result<Span> {
        let spans = self.collector.spans();
        let before = spans.iter().filter(|span| span.name == "flow").count();
        client.await?;
        let mut flows = self.collector.wait("flow", before + 1).await?;
        Ok(flows.remove(before))
    }

    /// The spans called `name` of the same trace.
    fn beside(&self, flow: &Span, name: &str) -> Vec<Span> {
        let mut spans = self.collector.spans();
        spans.retain(|span| span.trace == flow.trace && span.name == name);
        spans
    }
}

/// Sends a word, gets it back, and leaves in order.
async fn say(mut client: TcpStream) -> Result<()> {
    client.write_all(b"payload-of-the-client").await?;
    let mut back = [0; 21];
    client.read_exact(&mut back).await?;
    client.shutdown().await?;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await?;
    ensure!(rest.is_empty(), "{rest:?}");
    Ok(())
}

fn the<'a>(spans: &'a [Span], service: &str, name: &str) -> Result<&'a Span> {
    let found: Vec<_> = spans
        .iter()
        .filter(|span| span.process.0 == service && span.name == name)
        .collect();
    ensure!(found.len() == 1, "{} of {service} {name}", found.len());
    Ok(found[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_crosses_hubs_and_agent() -> Result<()> {
    let (scene, redis) = (Scene::new(Reply::Ok).await?, Redis::start().await?);
    let plans = ["hub-a", "hub-b"].map(|name| scene.hub(name));
    let mut plans = peers(plans.into(), "active", &redis.url()).into_iter();
    let (owner, origin) = (plans.next().context("one")?, plans.next().context("two")?);
    let (mut owner, mut origin) = (owner.spawn()?, origin.spawn()?);
    owner.wait_ready().await?;
    origin.wait_ready().await?;
    let agent = scene.agent().to(&owner).start().await?;
    until("a way to the agent", async || {
        let mesh = origin.mesh().await?;
        let routes = mesh["routes"].as_array().map_or(0, Vec::len);
        ensure!(
            routes == 1 && mesh.to_string().contains("established"),
            "{mesh}"
        );
        Ok(())
    })
    .await?;
    say(origin.connect("echo").await?).await?;
    for (span, count) in [("forward", 1), ("flow", 1), ("relay", 2)] {
        scene.collector.wait(span, count).await?;
    }

    let spans = scene.collector.spans();
    let flow = the(&spans, "nowconnect-hub", "flow")?;
    let forward = the(&spans, "nowconnect-hub", "forward")?;
    let dial = the(&spans, "nowconnect-agent", "dial")?;
    let relayed = the(&spans, "nowconnect-agent", "relay")?;
    assert_eq!(flow.parent, "");
    assert_eq!((flow.kind, forward.kind, dial.kind), (2, 2, 3));
    for name in ["accept", "admit", "route", "open", "relay"] {
        let stage = the(&spans, "nowconnect-hub", name)?;
        assert_eq!(stage.parent, flow.id, "{name}");
        assert!(!stage.parent_is_remote, "{name}");
        assert!(flow.start <= stage.start && stage.start <= stage.end && stage.end <= flow.end);
    }
    assert_eq!(forward.parent, flow.id);
    assert_eq!([&dial.parent, &relayed.parent], [&forward.id, &forward.id]);
    assert!(
        [forward, dial, relayed]
            .iter()
            .all(|span| span.parent_is_remote)
    );
    assert!(
        spans.iter().all(|span| span.trace == flow.trace),
        "{spans:?}"
    );
    assert_eq!(spans.len(), 9, "{spans:?}");

    let instances = [flow, forward, dial].map(|span| &*span.process.1);
    assert_eq!(instances, ["hub-b", "hub-a", "site-1"]);
    assert!(spans.iter().all(|span| span.error.is_none()));
    let cid = flow.get("nowconnect.cid");
    for span in [forward, dial, relayed] {
        assert_eq!(span.get("nowconnect.cid"), cid);
    }
    assert_eq!(flow.get("client.address"), "127.0.0.1");
    assert_eq!(flow.get("nowconnect.agent.id"), "site-1");
    assert_eq!(flow.get("nowconnect.owner"), "hub-a");
    assert_eq!(forward.get("nowconnect.origin"), "hub-b");
    assert_eq!(
        dial.get("server.port"),
        scene.echo.addr().port().to_string()
    );
    let relay = the(&spans, "nowconnect-hub", "relay")?;
    for span in [relay, forward, relayed] {
        assert_eq!(span.get("nowconnect.bytes_c2a"), "21");
        assert_eq!(span.get("nowconnect.bytes_a2c"), "21");
        assert_eq!(span.get("nowconnect.reason"), "finished");
    }
    let open = the(&spans, "nowconnect-hub", "open")?;
    assert_eq!(open.events.len(), 1);
    assert_eq!(open.events[0].0, "offered");
    assert_eq!(open.events[0].1["nowconnect.agent.id"], "site-1");
    assert!(!format!("{spans:?}").contains("payload-of"));
    drop(agent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_carry_what_the_environment_says() -> Result<()> {
    let scene = Scene::new(Reply::Ok).await?;
    let collector = &scene.collector;
    let hub = scene
        .hub("hub-a")
        .set("observability.log_level", "TRACE")
        .env(ENDPOINT, "http://127.0.0.1:9")
        .env(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &format!("{}/own/path", collector.url()),
        )
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-api-key=hunter%202,x-tenant=blue",
        )
        .env("OTEL_SERVICE_NAME", "front")
        .env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test,service.version=7",
        )
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "")
        .start()
        .await?;
    // The agent does not trace, which harms nobody.
    let _agent = scene.untraced_agent().to(&hub).start().await?;
    say(hub.connect("echo").await?).await?;
    let flow = collector.wait("flow", 1).await?.remove(0);
    assert_eq!(flow.process, ("front".to_owned(), "hub".to_owned()));
    let resource = collector.resources().remove(0);
    assert_eq!(resource["deployment.environment.name"], "test");
    assert_eq!(resource["service.version"], "7");
    let head = collector.heads().remove(0).to_lowercase();
    assert!(head.starts_with("post /own/path http/1.1\r\n"), "{head}");
    for line in [
        "x-api-key: hunter 2",
        "x-tenant: blue",
        "content-type: application/x-protobuf",
    ] {
        assert!(head.contains(line), "{head}");
    }
    hub.wait_metric(EXPORTED, &[], |spans| spans >= 6.0).await?;
    assert_eq!(hub.metric(DROPPED, &[]).await?, 0.0);
    assert!(!hub.log().text().contains("hunter"), "{}", hub.log().text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_errors() -> Result<()> {
    let scene = Scene::new(Reply::Ok).await?;
    let nobody = ports::local(ports::reserve()?);
    let hub = scene
        .hub("hub-a")
        .listener_with("closed", "dead", json!({ "allow_cidrs": ["192.0.2.0/24"] }))
        .listener_with("unknown", "nowhere", json!({}))
        .listener("dead");
    let hub = hub.start().await?;
    let agent = scene.agent().target("dead", nobody).to(&hub);
    let _agent = agent.start().await?;
    for (listener, stage, error) in [
        ("closed", "admit", "cidr_blocked"),
        ("unknown", "route", "no_agent"),
        ("dead", "open", "connect_failed"),
    ] {
        let flow = scene.flow_of(hub.turns_away(listener)).await?;
        assert_eq!(flow.error.as_deref(), Some(error), "{flow:?}");
        assert_eq!(flow.get("error.type"), error);
        assert_eq!(flow.get("nowconnect.listener"), listener);
        let stages = scene.beside(&flow, stage);
        let failed = the(&stages, "nowconnect-hub", stage)?;
        assert_eq!(failed.error.as_deref(), Some(error), "{stage}");
    }
    let dial = scene.collector.wait("dial", 1).await?.remove(0);
    assert_eq!(dial.error.as_deref(), Some("connect_failed"));
    assert_eq!(dial.get("server.address"), "127.0.0.1");
    let open = scene.collector.wait("open", 1).await?.remove(0);
    let events: Vec<_> = open.events.iter().map(|event| &*event.0).collect();
    assert_eq!(events, ["offered", "refused"]);
    Ok(())
}

/// Of two agents the one whose target is dead refuses, whichever is asked first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_and_attempts_are_told() -> Result<()> {
    let scene = Scene::new(Reply::Ok).await?;
    let pdp = Pdp::start(PdpReply::allow()).await?;
    let hub = scene.hub("hub-a").set("pdp.url", pdp.url());
    let hub = hub.set("pdp.cache_ttl_sec", 0).start().await?;
    let nobody = ports::local(ports::reserve()?);
    let dead = scene.lab.agent("site-1").target("echo", nobody);
    let _dead = dead.to(&hub).start().await?;
    let flow = scene.flow_of(hub.turns_away("echo")).await?;
    assert_eq!(flow.error.as_deref(), Some("connect_failed"));

    let alive = scene.lab.agent("site-2").target("echo", scene.echo.addr());
    let _alive = alive.to(&hub).start().await?;
    let mut tries = Vec::new();
    // They take turns, so the dead one is the first soon.
    for _ in 0..10 {
        let flow = scene.flow_of(say(hub.connect("echo").await?)).await?;
        assert_eq!(flow.error, None);
        assert_eq!(flow.get("nowconnect.agent.id"), "site-2");
        tries = scene.beside(&flow, "open");
        if tries.len() == 2 {
            break;
        }
    }
    ensure!(tries.len() == 2, "the dead agent is never the first");
    let events = |span: &Span| -> Vec<String> {
        let events = span.events.iter();
        events
            .map(|(name, said)| {
                let said = said
                    .get("nowconnect.agent.id")
                    .or(said.get("nowconnect.reason"));
                format!("{name} {}", said.map_or("", String::as_str))
            })
            .collect()
    };
    assert_eq!(
        events(&tries[0]),
        ["offered site-1", "refused connect_failed"]
    );
    assert_eq!(events(&tries[1]), ["offered site-2"]);
    let asked = scene.collector.wait("pdp", 3).await?;
    assert!(
        asked
            .iter()
            .all(|span| span.error.is_none() && span.kind == 3)
    );

    pdp.say(PdpReply::deny());
    let flow = scene.flow_of(hub.turns_away("echo")).await?;
    assert_eq!(flow.error.as_deref(), Some("pdp_denied"));
    let asked = scene.beside(&flow, "pdp");
    for span in &asked {
        assert_eq!(span.error.as_deref(), Some("pdp_denied"));
    }
    assert_eq!(asked.len(), 2, "one for each agent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_path_is_an_event() -> Result<()> {
    let scene = Scene::new(Reply::Ok).await?;
    let hub = scene.hub("hub-a").start().await?;
    let proxy = FaultProxy::start(hub.tunnel_addr()?).await?;
    let _agent = scene.agent().via(proxy.addr()).start().await?;
    let mut client = hub.connect("echo").await?;
    client.write_all(b"x").await?;
    client.read_u8().await?;
    proxy.cut(Cut::Reset);
    hub.log().wait_event("agent_disconnected").await?;
    say(client).await?;
    for span in scene.collector.wait("relay", 2).await? {
        let events: Vec<_> = span.events.iter().map(|event| &*event.0).collect();
        match &*span.process.0 {
            "nowconnect-hub" => assert_eq!(events, ["path_lost", "path_changed"]),
            _ => assert_eq!(events, ["path_lost"]),
        }
        assert_eq!(span.error, None);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_fails_is_told_of_once_and_recovers() -> Result<()> {
    let scene = Scene::new(Reply::Status(503)).await?;
    let collector = &scene.collector;
    let hub = scene.hub("hub-a").start().await?;
    let _agent = scene.untraced_agent().to(&hub).start().await?;
    say(hub.connect("echo").await?).await?;
    collector.wait_asked(2).await?;
    collector.say(Reply::Ok);
    // The same spans are sent again.
    collector.wait("flow", 1).await?;
    hub.log().wait_event("traces_recovered").await?;
    let failing = hub.log().events("traces_failing", Mark::default());
    assert_eq!(failing.len(), 1);
    assert!(failing[0].text("error").contains("503"), "{:?}", failing[0]);

    // These are not.
    collector.say(Reply::Status(400));
    say(hub.connect("echo").await?).await?;
    let failed = [("reason", "export_failed")];
    hub.wait_metric(DROPPED, &failed, |spans| spans == 6.0)
        .await?;
    collector.say(Reply::Rejects(1));
    say(hub.connect("echo").await?).await?;
    // One of each request.
    hub.wait_metric(DROPPED, &failed, |spans| spans > 6.0)
        .await?;
    hub.wait_metric(EXPORTED, &[], |spans| spans > 6.0).await?;
    let failing = hub.log().events("traces_failing", Mark::default());
    assert_eq!(failing.len(), 2, "one for each outage");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_holds_nobody_up() -> Result<()> {
    let scene = Scene::new(Reply::Never).await?;
    let dead = format!("http://{}", ports::local(ports::reserve()?));
    let mut hub = scene.hub("hub-a").start().await?;
    let agent = scene.untraced_agent().to(&hub).env(ENDPOINT, &dead);
    let mut agent = agent.start().await?;
    for _ in 0..50 {
        say(hub.connect("echo").await?).await?;
    }
    scene.collector.wait_asked(1).await?;
    agent.log().wait_event("traces_failing").await?;
    for process in [agent.process(), hub.process()] {
        let began = Instant::now();
        process.signal(Signal::Term).await?;
        assert!(process.wait_exit().await?.success());
        ensure!(
            began.elapsed() < Duration::from_secs(8),
            "{:?}",
            began.elapsed()
        );
        let lost = process.log().events("traces_incomplete", Mark::default());
        assert_eq!(lost.len(), 1, "{}", process.log().text());
        assert_eq!(lost[0].number("sent"), Some(0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_decides_for_all_which_flows_are_traced() -> Result<()> {
    let scene = Scene::new(Reply::Ok).await?;
    let hub = scene.hub("hub-a");
    let hub = hub.env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
    let mut hub = hub.env("OTEL_TRACES_SAMPLER_ARG", "0").start().await?;
    let mut agent = scene.agent().to(&hub).start().await?;
    for _ in 0..20 {
        say(hub.connect("echo").await?).await?;
    }
    for process in [agent.process(), hub.process()] {
        process.signal(Signal::Term).await?;
        assert!(process.wait_exit().await?.success());
    }
    assert_eq!(scene.collector.heads().len(), 0);
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense_is_said_at_the_start() -> Result<()> {
    let lab = lab()?;
    let endpoint = [(ENDPOINT, "http://127.0.0.1:4318")];
    for (var, value, said) in [
        (
            ENDPOINT,
            "collector:4318",
            "observability.otlp_endpoint: expected a URL",
        ),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "spans are sent as http/protobuf, not as grpc",
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "hunter2",
            "expected text (name=value, with commas between)",
        ),
        (
            "OTEL_TRACES_SAMPLER",
            "parentbased_traceidration",
            "did you mean parentbased_traceidratio?",
        ),
        (
            "OTEL_TRACES_SAMPLER_ARG",
            "2",
            "expected a number from 0 to 1",
        ),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "a",
            "expected text (name=value)",
        ),
    ] {
        let mut command = lab.command(&["hub"]);
        command.envs(endpoint).env(var, value);
        let finished = nowconnect_testkit::program::finish(&mut command).await?;
        assert_eq!(finished.status.code(), Some(2), "{var}: {finished:?}");
        assert!(finished.stderr.contains(var), "{var}: {finished:?}");
        assert!(finished.stderr.contains(said), "{var}: {finished:?}");
        assert!(!finished.stderr.contains("hunter2"), "{finished:?}");
    }
    Ok(())
}
