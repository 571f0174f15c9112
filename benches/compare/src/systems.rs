//! The systems that are compared: how each is started, and how its readiness is known.

mod openssh;
mod ours;
mod rathole;
mod rathole_relayed;
mod wstunnel;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use openssh::PrivilegeSeparation;

use crate::credentials::Credentials;
use crate::failure::{Context, Failure, Result};
use crate::process::Process;
use crate::sockets;

/// How long a server may take until it listens.
const LISTENING: Duration = Duration::from_secs(10);

/// What a system is compared with: only systems that do the same work on the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// No tunnel at all, or none worth the name: what the machine can do.
    Reference,
    /// Bytes cross the tunnel as they are.
    Plain,
    /// The tunnel is encrypted.
    Encrypted,
    /// The tunnel is encrypted, and clients are at another server than the one that has it.
    Across,
}

/// A system under comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// Client and target talk directly.
    Loopback,
    /// Two processes that copy bytes, and nothing else.
    Relay,
    /// One connection for all flows, and nothing else.
    Multiplexer,
    Ours {
        tls: bool,
    },
    Rathole {
        tls: bool,
    },
    Wstunnel {
        tls: bool,
    },
    OpenSsh,
    OursAcross,
    RatholeRelayed,
}

/// In the order in which they take turns.
pub(crate) const ALL: [System; 12] = [
    System::Loopback,
    System::Relay,
    System::Multiplexer,
    System::Ours { tls: false },
    System::Rathole { tls: false },
    System::Wstunnel { tls: false },
    System::Ours { tls: true },
    System::Rathole { tls: true },
    System::Wstunnel { tls: true },
    System::OpenSsh,
    System::OursAcross,
    System::RatholeRelayed,
];

impl System {
    /// `family` or `family-variant`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Relay => "relay",
            Self::Multiplexer => "multiplexer",
            Self::Ours { tls: false } => "ours-ws",
            Self::Ours { tls: true } => "ours-wss",
            Self::Rathole { tls: false } => "rathole-tcp",
            Self::Rathole { tls: true } => "rathole-tls",
            Self::Wstunnel { tls: false } => "wstunnel-ws",
            Self::Wstunnel { tls: true } => "wstunnel-wss",
            Self::OpenSsh => "openssh",
            Self::OursAcross => "ours-mesh",
            Self::RatholeRelayed => "rathole-relay",
        }
    }

    pub(crate) fn class(self) -> Class {
        match self {
            Self::Loopback | Self::Relay | Self::Multiplexer => Class::Reference,
            Self::Ours { tls: false }
            | Self::Rathole { tls: false }
            | Self::Wstunnel { tls: false } => Class::Plain,
            Self::OursAcross | Self::RatholeRelayed => Class::Across,
            _ => Class::Encrypted,
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours { .. } | Self::OursAcross)
    }

    /// Starts the system between a new entry address and `setup.target`; it may not be ready yet.
    pub(crate) fn start(self, setup: &mut Setup<'_>) -> Result<Running> {
        match self {
            Self::Loopback => {
                let entry = setup.path_to(setup.target)?;
                Ok(Running {
                    entry,
                    processes: Vec::new(),
                })
            }
            Self::Relay => relay(setup),
            Self::Multiplexer => multiplexer(setup),
            Self::Ours { tls } => ours::start(setup, tls),
            Self::Rathole { tls } => rathole::start(setup, tls),
            Self::Wstunnel { tls } => wstunnel::start(setup, tls),
            Self::OpenSsh => openssh::start(setup),
            Self::OursAcross => ours::start_across(setup),
            Self::RatholeRelayed => rathole_relayed::start(setup),
        }
    }
}

/// Programs to start.
#[derive(Debug, Default)]
pub(crate) struct Binaries {
    pub(crate) ours: PathBuf,
    pub(crate) rathole: PathBuf,
    pub(crate) wstunnel: PathBuf,
}

/// What a system is started with.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// Empty directory for this instance's files and logs.
    pub(crate) directory: &'a Path,
    pub(crate) binaries: &'a Binaries,
    pub(crate) credentials: &'a Credentials,
    /// Where the far end shall connect to.
    pub(crate) target: SocketAddr,
    /// Round-trip time of the path between the tunnel's two ends, if not the machine's own.
    pub(crate) round_trip: Option<Duration>,
    /// The delay proxies that [`Setup::path_to`] started; no part of any system.
    pub(crate) paths: Vec<Process>,
}

impl Setup<'_> {
    /// The address under which the near end of the path reaches `server`.
    fn path_to(&mut self, server: SocketAddr) -> Result<SocketAddr> {
        let Some(round_trip) = self.round_trip else {
            return Ok(server);
        };
        let near = sockets::free()?;
        let mut command = own_command("delay")?;
        command.args([
            near.to_string(),
            server.to_string(),
            round_trip.as_millis().to_string(),
        ]);
        self.paths
            .push(self.spawn_listener("delay", &command, near)?);
        Ok(near)
    }

    fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        Process::start(name, command, self.directory)
    }

    /// Starts the end that the other one dials, and waits until it listens at `server`, so that no
    /// system's pause between two attempts becomes part of the picture.
    fn spawn_listener(&self, name: &str, command: &Command, server: SocketAddr) -> Result<Process> {
        let mut process = self.spawn(name, command)?;
        let deadline = Instant::now() + LISTENING;
        while TcpStream::connect(server).is_err() {
            process.check_alive()?;
            if Instant::now() > deadline {
                return Err(Failure::new(format!("{name} does not listen at {server}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(process)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.directory.join(name);
        std::fs::write(&file, text).context(file.display())?;
        Ok(file)
    }
}

/// A started system. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where clients connect.
    pub(crate) entry: SocketAddr,
    pub(crate) processes: Vec<Process>,
}

/// A command that runs one of this program's own servers.
pub(crate) fn own_command(server: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's path")?);
    command.arg(server);
    Ok(command)
}

fn relay(setup: &mut Setup<'_>) -> Result<Running> {
    let (entry, far_end) = (sockets::free()?, sockets::free()?);
    let near_end_of_path = setup.path_to(far_end)?;
    let mut processes = Vec::new();
    for (name, listen, dial) in [
        ("relay-far", far_end, setup.target),
        ("relay-near", entry, near_end_of_path),
    ] {
        let mut command = own_command("relay")?;
        command.args([listen.to_string(), dial.to_string()]);
        processes.push(setup.spawn_listener(name, &command, listen)?);
    }
    Ok(Running { entry, processes })
}

fn multiplexer(setup: &mut Setup<'_>) -> Result<Running> {
    let (entry, tunnel) = (sockets::free()?, sockets::free()?);
    let near_end_of_path = setup.path_to(tunnel)?;
    let mut near = own_command("multiplexer-near")?;
    near.args([tunnel.to_string(), entry.to_string()]);
    let mut far = own_command("multiplexer-far")?;
    far.args([near_end_of_path.to_string(), setup.target.to_string()]);
    Ok(Running {
        entry,
        processes: vec![
            setup.spawn_listener("multiplexer-near", &near, entry)?,
            setup.spawn("multiplexer-far", &far)?,
        ],
    })
}
