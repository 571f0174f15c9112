//! An external policy decision point, asked about every flow.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::fault_proxy::Cut;
use nowconnect_testkit::lab::{Agent, Hub, HubPlan, Lab, Pair};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::pdp::{Pdp, Reply};
use nowconnect_testkit::ports;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const DECISIONS: &str = "nowconnect_pdp_decisions_total";
const ERRORS: &str = "nowconnect_listener_errors_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// A hub with a decision point, an agent behind it, and what the agent leads to.
struct Site {
    hub: Hub,
    _agent: Agent,
    target: Target,
}

impl Site {
    async fn start(lab: &Lab, plan: HubPlan<'_>) -> Result<Self> {
        let target = Target::echo().await?;
        let hub = plan.listener("echo").start().await?;
        let agent = lab.agent("site-1").to(&hub).target("echo", target.addr());
        let agent = agent.start().await?;
        Ok(Self {
            hub,
            _agent: agent,
            target,
        })
    }
}

async fn served(hub: &Hub) -> Result<TcpStream> {
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;
    Ok(client)
}

/// Turns a client away, and counts it as `why`.
async fn turned_away(hub: &Hub, why: &str) -> Result<()> {
    let before = hub.metric(ERRORS, &[("type", why)]).await?;
    hub.turns_away("echo").await?;
    hub.wait_metric(ERRORS, &[("type", why)], |value| value == before + 1.0)
        .await?;
    Ok(())
}

async fn decisions(hub: &Hub, result: &str) -> Result<f64> {
    let labels = [("result", result), ("connector", "echo")];
    let by_connector = hub.metric(DECISIONS, &labels).await?;
    let total = match result {
        "error" => "nowconnect_pdp_errors_total".to_owned(),
        result => format!("nowconnect_pdp_{result}_total"),
    };
    ensure!(hub.metric(&total, &[]).await? == by_connector);
    Ok(by_connector)
}

async fn configure(hub: &mut Hub, pdp: Value) -> Result<()> {
    let mark = hub.log().mark();
    hub.rewrite("pdp", pdp)?;
    hub.reload().await?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    Ok(())
}

#[tokio::test]
async fn what_it_says_is_done_in_both_formats() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    lab.write("pdp.token", "let-me-ask\n")?;
    let rules = |format: &str, ttl: u64| {
        json!({
            "url": pdp.url(), "format": format, "cache_ttl_sec": ttl, "timeout_ms": 5000,
            "token_file": lab.path("pdp.token"),
        })
    };
    let plan = lab.hub("hub-a").set("pdp", rules("authzen", 600));
    let mut site = Site::start(&lab, plan).await?;
    drop((served(&site.hub).await?, served(&site.hub).await?));
    let asked = pdp.asked();
    assert_eq!(asked.len(), 1, "the second was remembered");
    assert_eq!(asked[0].path, "/access/v1/evaluation");
    let head = asked[0].head.to_lowercase();
    assert!(head.contains("x-request-id: ") && head.contains("content-type: application/json"));
    assert!(head.contains("authorization: bearer let-me-ask\r\n"));
    let question = json!({
        "subject": { "type": "agent", "id": "site-1" },
        "action": { "name": "connect" },
        "resource": { "type": "connector", "id": "echo" },
        "context": {
            "replica_id": "hub", "origin_hub": "hub", "aud": "nowconnect",
            "listener": "echo", "client_ip": "127.0.0.1",
        },
    });
    assert_eq!(asked[0].body, question);
    assert_eq!(decisions(&site.hub, "allow").await?, 2.0);
    let opened = site.hub.log().events("flow_opened", Default::default());
    let grounds: Vec<_> = opened.iter().map(|event| event.text("pdp")).collect();
    assert_eq!(grounds, ["allow", "cached"]);

    // What is remembered is forgotten under other rules, and a deny is never remembered.
    configure(&mut site.hub, rules("simple", 0)).await?;
    drop(served(&site.hub).await?);
    let asked = pdp.asked();
    assert_eq!((asked.len(), asked[1].path.as_str()), (2, "/"));
    let question = json!({
        "subject": { "agent_id": "site-1" },
        "action": "connect",
        "resource": { "type": "connector", "id": "echo" },
        "context": { "replica_id": "hub", "aud": "nowconnect" },
    });
    assert_eq!(asked[1].body, question);
    for format in ["simple", "authzen"] {
        configure(&mut site.hub, rules(format, 600)).await?;
        pdp.say(Reply::deny());
        turned_away(&site.hub, "pdp_denied").await?;
        pdp.say(Reply::allow());
        drop(served(&site.hub).await?);
    }
    assert_eq!(decisions(&site.hub, "deny").await?, 2.0);
    let denied = site.hub.log().wait_event("pdp_denied").await?;
    assert_eq!(denied.text("agent_id"), "site-1");
    assert_eq!(denied.json()["audit"], true);
    let log = site.hub.log().text();
    assert!(!log.contains("let-me-ask"), "the token is in the log");
    Ok(())
}

