//! Probes through the tunnel: what they find out, who hears of it, and where clients go then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::http::get;
use nowconnect_testkit::lab::{Agent, Hub, HubPlan, Lab, peers};
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::slapd::Slapd;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::wait::until;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// A probe as quick as may be.
fn probe(kind: &str) -> Value {
    json!({ "type": kind, "interval_sec": 1, "timeout_ms": 1000, "down_after": 2, "up_after": 1 })
}

fn with(mut probe: Value, key: &str, value: impl Into<Value>) -> Value {
    probe[key] = value.into();
    probe
}

/// What `/readyz?verbose` tells of the target.
async fn told(hub: &Hub, agent: &str, connector: &str) -> Result<Value> {
    let ready = get(hub.http_addr()?, "/readyz?verbose").await?;
    ensure!(ready.status == 200, "{ready:?}");
    let body: Value = serde_json::from_str(&ready.body)?;
    let targets = body["probes"]["targets"].as_array().context("targets")?;
    let one = |target: &&Value| target["agent_id"] == agent && target["connector"] == connector;
    let found = targets.iter().find(one);
    found.cloned().with_context(|| format!("{body}"))
}

async fn wait_state(hub: &Hub, agent: &str, connector: &str, state: &str) -> Result<Value> {
    until(state, async || {
        let told = told(hub, agent, connector).await?;
        ensure!(told["state"] == state, "{told}");
        Ok(told)
    })
    .await
}

/// An HTTP server that says who it is, and can be made to say that it is not well.
struct Site {
    target: Target,
    well: Arc<AtomicBool>,
}

impl Site {
    async fn start(name: &'static str) -> Result<Self> {
        let well = Arc::new(AtomicBool::new(true));
        let now = well.clone();
        let target = Target::serve(move |mut stream| {
            let now = now.clone();
            async move {
                let (mut request, mut piece) = (Vec::new(), [0; 1024]);
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut piece).await? {
                        0 => return Ok(request.len() as u64),
                        len => request.extend_from_slice(&piece[..len]),
                    }
                }
                let status = if now.load(Ordering::Relaxed) {
                    200
                } else {
                    503
                };
                let answer = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n\r\n{name}");
                stream.write_all(answer.as_bytes()).await?;
                Ok(request.len() as u64)
            }
        });
        Ok(Self {
            target: target.await?,
            well,
        })
    }

    fn set_well(&self, well: bool) {
        self.well.store(well, Ordering::Relaxed);
    }
}

