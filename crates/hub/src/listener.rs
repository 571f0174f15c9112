//! TCP ports for clients: one accept loop each, started and stopped while the hub runs.

mod inherited;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::trace::Trace;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::ListenerConfig;
use crate::flow_trace;
use crate::metrics::{ListenerError, Metrics};
use crate::policy::{Door, Permit, Policy};
use crate::router::{Router, reset};

pub use inherited::Inherited;
pub(crate) use inherited::{ADMIN, MESH, METRICS, TUNNEL, Who};

/// Connections that the kernel may keep ready for accept(); it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Pauses after a failed accept(), the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A port could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot listen on {address}: {}", explain(.source))]
pub struct BindError {
    /// What wanted the port.
    pub what: String,
    /// The address that was asked for.
    pub address: SocketAddr,
    source: io::Error,
}

fn explain(error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; stop the other process or choose another port"
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE or a larger port"
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address",
        _ => return error.to_string(),
    };
    format!("{hint} ({error})")
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // To listen again at once after a restart. On Windows that needs nothing, and this would let others
    // take the port away.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified()) {
        socket.set_only_v6(false)?;
    }
    tune(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sockets that a listening one accepts inherit TCP_NODELAY and keepalive, which saves setting them on each.
fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let probing = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    // Not every Windows lets this be said.
    #[cfg(not(windows))]
    let probing = probing.with_retries(4);
    socket.set_tcp_keepalive(&probing)?;
    socket.set_nonblocking(true)
}

/// Accepts from `listener` for ever; pauses when accept() fails for want of a resource, which
/// accepting again at once would not bring back.
pub(crate) struct Acceptor<F> {
    listener: TcpListener,
    pause: Duration,
    failed: F,
}

impl<F: FnMut(&io::Error)> Acceptor<F> {
    /// Calls `failed` for every failure of accept().
    pub(crate) fn new(listener: TcpListener, failed: F) -> Self {
        Self {
            listener,
            pause: PAUSE.0,
            failed,
        }
    }

