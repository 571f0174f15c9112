//! The admin API.

use nowconnect_hub::admin::Order;
use nowconnect_proto::frame::Frame;
use nowconnect_testkit::http::{self, Answer};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::{anyhow, transfer, wait};
use serde_json::{Value, json};

use crate::agent::Process;
use crate::rig::{Rig, echo};

async fn ask(rig: &Rig, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let path = format!("/api/v1/{path}");
    http::request(rig.hub.addresses().admin, method, &path, headers, "")
        .await
        .unwrap()
}

async fn get(rig: &Rig, path: &str) -> Value {
    let answer = ask(rig, "GET", path, &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

fn error(answer: &Answer) -> (u16, String) {
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    (answer.status, body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn agents_and_flows_are_shown() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut clients = Vec::new();
    for seed in 0..3 {
        let mut client = rig.client().await;
        transfer::echo(&mut client, Pattern(seed), 0, 100)
            .await
            .unwrap();
        clients.push(client);
    }
    let status = get(&rig, "status").await;
    assert_eq!(status["hubs"][0]["status"], "ready");
    assert_eq!(status["flows"]["open"], 3);
    assert_eq!(status["agents"]["total"], 1);
    let connectors = get(&rig, "connectors").await;
    let echo = &connectors["connectors"][0];
    assert_eq!((&echo["name"], &echo["flows"]), (&"echo".into(), &3.into()));
    assert_eq!(echo["hubs"][0]["agents"], 1);
    assert_eq!(echo["hubs"][0]["counts"]["connections_total"], 3);
    let agents = get(&rig, "agents").await;
    let agent = &agents["agents"][0];
    assert_eq!(agent["agent_id"], "site-1");
    assert_eq!(agent["tunnels"][0]["flows"], 3);
    assert_eq!(agent["tunnels"][0]["protocol"], 2);

    let all = get(&rig, "flows").await;
    assert_eq!(all["total"], 3);
    assert_eq!(all["flows"][0]["bytes_c2a"], 100);
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("flows?limit=1&agent=site-1&connector=echo&cursor={cursor}");
        let page = get(&rig, &path).await;
        seen.push(page["flows"][0]["cid"].clone());
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    let cids: Vec<_> = (0..3).map(|at| all["flows"][at]["cid"].clone()).collect();
    assert_eq!(seen, cids, "the oldest first, each once");
    assert_eq!(get(&rig, "flows?agent=site-2").await["flows"], json!([]));
    let one = get(&rig, &format!("flows/{}", cids[0].as_str().unwrap())).await;
    assert_eq!(one["flow"]["attempts"], 1);
    assert_eq!(one["passing"], Value::Null);
    let none = ask(
        &rig,
        "GET",
        "flows/00000000-0000-7000-8000-000000000000",
        &[],
    )
    .await;
    assert_eq!(error(&none), (404, "unknown_flow".into()));
    assert_eq!(error(&ask(&rig, "GET", "flows/x", &[]).await).0, 400);
    let path = get(&rig, "connectors/echo/path").await;
    let first = &path["paths"][0];
    assert_eq!(
        (&first["state"], &first["preferred"]),
        (&"complete".into(), &true.into())
    );
    assert_eq!(first["hops"].as_array().unwrap().len(), 5, "{path:#}");
    let nowhere = get(&rig, "connectors/pg/path").await;
    assert_eq!(nowhere["paths"][0]["reason"], "no_listener");
    assert_eq!(get(&rig, "mesh").await["hubs"][0]["mode"], "off");
    let wrong = ask(&rig, "GET", "flows?limit=0", &[]).await;
    assert_eq!(error(&wrong), (400, "bad_query".into()));
}

#[tokio::test]
async fn an_agent_that_is_disconnected_may_come_back_to_its_flows() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 100).await;
    let done = ask(&rig, "POST", "agents/site-1/disconnect", &[]).await;
    assert_eq!(done.status, 200, "{done:?}");
    agent.closed().await;
    let _agent = rig.tunnel(&process).await;
    echo(&mut client, 100, 100).await;
    let nobody = ask(&rig, "POST", "agents/site-2/disconnect", &[]).await;
    assert_eq!(error(&nobody), (404, "unknown_agent".into()));
    let reading = ask(&rig, "GET", "agents/site-1/disconnect", &[]).await;
    assert_eq!(reading.status, 405);
}

#[tokio::test]
async fn the_token_is_wanted_and_changes_with_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admin.token");
    std::fs::write(&file, "first\n").unwrap();
    let named = file.clone();
    let rig = Rig::start_with(move |config| config.admin.token_file = Some(named)).await;
    let tried = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        ask(&rig, "GET", "status", &headers).await.status
    };
    let refused = ask(&rig, "GET", "status", &[]).await;
    assert_eq!(error(&refused), (401, "unauthorized".into()));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert_eq!((tried("first").await, tried("second").await), (200, 401));

    let config = rig.hub.config().await;
    std::fs::write(&file, "second").unwrap();
    rig.hub.reload(config.clone()).await.expect("applied");
    assert_eq!((tried("first").await, tried("second").await), (401, 200));
    std::fs::write(&file, "").unwrap();
    let error = rig.hub.reload(config).await.expect_err("no token");
    assert!(error.to_string().contains("admin.token"), "{error}");
    assert_eq!(tried("second").await, 200);
}

#[tokio::test]
async fn orders_reach_whoever_runs_the_hub() {
    let rig = Rig::start().await;
    let obey = async {
        let Order::Reload(asker) = rig.hub.order().await else {
            panic!("another order");
        };
        asker.send(Err("cloud.yaml:3: wrong".into())).unwrap();
    };
    let (answer, ()) = tokio::join!(ask(&rig, "POST", "reload", &[]), obey);
    assert_eq!(error(&answer), (422, "config_rejected".into()));
    assert!(answer.body.contains("cloud.yaml:3"), "{answer:?}");

    let (answer, order) = tokio::join!(ask(&rig, "POST", "drain", &[]), rig.hub.order());
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(matches!(order, Order::Drain));
}

#[tokio::test]
async fn a_draining_hub_still_answers_and_takes_no_orders() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 100).await;
    let look = async {
        wait::until("the drain", async || {
            anyhow::ensure!(get(&rig, "status").await["hubs"][0]["status"] == "draining");
            Ok(())
        })
        .await
        .unwrap();
        let refused = ask(&rig, "POST", "reload", &[]).await;
        assert_eq!(error(&refused), (409, "draining".into()));
        assert_eq!(ask(&rig, "POST", "drain", &[]).await.status, 202);
        drop(client);
    };
    tokio::join!(rig.hub.drain(), look);
}

#[tokio::test]
async fn the_public_ports_do_not_serve_it() {
    let rig = Rig::start_with(|config| config.observability.metrics_port = Some(0)).await;
    let addresses = rig.hub.addresses();
    for address in [addresses.tunnel, addresses.metrics.unwrap()] {
        let answer = http::get(address, "/api/v1/status").await.unwrap();
        assert_eq!(answer.status, 404);
    }
    let answer = http::get(addresses.admin, "/metrics").await.unwrap();
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn an_order_that_is_repeated_is_followed_once() {
    let rig = Rig::start().await;
    let mut agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 100).await;
    for _ in 0..3 {
        let answer = ask(&rig, "POST", "agents/site-1/move", &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let mut config = rig.config();
    config.security.require_connector_scopes = true;
    rig.hub.reload(config).await.expect("applied");
    let told = [agent.heard().await, agent.heard().await];
    assert!(
        matches!(told, [Frame::GoAway { .. }, Frame::UpdateAck(_)]),
        "{told:?}"
    );
}
