//! wstunnel with a reverse tunnel (`-R`): one WebSocket per flow.

use std::process::Command;

use super::{Running, Setup};
use crate::failure::Result;
use crate::sockets;

/// Its defaults: frames unmasked, and a client that does not verify the server's certificate.
pub(super) fn start(setup: &mut Setup<'_>, tls: bool) -> Result<Running> {
    let (entry, server) = (sockets::free()?, sockets::free()?);
    let path = setup.path_to(server)?;
    let scheme = if tls { "wss" } else { "ws" };

    let mut listener = Command::new(&setup.binaries.wstunnel);
    listener.args([
        "server",
        "--log-lvl",
        "WARN",
        &format!("{scheme}://{server}"),
    ]);
    if tls {
        listener
            .arg("--tls-certificate")
            .arg(&setup.credentials.certificate);
        listener
            .arg("--tls-private-key")
            .arg(&setup.credentials.key);
    }
    let mut dialer = Command::new(&setup.binaries.wstunnel);
    let forward = format!("tcp://{entry}:{}", setup.target);
    dialer.args([
        "client",
        "--log-lvl",
        "WARN",
        "-R",
        &forward,
        &format!("{scheme}://{path}"),
    ]);

    let processes = vec![
        setup.spawn_listener("wstunnel-server", &listener, server)?,
        setup.spawn("wstunnel-client", &dialer)?,
    ];
    Ok(Running { entry, processes })
}
