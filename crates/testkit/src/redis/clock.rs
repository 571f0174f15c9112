//! A wall clock of its own for a server, which can be set while it runs.

use std::path::Path;

use anyhow::{Result, ensure};
use tokio::process::Command;

use crate::program;

const SOURCE: &str = include_str!("clock.c");
const OFFSET: &str = "clock.offset";

/// Has `command` run with a clock that [`set`] sets.
pub(super) fn give(command: &mut Command, dir: &Path) -> Result<()> {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, SOURCE)?;
    set(dir, 0)?;
    let mut build = std::process::Command::new(program::find("cc", "gcc")?);
    build.args(["-shared", "-fPIC", "-O1", "-o"]);
    ensure!(
        build.arg(&library).arg(&source).status()?.success(),
        "cc failed"
    );
    command
        .env("LD_PRELOAD", library)
        .env("CLOCK_OFFSET", dir.join(OFFSET));
    Ok(())
}

/// Lets the clock be so many seconds before or after ours.
pub(super) fn set(dir: &Path, seconds: i64) -> Result<()> {
    let fresh = dir.join("clock.new");
    std::fs::write(&fresh, seconds.to_string())?;
    Ok(std::fs::rename(fresh, dir.join(OFFSET))?)
}
