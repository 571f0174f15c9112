//! A path with a round-trip time: relays TCP and holds every byte back by half of it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::sockets;

/// Reads under way per direction; with 64 KiB each, bandwidth is not what limits the path.
const IN_FLIGHT: usize = 256;

/// Relays connections from `listen` to `destination` until the process is stopped.
pub(crate) async fn serve(
    listen: SocketAddr,
    destination: SocketAddr,
    round_trip: Duration,
) -> io::Result<()> {
    let listener = sockets::listen(listen)?;
    loop {
        let near = sockets::accept(&listener).await;
        tokio::spawn(async move { relay(near, destination, round_trip).await.ok() });
    }
}

async fn relay(near: TcpStream, destination: SocketAddr, round_trip: Duration) -> io::Result<()> {
    let one_way = round_trip / 2;
    // The kernel has finished the handshake at once. On a real path the caller would wait one round
    // trip for it, so its first bytes arrive that much later than the delay alone says.
    let handshake_over = Instant::now() + round_trip;
    sleep(one_way).await;
    let far = sockets::connect(destination).await?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let outward = pump(near_read, far_write, one_way, handshake_over + one_way);
    let inward = pump(far_read, near_write, one_way, Instant::now());
    tokio::try_join!(outward, inward).map(|_| ())
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    not_before: Instant,
) -> io::Result<()> {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        loop {
            let mut bytes = Vec::with_capacity(64 * 1024);
            let length = from.read_buf(&mut bytes).await?;
            let due = (Instant::now() + delay).max(not_before);
            // An empty one carries the end of the stream, as late as everything else.
            if sender.send((due, bytes)).await.is_err() || length == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = under_way.recv().await {
            sleep_until(due).await;
            if bytes.is_empty() {
                break;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}
