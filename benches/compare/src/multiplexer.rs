//! The reference for what one connection for all flows can reach: frames of a number, a length and
//! bytes, on one thread per end, and nothing else. No flow control, no handshake, no identity, no
//! memory of what was sent: a stalled reader stops everybody, and a cut ends all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use crate::sockets;

const BUFFER: usize = 256 * 1024;
/// Sockets are not read while this much waits for the tunnel.
const HIGH_WATER: usize = 1024 * 1024;
/// Bytes of a frame's header: number and length, little endian. A flow's first frame opens it; a
/// later one without bytes is the end of its direction.
const HEADER: usize = 8;

/// The end that clients connect to: takes the other end at `tunnel`, then clients at `listen`.
pub(crate) async fn serve_near(tunnel: SocketAddr, listen: SocketAddr) -> io::Result<()> {
    let (tunnel, clients) = (sockets::listen(tunnel)?, sockets::listen(listen)?);
    let tunnel = loop {
        let mut tunnel = sockets::accept(&tunnel).await;
        // Whoever only looked whether somebody listens says nothing.
        if tunnel.read_exact(&mut [0; HEADER]).await.is_ok() {
            break tunnel;
        }
    };
    let near = async {
        let tunnel = Tunnel::over(tunnel, None);
        for number in 1_u32.. {
            let (read, write) = sockets::accept(&clients).await.into_split();
            tunnel.flows.borrow_mut().insert(number, Flow::over(write));
            // Without bytes this opens the flow.
            tunnel.put(number, &[]);
            spawn_local(Rc::clone(&tunnel).gather(number, read));
        }
    };
    LocalSet::new().run_until(near).await;
    Ok(())
}

/// The end that dials `target` for every flow, and the other end once.
pub(crate) async fn serve_far(tunnel: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let far = async {
        let mut stream = sockets::connect(tunnel).await?;
        stream.write_all(&[0; HEADER]).await?;
        let tunnel = Tunnel::over(stream, Some(target));
        tunnel.ended.notified().await;
        Ok(())
    };
    LocalSet::new().run_until(far).await
}

struct Flow {
    /// `None` when what comes from the tunnel has ended.
    write: Option<OwnedWriteHalf>,
    /// What comes from the socket has ended.
    gathered: bool,
}

/// The bytes that came before there was a socket, and whether they were all.
#[derive(Default)]
struct Early {
    bytes: Vec<u8>,
    ended: bool,
}

struct Tunnel {
    target: Option<SocketAddr>,
    /// Frames that wait to be written.
    out: RefCell<Vec<u8>>,
    filled: Notify,
    written: Notify,
    room_wanted: Cell<bool>,
    flows: RefCell<HashMap<u32, Flow>>,
    /// The highest number that was opened.
    latest: Cell<u32>,
    /// What came for a flow while its target is dialed.
    dialing: RefCell<HashMap<u32, Early>>,
    ended: Notify,
}

impl Flow {
    fn over(write: OwnedWriteHalf) -> Self {
        Self {
            write: Some(write),
            gathered: false,
        }
    }
}

impl Tunnel {
    fn over(stream: TcpStream, target: Option<SocketAddr>) -> Rc<Self> {
        let tunnel = Rc::new(Self {
            target,
            out: RefCell::default(),
            filled: Notify::new(),
            written: Notify::new(),
            room_wanted: Cell::new(false),
            flows: RefCell::default(),
            latest: Cell::new(0),
            dialing: RefCell::default(),
            ended: Notify::new(),
        });
        let (read, write) = stream.into_split();
        let (spreading, writing) = (Rc::clone(&tunnel), Rc::clone(&tunnel));
        spawn_local(async move {
            spreading.spread(read).await.ok();
            spreading.ended.notify_one();
        });
        spawn_local(async move {
            writing.write(write).await.ok();
            writing.ended.notify_one();
        });
        tunnel
    }

    fn put(&self, number: u32, bytes: &[u8]) {
        let mut out = self.out.borrow_mut();
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
        self.filled.notify_one();
    }

