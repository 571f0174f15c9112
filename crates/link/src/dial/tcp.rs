//! TCP to whichever address of a host answers first.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::url::authority;
use super::{Deadline, DialError, Stage};

/// Head start of an address before the next one is tried too (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 16;
/// Names that are resolved at once. The system's resolver blocks a thread that nothing can stop;
/// a dead DNS server must not take all the threads that files need too.
static LOOKUPS: Semaphore = Semaphore::const_new(64);

/// Options of a connected socket. `TCP_NODELAY` is always set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// How long the connection may be silent before the kernel probes it, and between its probes;
    /// the fourth that is not answered ends the connection. `None` leaves the system's default.
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`: how long written bytes may stay unacknowledged. It also ends a
    /// connection whose peer does not read for that long, so it is for links that must always
    /// move, not for the sockets of clients and targets.
    pub user_timeout: Option<Duration>,
}

impl TcpOptions {
    /// Sets the options on a socket, dialed or accepted.
    ///
    /// # Errors
    /// What the system says, for example because the peer is gone already.
    pub fn apply(&self, io: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(io);
        socket.set_tcp_nodelay(true)?;
        if let Some(time) = self.keepalive {
            let probes = TcpKeepalive::new().with_time(time).with_interval(time);
            // Windows tries ten times; the option for that is newer than Windows Server 2016.
            #[cfg(not(windows))]
            let probes = probes.with_retries(4);
            socket.set_tcp_keepalive(&probes)?;
        }
        #[cfg(target_os = "linux")]
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

/// Connects to a target: resolves `host` afresh, tries all its addresses, and has `timeout` for
/// everything together. A name does not lead to link-local addresses, see [`is_link_local`].
///
/// # Errors
/// [`DialError::kind`] tells refused, timeout, dns, unreachable and local_resource apart.
pub async fn dial_tcp(
    host: &str,
    port: u16,
    timeout: Duration,
    options: TcpOptions,
) -> Result<TcpStream, DialError> {
    let to = authority(host, port);
    let io = connect_to(host, port, &to, Deadline::after(timeout), fit_for_target).await?;
    options
        .apply(&io)
        .map_err(|source| DialError::Socket { to, source })?;
    Ok(io)
}

/// Whether an address is of no use beyond one cable (RFC 3927, RFC 4291 section 2.5.6). Clouds serve
/// the credentials of a machine there, so a name that comes to mean such an address is an attack.
#[must_use]
pub fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// What a name means, without what no target has.
fn fit_for_target(mut found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    found.retain(|address| !is_link_local(address.ip()));
    match found.is_empty() {
        false => Ok(found),
        true => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it has link-local addresses alone, to which a name does not lead",
        )),
    }
}

/// `to` names the host in errors.
pub(super) async fn connect(
    host: &str,
    port: u16,
    to: &str,
    deadline: Deadline,
) -> Result<TcpStream, DialError> {
    connect_to(host, port, to, deadline, Ok).await
}

async fn connect_to(
    host: &str,
    port: u16,
    to: &str,
    deadline: Deadline,
    fit: fn(Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>>,
) -> Result<TcpStream, DialError> {
    let found = deadline.limit(Stage::Dns, to, resolve(host, port)).await?;
    let found = match host.parse::<IpAddr>() {
        Ok(_) => found,
        Err(_) => found.and_then(fit),
    };
    let addresses = found.map_err(|source| DialError::Dns {
        to: to.to_owned(),
        source,
    })?;
    let race = race(interleave(addresses));
    match deadline.limit(Stage::Connect, to, race).await? {
        Ok(io) => Ok(io),
        Err(failures) => Err(DialError::Connect {
            to: to.to_owned(),
            failures,
        }),
    }
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let permit = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let host = host.to_owned();
    let lookup = tokio::task::spawn_blocking(move || {
        // Held by the thread, because the waiting future may be gone long before it ends.
        let _permit = permit;
        (host.as_str(), port)
            .to_socket_addrs()
            .map(|found| found.take(MAX_ADDRESSES).collect())
    });
    let addresses: Vec<_> = lookup.await.map_err(io::Error::other)??;
    if addresses.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no addresses",
        ));
    }
    Ok(addresses)
}

/// Alternates between IPv6 and IPv4, beginning with the resolver's first choice, so that a broken
/// family costs one delay and not one per address (RFC 8305 section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut other = other.into_iter();
    let mut mixed = Vec::with_capacity(preferred.len() + other.len());
    for address in preferred {
        mixed.push(address);
        mixed.extend(other.next());
    }
    mixed.extend(other);
    mixed
}

/// Connects to the addresses in turn, each with a head start on the next; the first to answer wins
/// and the others are dropped.
async fn race(addresses: Vec<SocketAddr>) -> Result<TcpStream, Vec<(SocketAddr, io::Error)>> {
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    for address in addresses {
        attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        let head_start = sleep(ATTEMPT_DELAY);
        tokio::pin!(head_start);
        // The next one starts when the head start is over, or at once when all so far have failed.
        while !attempts.is_empty() {
            tokio::select! {
                Some(done) = attempts.join_next() => match done {
                    Ok((_, Ok(io))) => return Ok(io),
                    Ok((address, Err(error))) => failures.push((address, error)),
                    Err(_) => {}
                },
                () = &mut head_start => break,
            }
        }
    }
    while let Some(done) = attempts.join_next().await {
        match done {
            Ok((_, Ok(io))) => return Ok(io),
            Ok((address, Err(error))) => failures.push((address, error)),
            Err(_) => {}
        }
    }
    Err(failures)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn addresses(text: &[&str]) -> Vec<SocketAddr> {
        text.iter()
            .map(|address| address.parse().unwrap())
            .collect()
    }

    #[test]
    fn a_name_does_not_lead_to_where_credentials_of_machines_are() {
        let mixed = &["169.254.169.254:80", "192.0.2.1:80", "[fe80::1]:80"];
        let left = fit_for_target(addresses(mixed)).unwrap();
        assert_eq!(left, addresses(&["192.0.2.1:80"]));
        let mapped = &["[::ffff:169.254.169.254]:80", "[fe80::1]:80"];
        let error = fit_for_target(addresses(mapped)).unwrap_err();
        assert!(error.to_string().contains("link-local"), "{error}");
    }

    #[test]
    fn families_alternate_after_the_resolvers_first() {
        let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let expected = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(interleave(found), expected);
        let v4 = addresses(&["1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(interleave(v4.clone()), v4);
    }

    /// A listener whose queue is full: it answers no SYN any more.
    fn black_hole() -> (Vec<Socket>, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener
            .bind(&addresses(&["127.0.0.1:0"])[0].into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address.into());
            sockets.push(filler);
        }
        (sockets, address)
    }

    #[tokio::test]
    async fn a_silent_or_refusing_address_does_not_hold_up_the_others() {
        let (_sockets, silent) = black_hole();
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let refusing = closed.local_addr().unwrap();
        drop(closed);
        let target = good.local_addr().unwrap();
        for order in [[silent, refusing, target], [refusing, silent, target]] {
            let connect = race(order.to_vec());
            let io = tokio::time::timeout(Duration::from_secs(5), connect)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(io.peer_addr().unwrap(), target);
        }
        let failures = race(vec![refusing, refusing]).await.unwrap_err();
        assert_eq!(failures.len(), 2);
    }
}
