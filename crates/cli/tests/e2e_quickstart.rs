//! The first thing that a newcomer runs.

use std::path::Path;

use anyhow::{Result, ensure};
use nowconnect_testkit::program;
use tokio::process::Command;

#[tokio::test]
async fn quickstart_searches_a_real_directory_and_leaves_nothing_behind() -> Result<()> {
    let said = quickstart(&["--once"]).await?;
    for word in [
        "mail: ada.lovelace@example.org",
        "12 entries in all",
        "Everything worked",
    ] {
        ensure!(said.contains(word), "nothing about {word:?}:\n{said}");
    }
    for moved in [
        "nowconnect_tcp_connections_total{connector=\"ldap\"}",
        "nowconnect_tcp_bytes_total",
    ] {
        ensure!(said.contains(moved), "{moved} did not move:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn quickstart_works_where_nothing_can_be_installed() -> Result<()> {
    let said = quickstart(&["--echo", "--once"]).await?;
    for word in [
        "  Hello from the cloud",
        "nowconnect_tcp_bytes_total",
        "Everything worked",
    ] {
        ensure!(said.contains(word), "nothing about {word:?}:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn quickstart_kills_a_hub_and_loses_nothing() -> Result<()> {
    let said = quickstart(&["--ha", "--once"]).await?;
    for word in [
        "12 entries in all",
        "kill -9 hub-",
        "24 MiB, sha256",
        "nowconnect_cross_hub_flows_total",
        "nowconnect_flow_resumes_total{result=\"resumed\"}",
        "is back, and linked",
        "Everything worked",
    ] {
        ensure!(said.contains(word), "nothing about {word:?}:\n{said}");
    }
    Ok(())
}

async fn quickstart(args: &[&str]) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../quickstart");
    let temporary = tempfile::tempdir()?;
    let mut command = Command::new(script);
    command
        .args(args)
        .current_dir("/")
        .env("TMPDIR", temporary.path());
    command.env("NOWCONNECT_BIN", env!("CARGO_BIN_EXE_nowconnect"));
    let done = program::finish(&mut command).await?;
    ensure!(done.status.success(), "{}\n{}", done.stdout, done.stderr);
    ensure!(
        !done.stdout.contains('\u{1b}'),
        "colours without a terminal"
    );
    ensure!(
        std::fs::read_dir(temporary.path())?.count() == 0,
        "files were left behind"
    );
    Ok(done.stdout)
}
