//! `nowconnect dev`: a hub, an agent and a token issuer in one process, for trying out.
//!
//! Nothing is simulated: the files are those an operator would write, the agent shows a signed token
//! and the hub verifies it, and every byte crosses the tunnel.

mod echo;
mod files;
mod map;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use nowconnect_agent::config::AgentConfig;
use nowconnect_hub::admin::Order;
use nowconnect_hub::config::HubConfig;
use nowconnect_hub::hub::Addresses;
use nowconnect_hub::listener::Inherited;
use nowconnect_link::shards::Shards;
use nowconnect_settings::{Env, LogFormat, LogLevel, Source, Value as _};
use tokio::task::JoinSet;

use crate::agent::AgentService;
use crate::failure::Failure;
use crate::hub::HubService;
use crate::logging::Log;
use crate::platform::{Signals, raise_open_files};
use crate::runtime::block_on;
use crate::service::{Reloaded, Service, Watch, serve, start_log};
use files::{Files, Ports};
use map::Map;

/// Where agents, health and metrics are found when that is free.
const TUNNEL_PORT: u16 = 8765;
/// Where the admin API is found when that is free.
const ADMIN_PORT: u16 = 8766;
/// Where the built-in echo target is reached when nothing is mapped.
const ECHO_PORT: u16 = 7007;
/// How long the agent gets before the instructions are printed anyway.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long flows get to end by themselves.
const DRAIN: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  nowconnect dev
  nowconnect dev --map 1389=dc1.corp.local:389 --map 15432=db.corp.local:5432
  nowconnect dev --map ldap:1389=localhost:389 --log-level DEBUG

Everything listens on loopback. Keys, token and configuration live in a private directory, whose
files may be edited (both sides reload) and which is removed at the end.";

/// Try it out: hub, agent and token issuer in one process, nothing else needed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Local port, and the target it reaches through the tunnel; repeat for several
    #[arg(long, value_name = "[NAME:]PORT=HOST:PORT")]
    map: Vec<Map>,
    /// Port of the hub for agents, health and metrics [default: 8765, or a free one if it is taken]
    #[arg(long, value_name = "PORT")]
    tunnel_port: Option<u16>,
    /// Least important level that is logged
    #[arg(long, value_name = "LEVEL", default_value = "INFO", value_parser = LogLevel::parse)]
    log_level: LogLevel,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let log = start_log(args.log_level, LogFormat::Plain)?;
    raise_open_files();
    block_on(run_dev(args, &log))?
}

async fn run_dev(args: Args, log: &Log) -> Result<(), Failure> {
    let signals = Signals::install()?;
    let mut tasks = JoinSet::new();
    let mut maps = args.map;
    let tries_echo = maps.is_empty();
    if tries_echo {
        let target = echo::start(&mut tasks)
            .await
            .context("cannot start the echo target")?;
        let map = Map::new(ECHO_PORT, &target.ip().to_string(), target.port());
        maps.push(Map {
            name: "echo".into(),
            ..map
        });
    }
    map::tell_apart(&mut maps);

    let dir = tempfile::Builder::new()
        .prefix("nowconnect-dev-")
        .tempdir()?;
    let ports = Ports {
        tunnel: args.tunnel_port.unwrap_or_else(|| free_or_any(TUNNEL_PORT)),
        admin: free_or_any(ADMIN_PORT),
    };
    let files = Files::write(dir.path(), &maps, ports, args.log_level)?;
    // What the shell has in NC_* and NOWCONNECT_* is meant for others.
    let env = Env::of_process();
    let traces = env.iter().filter(|(var, _)| var.starts_with("OTEL_"));
    let env: Env = traces.collect();
    let source = |name| Source {
        file: Some(files.path(name)),
        env: env.clone(),
    };

    let cloud = source("cloud.yaml");
    let loaded = HubConfig::load(&cloud).map_err(Failure::configuration)?;
    let mut watched = loaded.files();
    let hub =
        HubService::start(cloud, loaded, Inherited::default(), Shards::current(), log).await?;
    let addresses = hub.hub.addresses();

    files.write_agent(&maps, addresses.tunnel)?;
    let premise = source("premise.yaml");
    let loaded = AgentConfig::load(&premise).map_err(Failure::configuration)?;
    watched.extend(loaded.files());
    let agent = AgentService::start(premise, loaded, log.level(), DRAIN).await?;

    let connected = async {
        while hub.hub.tunnels().directory().agents() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, connected).await;
    let text = instructions(&addresses, &maps, tries_echo, dir.path());
    let _ = std::io::stdout().write_all(text.as_bytes());

    tasks.spawn(files.keep_token_fresh());
    serve(Dev { hub, agent }, Watch::new(watched), signals).await
}

fn free_or_any(port: u16) -> u16 {
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    if free { port } else { 0 }
}

/// Both sides as one service.
struct Dev {
    hub: HubService,
    agent: AgentService,
}

impl Service for Dev {
    async fn reload(&mut self) -> Result<Reloaded, String> {
        let (hub, agent) = (self.hub.reload().await?, self.agent.reload().await?);
        Ok(Reloaded {
            files: [hub.files, agent.files].concat(),
            needs_restart: hub.needs_restart,
        })
    }

    async fn order(&mut self) -> Order {
        self.hub.order().await
    }

    async fn stop(self) {
        self.hub.stop().await;
        self.agent.stop().await;
    }
}

/// What listens where, and what to type next.
fn instructions(
    addresses: &Addresses,
    maps: &[Map],
    tries_echo: bool,
    dir: &std::path::Path,
) -> String {
    let mut text = String::from("\nnowconnect dev is running; Ctrl-C ends it.\n\n");
    let mut hints = String::new();
    for map in maps {
        let Some((_, at)) = addresses
            .listeners
            .iter()
            .find(|(name, _)| *name == map.name)
        else {
            continue;
        };
        let target = if tries_echo {
            "a built-in echo target".into()
        } else {
            map.target()
        };
        let _ = writeln!(text, "  {at}  ->  {target}  (connector {})", map.name);
        let _ = match map.target_port {
            389 => writeln!(hints, "  ldapsearch -x -H ldap://{at} -s base -b ''"),
            5432 => writeln!(hints, "  psql -h {} -p {}", at.ip(), at.port()),
            80 | 8080 => writeln!(hints, "  curl http://{at}/"),
            _ => writeln!(hints, "  nc {} {}", at.ip(), at.port()),
        };
    }
    let (hub, admin) = (addresses.tunnel, addresses.admin);
    let _ = write!(
        text,
        "\n  page     http://{admin}/\n  tunnel   ws://{hub}/tunnel\n  health   http://{hub}/readyz\
         \n  metrics  http://{hub}/metrics\n  files    {}\n\nTry:\n{hints}  curl http://{hub}/readyz\n  \
         nowconnect status --url http://{admin}\n\n",
        dir.display()
    );
    text
}
