//! Listening sockets that are older than this process: a service manager holds them, and clients wait in
//! them while the hub is away.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;
use tokio::net::TcpListener;

use super::{BindError, bind, tune};
use crate::config::{HaMode, HubConfig};

/// The name of the socket for `tunnel.port`.
pub(crate) const TUNNEL: &str = "tunnel";
/// The name of the socket for `observability.metrics_port`.
pub(crate) const METRICS: &str = "metrics";
/// The name of the socket for `admin.bind`.
pub(crate) const ADMIN: &str = "admin";
/// The name of the socket for `ha.mesh.listen`.
pub(crate) const MESH: &str = "mesh";

/// Who wants to listen: the name of its socket, and what errors call it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    socket: Option<&'a str>,
    what: &'a str,
}

impl<'a> Who<'a> {
    /// A port of the hub itself, with one of the names above.
    pub(crate) fn port(socket: &'static str, what: &'a str) -> Self {
        let socket = Some(socket);
        Self { socket, what }
    }

    /// A listener. One that is called like a port of the hub is known by its address alone.
    pub(crate) fn listener(name: &'a str, what: &'a str) -> Self {
        let is_free = ![TUNNEL, METRICS, ADMIN, MESH].contains(&name);
        let socket = is_free.then_some(name);
        Self { socket, what }
    }
}

/// The sockets that whoever started this process has opened for it. They stay open whatever the
/// configuration makes of them, so that one which is wanted again is there again.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Held>);

#[derive(Debug)]
struct Held {
    name: String,
    address: SocketAddr,
    socket: StdListener,
    /// Nobody wants it, and that was told.
    idle: AtomicBool,
}

/// A socket was opened for somebody who is to listen elsewhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "the socket {name:?} that the service manager holds for it listens on {address}; make its ListenStream= and the configuration agree"
)]
struct Misfit {
    name: String,
    address: SocketAddr,
}

impl Misfit {
    fn of(held: &Held) -> io::Error {
        let (name, address) = (held.name.clone(), held.address);
        io::Error::new(io::ErrorKind::InvalidInput, Self { name, address })
    }
}

impl BindError {
    /// Whether the configuration and the service manager's name different addresses.
    pub fn is_misfit(&self) -> bool {
        let inner = self.source.get_ref();
        inner.is_some_and(|error| error.is::<Misfit>())
    }
}

impl Inherited {
    /// Listening TCP sockets by name.
    ///
    /// # Errors
    /// One of them has no address.
    pub fn new(sockets: impl IntoIterator<Item = (String, StdListener)>) -> io::Result<Self> {
        let held = sockets.into_iter().map(|(name, socket)| {
            Ok(Held {
                name,
                address: socket.local_addr()?,
                socket,
                idle: AtomicBool::new(false),
            })
        });
        held.collect::<io::Result<_>>().map(Self)
    }

    /// Listens on `address`: on the socket that is held for `who`, or a new one.
    ///
    /// # Errors
    /// The port is taken, forbidden, or not of this machine, or the socket that is held is elsewhere.
    pub(crate) fn listen(
        &self,
        who: Who<'_>,
        address: SocketAddr,
    ) -> Result<TcpListener, BindError> {
        let listening = match self.find(who.socket, address) {
            Ok(Some(held)) => held.adopt(who.what),
            Ok(None) => bind(address).map_err(|error| self.blame(error, address)),
            Err(misfit) => Err(misfit),
        };
        listening.map_err(|source| BindError {
            what: who.what.to_owned(),
            address,
            source,
        })
    }

    /// Whether clients of this listener wait in a socket that outlives the hub.
    pub(crate) fn has_listener(&self, name: &str, address: SocketAddr) -> bool {
        let who = Who::listener(name, "");
        matches!(self.find(who.socket, address), Ok(Some(_)))
    }

    /// Says which sockets nobody wants, once for each.
    pub(crate) fn report_idle(&self, config: &HubConfig) {
        let found = ports(config).filter_map(|(name, address)| self.find(name, address).ok()?);
        let used: Vec<&Held> = found.collect();
        for held in &self.0 {
            let wanted = used.iter().any(|used| std::ptr::eq(*used, held));
            let was_told = held.idle.swap(!wanted, Ordering::Relaxed);
            if !wanted && !was_told {
                tracing::warn!(
                    event = "socket_unused",
                    socket = %held.name,
                    address = %held.address,
                    hint = "clients that connect there wait for ever: configure a listener with this bind, or take it out of the socket unit",
                );
            }
        }
    }

    /// By name, if there is one by that name, else by address.
    fn find(&self, name: Option<&str>, address: SocketAddr) -> io::Result<Option<&Held>> {
        let mut named = self.0.iter().filter(|held| Some(&*held.name) == name);
        let other = named.clone().next();
        let is_any = address.port() == 0;
        if let Some(held) = named.find(|held| held.fits(address) || is_any && held.covers(address))
        {
            return Ok(Some(held));
        }
        match other {
            Some(held) => Err(Misfit::of(held)),
            None => Ok(self.0.iter().find(|held| held.fits(address))),
        }
    }

    /// A port is in use: by the service manager?
    fn blame(&self, error: io::Error, address: SocketAddr) -> io::Error {
        let holds = |held: &&Held| held.address.port() == address.port();
        match self.0.iter().find(holds) {
            Some(held) if error.kind() == io::ErrorKind::AddrInUse => Misfit::of(held),
            _ => error,
        }
    }
}

impl Held {
    fn fits(&self, wanted: SocketAddr) -> bool {
        self.address.port() == wanted.port() && self.covers(wanted)
    }

