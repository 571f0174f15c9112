//! Command-line tools that are run to completion.

use std::process::Command;

use crate::failure::{Context, Failure, Result};

/// Runs `command` and returns its standard output; what it wrote to stderr becomes the error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().context(format!("run {name}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!(
        "{name} failed ({}): {}",
        output.status,
        errors.trim()
    )))
}
