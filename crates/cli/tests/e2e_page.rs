//! The status page in a real browser: it shows what the API tells, follows what changes, and talks to
//! nobody but its hub.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::browser::Browser;
use nowconnect_testkit::http;
use nowconnect_testkit::lab::{Hub, Lab, Pair};
use nowconnect_testkit::target::Target;
use serde_json::{Value, json};

/// 1,000 agents on three hubs, 10,000 flows, and texts that would do harm as markup.
const CROWD: &str = include_str!("e2e_page/crowd.js");

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

async fn api(hub: &Hub, path: &str) -> Result<Value> {
    let answer = http::get(hub.admin_addr()?, &format!("/api/v1/{path}")).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(serde_json::from_str(&answer.body)?)
}

fn url(addr: SocketAddr) -> String {
    format!("http://{addr}/")
}

/// The texts of these columns of a table, row by row.
async fn cells(browser: &Browser, table: &str, columns: &[usize]) -> Result<Value> {
    let columns = json!(columns);
    let script = format!(
        "return [...document.querySelectorAll('#{table} tbody tr')].map((row) => {columns}.map((at) => row.children[at]?.textContent))"
    );
    browser.run(&script).await
}

/// Waits until the page shows these texts in these columns of a table.
async fn wait_cells(browser: &Browser, table: &str, columns: &[usize], rows: Value) -> Result<()> {
    let script = format!(
        "const shown = JSON.stringify([...document.querySelectorAll('#{table} tbody tr')].map((row) => {}.map((at) => row.children[at]?.textContent)));
         return shown === JSON.stringify({rows}) ? true : false",
        json!(columns)
    );
    let shown = browser.wait(table, &script).await;
    if shown.is_err() {
        let shown = cells(browser, table, columns).await?;
        assert_eq!(shown, rows, "{table}");
    }
    Ok(())
}

