//! Takes over the listening sockets that systemd holds for the service (`sd_listen_fds(3)`).
//!
//! `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` stay in the environment, which safe code cannot change.
//! They are for the process with this id alone, the descriptors close on exec, and the hub starts no other
//! programs.

use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, anyhow, ensure};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// More are taken for a mistake.
const MOST: usize = 1024;
/// What `LISTEN_FDNAMES` says nothing about, as systemd calls it.
const UNNAMED: &str = "unknown";

/// The listening TCP sockets that were passed to this process, with their names. To be called once, before
/// anything is opened.
///
/// # Errors
/// Something was passed that is no listening TCP socket.
pub(crate) fn inherited_sockets() -> anyhow::Result<Vec<(String, TcpListener)>> {
    let count = std::env::var("LISTEN_FDS").unwrap_or_default();
    ensure!(
        count.parse().unwrap_or(0) <= MOST,
        "LISTEN_FDS is {count}: more than {MOST} sockets are not taken"
    );
    let passed = sd_listen_fds::get().map_err(|_| {
        anyhow!("LISTEN_PID or LISTEN_FDS is no number; unset both, or let systemd set them")
    })?;
    let passed = passed.into_iter().map(|(name, fd)| (name, fd.into_std()));
    let passed: Vec<(Option<String>, OwnedFd)> = passed.collect();
    if let Some(error) = passed.iter().find_map(|(_, fd)| close_on_exec(fd).err()) {
        // Not to be closed either: the number may be somebody else's by then.
        std::mem::forget(passed);
        return Err(error.context(format!("LISTEN_FDS is {count}, and not all are there")));
    }
    let sockets = passed.into_iter().map(|(name, fd)| {
        let name = name.filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| UNNAMED.to_owned());
        judge(&fd).with_context(|| {
            format!("the service manager passes {name:?}, which is of no use to a hub")
        })?;
        Ok((name, TcpListener::from(fd)))
    });
    sockets.collect()
}

fn close_on_exec(fd: &OwnedFd) -> anyhow::Result<()> {
    let number = fd.as_raw_fd();
    fcntl_setfd(fd, FdFlags::CLOEXEC).with_context(|| format!("descriptor {number}"))
}

fn judge(fd: &OwnedFd) -> anyhow::Result<()> {
    let kind = match socket_type(fd) {
        Err(Errno::NOTSOCK) => anyhow::bail!("it is no socket: use ListenStream="),
        kind => kind?,
    };
    ensure!(
        kind == SocketType::STREAM,
        "it is no stream socket: use ListenStream=, not ListenDatagram="
    );
    ensure!(
        matches!(
            socket_domain(fd)?,
            AddressFamily::INET | AddressFamily::INET6
        ),
        "it is no TCP socket: give ListenStream= a port, or an IP address and a port"
    );
    ensure!(
        socket_acceptconn(fd)?,
        "it does not listen: the socket unit must have Accept=no"
    );
    Ok(())
}
