//! The audit trail of running hubs, as `nowconnect audit verify` judges it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::lab::{Hub, HubPlan, Lab, Pair};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::until;
use nowconnect_testkit::{http, program};
use serde_json::{Value, json};
use tokio::process::Command;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// The file of a hub's trail.
fn file(lab: &Lab, name: &str) -> PathBuf {
    lab.path(&format!("{name}.audit"))
}

fn audited<'a>(lab: &'a Lab, name: &str) -> HubPlan<'a> {
    let file = file(lab, name);
    let hub = lab.hub(name).listener("echo");
    hub.set("audit.file", file.to_string_lossy().as_ref())
}

fn records(file: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let records = text.lines().map(|line| Ok(serde_json::from_str(line)?));
    records.collect()
}

fn named(file: &Path, event: &str) -> Result<Vec<Value>> {
    let mut records = records(file)?;
    records.retain(|record| record["event"] == event);
    Ok(records)
}

/// The records of this name, once there are so many.
async fn wait_named(file: &Path, event: &str, count: usize) -> Result<Vec<Value>> {
    until(event, async || {
        let found = named(file, event)?;
        ensure!(found.len() >= count, "{} of {count} {event}", found.len());
        Ok(found)
    })
    .await
}

async fn served(hub: &Hub) -> Result<()> {
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 1000).await
}

/// Exit code and report of `nowconnect audit verify`.
async fn verify(lab: &Lab, files: &[&Path], more: &[&str]) -> Result<(i32, Value)> {
    let files: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
    let mut args = vec!["audit", "verify", "--json"];
    args.extend(files.iter().map(AsRef::as_ref));
    args.extend(more);
    let done = lab.run(&args).await?;
    let report = serde_json::from_str(&done.stdout).unwrap_or_default();
    Ok((done.status.code().unwrap_or(-1), report))
}

