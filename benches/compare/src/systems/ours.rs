//! Ours: hub and agent, one WebSocket for all flows; defaults but for the connection limits.

use std::net::SocketAddr;
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

/// One hub, and the agent's tunnel to it.
pub(super) fn start(setup: &mut Setup<'_>, tls: bool) -> Result<Running> {
    let hub = Hub::new("hub", tls)?;
    let path = setup.path_to(hub.tunnel)?;
    make_token(setup)?;
    let command = hub.command(setup, "ha: { enabled: false }\n")?;
    let agent = agent(setup, if tls { "wss" } else { "ws" }, path.port())?;
    let processes = vec![
        setup.spawn_listener("hub", &command, hub.tunnel)?,
        setup.spawn("agent", &agent)?,
    ];
    Ok(Running {
        entry: hub.entry,
        processes,
    })
}

/// Two hubs with a mesh link under mutual TLS, and Redis as their registry. Clients are at one, the
/// agent's tunnel (TLS) is at the other.
pub(super) fn start_across(setup: &mut Setup<'_>) -> Result<Running> {
    let (owner, origin) = (Hub::new("owner", true)?, Hub::new("origin", true)?);
    let (at_owner, at_origin, redis) = (sockets::free()?, sockets::free()?, sockets::free()?);
    let path = setup.path_to(owner.tunnel)?;
    make_token(setup)?;
    let mut registry = Command::new("redis-server");
    registry.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    registry.args(["--port", &redis.port().to_string()]);
    let mut processes = vec![setup.spawn_listener("redis", &registry, redis)?];
    for (hub, own, other) in [
        (&owner, at_owner, at_origin),
        (&origin, at_origin, at_owner),
    ] {
        let command = hub.command(setup, &member(setup, hub.name, own, other, redis))?;
        processes.push(setup.spawn_listener(hub.name, &command, hub.tunnel)?);
    }
    processes.push(setup.spawn("agent", &agent(setup, "wss", path.port())?)?);
    Ok(Running {
        entry: origin.entry,
        processes,
    })
}

/// Where a hub is.
struct Hub {
    name: &'static str,
    tls: bool,
    entry: SocketAddr,
    tunnel: SocketAddr,
}

impl Hub {
    fn new(name: &'static str, tls: bool) -> Result<Self> {
        Ok(Self {
            name,
            tls,
            entry: sockets::free()?,
            tunnel: sockets::free()?,
        })
    }

    fn command(&self, setup: &Setup<'_>, ha: &str) -> Result<Command> {
        let certificate = if self.tls {
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
            &format!("{}.yaml", self.name),
            &format!(
                "listeners:\n  - {{ name: bench, bind: '{}', connector: bench }}\n\
                 tunnel:\n  host: 127.0.0.1\n  port: {}\n{certificate}\
                 limits: {{ max_conn_total: {MAX_FLOWS} }}\n\
                 security: {{ jwks_url: 'file://{}', audience: {AUDIENCE} }}\n\
                 observability: {{ metrics_port: 0, log_level: WARN }}\n\
                 admin: {{ bind: '{}' }}\n\
                 {ha}",
                self.entry,
                self.tunnel.port(),
                setup.directory.join(KEY_SET).display(),
                sockets::free()?
            ),
        )?;
        let mut command = Command::new(&setup.binaries.ours);
        command.arg("hub").arg("--config").arg(file);
        Ok(command)
    }
}

/// What makes a hub one of two: it serves `/mesh` at `own`, and dials the other at `other`.
fn member(
    setup: &Setup<'_>,
    name: &str,
    own: SocketAddr,
    other: SocketAddr,
    redis: SocketAddr,
) -> String {
    let keys = setup.credentials;
    format!(
        "ha:\n  mode: active\n  replica_id: {name}\n  redis_url: 'redis://{redis}/0'\n\
         \x20 mesh:\n    listen: '{own}'\n    peers: ['wss://localhost:{}/mesh']\n\
         \x20   tls: {{ ca_bundle: '{}', cert_file: '{}', key_file: '{}' }}\n",
        other.port(),
        keys.ca.display(),
        keys.certificate.display(),
        keys.key.display()
    )
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