    /// From one socket to the tunnel.
    async fn gather(self: Rc<Self>, number: u32, read: OwnedReadHalf) {
        thread_local! {
            static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
        }
        loop {
            while self.out.borrow().len() >= HIGH_WATER {
                self.room_wanted.set(true);
                self.written.notified().await;
            }
            if read.readable().await.is_err() {
                break;
            }
            let more = SCRATCH.with_borrow_mut(|scratch| match read.try_read(scratch) {
                Ok(0) => false,
                Ok(length) => {
                    self.put(number, &scratch[..length]);
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            });
            if !more {
                break;
            }
        }
        self.put(number, &[]);
        if let Entry::Occupied(mut flow) = self.flows.borrow_mut().entry(number) {
            flow.get_mut().gathered = true;
            if flow.get().write.is_none() {
                flow.remove();
            }
        }
    }

    async fn write(&self, mut stream: OwnedWriteHalf) -> io::Result<()> {
        let mut frames = Vec::new();
        loop {
            self.filled.notified().await;
            std::mem::swap(&mut frames, &mut *self.out.borrow_mut());
            stream.write_all(&frames).await?;
            frames.clear();
            if self.room_wanted.take() {
                self.written.notify_waiters();
            }
        }
    }

    /// From the tunnel to all sockets.
    async fn spread(self: &Rc<Self>, mut stream: OwnedReadHalf) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let (mut start, mut end) = (0, 0);
        loop {
            if start > 0 {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
            }
            let read = stream.read(&mut buffer[end..]).await?;
            if read == 0 {
                return Ok(());
            }
            end += read;
            while let Some(header) = buffer[start..end].first_chunk::<HEADER>() {
                let [n0, n1, n2, n3, l0, l1, l2, l3] = *header;
                let number = u32::from_le_bytes([n0, n1, n2, n3]);
                let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
                if end - start < HEADER + length {
                    if HEADER + length > buffer.len() {
                        buffer.resize(HEADER + length, 0);
                    }
                    break;
                }
                start += HEADER;
                self.hand_out(number, &buffer[start..start + length]).await;
                start += length;
            }
        }
    }

    async fn hand_out(self: &Rc<Self>, number: u32, bytes: &[u8]) {
        if let Some(early) = self.dialing.borrow_mut().get_mut(&number) {
            early.bytes.extend_from_slice(bytes);
            early.ended |= bytes.is_empty();
            return;
        }
        if self.target.is_some() && number > self.latest.get() {
            self.latest.set(number);
            return self.dial(number, bytes);
        }
        // Taken out meanwhile: nothing else uses it, and the map is not borrowed while it waits.
        let write = self
            .flows
            .borrow_mut()
            .get_mut(&number)
            .map(|flow| flow.write.take());
        let Some(Some(mut write)) = write else { return };
        let open = !bytes.is_empty();
        if open {
            write.write_all(bytes).await.ok();
        }
        if let Entry::Occupied(mut flow) = self.flows.borrow_mut().entry(number) {
            if open {
                flow.get_mut().write = Some(write);
            } else if flow.get().gathered {
                // Dropping a half shuts it down.
                flow.remove();
            }
        }
    }

    fn dial(self: &Rc<Self>, number: u32, first: &[u8]) {
        let Some(target) = self.target else { return };
        let early = Early {
            bytes: first.to_vec(),
            ended: false,
        };
        self.dialing.borrow_mut().insert(number, early);
        let tunnel = Rc::clone(self);
        spawn_local(async move {
            let Ok(stream) = sockets::connect(target).await else {
                tunnel.dialing.borrow_mut().remove(&number);
                return tunnel.put(number, &[]);
            };
            let (read, mut write) = stream.into_split();
            // More may come while this is written.
            while let Some(bytes) = tunnel.early(number) {
                write.write_all(&bytes).await.ok();
            }
            let early = tunnel.dialing.borrow_mut().remove(&number);
            let mut flow = Flow::over(write);
            if early.is_some_and(|early| early.ended) {
                flow.write = None;
            }
            tunnel.flows.borrow_mut().insert(number, flow);
            tunnel.gather(number, read).await;
        });
    }

    fn early(&self, number: u32) -> Option<Vec<u8>> {
        let mut dialing = self.dialing.borrow_mut();
        let bytes = std::mem::take(&mut dialing.get_mut(&number)?.bytes);
        (!bytes.is_empty()).then_some(bytes)
    }
}
