//! Sockets as every part of the benchmark uses them: no Nagle, a long accept queue, free ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::failure::{Failure, Result};

/// Ports are taken below the kernel's range for outgoing connections (32768 and up), because
/// thousands of those are open at a time.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Connections that can be open to one address at a time; the kernel's default range has 28,232
/// ports, and some are in use anyway.
pub(crate) const CONNECTIONS: usize = 25_000;

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A loopback address with a port that nobody listens on.
pub(crate) fn free() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let start = (std::process::id() % u32::from(span)) as u16;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = local(PORTS.start + (u32::from(start) + u32::from(step)) as u16 % span);
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(Failure::new("no free port between 10000 and 32000"))
}

pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

/// Accepts, and waits a moment when the process is out of descriptors.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        if let Ok((stream, _)) = listener.accept().await
            && stream.set_nodelay(true).is_ok()
        {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Connects from whichever port the kernel takes. (Binding to source addresses of our own would give
/// more ports, but a bound port in TIME_WAIT is one that nobody's outgoing connection may share, and
/// it slows down everyone's search for a free one, the compared systems' too.)
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            // All ports linger in TIME_WAIT; on loopback they may be used again after a second.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