async fn assert_whole(lab: &Lab, files: &[&Path], more: &[&str]) -> Result<Value> {
    let (code, report) = verify(lab, files, more).await?;
    ensure!(code == 0, "{report:#}");
    Ok(report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flow_has_one_record_whatever_the_level_of_the_log() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = audited(&lab, "hub-a").set("observability.log_level", "ERROR");
    let mut hub = hub.set("limits.max_conn_total", 3000).start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    hub.wait_agents(1).await?;
    let flows = 2000;
    for _ in 0..flows / 100 {
        let mut clients = Vec::new();
        for _ in 0..100 {
            clients.push(hub.connect("echo").await?);
        }
        for client in &mut clients {
            echo(client, Pattern(3), 0, 10).await?;
        }
    }
    hub.wait_idle("echo").await?;
    ensure!(!hub.log().text().contains("flow_closed"), "filtered out");
    let trail = file(&lab, "hub-a");
    let closed = wait_named(&trail, "flow_closed", flows).await?;
    let cids: BTreeSet<_> = closed.iter().map(|one| one["cid"].to_string()).collect();
    assert_eq!((closed.len(), cids.len()), (flows, flows));
    for one in &closed {
        ensure!(
            one["client"]
                .as_str()
                .is_some_and(|at| at.starts_with("127.0.0.1:"))
                && one["listener"] == "echo"
                && one["agent_id"] == "site-1"
                && one["origin"] == one["owner"]
                && one["epoch"].as_u64() > Some(0)
                && one["token_id"].is_string()
                && one["bytes_c2a"] == 10
                && one["bytes_a2c"] == 10
                && one["reason"] == "finished",
            "{one}"
        );
    }
    hub.process().signal(Signal::Term).await?;
    hub.process().wait_exit().await?;
    let report = assert_whole(&lab, &[&trail], &[]).await?;
    ensure!(report["records"].as_u64() > Some(flows as u64), "{report}");
    let last: Vec<_> = records(&trail)?;
    let last: Vec<_> = last[last.len() - 4..]
        .iter()
        .map(|one| &one["event"])
        .collect();
    assert_eq!(last[2..], ["hub_stopped", "audit_closed"], "{last:?}");
    Ok(())
}

/// Both hubs tell of the same flow, and of the same token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_across_two_hubs_is_recorded_by_both() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let files = ["hub-a", "hub-b"].map(|name| file(&pair.lab, name));
    for (hub, file) in [&mut pair.a, &mut pair.b].into_iter().zip(&files) {
        hub.rewrite("audit", json!({ "file": file }))?;
        hub.reload().await?;
        hub.log().wait_event("config_reloaded").await?;
        wait_named(file, "audit_opened", 1).await?;
    }
    let _agent = pair.agent(&[&pair.a], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    served(&pair.b).await?;
    let origin = wait_named(&files[1], "flow_closed", 1).await?;
    let owner = wait_named(&files[0], "flow_forwarded_closed", 1).await?;
    let [origin, owner] = [&origin[0], &owner[0]];
    for same in [
        "cid",
        "client",
        "connector",
        "agent_id",
        "token_id",
        "epoch",
        "origin",
        "bytes_c2a",
        "bytes_a2c",
    ] {
        ensure!(
            !origin[same].is_null() && origin[same] == owner[same],
            "{same}: {origin} {owner}"
        );
    }
    assert_eq!(
        (&origin["origin"], &origin["owner"]),
        (&json!("hub-b"), &json!("hub-a"))
    );
    assert_eq!(origin["bytes_c2a"], 1000);
    assert!(named(&files[0], "flow_closed")?.is_empty());
    let connected = named(&files[0], "agent_connected")?;
    assert_eq!(connected[0]["token_id"], origin["token_id"]);
    for file in &files {
        assert_whole(&pair.lab, &[file], &[]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chain_goes_on_after_a_crash_and_through_a_rotation() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let key = lab.write("audit.key", "0123456789abcdef0123456789abcdef")?;
    let mut hub = audited(&lab, "hub-a").set("audit.key_file", key.as_str());
    hub = hub.set("ha.replica_id", "hub-a");
    let mut hub = hub.start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    hub.wait_agents(1).await?;
    let (trail, first) = (file(&lab, "hub-a"), lab.path("hub-a.audit.1"));
    served(&hub).await?;
    wait_named(&trail, "flow_closed", 1).await?;
    hub.restart().await?;
    hub.wait_agents(1).await?;
    served(&hub).await?;
    wait_named(&trail, "flow_closed", 2).await?;
    assert_eq!(named(&trail, "audit_opened")?.len(), 2);
    assert!(named(&trail, "audit_closed")?.is_empty(), "it was killed");

    std::fs::rename(&trail, &first)?;
    hub.reload().await?;
    served(&hub).await?;
    wait_named(&trail, "flow_closed", 1).await?;
    // The hub crashed in the middle of a line, and the file was moved away while it was down.
    hub.process().kill().await?;
    let mut torn = std::fs::read(&trail)?;
    let whole = torn.len();
    torn.extend_from_slice(&torn.clone()[..100]);
    std::fs::write(&trail, &torn)?;
    hub.start_again().await?;
    let note = wait_named_lossy(&trail, "audit_torn").await?;
    assert_eq!(note["bytes"], 101);
    hub.process().kill().await?;
    let second = lab.path("hub-a.audit.2");
    std::fs::rename(&trail, &second)?;
    hub.start_again().await?;
    wait_named(&trail, "audit_opened", 1).await?;
    hub.process().signal(Signal::Term).await?;
    hub.process().wait_exit().await?;

    let all: [&Path; 3] = [&first, &second, &trail];
    let with_key = ["--key-file", key.as_str()];
    let (code, report) = verify(&lab, &all, &with_key).await?;
    ensure!(
        code == 1 && report["broken"] == 0 && report["gaps"] == 1,
        "{report:#}"
    );
    ensure!(
        report["findings"][0]["problem"] == "gap_recorded",
        "{report:#}"
    );
    let accepting = ["--key-file", key.as_str(), "--accept-gaps"];
    assert_whole(&lab, &all, &accepting).await?;
    // Without the key nothing fits, nor with another; one file less shows.
    assert_eq!(verify(&lab, &all, &[]).await?.0, 1);
    let other = lab.write("other.key", "fedcba9876543210fedcba9876543210")?;
    assert_eq!(verify(&lab, &all, &["--key-file", &other]).await?.0, 1);
    let (code, report) = verify(&lab, &[&first, &trail], &accepting).await?;
    ensure!(
        code == 1 && report["findings"][0]["problem"] == "missing",
        "{report:#}"
    );
    // What was torn may not be changed either.
    torn = std::fs::read(&second)?;
    torn[whole + 20] ^= 1;
    std::fs::write(&second, torn)?;
    assert_eq!(verify(&lab, &all, &accepting).await?.0, 1);
    assert_eq!(verify(&lab, &[&lab.path("none")], &[]).await?.0, 2);
    Ok(())
}

/// The same where a line is no record.
async fn wait_named_lossy(file: &Path, event: &str) -> Result<Value> {
    until(event, async || {
        let text = std::fs::read_to_string(file)?;
        let mut records = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = records.find(|record| record["event"] == event);
        found.context("not there")
    })
    .await
}

/// Somebody deletes the last records and has the hashes of the rest fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_cut_off_shows_by_the_head_in_the_log() -> Result<()> {
    let lab = lab()?;
    let mut hub = audited(&lab, "hub-a").start().await?;
    hub.process().signal(Signal::Term).await?;
    hub.process().wait_exit().await?;
    let heads = hub.log().events("audit_head", Default::default());
    let head = heads.last().context("no audit_head")?;
    let head = format!(
        "{}:{}",
        head.number("seq").context("seq")?,
        head.text("hash")
    );
    let trail = file(&lab, "hub-a");
    let report = assert_whole(&lab, &[&trail], &["--head", &head]).await?;
    assert_eq!(report["head"], head.as_str());
    let text = std::fs::read_to_string(&trail)?;
    let cut = text.trim_end().rfind('\n').context("lines")? + 1;
    std::fs::write(&trail, &text[..cut])?;
    assert_whole(&lab, &[&trail], &[]).await?;
    let (code, report) = verify(&lab, &[&trail], &["--head", &head]).await?;
    ensure!(
        code == 1 && report["findings"][0]["problem"] == "head",
        "{report:#}"
    );
    // The next start knows better than the file.
    hub.start_again().await?;
    let (code, report) = verify(&lab, &[&trail], &[]).await?;
    ensure!(
        code == 1 && report["findings"][0]["problem"] == "missing",
        "{report:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_no_flow_and_is_made_up_for() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let trail = file(&lab, "hub-a");
    std::os::unix::fs::symlink("/dev/full", &trail)?;
    let hub = audited(&lab, "hub-a").start().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    hub.wait_agents(1).await?;
    hub.log().wait_event("audit_file_failed").await?;
    for _ in 0..20 {
        served(&hub).await?;
    }
    assert_eq!(hub.metric("nowconnect_audit_file_failing", &[]).await?, 1.0);
    std::fs::remove_file(&trail)?;
    hub.log().wait_event("audit_file_recovered").await?;
    let closed = wait_named(&trail, "flow_closed", 20).await?;
    assert_eq!(closed.len(), 20);
    assert_eq!(hub.metric("nowconnect_audit_file_failing", &[]).await?, 0.0);
    let lost = [("result", "lost")];
    assert_eq!(
        hub.metric("nowconnect_audit_records_total", &lost).await?,
        0.0
    );
    assert_whole(&lab, &[&trail], &[]).await?;
    let mode = program::succeed(Command::new("stat").args(["-c", "%a"]).arg(&trail)).await?;
    assert_eq!(mode.trim(), "600");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_and_refusals_of_the_admin_api_are_recorded() -> Result<()> {
    let lab = lab()?;
    let token = lab.write("admin.token", "correct-horse\n")?;
    let hub = audited(&lab, "hub-a").set("admin.token_file", token.as_str());
    let mut hub = hub.start().await?;
    let (admin, trail) = (hub.admin_addr()?, file(&lab, "hub-a"));
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        http::request(admin, method, path, headers, "").await
    };
    let right = ("Authorization", "Bearer correct-horse");
    for (headers, status, reason) in [
        (&[][..], 401, "unauthorized"),
        (&[right, ("Origin", "https://evil.example")], 403, "origin"),
        (&[right, ("Host", "evil.example")], 403, "host"),
    ] {
        let answer = ask("POST", "/api/v1/reload", headers).await?;
        assert_eq!(answer.status, status, "{reason}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let refused = wait_named(&trail, "admin_refused", 1).await?;
        let last = refused.last().context("none")?;
        assert_eq!(
            (&last["reason"], &last["action"]),
            (&json!(reason), &json!("reload"))
        );
    }
    let path = "/api/v1/agents/nobody/disconnect";
    assert_eq!(ask("POST", path, &[right]).await?.status, 404);
    hub.rewrite("limits.max_conn_total", 77)?;
    assert_eq!(ask("POST", "/api/v1/reload", &[right]).await?.status, 200);
    let actions = wait_named(&trail, "admin_action", 2).await?;
    let told = |one: &Value| {
        (
            one["action"].clone(),
            one["status"].clone(),
            one["by"].clone(),
        )
    };
    assert_eq!(
        told(&actions[0]),
        (json!("disconnect"), json!(404), json!("token"))
    );
    assert_eq!(actions[0]["agent_id"], "nobody");
    assert_eq!(
        told(&actions[1]),
        (json!("reload"), json!(200), json!("token"))
    );
    let reloaded = named(&trail, "config_reloaded")?;
    assert_eq!(reloaded[0]["changed"], "limits.max_conn_total");

    // Whoever tries tokens is slowed down, and the right one with them.
    let wrong = ("Authorization", "Bearer wrong");
    for _ in 0..10 {
        assert_eq!(ask("GET", "/api/v1/status", &[wrong]).await?.status, 401);
    }
    let answer = ask("GET", "/api/v1/status", &[right]).await?;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (429, Some("1"))
    );
    until("another attempt", async || {
        let answer = ask("GET", "/api/v1/status", &[right]).await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })
    .await?;
    assert_whole(&lab, &[&trail], &[]).await?;
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_no_trail_is_refused_at_the_start() -> Result<()> {
    let lab = lab()?;
    std::fs::write(file(&lab, "hub-a"), "Jan  1 00:00:00 host login\n")?;
    let mut hub = audited(&lab, "hub-a").spawn()?;
    let status = hub.process().wait_exit().await?;
    assert_eq!(status.code(), Some(2));
    ensure!(
        hub.log().text().contains("audit.file"),
        "{}",
        hub.log().text()
    );
    Ok(())
}
