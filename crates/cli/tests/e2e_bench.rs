//! The bench command against a real OpenLDAP server and an echo, through hub and agent.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::program::{Finished, finish};
use nowconnect_testkit::slapd::{self, Slapd};
use nowconnect_testkit::target::Target;
use serde_json::Value;
use tokio::process::Command;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

fn bench(kind: &str, addr: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nowconnect"));
    command
        .args(["bench", kind, "--host", &addr.ip().to_string()])
        .args(["--port", &addr.port().to_string()]);
    command
}

/// As the administrator, over everything.
fn search(addr: SocketAddr) -> Command {
    let mut command = bench("ldap", addr);
    command
        .args(["--bind-dn", slapd::ADMIN_DN, "--base-dn", slapd::BASE_DN])
        .env("LDAP_BIND_PASSWORD", slapd::ADMIN_PASSWORD);
    command
}

fn report(done: &Finished) -> Result<Value> {
    serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))
}

fn code(done: &Finished) -> Option<i32> {
    done.status.code()
}

#[tokio::test]
async fn searches_in_pages_are_measured_through_the_tunnel() -> Result<()> {
    let (lab, slapd) = (lab()?, Slapd::start(250).await?);
    let (hub, _agent) = lab.site(&[("ldap", slapd.addr())]).await?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("report.json");
    let done = finish(
        search(hub.listener_addr("ldap")?)
            .args(["--filter", "(&(objectClass=inetOrgPerson)(uid=u*))"])
            .args(["--attrs", "uid,mail", "--page-size", "100"])
            .args([
                "--concurrency",
                "4",
                "--rps-per-worker",
                "5",
                "--duration",
                "2",
            ])
            .args(["--slo", "p99=10000,errors=0", "--out"])
            .arg(&out),
    )
    .await?;
    assert_eq!(code(&done), Some(0), "{done:?}");
    let report = report(&done)?;
    assert_eq!(report["requests_total"], 40, "{report}");
    assert_eq!(report["latency_ms"]["count"], 40);
    assert_eq!(report["errors_total"], 0);
    assert_eq!(report["entries_total"], 40 * 250);
    assert_eq!(report["target"]["ssl"], false);
    assert_eq!(report["slo"]["met"], true);
    for key in ["avg_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms"] {
        assert!(
            report["latency_ms"][key].as_f64() > Some(0.0),
            "{key}: {report}"
        );
    }
    assert!(report["run_id"].is_string() && report["start_iso"].is_string());
    assert_eq!(std::fs::read_to_string(&out)?, done.stdout);
    // No terminal, no progress bar; and no secret anywhere.
    assert!(!done.stderr.contains('\r'), "{}", done.stderr);
    assert!(!done.stdout.contains(slapd::ADMIN_PASSWORD));
    // The first look and four workers.
    hub.wait_idle("ldap").await?;
    let connections = hub.metric("nowconnect_tcp_connections_total", &[("connector", "ldap")]);
    assert_eq!(connections.await?, 5.0);
    Ok(())
}

#[tokio::test]
async fn tls_is_verified_and_a_missed_objective_is_exit_code_1() -> Result<()> {
    let slapd = Slapd::start(10).await?;
    let ca = slapd.ca_file();
    let brief = ["--duration", "1", "--concurrency", "2", "--ssl"];
    let done = finish(search(slapd.tls_addr()).args(brief).arg("--ca").arg(&ca)).await?;
    assert_eq!(code(&done), Some(0), "{done:?}");
    assert_eq!(report(&done)?["target"]["ssl"], true);

    let unknown = finish(search(slapd.tls_addr()).args(brief)).await?;
    assert_eq!(code(&unknown), Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("--ca"), "{unknown:?}");

    let mut missed = search(slapd.tls_addr());
    missed
        .args(brief)
        .arg("--ca")
        .arg(&ca)
        .args(["--slo", "p99=0.001,errors=0"]);
    let missed = finish(&mut missed).await?;
    assert_eq!(code(&missed), Some(1), "{missed:?}");
    assert!(
        missed.stderr.contains("objectives missed: p99"),
        "{missed:?}"
    );
    assert_eq!(report(&missed)?["slo"]["met"], false);
    Ok(())
}

