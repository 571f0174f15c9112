//! Gets the programs that are compared: builds ours, installs the peers once into a cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Failure, Result};
use crate::options::Options;
use crate::systems::{Binaries, System};

/// This package lies in `benches/compare` of the workspace.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

const RATHOLE: &str = "0.5.0";
const WSTUNNEL: &str = "10.6.2";

/// Builds and installs what `systems` need and no option names.
pub(crate) fn binaries(options: &Options, systems: &[System]) -> Result<Binaries> {
    let mut binaries = Binaries::default();
    for system in systems {
        match system {
            System::Ours { .. } | System::OursAcross => {
                fill(&mut binaries.ours, &options.ours, build_ours)?
            }
            System::Rathole { .. } | System::RatholeRelayed => {
                fill(&mut binaries.rathole, &options.rathole, || {
                    install_rathole(options)
                })?;
            }
            System::Wstunnel { .. } => {
                fill(&mut binaries.wstunnel, &options.wstunnel, || {
                    install_wstunnel(options)
                })?;
            }
            System::Loopback | System::Relay | System::Multiplexer | System::OpenSsh => {}
        }
    }
    Ok(binaries)
}

fn fill(
    slot: &mut PathBuf,
    given: &Option<PathBuf>,
    make: impl FnOnce() -> Result<PathBuf>,
) -> Result<()> {
    if slot.as_os_str().is_empty() {
        let path = given.clone().map_or_else(make, Ok)?;
        *slot = path.canonicalize().context(path.display())?;
    }
    Ok(())
}

fn build_ours() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo
        .args(["build", "--release", "--locked", "--bin", "nowconnect"])
        .current_dir(WORKSPACE);
    execute(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into());
    Ok(Path::new(WORKSPACE).join(target).join("release/nowconnect"))
}

/// Without the lock file of its release: that one names a `time` that current compilers refuse.
fn install_rathole(options: &Options) -> Result<PathBuf> {
    install(options, "rathole", RATHOLE, |cargo| {
        cargo.args(["--no-default-features", "--features", "server,client,tls"]);
        cargo.arg(format!("rathole@{RATHOLE}"));
    })
}

/// Not published on crates.io. Features and flags are those of its own release builds.
fn install_wstunnel(options: &Options) -> Result<PathBuf> {
    install(options, "wstunnel", WSTUNNEL, |cargo| {
        cargo.args(["--locked", "--features", "jemalloc"]);
        let source = Path::new(&options.wstunnel_source);
        if source.is_dir() {
            cargo.arg("--path").arg(source.join("wstunnel-cli"));
        } else {
            cargo.args([
                "--git",
                &options.wstunnel_source,
                "--tag",
                &format!("v{WSTUNNEL}"),
            ]);
            cargo.arg("wstunnel-cli");
        }
        cargo.env("RUSTFLAGS", "--cfg uuid_unstable");
    })
}

fn install(
    options: &Options,
    name: &str,
    version: &str,
    describe: impl FnOnce(&mut Command),
) -> Result<PathBuf> {
    let root = cache(options)?.join(format!("{name}-{version}"));
    let binary = root.join("bin").join(name);
    if !binary.is_file() {
        eprintln!(
            "installing {name} {version} below {} (once)",
            root.display()
        );
        let mut cargo = cargo();
        cargo.args(["install", "--root"]).arg(&root);
        describe(&mut cargo);
        execute(&mut cargo).context(format!(
            "{name} could not be installed; give --{name}-bin, or leave it out with --systems"
        ))?;
    }
    Ok(binary)
}

fn cache(options: &Options) -> Result<PathBuf> {
    if let Some(directory) = &options.cache {
        return Ok(directory.clone());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = base
        .or_else(home)
        .context("neither HOME nor XDG_CACHE_HOME is set; give --cache")?;
    Ok(base.join("nowconnect-compare"))
}

/// At the lowest priority: these builds are long and nobody waits for them but us.
fn cargo() -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19", "cargo"]);
    command
}

fn execute(command: &mut Command) -> Result<()> {
    let status = command.status().context("cargo")?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("cargo ended with {status}")))
    }
}