#[tokio::test]
async fn the_simple_format_says_how_long_it_may_be_remembered() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::Json(json!({ "allow": true, "ttl_sec": 0 }))).await?;
    let plan = lab.hub("hub-a").set("pdp.url", pdp.url());
    let plan = plan
        .set("pdp.format", "simple")
        .set("pdp.cache_ttl_sec", 600);
    let site = Site::start(&lab, plan).await?;
    drop((served(&site.hub).await?, served(&site.hub).await?));
    assert_eq!(pdp.asked().len(), 2);
    pdp.say(Reply::Json(json!({ "allow": true, "ttl_sec": 600 })));
    drop((served(&site.hub).await?, served(&site.hub).await?));
    assert_eq!(pdp.asked().len(), 3);
    Ok(())
}

#[tokio::test]
async fn what_is_no_answer_is_a_no_unless_it_fails_open() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let rules = |fail_open: bool| json!({ "url": pdp.url(), "format": "simple", "timeout_ms": 400, "fail_open": fail_open });
    let mut site = Site::start(&lab, lab.hub("hub-a").set("pdp", rules(false))).await?;
    let garbage = [
        Reply::Text(""),
        Reply::Text("yes"),
        Reply::Text(r#"{"allow":"yes"}"#),
        Reply::Text(r#"{"allow":1}"#),
        Reply::Text(r#"{"allow":false,"allow":true}"#),
        Reply::Status(500),
        Reply::Status(403),
        Reply::Status(204),
        Reply::Redirect,
        Reply::Html,
        Reply::Huge,
        Reply::Drip,
        Reply::Never,
        Reply::Cut,
    ];
    for reply in &garbage {
        pdp.say(reply.clone());
        turned_away(&site.hub, "pdp_denied").await?;
    }
    let count = garbage.len() as f64;
    assert_eq!(decisions(&site.hub, "error").await?, count);
    assert_eq!(site.target.accepted(), 0);
    let failed = site.hub.log().wait_event("pdp_failed").await?;
    assert_eq!(failed.json()["allowed"], false);
    assert_eq!(failed.json()["audit"], true);

    let mark = site.hub.log().mark();
    configure(&mut site.hub, rules(true)).await?;
    for reply in &garbage {
        pdp.say(reply.clone());
        drop(served(&site.hub).await?);
    }
    assert_eq!(decisions(&site.hub, "error").await?, 2.0 * count);
    assert_eq!(decisions(&site.hub, "allow").await?, 0.0);
    let opened = site.hub.log().wait_event_since("flow_opened", mark).await?;
    assert_eq!(opened.text("pdp"), "fail_open");
    // A no is a no all the same.
    pdp.say(Reply::deny());
    turned_away(&site.hub, "pdp_denied").await
}

#[tokio::test]
async fn nobody_answers_in_its_place() -> Result<()> {
    let lab = lab()?;
    let closed = ports::local(ports::reserve()?);
    let plan = lab.hub("hub-a").set("pdp.url", format!("http://{closed}"));
    let mut site = Site::start(&lab, plan).await?;
    turned_away(&site.hub, "pdp_denied").await?;
    let (authority, stranger) = (Authority::new("ours")?, Authority::new("another")?);
    let pdp = Pdp::start_tls(Reply::allow(), &authority).await?;
    let rules =
        |ca: &Authority| json!({ "url": pdp.url(), "ca_bundle": ca.bundle(), "timeout_ms": 5000 });
    configure(&mut site.hub, rules(&stranger)).await?;
    turned_away(&site.hub, "pdp_denied").await?;
    assert!(pdp.asked().is_empty());
    configure(&mut site.hub, rules(&authority)).await?;
    drop(served(&site.hub).await?);
    assert_eq!(decisions(&site.hub, "error").await?, 2.0);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_ends_costs_nobody_a_decision() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let plan = lab.hub("hub-a").set("pdp.url", pdp.url());
    let plan = plan.set("pdp.timeout_ms", 5000).set("pdp.cache_ttl_sec", 0);
    let site = Site::start(&lab, plan).await?;
    drop(served(&site.hub).await?);
    let cut = std::sync::atomic::AtomicBool::new(true);
    pdp.decide(
        move |_| match cut.swap(false, std::sync::atomic::Ordering::Relaxed) {
            true => Reply::Cut,
            false => Reply::allow(),
        },
    );
    drop(served(&site.hub).await?);
    let asked = pdp.asked();
    let name = |at: usize| asked[at].header("x-request-id").map(str::to_owned);
    assert_eq!(asked.len(), 3);
    assert!(name(0) != name(1) && name(1) == name(2));
    assert_eq!(decisions(&site.hub, "error").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn who_may_not_have_one_agent_gets_another() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::deny()).await?;
    pdp.decide(|asked| match asked.agent() {
        "site-2" => Reply::allow(),
        _ => Reply::deny(),
    });
    let plan = lab
        .hub("hub-a")
        .set("pdp.url", pdp.url())
        .set("pdp.timeout_ms", 5000);
    let site = Site::start(&lab, plan).await?;
    turned_away(&site.hub, "pdp_denied").await?;
    let target = Target::echo().await?;
    let agent = lab
        .agent("site-2")
        .to(&site.hub)
        .target("echo", target.addr());
    let _agent = agent.start().await?;
    for _ in 0..6 {
        drop(served(&site.hub).await?);
    }
    assert_eq!((site.target.accepted(), target.accepted()), (0, 6));
    Ok(())
}

async fn from(address: [u8; 4], hub: &Hub) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address, 0)))?;
    Ok(socket.connect(hub.listener_addr("echo")?).await?)
}

