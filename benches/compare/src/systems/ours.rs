//! Ours: one hub, one agent, one WebSocket for all flows; defaults but for the connection limits.

use std::process::Command;

use super::{Running, Setup};
use crate::failure::Result;
use crate::{sockets, tool};

const AGENT: &str = "compare-agent";
const AUDIENCE: &str = "nowconnect";
const KEY: &str = "key.pem";
const KEY_SET: &str = "jwks.json";
const TOKEN: &str = "agent.jwt";
const MAX_FLOWS: usize = 20_000;

pub(super) fn start(setup: &mut Setup<'_>, tls: bool) -> Result<Running> {
    let (entry, server) = (sockets::free()?, sockets::free()?);
    let path = setup.path_to(server)?;
    make_token(setup)?;
    let hub = hub(setup, tls, entry.port(), server.port())?;
    let agent = agent(setup, if tls { "wss" } else { "ws" }, path.port())?;
    let processes = vec![
        setup.spawn_listener("hub", &hub, server)?,
        setup.spawn("agent", &agent)?,
    ];
    Ok(Running { entry, processes })
}

fn hub(setup: &Setup<'_>, tls: bool, listener: u16, tunnel: u16) -> Result<Command> {
    let certificate = if tls {
        let keys = setup.credentials;
        format!(
            "  tls: {{ cert_file: '{}', key_file: '{}' }}\n",
            keys.certificate.display(),
            keys.key.display()
        )
    } else {
        String::new()
    };
    let file = setup.write(
        "cloud.yaml",
        &format!(
            "listeners:\n  - {{ name: bench, bind: '127.0.0.1:{listener}', connector: bench }}\n\
             tunnel:\n  host: 127.0.0.1\n  port: {tunnel}\n{certificate}\
             limits: {{ max_conn_total: {MAX_FLOWS} }}\n\
             security: {{ jwks_url: 'file://{}', audience: {AUDIENCE} }}\n\
             observability: {{ metrics_port: 0, log_level: WARN }}\n\
             admin: {{ bind: '{}' }}\n\
             ha: {{ enabled: false }}\n",
            setup.directory.join(KEY_SET).display(),
            sockets::free()?
        ),
    )?;
    let mut command = Command::new(&setup.binaries.ours);
    command.arg("hub").arg("--config").arg(file);
    Ok(command)
}

fn agent(setup: &Setup<'_>, scheme: &str, tunnel: u16) -> Result<Command> {
    let file = setup.write(
        "premise.yaml",
        &format!(
            "tunnel:\n  url: '{scheme}://127.0.0.1:{tunnel}/tunnel'\n  agent_id: {AGENT}\n\
             \x20 exported_connectors: [bench]\n  auth: {{ token_file: '{}' }}\n\
             targets:\n  bench: {{ host: 127.0.0.1, port: {} }}\n\
             limits: {{ max_inflight_cids: {MAX_FLOWS} }}\n\
             observability: {{ log_level: WARN }}\n",
            setup.directory.join(TOKEN).display(),
            setup.target.port()
        ),
    )?;
    let mut command = Command::new(&setup.binaries.ours);
    command.arg("agent").arg("--config").arg(file);
    command.env("NC_CA_BUNDLE", &setup.credentials.ca);
    command.env("NC_HEALTH_HOST", "127.0.0.1");
    command.env("NC_HEALTH_PORT", sockets::free()?.port().to_string());
    Ok(command)
}

/// A key, the set that the hub checks tokens with, and the agent's token.
fn make_token(setup: &Setup<'_>) -> Result<()> {
    for arguments in [
        &["keygen", "--out", KEY][..],
        &["jwks", "--key", KEY, "--out", KEY_SET],
        &[
            "mint",
            "--key",
            KEY,
            "--agent-id",
            AGENT,
            "--audience",
            AUDIENCE,
            "--out",
            TOKEN,
        ],
    ] {
        let mut command = Command::new(&setup.binaries.ours);
        tool::run(
            command
                .arg("token")
                .args(arguments)
                .current_dir(setup.directory),
        )?;
    }
    Ok(())
}
