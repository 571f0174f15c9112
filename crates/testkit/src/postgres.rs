//! A real PostgreSQL server, on a port of 127.0.0.1.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::Process;
use crate::wait::until;
use crate::{ports, program};

/// The superuser and the database of the same name.
pub const USER: &str = "postgres";

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    _dir: TempDir,
    addr: SocketAddr,
}

impl Postgres {
    /// Makes a new database cluster and starts a server that trusts everyone on this machine.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("nowconnect-postgres-")?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        let owner = Owner::of_this_machine()?;
        owner.take(dir.path())?;
        owner.take(&data)?;
        let mut init = owner.command(&program::find("initdb", "postgresql")?);
        init.arg("-D")
            .arg(&data)
            .args(["-U", USER, "-A", "trust", "-N", "--no-instructions"]);
        program::succeed(init.current_dir(dir.path())).await?;

        let addr = ports::local(ports::reserve()?);
        let mut serve = owner.command(&program::find("postgres", "postgresql")?);
        serve
            .arg("-D")
            .arg(&data)
            .args(["-h", "127.0.0.1", "-p", &addr.port().to_string()]);
        for setting in [
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=16MB",
        ] {
            serve.args(["-c", setting]);
        }
        let process = Process::spawn("postgres", serve.current_dir(dir.path()), dir.path())?;
        let mut server = Self {
            process,
            _dir: dir,
            addr,
        };
        let up = until("PostgreSQL to answer", async || {
            program::succeed(client("psql", addr)?.args(["-c", "select 1"])).await
        });
        server.process.while_alive(up).await?;
        Ok(server)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `psql` or `pgbench` against `addr`, which may be a tunnel's other end.
    ///
    /// # Errors
    /// When the client is not installed.
    pub fn client(&self, program: &str, addr: SocketAddr) -> Result<Command> {
        client(program, addr)
    }
}

fn client(program: &str, addr: SocketAddr) -> Result<Command> {
    let mut command = Command::new(program::find(program, "postgresql-contrib")?);
    let (host, port) = (addr.ip().to_string(), addr.port().to_string());
    command
        .args(["-h", &host, "-p", &port, "-U", USER])
        .env("PGCONNECT_TIMEOUT", "30");
    if program == "psql" {
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]);
    }
    Ok(command)
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A fast shutdown lets it return its shared memory to the kernel; SIGKILL would not.
        let line = format!("kill -QUIT {}", self.process.pid());
        let _ = std::process::Command::new("sh")
            .args(["-c", &line])
            .status();
    }
}

/// Whom the server runs as: PostgreSQL refuses root.
#[derive(Debug)]
struct Owner(Option<(u32, u32)>);

impl Owner {
    fn of_this_machine() -> Result<Self> {
        if !program::is_root() {
            return Ok(Self(None));
        }
        let users = program::read(Path::new("/etc/passwd"))?;
        let ids = ["postgres", "nobody"].iter().find_map(|name| {
            let line = users
                .lines()
                .find(|line| line.starts_with(&format!("{name}:")))?;
            let mut fields = line.split(':').skip(2).map(str::parse);
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        });
        Ok(Self(Some(ids.context(
            "root may not run PostgreSQL, and there is no other user",
        )?)))
    }

    fn take(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.0 else {
            return Ok(());
        };
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
        anyhow::ensure!(
            std::fs::metadata(path)?.uid() == uid,
            "{}: not given",
            path.display()
        );
        Ok(())
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some((uid, gid)) = self.0 else {
            return Command::new(program);
        };
        let mut command = Command::new("setpriv");
        command
            .args([
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                "--clear-groups".into(),
            ])
            .arg("--")
            .arg(program);
        command
    }
}