#[tokio::test]
async fn a_crowd_asks_few_questions_at_a_time_and_the_same_one_once() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let plan = lab
        .hub("hub-a")
        .set("pdp.url", pdp.url())
        .set("pdp.timeout_ms", 30_000);
    let site = Site::start(&lab, plan).await?;
    pdp.hold();
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(site.hub.connect("echo").await?);
    }
    for last in 1..=100 {
        clients.push(from([127, 0, 1, last], &site.hub).await?);
    }
    pdp.wait_asked(32).await?;
    let admitted = "nowconnect_tcp_connections_total";
    site.hub
        .wait_metric(admitted, &[], |value| value == 150.0)
        .await?;
    assert_eq!(pdp.asked().len(), 32);
    assert_eq!(site.target.accepted(), 0);
    pdp.release();
    for client in &mut clients {
        echo(client, Pattern(1), 0, 100).await?;
    }
    assert_eq!(pdp.asked().len(), 101);
    assert_eq!(pdp.most_at_once(), 32);
    assert_eq!(decisions(&site.hub, "allow").await?, 150.0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_in_the_meantime_opens_nothing() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let plan = lab
        .hub("hub-a")
        .set("pdp.url", pdp.url())
        .set("pdp.timeout_ms", 30_000);
    // Longer than a flow without a path is kept.
    let site = Site::start(&lab, plan.set("limits.resume_grace_ms", 0)).await?;
    pdp.hold();
    let (gone, mut patient) = (
        site.hub.connect("echo").await?,
        site.hub.connect("echo").await?,
    );
    pdp.wait_asked(1).await?;
    gone.set_zero_linger()?;
    drop(gone);
    let closed = site.hub.log().wait_event("flow_closed").await?;
    assert_eq!(closed.text("reason"), "socket_reset");
    tokio::time::timeout(Duration::from_secs(3), patient.read_u8())
        .await
        .expect_err("it waits");
    pdp.release();
    echo(&mut patient, Pattern(1), 0, 100).await?;
    assert_eq!(site.target.accepted(), 1);
    Ok(())
}