    /// The next connection.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => {
                    self.pause = PAUSE.0;
                    return accepted;
                }
                // The client left before it was accepted: nothing of ours.
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    (self.failed)(&error);
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// A connection that is ready to be accepted at this moment.
    async fn waiting(&mut self) -> Option<(TcpStream, SocketAddr)> {
        tokio::select! {
            biased;
            accepted = self.listener.accept() => accepted.ok(),
            () = std::future::ready(()) => None,
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A listener whose port is bound and that accepts nobody yet.
#[derive(Debug)]
pub struct Bound {
    door: Arc<Door>,
    socket: TcpListener,
    address: SocketAddr,
    inherited: bool,
}

impl Bound {
    /// Binds the port of `door`'s configuration, unless it is `inherited`.
    ///
    /// # Errors
    /// See [`Inherited::listen`].
    pub fn new(door: Arc<Door>, inherited: &Inherited) -> Result<Self, BindError> {
        let wanted = door.config().bind;
        let what = format!("listener {}", door.name);
        let socket = inherited.listen(Who::listener(&door.name, &what), wanted)?;
        let address = socket.local_addr().unwrap_or(wanted);
        Ok(Self {
            inherited: inherited.has_listener(&door.name, wanted),
            door,
            socket,
            address,
        })
    }

    /// Whether clients wait in its socket while there is no hub.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// What it will be open for.
    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    /// Starts to accept once `opening` is cancelled. Those who connect earlier wait in the kernel.
    pub fn start(
        self,
        policy: &Arc<Policy>,
        router: &Arc<Router>,
        opening: &CancellationToken,
        tasks: &Tasks,
    ) -> Listener {
        let stop = tasks.token();
        let Self {
            door,
            socket,
            address,
            inherited,
        } = self;
        tracing::info!(
            event = "listener_started",
            listener = %door.name,
            connector = %door.connector,
            address = %address,
        );
        let current = Arc::new(ArcSwap::new(door));
        let reception = Reception {
            door: current.clone(),
            policy: policy.clone(),
            router: router.clone(),
            tasks: tasks.clone(),
        };
        let run = {
            let (opening, stop) = (opening.clone(), stop.clone());
            async move {
                stop.run_until_cancelled(opening.cancelled()).await;
                reception.run(socket, stop, inherited).await;
            }
        };
        let task = tasks.spawn("listener", run);
        Listener {
            door: current,
            address,
            _stop: stop.drop_guard(),
            task,
        }
    }
}

/// A running listener; dropping it closes the port soon and leaves its flows alone.
#[derive(Debug)]
pub struct Listener {
    door: Arc<ArcSwap<Door>>,
    address: SocketAddr,
    _stop: DropGuard,
    task: JoinHandle<()>,
}

impl Listener {
    /// Its door.
    pub fn door(&self) -> Arc<Door> {
        self.door.load_full()
    }

    /// Follows a changed configuration for the next clients, on the same socket.
    pub fn alter(&self, config: ListenerConfig, metrics: &Metrics) {
        let door = self.door.load_full();
        if *door.name == *config.name && *door.connector == *config.connector {
            door.set_config(config);
        } else {
            self.door.store(Arc::new(door.successor(config, metrics)));
        }
    }

    /// The address that it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port, after those whom the kernel let in already were served. An inherited socket stays
    /// open, and they wait for the next who accepts from it.
    pub async fn close(self) {
        let Self {
            _stop: stop, task, ..
        } = self;
        drop(stop);
        // An error would be the task's panic, which its owner has logged.
        let _ = task.await;
    }
}

/// What an accept loop needs to take a client in.
struct Reception {
    door: Arc<ArcSwap<Door>>,
    policy: Arc<Policy>,
    router: Arc<Router>,
    tasks: Tasks,
}

impl Reception {
    async fn run(self, socket: TcpListener, stop: CancellationToken, inherited: bool) {
        let door = self.door.clone();
        let mut acceptor = Acceptor::new(socket, |error: &io::Error| {
            let door = door.load();
            door.metrics.accept_errors.inc();
            tracing::warn!(event = "accept_failed", listener = %door.name, %error);
        });
        while let Some((stream, peer)) = stop.run_until_cancelled(acceptor.next()).await {
            self.receive(stream, peer);
        }
        if !inherited {
            // Closing the port would reset those whom the kernel has let in already.
            while let Some((stream, peer)) = acceptor.waiting().await {
                self.receive(stream, peer);
            }
        }
        tracing::info!(event = "listener_stopped", listener = %self.door.load().name);
    }

    /// No task, and nothing to wait for, unless a PROXY header is due.
    fn receive(&self, mut stream: TcpStream, peer: SocketAddr) {
        let door = self.door.load_full();
        let tracer = self.router.tracer();
        let mut trace = flow_trace::accepted(tracer, &door.name, &door.connector, peer);
        if Policy::wants_proxy_header(&door) {
            let (policy, router) = (self.policy.clone(), self.router.clone());
            self.tasks.spawn("proxy_header", async move {
                let judged = policy.admit_proxied(&mut stream, peer, &door, trace.as_deref_mut());
                let judged = judged.await;
                conclude(&router, judged, stream, trace);
            });
            return;
        }
        if let Some(trace) = &mut trace {
            flow_trace::known(trace, peer);
        }
        let judged = self.policy.admit(peer, stream.local_addr().ok(), &door);
        conclude(&self.router, judged, stream, trace);
    }
}

/// Lets a client in, or away.
fn conclude(
    router: &Arc<Router>,
    judged: Result<Permit, ListenerError>,
    stream: TcpStream,
    trace: Option<Box<Trace>>,
) {
    match judged {
        Ok(permit) => router.open(permit, stream, trace),
        Err(why) => {
            reset(stream);
            flow_trace::turned_away(trace, why.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1:0";

    fn listen(what: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
        Inherited::default().listen(Who::listener("test", what), address)
    }

    #[tokio::test]
    async fn accepted_sockets_inherit_what_the_port_was_given() {
        let port = listen("test", LOCAL.parse().expect("an address")).expect("bound");
        let address = port.local_addr().expect("an address");
        let _client = TcpStream::connect(address).await.expect("connected");
        let (accepted, _) = Acceptor::new(port, |_| ()).next().await;
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("an option"));
        assert!(socket.keepalive().expect("an option"));
        assert_eq!(
            socket.tcp_keepalive_time().expect("an option"),
            Duration::from_secs(60)
        );
    }

    #[tokio::test]
    async fn a_wildcard_port_takes_both_families() {
        let port = listen("test", "[::]:0".parse().expect("an address")).expect("bound");
        let address = port.local_addr().expect("an address");
        let mut acceptor = Acceptor::new(port, |_| ());
        for loopback in ["127.0.0.1", "::1"] {
            let _client = TcpStream::connect((loopback, address.port()))
                .await
                .expect("connected");
            let (_, peer) = acceptor.next().await;
            assert_eq!(peer.ip().to_canonical().to_string(), loopback);
        }
    }

    #[tokio::test]
    async fn errors_say_what_to_do() {
        let port = listen("listener l1", LOCAL.parse().expect("an address")).expect("bound");
        let taken = port.local_addr().expect("an address");
        let error = listen("listener l2", taken).expect_err("taken").to_string();
        assert!(
            error.starts_with(&format!("listener l2 cannot listen on {taken}: ")),
            "{error}"
        );
        assert!(
            error.contains("stop the other process or choose another port"),
            "{error}"
        );
        let foreign = listen("tunnel", "192.0.2.1:0".parse().expect("an address"));
        assert!(
            foreign
                .expect_err("foreign")
                .to_string()
                .contains("does not have the address")
        );
    }

    #[tokio::test]
    async fn those_who_wait_are_let_in_when_the_port_closes() {
        let port = listen("test", LOCAL.parse().expect("an address")).expect("bound");
        let address = port.local_addr().expect("an address");
        let mut acceptor = Acceptor::new(port, |_| ());
        assert!(acceptor.waiting().await.is_none());
        let _client = TcpStream::connect(address).await.expect("connected");
        assert!(acceptor.waiting().await.is_some());
        assert!(acceptor.waiting().await.is_none());
    }
}
