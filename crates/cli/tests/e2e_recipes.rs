//! The recipes of `deploy/`, run as they are written, behind the proxies that can be installed here.

use std::path::Path;

use anyhow::{Result, ensure};
use nowconnect_testkit::program;
use tokio::process::Command;

/// What `deploy/try` leaves with where a machine cannot build network namespaces.
const CANNOT: i32 = 77;

async fn holds(recipe: &str) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/try");
    let temporary = tempfile::tempdir()?;
    let mut command = Command::new(script);
    command.arg(recipe).env("TMPDIR", temporary.path());
    command.env("NOWCONNECT_BIN", env!("CARGO_BIN_EXE_nowconnect"));
    let done = program::finish(&mut command).await?;
    if done.status.code() == Some(CANNOT) {
        eprintln!("skipped: {}", done.stderr);
        return Ok(());
    }
    ensure!(done.status.success(), "{}\n{}", done.stdout, done.stderr);
    ensure!(done.stdout.contains("Everything held"), "{}", done.stdout);
    Ok(())
}

#[tokio::test]
async fn two_hubs_behind_nginx() -> Result<()> {
    holds("nginx").await
}

#[tokio::test]
async fn two_hubs_behind_haproxy() -> Result<()> {
    holds("haproxy").await
}

#[tokio::test]
async fn two_hubs_behind_caddy() -> Result<()> {
    holds("caddy").await
}

#[tokio::test]
async fn two_hubs_behind_traefik() -> Result<()> {
    holds("traefik").await
}

#[tokio::test]
async fn two_hubs_behind_traefik_that_passes_tls_on() -> Result<()> {
    holds("traefik-passthrough").await
}
