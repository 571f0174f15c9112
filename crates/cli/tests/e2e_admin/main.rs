//! Any hub answers for all of them, and does what operators ask of any.

mod schema;

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::http;
use nowconnect_testkit::lab::{Hub, Lab, Pair, finish};
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::wait::until;
use schema::Description;
use serde_json::{Value, json};
use tokio::net::TcpStream;

const DESCRIPTION: &str = include_str!("../../../hub/src/admin/openapi.json");

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// Asks a hub, and judges its answer by the description. `{}` in the path stands for `name`.
async fn ask(hub: &Hub, method: &str, path: &str, name: &str, query: &str) -> Result<(u16, Value)> {
    let described = Description(serde_json::from_str(DESCRIPTION)?);
    let asked = format!("/api/v1/{}?{query}", path.replace("{}", name));
    let answer = http::request(hub.admin_addr()?, method, &asked, &[], "").await?;
    let body: Value = serde_json::from_str(&answer.body).context(answer.body.clone())?;
    let parameter = match path.split('/').next() {
        Some("agents") => "{id}",
        Some("flows") => "{cid}",
        _ => "{name}",
    };
    let path = format!("/api/v1/{}", path.replace("{}", parameter));
    described.judge(&path, &method.to_lowercase(), answer.status, &body)?;
    Ok((answer.status, body))
}

async fn get(hub: &Hub, path: &str, query: &str) -> Result<Value> {
    let (status, body) = ask(hub, "GET", path, "", query).await?;
    ensure!(status == 200, "{status} {body}");
    Ok(body)
}

/// A pair with an agent at the first, and a client at each that waits.
async fn served(pair: &Pair) -> Result<Vec<TcpStream>> {
    pair.wait_routes(&pair.b, 1).await?;
    let mut clients = Vec::new();
    for hub in [&pair.a, &pair.b] {
        clients.push(hub.connect("echo").await?);
        until("the flow to be open", async || {
            let own = get(hub, "flows", "state=open&scope=hub").await?;
            ensure!(
                own["flows"]
                    .as_array()
                    .is_some_and(|flows| flows.len() == 1),
                "{own}"
            );
            Ok(())
        })
        .await?;
    }
    Ok(clients)
}

