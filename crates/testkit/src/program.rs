//! Programs of the machine: where they are, and running one to its end.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a client program may run.
const LIMIT: Duration = Duration::from_secs(120);

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Finds an installed program, also where `PATH` of an unprivileged user does not look.
///
/// # Errors
/// When it is not installed; `package` says what brings it.
pub fn find(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = path.split(':').map(PathBuf::from).collect();
    places.extend(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    places.extend(postgresql_places());
    let found = places
        .iter()
        .map(|place| place.join(name))
        .find(|file| file.is_file());
    found.with_context(|| {
        format!("{name} is not installed: run ./test, or apt-get install {package}")
    })
}

/// `/usr/lib/postgresql/VERSION/bin`, newest first: Debian keeps the server out of `PATH`.
fn postgresql_places() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut versions: Vec<PathBuf> = versions.map(|version| version.path()).collect();
    versions.sort();
    versions
        .iter()
        .rev()
        .map(|version| version.join("bin"))
        .collect()
}

/// Starts a program that lives as long as its handle, and whose output is for us.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{command:?}"))
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// When it cannot be started or runs too long.
pub async fn finish(command: &mut Command) -> Result<Finished> {
    let child = spawn(command)?;
    let Ok(output) = timeout(LIMIT, child.wait_with_output()).await else {
        bail!("still running after {LIMIT:?}: {command:?}");
    };
    let output = output?;
    Ok(Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a program that must succeed; returns its standard output.
///
/// # Errors
/// When it fails, with what it printed.
pub async fn succeed(command: &mut Command) -> Result<String> {
    let done = finish(command).await?;
    ensure!(
        done.status.success(),
        "{command:?}: {}\n{}\n{}",
        done.status,
        done.stdout,
        done.stderr
    );
    Ok(done.stdout)
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// The text of a file.
///
/// # Errors
/// Names the file.
pub fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

/// Writes a file as a careful operator does: for himself, and whole, by renaming it into place.
///
/// # Errors
/// Names the file.
pub fn write(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    let mut options = std::fs::File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let write = || options.open(&new)?.write_all(text.as_bytes());
    write().with_context(|| new.display().to_string())?;
    std::fs::rename(&new, file).with_context(|| file.display().to_string())
}