/// Nothing was complained about, and every request went to this origin and is one of the page's.
async fn check_quiet(browser: &Browser, addr: SocketAddr) -> Result<()> {
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:?}");
    for asked in browser.requests().await? {
        let own = asked.starts_with(&url(addr)) || asked.starts_with("data:image/svg+xml");
        ensure!(own, "{asked}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_what_the_api_tells_and_follows() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let _first = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let addr = pair.a.admin_addr()?;
    let browser = Browser::start().await?;
    browser.open(&url(addr)).await?;

    wait_cells(&browser, "agents", &[0, 2], json!([["site-1", "hub-a"]])).await?;
    let status = api(&pair.a, "status").await?;
    let hubs = status["hubs"].as_array().context("hubs")?;
    let hubs: Vec<_> = hubs
        .iter()
        .map(|hub| json!([hub["hub"], "● ready", hub["mode"], "● up", hub["version"]]))
        .collect();
    wait_cells(&browser, "hubs", &[0, 1, 2, 3, 4], json!(hubs)).await?;
    let links = json!([
        ["hub-a", "hub-b", "● established"],
        ["hub-b", "hub-a", "● established"]
    ]);
    wait_cells(&browser, "links", &[0, 1, 2], links).await?;
    let script = "return document.getElementById('state').textContent.includes('all well, 2 of 2 hubs ready')";
    browser.wait("a calm state", script).await?;

    // An agent and a flow come, without a reload.
    let second = pair.lab.agent("site-2").to(&pair.b);
    let _second = second.target("bulk", pair.bulk.addr()).start().await?;
    let both = json!([["site-1", "hub-a"], ["site-2", "hub-b"]]);
    wait_cells(&browser, "agents", &[0, 2], both).await?;
    let client = pair.b.connect("echo").await?;
    let from = client.local_addr()?.to_string();
    let flow = json!([["● open", "echo", from, "hub-b", "hub-a", "site-1"]]);
    wait_cells(&browser, "flows", &[1, 2, 3, 4, 5, 6], flow).await?;
    let told = api(&pair.a, "flows").await?;
    let shown = cells(&browser, "flows", &[0]).await?;
    assert_eq!(shown[0][0], told["flows"][0]["cid"]);

    // The way of a connector, and a filter.
    browser
        .run("document.querySelector('#connectors button').click()")
        .await?;
    let script = "return document.querySelectorAll('#path li').length > 4";
    browser.wait("a way", script).await?;
    let filter = "const form = document.querySelector('form[data-list=flows]'); form.elements.connector.value = 'NAME'; \
                  form.dispatchEvent(new Event('input'))";
    browser.run(&filter.replace("NAME", "bulk")).await?;
    let none = json!([["No flow on this page fits."]]);
    wait_cells(&browser, "flows", &[0], none).await?;
    browser.run(&filter.replace("NAME", "echo")).await?;
    wait_cells(&browser, "flows", &[2], json!([["echo"]])).await?;

    // What is wrong is at the top, in words.
    let trouble = |words: &str| {
        format!(
            "return !document.getElementById('troubles').hidden \
             && document.getElementById('trouble-list').textContent.includes('{words}') \
             && document.getElementById('state').textContent.includes('problem')"
        )
    };
    pair.redis.kill().await?;
    browser
        .wait("the registry's trouble", &trouble("degraded: registry"))
        .await?;
    pair.b.process().kill().await?;
    browser
        .wait("the silent hub", &trouble("does not answer (link_down)"))
        .await?;
    let script =
        "return document.querySelectorAll('#hubs tr')[2].textContent.includes('no answer')";
    browser.wait("no answer", script).await?;
    check_quiet(&browser, addr).await?;

    pair.a.process().kill().await?;
    let script = "return document.documentElement.classList.contains('stale') \
                  && document.getElementById('state').textContent.includes('data is old')";
    browser.wait("old data", script).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_asks_for_the_token_and_forgets_it() -> Result<()> {
    let lab = lab()?;
    let token = "a-token-that-nobody-guesses";
    let file = lab.write("admin.token", token)?;
    let hub = lab
        .hub("hub-a")
        .set("ha.replica_id", "hub-a")
        .set("admin.token_file", file)
        .start()
        .await?;
    let addr = hub.admin_addr()?;
    assert_eq!(http::get(addr, "/api/v1/status").await?.status, 401);
    let page = http::get(addr, "/").await?;
    assert_eq!(page.status, 200);
    ensure!(!page.body.contains("hub-a"), "data without the token");
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(page.header(name), Some(value));
    }
    let policy = page.header("content-security-policy").context("a policy")?;
    ensure!(
        policy.starts_with("default-src 'none'; script-src 'self'"),
        "{policy}"
    );
    let asks = |headers: Vec<(&'static str, String)>| async move {
        let headers: Vec<_> = headers
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        Ok::<_, anyhow::Error>(http::request(addr, "GET", "/", &headers, "").await?.status)
    };
    let tag = page.header("etag").context("a tag")?.to_owned();
    assert_eq!(asks(vec![("If-None-Match", tag)]).await?, 304);
    assert_eq!(asks(vec![("Origin", format!("http://{addr}"))]).await?, 403);

    let browser = Browser::start().await?;
    browser.open(&url(addr)).await?;
    let is_asked =
        "return !document.getElementById('login').hidden && document.activeElement.id === 'token'";
    browser.wait("the question for the token", is_asked).await?;
    check_quiet(&browser, addr).await?;
    browser.type_in("wrong\u{e007}").await?;
    let script = "return document.getElementById('refused').textContent.includes('does not take') \
                  && document.getElementById('shown').hidden";
    browser.wait("the refusal", script).await?;
    browser.complaints().await?;
    browser.wait("the question again", is_asked).await?;
    browser.type_in(&format!("{token}\u{e007}")).await?;
    wait_cells(&browser, "hubs", &[0, 1], json!([["hub-a", "● ready"]])).await?;
    let kept = "return [location.href, document.cookie, sessionStorage.length, localStorage.length, \
                document.getElementById('token').value]";
    assert_eq!(browser.run(kept).await?, json!([url(addr), "", 0, 0, ""]));
    check_quiet(&browser, addr).await?;
    browser.open(&url(addr)).await?;
    browser
        .wait("the question after a reload", is_asked)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_light_and_stays_usable_in_a_crowd() -> Result<()> {
    let lab = lab()?;
    let echo = Target::echo().await?;
    let (hub, _agent) = lab.site(&[("echo", echo.addr())]).await?;
    let addr = hub.admin_addr()?;
    let browser = Browser::start().await?;
    browser.open(&url(addr)).await?;
    // How soon it is, benches/page measures.
    let script =
        "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? false";
    browser.wait("the first paint", script).await?;
    check_quiet(&browser, addr).await?;

    browser.prepare(CROWD).await?;
    browser.open(&url(addr)).await?;
    browser
        .wait(
            "the crowd",
            "return document.querySelectorAll('#flows tbody tr').length === 100",
        )
        .await?;
    let shown = browser
        .run(
            "const tiles = [...document.querySelectorAll('#tiles dd:nth-of-type(1)')].map((one) => one.textContent); \
             return { tiles, boxes: document.querySelectorAll('#map rect').length, images: document.images.length, \
                      harm: window.harm ?? 'none', text: document.getElementById('events').textContent }",
        )
        .await?;
    assert_eq!(
        (&shown["tiles"][0], &shown["tiles"][5]),
        (&json!("10,000"), &json!("1,000"))
    );
    assert_eq!(
        (&shown["images"], &shown["harm"]),
        (&json!(0), &json!("none"))
    );
    ensure!(
        shown["text"]
            .as_str()
            .is_some_and(|text| text.contains("<img src=x onerror=")),
        "{shown}"
    );
    ensure!(
        shown["boxes"].as_u64().is_some_and(|boxes| boxes < 30),
        "{shown}"
    );
    let took = browser
        .run(
            "const told = await look(); const times = []; \
             for (let at = 0; at < 20; at += 1) { const begun = performance.now(); show(told); document.body.offsetHeight; \
             times.push(performance.now() - begun); } \
             times.sort((a, b) => a - b); return { median: times[10], most: times[19] }",
        )
        .await?;
    println!("an update, ms: {took}");
    ensure!(
        took["median"].as_f64().is_some_and(|median| median < 100.0),
        "{took}"
    );
    let next = "document.querySelector('nav[data-list=flows] [data-go=on]').click()";
    browser.run(next).await?;
    browser
        .wait("the next page", "return document.querySelector('nav[data-list=flows] span').textContent.startsWith('page 2')")
        .await?;
    check_quiet(&browser, addr).await?;
    Ok(())
}