/// Who answers clients of the hub, one after the other.
async fn answering(hub: &Hub, times: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for _ in 0..times {
        names.push(get(hub.listener_addr("web")?, "/").await?.body);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

async fn agent(lab: &Lab, id: &str, hub: &Hub, site: &Site) -> Result<Agent> {
    lab.agent(id)
        .target("web", site.target.addr())
        .to(hub)
        .start()
        .await
}

#[tokio::test]
async fn a_directory_that_dies_is_noticed_and_its_return_too() -> Result<()> {
    let (lab, mut slapd) = (lab()?, Slapd::start(5).await?);
    let ca = slapd.ca_file().display().to_string();
    let ldaps = with(
        with(probe("ldaps"), "ca_file", ca.clone()),
        "server_name",
        "localhost",
    );
    let starttls = with(
        with(probe("ldap"), "ca_file", ca),
        "server_name",
        "127.0.0.1",
    );
    let hub = lab.hub("hub-a").listener("plain").set(
        "probes",
        json!({
            "plain": probe("ldap"), "tls": ldaps, "starttls": with(starttls, "starttls", true),
            "tcp": probe("tcp"), "shown": probe("tls"),
        }),
    );
    let hub = hub.start().await?;
    let agent = lab
        .agent("site-1")
        .target("plain", slapd.addr())
        .target("tls", slapd.tls_addr())
        .target("starttls", slapd.addr())
        .target("tcp", slapd.addr())
        .target("shown", slapd.tls_addr());
    let agent = agent.to(&hub).start().await?;
    for connector in ["plain", "tls", "starttls", "tcp", "shown"] {
        let told = wait_state(&hub, "site-1", connector, "up").await?;
        ensure!(told["latency_ms"].as_f64() > Some(0.0), "{told}");
        let judged = match connector {
            "tls" | "starttls" => json!("trusted"),
            "shown" => json!("not_judged"),
            _ => Value::Null,
        };
        assert_eq!(told["certificate"]["judged"], judged, "{told}");
    }
    slapd.kill().await?;
    let down = wait_state(&hub, "site-1", "plain", "down").await?;
    assert_eq!(down["reason"], "connect_failed", "{down}");
    let labels = [("agent", "site-1"), ("connector", "plain")];
    hub.wait_metric("nowconnect_probe_up", &labels, |up| up == 0.0)
        .await?;
    let event = hub.log().wait_event("probe_down").await?;
    ensure!(
        event.text("detail").contains("the agent cannot connect"),
        "{}",
        event.json()
    );
    assert_eq!(get(hub.http_addr()?, "/readyz?strict=1").await?.status, 200);

    slapd.start_again().await?;
    for connector in ["plain", "tls"] {
        wait_state(&hub, "site-1", connector, "up").await?;
    }
    hub.log().wait_event("probe_up").await?;
    // What is counted and recorded of clients is of clients.
    let plain = [("connector", "plain")];
    for name in [
        "nowconnect_tcp_connections_total",
        "nowconnect_tcp_bytes_total",
    ] {
        assert_eq!(hub.metric(name, &plain).await?, 0.0, "{name}");
    }
    assert!(
        hub.metric("nowconnect_probe_duration_seconds_count", &plain)
            .await?
            >= 2.0
    );
    for log in [hub.log(), agent.log()] {
        assert!(log.events("flow_opened", Default::default()).is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn new_clients_go_to_the_target_that_is_well_and_to_any_when_none_is() -> Result<()> {
    let (lab, one, two) = (lab()?, Site::start("one").await?, Site::start("two").await?);
    let plan = lab.hub("hub-a").listener("web");
    let mut hub = plan
        .set("probes", json!({ "web": probe("http") }))
        .start()
        .await?;
    let _agents = [
        agent(&lab, "site-1", &hub, &one).await?,
        agent(&lab, "site-2", &hub, &two).await?,
    ];
    for id in ["site-1", "site-2"] {
        wait_state(&hub, id, "web", "up").await?;
    }
    assert_eq!(answering(&hub, 6).await?, ["one", "two"]);

    one.set_well(false);
    let down = wait_state(&hub, "site-1", "web", "down").await?;
    assert_eq!(down["reason"], "http", "{down}");
    assert_eq!(answering(&hub, 6).await?, ["two"]);
    let admin = hub.admin_addr()?;
    let path = get(admin, "/api/v1/connectors").await?;
    let connectors: Value = serde_json::from_str(&path.body)?;
    assert_eq!(
        connectors["connectors"][0]["probes"],
        json!({ "up": 1, "down": 1, "unknown": 0 })
    );

    two.set_well(false);
    wait_state(&hub, "site-2", "web", "down").await?;
    assert_eq!(
        answering(&hub, 6).await?,
        ["one", "two"],
        "as if nobody had asked"
    );
    let web = [("connector", "web")];
    assert_eq!(
        hub.metric("nowconnect_probe_fail_open_total", &web).await?,
        6.0
    );
    hub.log().wait_event("probe_fail_open").await?;

    one.set_well(true);
    wait_state(&hub, "site-1", "web", "up").await?;
    assert_eq!(answering(&hub, 6).await?, ["one"]);
    two.set_well(true);
    wait_state(&hub, "site-2", "web", "up").await?;
    assert_eq!(answering(&hub, 6).await?, ["one", "two"]);

    // Without probes there is nothing to hold against anybody.
    two.set_well(false);
    wait_state(&hub, "site-2", "web", "down").await?;
    hub.rewrite("probes", json!({}))?;
    hub.reload().await?;
    until("no probes", async || {
        ensure!(told(&hub, "site-2", "web").await.is_err());
        Ok(())
    })
    .await?;
    assert_eq!(answering(&hub, 6).await?, ["one", "two"]);
    assert_eq!(hub.metric("nowconnect_probe_targets", &web).await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn hubs_know_of_each_others_targets() -> Result<()> {
    let (lab, redis) = (lab()?, Redis::start().await?);
    let (one, two) = (Site::start("one").await?, Site::start("two").await?);
    let plan = |name| {
        let plan: HubPlan<'_> = lab.hub(name).listener("web");
        plan.set("probes", json!({ "web": probe("http") }))
    };
    let plans = peers(vec![plan("hub-a"), plan("hub-b")], "active", &redis.url());
    let mut hubs = Vec::new();
    for plan in plans {
        hubs.push(plan.spawn()?);
    }
    for hub in &mut hubs {
        hub.wait_ready().await?;
    }
    let (a, b) = (&hubs[0], &hubs[1]);
    let _agents = [
        agent(&lab, "site-1", a, &one).await?,
        agent(&lab, "site-2", b, &two).await?,
    ];
    let first = async |hub: &Hub, names: &[&str]| {
        until("clients to go elsewhere", async || {
            let answering = answering(hub, 4).await?;
            ensure!(answering == names, "{answering:?}");
            Ok(())
        })
        .await
    };
    wait_state(a, "site-1", "web", "up").await?;
    wait_state(b, "site-2", "web", "up").await?;
    first(a, &["one"]).await?;
    first(b, &["two"]).await?;

    one.set_well(false);
    wait_state(a, "site-1", "web", "down").await?;
    first(a, &["two"]).await?;
    first(b, &["two"]).await?;
    let routes = b.mesh().await?;
    assert_eq!(routes["routes"][0]["down"], json!(["web"]), "{routes}");

    two.set_well(false);
    wait_state(b, "site-2", "web", "down").await?;
    first(a, &["one"]).await?;
    first(b, &["two"]).await?;

    one.set_well(true);
    wait_state(a, "site-1", "web", "up").await?;
    first(a, &["one"]).await?;
    first(b, &["one"]).await
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_shown_and_one_that_is_not_trusted_named() -> Result<()> {
    let (lab, authority, other) = (lab()?, Authority::new("site")?, Authority::new("other")?);
    let ends = SystemTime::now() + Duration::from_secs(3 * 24 * 3600);
    let soon = Certificate {
        until: ends,
        ..Certificate::good(&["web.corp.local"])
    };
    authority.issue("web", &soon)?;
    let text = |path: std::path::PathBuf| path.display().to_string();
    // Any HTTPS server will do.
    let server = lab
        .hub("server")
        .set("tunnel.tls.cert_file", text(authority.file("web.crt")))
        .set("tunnel.tls.key_file", text(authority.file("web.key")));
    let server = server.start().await?;
    let web = with(
        with(probe("https"), "path", "/healthz"),
        "server_name",
        "web.corp.local",
    );
    let judged = |ca: &Authority| with(web.clone(), "ca_file", text(ca.bundle()));
    let hub = lab.hub("hub-a").set(
        "probes",
        json!({
            "seen": probe("tls"), "good": judged(&authority), "bad": judged(&other),
            "named": with(judged(&authority), "server_name", "db.corp.local"),
        }),
    );
    let hub = hub.start().await?;
    let plan = ["seen", "good", "bad", "named"]
        .iter()
        .fold(lab.agent("site-1"), |plan, name| {
            plan.target(
                name,
                server
                    .tunnel_addr()
                    .unwrap_or_else(|_| ([127, 0, 0, 1], 1).into()),
            )
        });
    // Version 1 too: it has no word for a target that has accepted.
    let _agent = plan.set("tunnel.protocol", 1).to(&hub).start().await?;
    let expected = [
        ("seen", "up", "not_judged"),
        ("good", "up", "trusted"),
        ("bad", "down", "certificate_unknown_ca"),
        ("named", "down", "certificate_wrong_name"),
    ];
    for (connector, state, judged) in expected {
        let told = wait_state(&hub, "site-1", connector, state).await?;
        assert_eq!(told["certificate"]["judged"], judged, "{told}");
        let labels = [("agent", "site-1"), ("connector", connector)];
        let left = hub
            .metric("nowconnect_probe_cert_expiry_seconds", &labels)
            .await?;
        let days = left / 86_400.0;
        ensure!((2.9..3.0).contains(&days), "{connector} {days}");
    }
    let failures = [("connector", "bad"), ("reason", "certificate")];
    assert!(
        hub.metric("nowconnect_probe_failures_total", &failures)
            .await?
            >= 2.0
    );
    Ok(())
}

#[tokio::test]
async fn targets_that_lie_are_found_out() -> Result<()> {
    let lab = lab()?;
    let mute = Target::serve(async |mut stream: tokio::net::TcpStream| {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        Ok(rest.len() as u64)
    });
    let endless = Target::serve(async |mut stream: tokio::net::TcpStream| {
        loop {
            stream
                .write_all(b"\x30\x06\x02\x01\x01\x73\x01\x00")
                .await?;
        }
    });
    let (mute, endless, echo) = (mute.await?, endless.await?, Target::echo().await?);
    let hub = lab.hub("hub-a").set(
        "probes",
        json!({
            "mute": with(probe("ldap"), "timeout_ms", 300), "endless": probe("ldap"),
            "echo": probe("http"), "accepts": probe("tcp"), "echo_tls": probe("ldaps"),
        }),
    );
    let hub = hub.start().await?;
    let agent = lab
        .agent("site-1")
        .target("mute", mute.addr())
        .target("endless", endless.addr())
        .target("echo", echo.addr())
        .target("accepts", mute.addr())
        .target("echo_tls", echo.addr());
    let mut agent = agent.to(&hub).start().await?;
    wait_state(&hub, "site-1", "accepts", "up").await?;
    for (connector, reason) in [
        ("mute", "timeout"),
        ("endless", "ldap"),
        ("echo", "http"),
        ("echo_tls", "tls"),
    ] {
        let told = wait_state(&hub, "site-1", connector, "down").await?;
        assert_eq!(told["reason"], reason, "{told}");
    }
    agent.process().check_alive()?;
    Ok(())
}