#[tokio::test]
async fn it_is_turned_on_and_off_while_flows_run() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::deny()).await?;
    let mut site = Site::start(&lab, lab.hub("hub-a")).await?;
    let mut running = served(&site.hub).await?;
    configure(
        &mut site.hub,
        json!({ "url": pdp.url(), "timeout_ms": 5000 }),
    )
    .await?;
    turned_away(&site.hub, "pdp_denied").await?;
    echo(&mut running, Pattern(1), 100, 100).await?;
    configure(&mut site.hub, json!({})).await?;
    drop(served(&site.hub).await?);
    assert_eq!(pdp.asked().len(), 1);
    // A file that is not there changes nothing.
    let mark = site.hub.log().mark();
    site.hub.rewrite(
        "pdp",
        json!({ "url": pdp.url(), "token_file": lab.path("none") }),
    )?;
    site.hub.reload().await?;
    site.hub
        .log()
        .wait_event_since("config_rejected", mark)
        .await?;
    drop(served(&site.hub).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_the_agent_asks_as_well() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let (at_a, at_b) = (
        Pdp::start(Reply::allow()).await?,
        Pdp::start(Reply::deny()).await?,
    );
    let rules = |pdp: &Pdp| json!({ "url": pdp.url(), "timeout_ms": 10_000, "cache_ttl_sec": 0 });
    configure(&mut pair.a, rules(&at_a)).await?;
    configure(&mut pair.b, rules(&at_b)).await?;
    let _agent = pair.agent(&[&pair.b], "first").start().await?;
    pair.wait_routes(&pair.a, 1).await?;
    turned_away(&pair.a, "pdp_denied").await?;
    assert_eq!(pair.echo.accepted(), 0);
    let asked = at_b.asked();
    let context = &asked[0].body["context"];
    assert_eq!(
        (asked.len(), asked[0].agent(), asked[0].hub()),
        (1, "site-1", "hub-b")
    );
    assert_eq!(context["origin_hub"], "hub-a");
    assert_eq!(context["client_ip"], "127.0.0.1");
    assert_eq!(decisions(&pair.a, "allow").await?, 1.0);
    assert_eq!(decisions(&pair.b, "deny").await?, 1.0);

    // What the client sends at once waits at the owner, and arrives.
    at_b.say(Reply::allow());
    at_b.hold();
    let mut client = pair.a.connect("echo").await?;
    let sent = Pattern(1).bytes(0, 200_000);
    let (mut read, mut write) = client.split();
    let exchange = async {
        let mut back = vec![0; sent.len()];
        let (sent, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        sent?;
        read?;
        Pattern(1).check(0, &back)
    };
    let decide = async {
        at_b.wait_asked(2).await?;
        ensure!(
            pair.echo.accepted() == 0,
            "nothing is opened before the answer"
        );
        at_b.release();
        Ok(())
    };
    let (exchanged, decided) = tokio::join!(exchange, decide);
    exchanged.and(decided)?;

    let (report, code) = explain(&pair.lab, &pair.a, &["--client", "127.0.0.1"]).await?;
    assert_eq!((report["verdict"].as_str(), code), (Some("allowed"), 0));
    assert_eq!(report["hub"], "hub-b");

    // A flow that goes on over another path is not judged again.
    pair.to_b.cut(Cut::Reset);
    pair.wait_linked().await?;
    echo(&mut client, Pattern(1), 200_000, 1000).await?;
    assert_eq!((at_a.asked().len(), at_b.asked().len()), (3, 2));

    // The origin's no is enough.
    at_a.say(Reply::deny());
    turned_away(&pair.a, "pdp_denied").await?;
    assert_eq!(at_b.asked().len(), 2);

    // Silence is a no at the owner as well, and a client that leaves opens nothing.
    at_a.say(Reply::allow());
    at_b.hold();
    let gone = pair.a.connect("echo").await?;
    at_b.wait_asked(3).await?;
    gone.set_zero_linger()?;
    drop(gone);
    pair.a
        .wait_metric("nowconnect_tcp_active_connections", &[], |value| {
            value == 1.0
        })
        .await?;
    at_b.release();
    configure(&mut pair.b, json!({ "url": at_b.url(), "timeout_ms": 200 })).await?;
    at_b.say(Reply::Never);
    turned_away(&pair.a, "pdp_denied").await?;
    assert_eq!(pair.echo.accepted(), 1);
    assert!(decisions(&pair.b, "error").await? >= 1.0);
    echo(&mut client, Pattern(1), 201_000, 1000).await
}

/// A hub that opens more than can be decided about is held up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_hub_cannot_pile_up_questions() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let pdp = Pdp::start(Reply::allow()).await?;
    let rules = json!({ "url": pdp.url(), "timeout_ms": 60_000 });
    configure(&mut pair.b, rules).await?;
    let _agent = pair.agent(&[&pair.b], "first").start().await?;
    pair.wait_routes(&pair.a, 1).await?;
    pdp.hold();
    let mut clients = Vec::new();
    for number in 1..=300_u16 {
        let [high, low] = number.to_be_bytes();
        clients.push(from([127, 1, high, low], &pair.a).await?);
    }
    let refused = [("reason", "refused")];
    let refusals = "nowconnect_mesh_backpressure_total";
    pair.b
        .wait_metric(refusals, &refused, |value| value == 44.0)
        .await?;
    // Clients of the hub itself are not behind them.
    let own = pair.b.connect("echo").await?;
    pdp.wait_asked(33).await?;
    let asked = pdp.asked();
    let of_own = asked
        .iter()
        .filter(|asked| asked.body["context"]["origin_hub"] == "hub-b");
    assert_eq!((asked.len(), of_own.count()), (33, 1));
    pdp.release();
    clients.push(own);
    let mut served = 0;
    for client in &mut clients {
        served += usize::from(echo(client, Pattern(1), 0, 100).await.is_ok());
    }
    assert_eq!((served, pair.echo.accepted()), (257, 257));
    assert_eq!(pdp.most_at_once(), 33);
    Ok(())
}

