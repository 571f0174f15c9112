//! OpenSSH with a reverse forwarding (`-R`), from an own sshd with throw-away keys.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Running, Setup};
use crate::failure::{Context, Result};
use crate::{sockets, tool};

/// sshd insists on being started by its absolute path.
const SSHD: &str = "/usr/sbin/sshd";
/// sshd, when root runs it, wants this directory; packages make it when their service starts.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";
/// What the TLS systems agree on, and on machines with AES instructions OpenSSH's fastest.
const CIPHER: &str = "aes256-gcm@openssh.com";

pub(super) fn start(setup: &mut Setup<'_>) -> Result<Running> {
    let (entry, server) = (sockets::free()?, sockets::free()?);
    let path = setup.path_to(server)?;
    let keys = setup.credentials;
    let public = |key: &Path| {
        let file = key.with_extension("pub");
        fs::read_to_string(&file).context(file.display())
    };
    let authorized = setup.write("authorized_keys", &public(&keys.ssh_client_key)?)?;
    let host_key = public(&keys.ssh_host_key)?;
    let known = setup.write(
        "known_hosts",
        &format!("[127.0.0.1]:{} {host_key}", path.port()),
    )?;
    let configuration = setup.write(
        "sshd_config",
        &format!(
            "ListenAddress {server}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             AllowTcpForwarding yes\nLogLevel ERROR\n",
            keys.ssh_host_key.display(),
            authorized.display()
        ),
    )?;
    prepare_privilege_separation();
    let mut listener = Command::new(SSHD);
    listener.args(["-D", "-e", "-f"]).arg(configuration);
    let mut processes = vec![setup.spawn_listener("sshd", &listener, server)?];

    let user = tool::run(Command::new("id").arg("-un"))?;
    let mut dialer = Command::new("ssh");
    dialer.args([
        "-F",
        "none",
        "-N",
        "-T",
        "-a",
        "-x",
        "-p",
        &path.port().to_string(),
    ]);
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "ExitOnForwardFailure=yes",
        "StrictHostKeyChecking=yes",
        "ServerAliveInterval=5",
        &format!("Ciphers={CIPHER}"),
        &format!("UserKnownHostsFile={}", known.display()),
    ] {
        dialer.args(["-o", option]);
    }
    dialer.arg("-i").arg(&keys.ssh_client_key);
    dialer.args([
        "-R",
        &format!("{entry}:{}", setup.target),
        &format!("{user}@127.0.0.1"),
    ]);
    processes.push(setup.spawn("ssh", &dialer)?);
    Ok(Running { entry, processes })
}

/// Whether this run made [`PRIVILEGE_SEPARATION`].
static MADE: AtomicBool = AtomicBool::new(false);

/// Made before every start, because whoever made it before may also take it away.
fn prepare_privilege_separation() {
    if fs::create_dir(PRIVILEGE_SEPARATION).is_ok() {
        MADE.store(true, Ordering::Relaxed);
    }
}

/// Dropping it removes the directory that sshd wants, if this run made it.
#[derive(Debug)]
pub(crate) struct PrivilegeSeparation;

impl Drop for PrivilegeSeparation {
    fn drop(&mut self) {
        if MADE.load(Ordering::Relaxed) {
            fs::remove_dir(PRIVILEGE_SEPARATION).ok();
        }
    }
}