    /// Whether those and only those can connect who could at `wanted`. `ListenStream=389` is `[::]:389`
    /// and takes IPv4 too.
    fn covers(&self, wanted: SocketAddr) -> bool {
        let all_of_v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let is_both = |ip: IpAddr| {
            let only_v6 = || SockRef::from(&self.socket).only_v6().unwrap_or(true);
            ip.is_ipv6() && ip.is_unspecified() && !only_v6()
        };
        let own = self.address.ip();
        own == wanted.ip() || wanted.ip() == all_of_v4 && is_both(own)
    }

    fn adopt(&self, what: &str) -> io::Result<TcpListener> {
        let socket = self.socket.try_clone()?;
        tune(&SockRef::from(&socket))?;
        let listener = TcpListener::from_std(socket)?;
        tracing::info!(
            event = "socket_inherited",
            socket = %self.name,
            address = %self.address,
            port = what,
        );
        Ok(listener)
    }
}

/// What `config` wants to listen on.
fn ports(config: &HubConfig) -> impl Iterator<Item = (Option<&str>, SocketAddr)> {
    let tunnel = config.tunnel.bind;
    let metrics = config.observability.metrics_port;
    let metrics = metrics.map(|port| (Some(METRICS), SocketAddr::new(tunnel.ip(), port)));
    let is_on = config.ha.mode != HaMode::Off;
    let mesh = config.ha.mesh.listen.filter(|_| is_on);
    let own = [(Some(TUNNEL), tunnel), (Some(ADMIN), config.admin.bind)];
    let listeners = config.listeners.iter();
    let listeners = listeners.map(|one| (Who::listener(&one.name, "").socket, one.bind));
    own.into_iter()
        .chain(metrics)
        .chain(mesh.map(|address| (Some(MESH), address)))
        .chain(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    /// A socket on a free port of `ip`, and the port.
    fn socket(ip: &str, only_v6: bool) -> (StdListener, u16) {
        let address = SocketAddr::new(ip.parse().expect("an address"), 0);
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
        if address.is_ipv6() {
            socket.set_only_v6(only_v6).expect("an option");
        }
        socket.bind(&address.into()).expect("bound");
        socket.listen(1).expect("listening");
        let socket = StdListener::from(socket);
        let port = socket.local_addr().expect("an address").port();
        (socket, port)
    }

    fn finds(inherited: &Inherited, name: Option<&str>, ip: &str, port: u16) -> Result<bool, ()> {
        let address = SocketAddr::new(ip.parse().expect("an address"), port);
        let found = inherited.find(name, address);
        found.map(|held| held.is_some()).map_err(drop)
    }

    #[test]
    fn a_socket_is_for_those_who_would_bind_the_same() {
        let cases: [(&str, bool, &[&str]); 4] = [
            ("0.0.0.0", false, &["0.0.0.0"]),
            ("127.0.0.1", false, &["127.0.0.1"]),
            ("::", false, &["::", "0.0.0.0"]),
            ("::", true, &["::"]),
        ];
        for (ip, only_v6, fitting) in cases {
            let (socket, port) = socket(ip, only_v6);
            let inherited = Inherited::new([("hub.socket".into(), socket)]).expect("sockets");
            for wanted in ["0.0.0.0", "127.0.0.1", "::", "::1"] {
                let fits = fitting.contains(&wanted);
                let context = format!("{wanted} at {ip}, IPv6 alone: {only_v6}");
                let found = finds(&inherited, Some("ldap"), wanted, port);
                assert_eq!(found, Ok(fits), "{context}");
                let named = finds(&inherited, Some("hub.socket"), wanted, port);
                assert_eq!(named, fits.then_some(true).ok_or(()), "{context}");
                assert_eq!(finds(&inherited, None, wanted, port - 1), Ok(false));
            }
        }
    }

    #[test]
    fn any_port_is_that_of_the_socket_with_the_name() {
        let (socket, _) = socket("127.0.0.1", false);
        let inherited = Inherited::new([("ldap".into(), socket)]).expect("sockets");
        assert_eq!(finds(&inherited, Some("ldap"), "127.0.0.1", 0), Ok(true));
        assert_eq!(finds(&inherited, Some("pg"), "127.0.0.1", 0), Ok(false));
        assert_eq!(finds(&inherited, Some("ldap"), "0.0.0.0", 0), Err(()));
    }

    #[test]
    fn of_several_with_one_name_the_one_that_fits_is_taken() {
        let ((first, _), (second, port)) = (socket("127.0.0.1", false), socket("::1", true));
        let both = [("ldap".into(), first), ("ldap".into(), second)];
        let inherited = Inherited::new(both).expect("sockets");
        assert_eq!(finds(&inherited, Some("ldap"), "::1", port), Ok(true));
        assert_eq!(finds(&inherited, Some("pg"), "::1", port), Ok(true));
    }

    #[test]
    fn a_listener_called_like_a_port_of_the_hub_is_known_by_its_address() {
        assert_eq!(Who::listener("ldap", "").socket, Some("ldap"));
        assert_eq!(Who::listener(ADMIN, "").socket, None);
    }

    #[tokio::test]
    async fn a_port_that_is_held_for_another_address_is_said_to_be() {
        let (socket, port) = socket("0.0.0.0", false);
        let inherited = Inherited::new([("hub.socket".into(), socket)]).expect("sockets");
        let who = Who::listener("ldap", "listener ldap");
        let address = SocketAddr::new([127, 0, 0, 1].into(), port);
        let error = inherited.listen(who, address).expect_err("taken");
        assert!(error.is_misfit(), "{error}");
        assert!(error.to_string().contains("\"hub.socket\""), "{error}");
    }
}
