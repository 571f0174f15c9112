//! rathole: one TCP (or TLS) connection per flow, dialled by the client at the server's request.

use std::path::Path;
use std::process::Command;

use super::{Running, Setup};
use crate::credentials::PKCS12_PASSWORD;
use crate::failure::Result;
use crate::sockets;

/// Its defaults, with TCP_NODELAY said explicitly wherever it can be said.
pub(super) fn start(setup: &mut Setup<'_>, tls: bool) -> Result<Running> {
    let (entry, server) = (sockets::free()?, sockets::free()?);
    let path = setup.path_to(server)?;
    let (mut server_transport, mut client_transport) =
        ("type = 'tcp'".into(), "type = 'tcp'".into());
    if tls {
        server_transport = format!(
            "type = 'tls'\n[server.transport.tls]\npkcs12 = '{}'\npkcs12_password = '{PKCS12_PASSWORD}'",
            setup.credentials.pkcs12.display()
        );
        client_transport = format!(
            "type = 'tls'\n[client.transport.tls]\ntrusted_root = '{}'\nhostname = 'localhost'",
            setup.credentials.ca.display()
        );
    }
    let server_file = setup.write(
        "server.toml",
        &format!(
            "[server]\nbind_addr = '{server}'\ndefault_token = 'compare'\n\
             [server.services.bench]\nbind_addr = '{entry}'\nnodelay = true\n\
             [server.transport.tcp]\nnodelay = true\n\
             [server.transport]\n{server_transport}\n"
        ),
    )?;
    let client_file = setup.write(
        "client.toml",
        &format!(
            "[client]\nremote_addr = '{path}'\ndefault_token = 'compare'\n\
             [client.services.bench]\nlocal_addr = '{}'\nnodelay = true\n\
             [client.transport.tcp]\nnodelay = true\n\
             [client.transport]\n{client_transport}\n",
            setup.target
        ),
    )?;
    let program = |role: &str, file: &Path| {
        let mut command = Command::new(&setup.binaries.rathole);
        command
            .arg(format!("--{role}"))
            .arg(file)
            .env("RUST_LOG", "warn");
        command
    };
    let listener = program("server", &server_file);
    let dialer = program("client", &client_file);
    let processes = vec![
        setup.spawn_listener("rathole-server", &listener, server)?,
        setup.spawn("rathole-client", &dialer)?,
    ];
    Ok(Running { entry, processes })
}
