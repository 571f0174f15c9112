//! TCP ports that no other test takes, and addresses to come from.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Result, bail};
use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};

/// Ports below the range from which the kernel takes source ports of outgoing connections, so that
/// no connection of a test that runs beside this one can sit on a port handed out here.
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// One abstract Unix socket per reserved port: visible to every process of this machine, gone with
/// this one.
static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// Reserves a port on which nobody listens, until this process ends.
///
/// # Errors
/// When no free port is found.
pub fn reserve() -> Result<u16> {
    for _ in 0..1000 {
        let port = rand::random_range(RANGE);
        let name = SocketAddr::from_abstract_name(format!("nowconnect-test-port-{port}"))?;
        let Ok(claim) = UnixListener::bind_addr(&name) else {
            continue;
        };
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            RESERVED.lock().push(claim);
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}

/// The address of a port of this machine.
pub fn local(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], port))
}

/// Connects from `source`, any address of 127.0.0.0/8: one client among others.
///
/// # Errors
/// When nobody listens there.
pub async fn connect_from(source: [u8; 4], to: std::net::SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    Ok(socket.connect(to).await?)
}
