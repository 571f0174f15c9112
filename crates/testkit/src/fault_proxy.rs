//! A byte-transparent TCP proxy that breaks connections on command.
//!
//! It stands between agent and hub: the agent dials the proxy, the proxy dials the hub.

mod pump;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::wait::until;

/// A direction through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever dialled (the agent) to the server behind (the hub).
    Up,
    /// From the server to the dialler.
    Down,
}

/// How a connection is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// TCP resets on both sides, as from a firewall.
    #[default]
    Reset,
    /// Clean ends on both sides, as from a balancer that is replaced.
    Fin,
}

/// What the proxy does to bytes, per direction.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    hold: bool,
    /// Connections with a number below this have died in silence.
    dead_below: usize,
    delay: Duration,
    bytes_per_sec: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rules {
    up: Lane,
    down: Lane,
    refuse: bool,
}

#[derive(Debug, Default)]
struct Shared {
    rules: watch::Sender<Rules>,
    cut_now: watch::Sender<Cut>,
    /// Bytes that may still pass before the armed cut.
    armed: [Mutex<Option<(u64, Cut)>>; 2],
    accepted: AtomicUsize,
    live: AtomicUsize,
    cuts: AtomicUsize,
    bytes: [AtomicU64; 2],
}

/// The proxy; it and its connections go when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy to `server`, on a free port, with no faults.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, server, shared.clone()));
        Ok(Self {
            addr,
            shared,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Where to dial instead of the server.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Breaks every connection now.
    pub fn cut(&self, how: Cut) {
        self.shared.cut_now.send_replace(how);
    }

    /// Lets exactly `bytes` more pass in this direction, over all connections, then breaks the
    /// connection that carried the last of them.
    pub fn cut_after(&self, way: Way, bytes: u64, how: Cut) {
        *self.shared.armed[way as usize].lock() = Some((bytes, how));
    }

    /// Waits until this many connections have been broken by [`FaultProxy::cut_after`].
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_cuts(&self, count: usize) -> Result<()> {
        until("the armed cut", async || {
            let cuts = self.shared.cuts.load(Relaxed);
            ensure!(cuts >= count, "{cuts} of {count} cuts");
            Ok(())
        })
        .await
    }

    /// Breaks connections this many times, the n-th after `bytes(n)` more: in turn by where they flow and
    /// by how connections end.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn cut_in_turn(&self, cuts: usize, bytes: impl Fn(usize) -> u64) -> Result<()> {
        for cut in 1..=cuts {
            let way = if cut % 2 == 0 { Way::Up } else { Way::Down };
            let how = if cut % 3 == 0 { Cut::Fin } else { Cut::Reset };
            self.cut_after(way, bytes(cut), how);
            self.wait_cuts(cut).await?;
        }
        Ok(())
    }

    /// Keeps bytes back in both directions, until [`FaultProxy::heal`] lets them pass.
    pub fn hold(&self) {
        self.change(|rules| (rules.up.hold, rules.down.hold) = (true, true));
    }

    /// Swallows, for good, the bytes of one direction of every connection that there is, while it
    /// keeps acknowledging them: a path that has died in silence. New connections are not affected.
    pub fn swallow(&self, way: Way) {
        let accepted = self.accepted();
        self.change(|rules| rules.lane_mut(way).dead_below = accepted);
    }

    /// Delays every byte by this much in each direction.
    pub fn delay(&self, each_way: Duration) {
        self.change(|rules| (rules.up.delay, rules.down.delay) = (each_way, each_way));
    }

    /// Limits the rate of each direction.
    pub fn rate(&self, bytes_per_sec: u64) {
        let rate = Some(bytes_per_sec);
        self.change(|rules| (rules.up.bytes_per_sec, rules.down.bytes_per_sec) = (rate, rate));
    }

    /// Resets every new connection.
    pub fn refuse(&self) {
        self.change(|rules| rules.refuse = true);
    }

    /// Ends all faults; connections that have died stay dead.
    pub fn heal(&self) {
        self.change(|rules| {
            let healed = |lane: Lane| Lane {
                dead_below: lane.dead_below,
                ..Lane::default()
            };
            *rules = Rules {
                up: healed(rules.up),
                down: healed(rules.down),
                refuse: false,
            };
        });
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.shared.rules.send_modify(change);
    }

    /// Number of connections so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Relaxed)
    }

    /// Number of connections that live.
    pub fn live(&self) -> usize {
        self.shared.live.load(Relaxed)
    }

    /// Bytes passed on so far.
    pub fn bytes(&self, way: Way) -> u64 {
        self.shared.bytes[way as usize].load(Relaxed)
    }

    /// Waits until this many connections have been accepted.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn wait_accepted(&self, count: usize) -> Result<()> {
        until("connections through the proxy", async || {
            let accepted = self.accepted();
            ensure!(accepted >= count, "{accepted} of {count}");
            Ok(())
        })
        .await
    }
}

impl Rules {
    fn lane(&self, way: Way) -> Lane {
        match way {
            Way::Up => self.up,
            Way::Down => self.down,
        }
    }

    fn lane_mut(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let number = shared.accepted.fetch_add(1, Relaxed);
        connections.spawn(relay(near, number, server, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(near: TcpStream, number: usize, server: SocketAddr, shared: Arc<Shared>) {
    let mut cut_now = shared.cut_now.subscribe();
    cut_now.mark_unchanged();
    let refuse = shared.rules.borrow().refuse;
    let far = match refuse {
        true => None,
        false => TcpStream::connect(server).await.ok(),
    };
    let Some(far) = far else {
        let _ = near.set_zero_linger();
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    shared.live.fetch_add(1, Relaxed);
    let end = tokio::select! {
        biased;
        _ = cut_now.changed() => Some(*cut_now.borrow()),
        end = pump::both(&near, &far, number, &shared) => end,
    };
    shared.live.fetch_sub(1, Relaxed);
    if end == Some(Cut::Reset) {
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}
