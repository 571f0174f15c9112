//! Carries the bytes of one proxied connection.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::Ordering::Relaxed;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};

use super::{Cut, Shared, Way};

const CHUNK: usize = 16 * 1024;
/// Chunks that may be under way in one direction: enough for a delay of 100 ms at 40 MB/s.
const UNDER_WAY: usize = 256;

enum Item {
    Bytes { due: Instant, bytes: Vec<u8> },
    Cut(Cut),
}

/// Carries bytes both ways until both have ended (`None`) or the connection is to be broken.
pub(super) async fn both(
    near: &TcpStream,
    far: &TcpStream,
    number: usize,
    shared: &Shared,
) -> Option<Cut> {
    let up = Pump {
        way: Way::Up,
        number,
        shared,
    };
    let down = Pump {
        way: Way::Down,
        number,
        shared,
    };
    tokio::try_join!(up.run(near, far), down.run(far, near)).err()
}

/// One direction of a connection.
struct Pump<'a> {
    way: Way,
    number: usize,
    shared: &'a Shared,
}

impl Pump<'_> {
    async fn run(&self, from: &TcpStream, to: &TcpStream) -> Result<(), Cut> {
        let (queue, items) = mpsc::channel(UNDER_WAY);
        let read = async {
            // An error of a socket is passed on as what it most likely was.
            self.read(from, queue).await.map_err(|_| Cut::Reset)
        };
        tokio::try_join!(read, self.write(to, items)).map(drop)
    }

    async fn read(&self, from: &TcpStream, queue: mpsc::Sender<Item>) -> io::Result<()> {
        let Self { way, shared, .. } = *self;
        let mut rules = shared.rules.subscribe();
        let mut buf = vec![0; CHUNK];
        loop {
            let n = loop {
                from.readable().await?;
                match from.try_read(&mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => break other?,
                }
            };
            if n == 0 {
                return Ok(());
            }
            let Ok(lane) = rules
                .wait_for(|rules| !rules.lane(way).hold)
                .await
                .map(|r| r.lane(way))
            else {
                return Ok(());
            };
            if self.number < lane.dead_below {
                continue;
            }
            let (pass, cut) = spend(shared, way, n);
            let item = Item::Bytes {
                due: Instant::now() + lane.delay,
                bytes: buf[..pass].to_vec(),
            };
            let gone = queue.send(item).await.is_err();
            if let Some(cut) = cut {
                let _ = queue.send(Item::Cut(cut)).await;
                return Ok(());
            }
            if gone {
                return Ok(());
            }
        }
    }

    async fn write(&self, to: &TcpStream, mut items: mpsc::Receiver<Item>) -> Result<(), Cut> {
        let Self { way, shared, .. } = *self;
        let mut free = Instant::now();
        while let Some(item) = items.recv().await {
            let (due, bytes) = match item {
                Item::Bytes { due, bytes } => (due, bytes),
                Item::Cut(cut) => {
                    shared.cuts.fetch_add(1, Relaxed);
                    return Err(cut);
                }
            };
            let rate = shared.rules.borrow().lane(way).bytes_per_sec;
            free = free.max(due);
            if free > Instant::now() {
                sleep_until(free).await;
            }
            if let Some(rate) = rate {
                free += Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
            }
            write_all(to, &bytes).await.map_err(|_| Cut::Reset)?;
            shared.bytes[way as usize].fetch_add(bytes.len() as u64, Relaxed);
        }
        let _ = socket2::SockRef::from(to).shutdown(Shutdown::Write);
        Ok(())
    }
}

/// Takes `n` bytes out of the budget of an armed cut: how many may pass, and whether that was it.
fn spend(shared: &Shared, way: Way, n: usize) -> (usize, Option<Cut>) {
    let mut armed = shared.armed[way as usize].lock();
    match *armed {
        Some((left, cut)) if left <= n as u64 => {
            *armed = None;
            (usize::try_from(left).unwrap_or(n), Some(cut))
        }
        Some((left, cut)) => {
            *armed = Some((left - n as u64, cut));
            (n, None)
        }
        None => (n, None),
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