#[tokio::test]
async fn mistakes_are_told_before_any_load() -> Result<()> {
    let slapd = Slapd::start(1).await?;
    let wrong = finish(bench("ldap", slapd.addr()).args([
        "--bind-dn",
        slapd::ADMIN_DN,
        "--password",
        "wrong",
    ]))
    .await?;
    assert_eq!(code(&wrong), Some(1), "{wrong:?}");
    assert!(
        wrong.stderr.contains("invalidCredentials (49)"),
        "{wrong:?}"
    );
    assert!(wrong.stderr.contains("list of processes"), "{wrong:?}");

    let mut nowhere = bench("ldap", slapd.addr());
    nowhere.args(["--base-dn", "dc=nowhere"]);
    let base = finish(&mut nowhere).await?;
    assert!(base.stderr.contains("check --base-dn"), "{base:?}");

    let said = async |options: &[&str]| -> Result<String> {
        Ok(finish(bench("ldap", slapd.addr()).args(options))
            .await?
            .stderr)
    };
    let dn = said(&["--bind-dn", "nobody", "--password", "wrong"]).await?;
    assert!(
        dn.contains("invalidDNSyntax (34)") && dn.contains("check --bind-dn"),
        "{dn}"
    );
    let plain = said(&["--ssl", "--timeout", "5"]).await?;
    assert!(plain.contains("does that port speak TLS?"), "{plain}");
    let lab = lab()?;
    let mut unknown = lab.command(&["bench", "ldap", "--host", "directory.invalid"]);
    let unknown = finish(&mut unknown).await?;
    assert!(unknown.stderr.contains("this machine's DNS"), "{unknown:?}");
    // A hub takes clients and lets them go, when no agent serves them.
    let hub = lab.hub("hub-a").listener("ldap").start().await?;
    let done = finish(&mut bench("ldap", hub.listener_addr("ldap")?)).await?;
    let hints = ["nowconnect path", "it was cut off"];
    assert!(
        hints.iter().any(|hint| done.stderr.contains(hint)),
        "{done:?}"
    );

    for options in [
        ["--filter", "(cn=a"],
        ["--slo", "p98=1"],
        ["--duration", "0"],
        ["--out", "/nowhere/report.json"],
    ] {
        let done = finish(search(slapd.addr()).args(options)).await?;
        assert_eq!(code(&done), Some(2), "{done:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_published_workload_has_its_figures_beside_ours() -> Result<()> {
    let slapd = Slapd::start(10).await?;
    let options = ["--workload", "20x3", "--duration", "1"];
    let done = finish(search(slapd.addr()).args(options)).await?;
    let report = report(&done)?;
    assert_eq!(report["requests_total"], 60, "{report}");
    assert_eq!(report["published"]["p99_ms"], 623.0);
    assert!(
        done.stderr.contains("published:  p50 371.0  p99 623.0"),
        "{done:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_interrupt_prints_what_there_is() -> Result<()> {
    let target = Target::echo().await?;
    let mut command = bench("tcp", target.addr());
    let child = command
        .args(["--keep", "--rps-per-worker", "0", "--duration", "600"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    // Under load: the look at the target has been and gone, and the workers are connected.
    target.wait_accepted(11).await?;
    let pid = rustix::process::Pid::from_raw(child.id().context("running")?.try_into()?);
    rustix::process::kill_process(pid.context("a process")?, rustix::process::Signal::INT)?;
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await??;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["interrupted"], true, "{report}");
    Ok(())
}

#[tokio::test]
async fn echo_and_bulk_go_through_the_tunnel() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let (hub, _agent) = lab.site(&[("echo", target.addr())]).await?;
    let addr = hub.listener_addr("echo")?;
    for mode in ["connect", "echo", "bulk"] {
        let mut command = bench("tcp", addr);
        command.args([
            "--mode",
            mode,
            "--concurrency",
            "3",
            "--rps-per-worker",
            "0",
        ]);
        let done = finish(command.args(["--duration", "1", "--slo", "errors=0"])).await?;
        assert_eq!(code(&done), Some(0), "{mode}: {done:?}");
        let report = report(&done)?;
        assert!(
            report["requests_total"].as_u64() > Some(3),
            "{mode}: {report}"
        );
        match mode {
            "connect" => assert!(report.get("bytes_sent").is_none()),
            "echo" => assert_eq!(report["bytes_sent"], report["bytes_received"]),
            _ => assert!(report["mb_per_s_sent"].as_f64() > Some(0.0), "{report}"),
        }
    }
    Ok(())
}