/// What `policy explain` prints as JSON, and its exit code.
async fn explain(lab: &Lab, hub: &Hub, more: &[&str]) -> Result<(Value, i32)> {
    let url = format!("http://{}", hub.admin_addr()?);
    let mut args = vec![
        "policy",
        "explain",
        "--json",
        "--connector",
        "echo",
        "--url",
        &url,
    ];
    args.extend(more);
    let finished = lab.run(&args).await?;
    let report = serde_json::from_str(&finished.stdout)?;
    Ok((report, finished.status.code().unwrap_or(-1)))
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().into_iter().flatten();
    steps
        .into_iter()
        .find(|step| step["step"] == name)
        .unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_decision_is_explained_and_nothing_is_changed() -> Result<()> {
    let lab = lab()?;
    let pdp = Pdp::start(Reply::allow()).await?;
    pdp.decide(|asked| match asked.agent() {
        "site-2" => Reply::allow(),
        _ => Reply::deny(),
    });
    let plan = lab
        .hub("hub-a")
        .set("pdp.url", pdp.url())
        .set("pdp.timeout_ms", 5000);
    let plan = plan.set("pdp.cache_ttl_sec", 600);
    let plan = plan.set("security.allow_cidrs", json!(["127.0.0.0/8", "10.0.0.0/8"]));
    let site = Site::start(&lab, plan.set("limits.max_conn_per_client", 1)).await?;
    let client = ["--client", "10.0.0.5"];

    let (report, code) = explain(&lab, &site.hub, &client).await?;
    assert_eq!((report["verdict"].as_str(), code), (Some("denied"), 1));
    assert_eq!(report["reason"], "pdp_denied");
    assert_eq!(step(&report, "networks")["more"]["hub"], "10.0.0.0/8");
    let asked = &step(&report, "pdp")["more"][0];
    assert_eq!(asked["question"]["context"]["client_ip"], "10.0.0.5");
    assert_eq!(asked["answer"]["decision"], false);
    assert_eq!(asked["cached_ms_left"], Value::Null);

    let agent = lab
        .agent("site-2")
        .to(&site.hub)
        .target("echo", site.target.addr());
    let _agent = agent.start().await?;
    let (report, code) = explain(&lab, &site.hub, &client).await?;
    assert_eq!((report["verdict"].as_str(), code), (Some("allowed"), 0));
    assert_eq!(report["agent_id"], "site-2");
    let (report, code) = explain(
        &lab,
        &site.hub,
        &["--client", "10.0.0.5", "--agent", "site-1"],
    )
    .await?;
    assert_eq!((report["reason"].as_str(), code), (Some("pdp_denied"), 1));
    let (report, _) = explain(&lab, &site.hub, &["--client", "192.0.2.1"]).await?;
    assert_eq!(report["reason"], "cidr_blocked");
    assert_eq!(step(&report, "pdp")["result"], "skipped");
    let (report, _) = explain(
        &lab,
        &site.hub,
        &["--client", "10.0.0.5", "--listener", "x"],
    )
    .await?;
    assert_eq!(report["reason"], "no_listener");
    let asked = pdp.asked().len();
    assert_eq!(
        decisions(&site.hub, "allow").await?,
        0.0,
        "nothing is counted"
    );
    assert_eq!(decisions(&site.hub, "deny").await?, 0.0);

    let running = served(&site.hub).await?;
    assert!(pdp.asked().len() > asked, "nothing is remembered");
    let (report, code) = explain(&lab, &site.hub, &["--client", "127.0.0.1"]).await?;
    assert_eq!(
        (report["reason"].as_str(), code),
        (Some("max_conn_client"), 1)
    );
    assert_eq!(step(&report, "limits")["more"]["client"]["held"], 1);
    drop(running);
    site.hub.wait_idle("echo").await?;
    let args = ["--client", "127.0.0.1", "--agent", "site-2"];
    let (report, _) = explain(&lab, &site.hub, &args).await?;
    assert!(step(&report, "pdp")["more"][0]["cached_ms_left"].as_u64() > Some(0));

    let finished = lab
        .run(&["policy", "explain", "--connector", "echo", "--client", "x"])
        .await?;
    assert_eq!(finished.status.code(), Some(2));
    Ok(())
}
