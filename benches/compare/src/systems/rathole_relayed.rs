//! rathole with TLS behind a TCP relay: what one would put up to reach its server from another host.

use std::process::Command;

use super::{Running, Setup, rathole};
use crate::failure::Result;
use crate::sockets;

/// HAProxy in TCP mode, its defaults but for the limit of connections, in front of rathole's port for clients.
pub(super) fn start(setup: &mut Setup<'_>) -> Result<Running> {
    let behind = rathole::start(setup, true)?;
    let entry = sockets::free()?;
    let file = setup.write(
        "haproxy.cfg",
        &format!(
            "global\n  maxconn 2000\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n\
             listen bench\n  bind {entry}\n  server rathole {}\n",
            behind.entry
        ),
    )?;
    let mut relay = Command::new("haproxy");
    relay.arg("-db").arg("-f").arg(file);
    let mut processes = vec![setup.spawn_listener("haproxy", &relay, entry)?];
    processes.extend(behind.processes);
    Ok(Running { entry, processes })
}