#[test]
fn the_description_is_valid() -> Result<()> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../hub/src/admin/openapi.json");
    let tool = ["-c", "import openapi_spec_validator"];
    if !Command::new("python3")
        .args(tool)
        .output()?
        .status
        .success()
    {
        eprintln!("SKIPPED: no openapi-spec-validator here (pip install openapi-spec-validator)");
        return Ok(());
    }
    let judged = Command::new("python3")
        .args(["-m", "openapi_spec_validator", file])
        .output()?;
    ensure!(judged.status.success(), "{judged:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hub_shows_the_whole() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    let _clients = served(&pair).await?;
    for hub in [&pair.a, &pair.b] {
        let status = get(hub, "status", "").await?;
        assert_eq!(
            (&status["flows"]["open"], &status["agents"]["total"]),
            (&json!(2), &json!(1))
        );
        assert_eq!(status["hubs"].as_array().map(Vec::len), Some(2));
        let own = get(hub, "status", "scope=hub").await?;
        assert_eq!(
            (&own["flows"]["open"], own["hubs"].as_array().map(Vec::len)),
            (&json!(1), Some(1))
        );
        let agents = get(hub, "agents", "").await?;
        assert_eq!(agents["agents"][0]["hubs"], json!(["hub-a"]));
        let flows = get(hub, "flows", "").await?;
        let hubs: Vec<_> = (0..2).map(|at| &flows["flows"][at]["hub"]).collect();
        assert_eq!(
            (hubs, &flows["next"]),
            (vec![&json!("hub-a"), &json!("hub-b")], &Value::Null)
        );
        let cid = flows["flows"][1]["cid"].as_str().context("a name")?;
        let (_, one) = ask(hub, "GET", "flows/{}", cid, "").await?;
        assert_eq!(one["flow"]["owner"], "hub-a");
        assert_eq!(
            (&one["passing"]["hub"], &one["passing"]["from"]),
            (&json!("hub-a"), &json!("hub-b"))
        );
        let (_, path) = ask(hub, "GET", "connectors/{}/path", "echo", "hub=hub-b").await?;
        let first = &path["paths"][0];
        assert_eq!(
            (&first["state"], &first["preferred"]),
            (&json!("complete"), &json!(true)),
            "{path:#}"
        );
        let kinds: Vec<_> = first["hops"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|hop| hop["kind"].clone())
            .collect();
        let expected = [
            "listener",
            "origin",
            "mesh_link",
            "owner",
            "tunnel",
            "agent",
            "target",
        ];
        assert_eq!(json!(kinds), json!(expected));
        let connectors = get(hub, "connectors", "").await?;
        assert_eq!(connectors["connectors"][1]["flows"], 2, "{connectors:#}");
        let mesh = get(hub, "mesh", "").await?;
        assert_eq!(mesh["hubs"][1]["links"][0]["state"], "established");
        let events = get(hub, "events", "limit=1000").await?;
        let seen = |hub: &str, event: &str| {
            let all = events["events"].as_array().into_iter().flatten();
            all.filter(|one| one["hub"] == hub && one["event"] == event)
                .count()
        };
        assert_eq!(
            (
                seen("hub-a", "agent_connected"),
                seen("hub-b", "hub_started")
            ),
            (1, 1),
            "{events:#}"
        );
        assert_eq!(seen("hub-b", "flow_opened"), 0);
    }
    until("samples of both hubs", async || {
        let history = get(&pair.b, "history", "").await?;
        let samples = history["samples"].as_array().context("samples")?;
        ensure!(
            samples
                .iter()
                .any(|one| one["hubs"] == 2 && one["flows"] == 2),
            "{history:#}"
        );
        Ok(())
    })
    .await?;
    let asked = [("type", "M_QUERY"), ("dir", "out")];
    assert!(
        pair.b
            .metric("nowconnect_mesh_frames_total", &asked)
            .await?
            > 5.0
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_does_not_answer_is_named_in_time() -> Result<()> {
    let mut pair = Pair::start(lab()?, "shadow").await?;
    pair.b.process().signal(Signal::Stop).await?;
    let begun = Instant::now();
    let status = get(&pair.a, "status", "").await?;
    let took = begun.elapsed();
    ensure!(
        took >= Duration::from_millis(900) && took < Duration::from_millis(1600),
        "{took:?}"
    );
    let silent = &status["hubs"][1];
    assert_eq!(
        (&silent["hub"], &silent["answered"]),
        (&json!("hub-b"), &json!(false))
    );
    assert_eq!(silent["reason"], "timeout");
    // Nobody can say that there is no such agent.
    let (code, told) = ask(&pair.a, "POST", "agents/{}/disconnect", "site-1", "").await?;
    assert_eq!((code, &told["error"]), (504, &json!("not_all_answered")));
    pair.b.process().signal(Signal::Cont).await?;
    until("an answer again", async || {
        let status = get(&pair.a, "status", "").await?;
        ensure!(status["hubs"][1]["answered"] == true, "{status}");
        Ok(())
    })
    .await?;
    let (code, told) = ask(&pair.a, "POST", "agents/{}/disconnect", "site-1", "").await?;
    assert_eq!((code, &told["error"]), (404, &json!("unknown_agent")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_moved_and_disconnected_through_the_other_hub() -> Result<()> {
    let pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.a, &pair.b], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let running = pair.b.transfers(4, 4_000_000).await?;
    pair.bulk.wait_accepted(4).await?;
    let url = format!("http://{}", pair.b.admin_addr()?);
    let moved = pair
        .lab
        .run(&["agents", "move", "site-1", "--url", &url])
        .await?;
    ensure!(
        moved.status.success()
            && moved
                .stdout
                .contains("hub-a: site-1 was told to make 1 tunnel "),
        "{moved:?}"
    );
    pair.b.wait_agents(1).await?;
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 4, "no target was dialled again");
    // The old tunnel ends with its last flow.
    pair.a.wait_agents(0).await?;
    let ordered = |hub: &Hub| {
        let orders = hub
            .log()
            .events("agent_order", nowconnect_testkit::log::Mark::default());
        orders
            .iter()
            .map(|one| (one.text("action"), one.text("via"), one.number("tunnels")))
            .collect::<Vec<_>>()
    };
    let done = |via: &str, tunnels| vec![("move".to_owned(), via.to_owned(), Some(tunnels))];
    assert_eq!(
        (ordered(&pair.a), ordered(&pair.b)),
        (done("hub-b", 1), done("", 0))
    );

    let running = pair.b.transfers(2, 4_000_000).await?;
    pair.bulk.wait_accepted(6).await?;
    let (code, told) = ask(
        &pair.a,
        "POST",
        "agents/{}/disconnect",
        "site-1",
        "hub=hub-b",
    )
    .await?;
    assert_eq!((code, &told["tunnels"]), (200, &json!(1)), "{told}");
    finish(running).await?;
    assert_eq!(pair.bulk.accepted(), 6, "its flows went on");
    Ok(())
}

/// A flow that is there from the first page to the last is on exactly one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_9000_flows_are_paged_while_others_come_and_go() -> Result<()> {
    const STAY: usize = 4500;
    let more = [
        ("limits.max_conn_total", 12_000),
        ("limits.memory_budget_mb", 1024),
    ];
    let pair = Pair::start_with(lab()?, "active", &more).await?;
    let agent = pair
        .agent(&[&pair.a], "first")
        .set("limits.max_inflight_cids", 12_000);
    let _agent = agent.start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let mut stay = Vec::new();
    for _ in 0..STAY {
        for hub in [&pair.a, &pair.b] {
            stay.push(hub.connect("echo").await?);
        }
    }
    let settled = async || -> Result<()> {
        until("all flows to be open", async || {
            let status = get(&pair.a, "status", "").await?;
            ensure!(status["flows"]["open"] == 2 * STAY, "{}", status["flows"]);
            Ok(())
        })
        .await
    };
    settled().await?;
    let page = async |cursor: &str| {
        let query = format!("limit=1000&cursor={cursor}");
        get(&pair.b, "flows", &query).await
    };
    let begun = Instant::now();
    let (mut seen, mut cursor, mut pages) = (HashSet::new(), String::new(), 0);
    loop {
        let passing = [pair.a.connect("echo").await?, pair.b.connect("echo").await?];
        let listed = page(&cursor).await?;
        drop(passing);
        pages += 1;
        for flow in listed["flows"].as_array().context("flows")? {
            let cid = flow["cid"].as_str().context("a name")?.to_owned();
            ensure!(seen.insert(cid), "twice: {flow}");
        }
        match listed["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    eprintln!(
        "{} flows on {pages} pages in {:?}",
        seen.len(),
        begun.elapsed()
    );
    settled().await?;
    let mut own = HashSet::new();
    for hub in [&pair.a, &pair.b] {
        let mut cursor = String::new();
        loop {
            let listed = get(
                hub,
                "flows",
                &format!("scope=hub&limit=1000&cursor={cursor}"),
            )
            .await?;
            for flow in listed["flows"].as_array().context("flows")? {
                own.insert(flow["cid"].as_str().context("a name")?.to_owned());
            }
            match listed["next"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
    }
    assert_eq!(own.len(), 2 * STAY);
    assert!(
        own.is_subset(&seen),
        "{} are missing",
        own.difference(&seen).count()
    );
    drop(stay);
    Ok(())
}
