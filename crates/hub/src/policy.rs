//! Who may open a flow: client networks, the PROXY header of balancers, how many at one time, and
//! how many in a second.
//!
//! The outcome is a [`Permit`]. Only this module can make one and the router demands it, so nothing
//! reaches an agent that was not judged here.

mod clients;
mod door;
pub(crate) mod proxy;
mod slots;
mod standing;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nowconnect_link::trace::Trace;
use nowconnect_proto::bucket::Bucket;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::config::{HubConfig, ProxyProtocol};
use crate::flow_trace;
use crate::metrics::ListenerError;

pub(crate) use clients::{Client, ClientBuckets};
pub(crate) use door::Door;
pub use proxy::ProxyError;
pub(crate) use standing::{Admission, Count, Standing};

use proxy::Announced;

use slots::{Gate, Slot};
pub(crate) use slots::{KeyedGate, KeyedSlot};

/// The rules for every client, exchanged as a whole when the configuration changes.
#[derive(Debug)]
struct Rules {
    allow: Vec<IpNet>,
    trusted_proxies: Vec<IpNet>,
    max_total: usize,
    max_per_client: usize,
    opens_per_sec: Option<NonZeroU32>,
    opens_per_client: Option<NonZeroU32>,
}

impl Rules {
    fn of(config: &HubConfig) -> Self {
        Self {
            allow: config.security.allow_cidrs.clone(),
            trusted_proxies: config.tunnel.trusted_proxies.clone(),
            max_total: config.limits.max_conn_total,
            max_per_client: config.limits.max_conn_per_client.unwrap_or(usize::MAX),
            opens_per_sec: config.limits.max_opens_per_sec,
            opens_per_client: config.limits.max_opens_per_sec_per_client,
        }
    }
}

/// Judges client connections.
#[derive(Debug)]
pub struct Policy {
    rules: ArcSwap<Rules>,
    total: Gate,
    clients: KeyedGate<Client>,
    opens: Mutex<Bucket>,
    client_opens: Mutex<ClientBuckets>,
    since: Instant,
}

/// The two ends of a client's connection; never IPv4-mapped IPv6.
#[derive(Debug, Clone, Copy)]
struct Ends {
    client: SocketAddr,
    destination: Option<SocketAddr>,
}

/// Proof that a client was let in, and its place in every count until that is released or dropped.
#[derive(Debug)]
pub struct Permit {
    ends: Ends,
    door: Arc<Door>,
    places: Mutex<Option<(Slot, Slot, KeyedSlot<Client>)>>,
}

impl Permit {
    /// The client's own address, from the PROXY header where one is due; never IPv4-mapped IPv6.
    pub fn client(&self) -> SocketAddr {
        self.ends.client
    }

    /// The address that the client connected to, from the PROXY header where one is due; `None` when
    /// the connection was gone too soon to tell. Never IPv4-mapped IPv6.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.ends.destination
    }

    /// The client is gone: makes room for the next one, whoever still holds the permit.
    pub fn release(&self) {
        self.places.lock().take();
    }

    /// The listener that it came through.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }
}

impl Policy {
    /// The rules of `config`, with nobody let in yet.
    pub fn new(config: &HubConfig) -> Self {
        Self::with(Rules::of(config))
    }

    fn with(rules: Rules) -> Self {
        Self {
            rules: ArcSwap::from_pointee(rules),
            total: Gate::default(),
            clients: KeyedGate::default(),
            opens: Mutex::default(),
            client_opens: Mutex::default(),
            since: Instant::now(),
        }
    }

    /// Puts the rules of `config` in force for what comes next.
    pub fn set_rules(&self, config: &HubConfig) {
        self.rules.store(Arc::new(Rules::of(config)));
    }

    /// Connections let in now, through all doors.
    pub fn held(&self) -> usize {
        self.total.held()
    }

    /// Whether a client of this address may hold a connection through `door` under the rules in
    /// force, counts aside.
    pub fn allows(&self, client: IpAddr, door: &Door) -> bool {
        let client = client.to_canonical();
        within(&self.rules.load().allow, client) && within(&door.config().allow_cidrs, client)
    }

    /// Whether a client of this address may hold a connection at all, by the networks of the whole hub.
    /// One of unknown address may where everyone may.
    pub fn allows_anywhere(&self, client: Option<IpAddr>) -> bool {
        let allow = &self.rules.load().allow;
        client.map_or(allow.is_empty(), |client| {
            within(allow, client.to_canonical())
        })
    }

    /// Judges a connection that `peer` opened to `local` at `door`.
    ///
    /// # Errors
    /// Why the client is turned away; `door` has counted and logged it.
    pub fn admit(
        &self,
        peer: SocketAddr,
        local: Option<SocketAddr>,
        door: &Arc<Door>,
    ) -> Result<Permit, ListenerError> {
        let ends = Ends {
            client: canonical(peer),
            destination: local.map(canonical),
        };
        self.reserve(door)
            .and_then(|places| self.let_in(ends, door, places))
            .inspect_err(|why| door.turn_away(ends.client, *why))
    }

    /// Judges a connection at a door where balancers announce the client in a PROXY header, and
    /// takes the header off `stream`. Waits up to [`HEADER_DEADLINE`].
    ///
    /// # Errors
    /// Why the client is turned away; `door` has counted and logged it.
    pub async fn admit_proxied(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        door: &Arc<Door>,
        trace: Option<&mut Trace>,
    ) -> Result<Permit, ListenerError> {
        let balancer = canonical(peer);
        let (ends, places) = self
            .announced(stream, balancer, door)
            .await
            .inspect_err(|why| door.turn_away(balancer, *why))?;
        if let Some(trace) = trace {
            flow_trace::known(trace, ends.client);
        }
        self.let_in(ends, door, places)
            .inspect_err(|why| door.turn_away(ends.client, *why))
    }

    /// Whether the door wants [`Policy::admit_proxied`].
    pub fn wants_proxy_header(door: &Door) -> bool {
        door.rules.load().proxy_protocol != ProxyProtocol::Off
    }

    async fn announced(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        door: &Arc<Door>,
    ) -> Result<(Ends, (Slot, Slot)), ListenerError> {
        let rules = self.rules.load_full();
        if !rules
            .trusted_proxies
            .iter()
            .any(|net| net.contains(&peer.ip()))
        {
            return Err(ListenerError::ProxyUntrusted);
        }
        // Places come first, so that headers which never end are bounded like connections.
        let places = self.reserve(door)?;
        let accepted = door.config().proxy_protocol;
        let announced = proxy::read_client(stream, accepted).await.map_err(|error| {
            tracing::debug!(event = "proxy_header_refused", listener = %door.name, peer = %peer, %error);
            ListenerError::ProxyHeader
        })?;
        let ends = match announced {
            Some(Announced {
                client,
                destination,
            }) => Ends {
                client: canonical(client),
                destination: Some(canonical(destination)),
            },
            None => Ends {
                client: peer,
                destination: stream.local_addr().ok().map(canonical),
            },
        };
        Ok((ends, places))
    }

    fn reserve(&self, door: &Door) -> Result<(Slot, Slot), ListenerError> {
        let listener_limit = door.rules.load().max_conn.unwrap_or(usize::MAX);
        let all = self
            .total
            .take(self.rules.load().max_total)
            .ok_or(ListenerError::MaxConnTotal)?;
        let own = door
            .held
            .take(listener_limit)
            .ok_or(ListenerError::MaxConnListener)?;
        Ok((all, own))
    }

    fn let_in(
        &self,
        ends: Ends,
        door: &Arc<Door>,
        (all, own): (Slot, Slot),
    ) -> Result<Permit, ListenerError> {
        let address = ends.client.ip();
        if !self.allows(address, door) {
            return Err(ListenerError::CidrBlocked);
        }
        let rules = self.rules.load();
        let client = Client::from(address);
        let place = self
            .clients
            .take(client, rules.max_per_client)
            .ok_or(ListenerError::MaxConnClient)?;
        self.pace(client, door, &rules)?;
        Ok(Permit {
            ends,
            door: door.clone(),
            places: Mutex::new(Some((all, own, place))),
        })
    }

    /// Takes a token of every bucket. The client's own comes first: whoever is too fast takes none of
    /// the others'.
    fn pace(&self, client: Client, door: &Door, rules: &Rules) -> Result<(), ListenerError> {
        let now = self.since.elapsed();
        if let Some(rate) = rules.opens_per_client {
            let taken = self.client_opens.lock().take(client, now, rate);
            taken.map_err(|_| ListenerError::MaxOpensClient)?;
        }
        if let Some(rate) = door.rules.load().max_opens_per_sec {
            let taken = door.opens.lock().take(now, rate);
            taken.map_err(|_| ListenerError::MaxOpensListener)?;
        }
        if let Some(rate) = rules.opens_per_sec {
            let taken = self.opens.lock().take(now, rate);
            taken.map_err(|_| ListenerError::MaxOpensTotal)?;
        }
        Ok(())
    }
}

/// An address as rules are written: `::ffff:192.0.2.1`, as a dual-stack socket shows an IPv4
/// client, is 192.0.2.1.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn within(networks: &[IpNet], address: IpAddr) -> bool {
    networks.is_empty() || networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ListenerConfig;
    use crate::metrics::Metrics;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    fn rules() -> Rules {
        Rules {
            allow: vec!["192.0.2.0/24".parse().expect("a network")],
            trusted_proxies: vec!["127.0.0.0/8".parse().expect("a network")],
            max_total: 3,
            max_per_client: 2,
            opens_per_sec: None,
            opens_per_client: None,
        }
    }

    fn door(adjust: impl FnOnce(&mut ListenerConfig)) -> Arc<Door> {
        let mut config = ListenerConfig {
            name: "l1".into(),
            bind: "127.0.0.1:0".parse().expect("an address"),
            connector: "ldap".into(),
            allow_cidrs: Vec::new(),
            max_conn: None,
            max_opens_per_sec: None,
            idle_timeout: None,
            proxy_protocol: ProxyProtocol::Off,
        };
        adjust(&mut config);
        Arc::new(Door::new(config, &Metrics::new()))
    }

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 40000)
    }

    fn admit(policy: &Policy, who: &str, door: &Arc<Door>) -> Result<Permit, ListenerError> {
        policy.admit(from(who), Some(from("192.0.2.99")), door)
    }

    #[test]
    fn an_address_that_is_not_told_is_in_no_network() {
        let policy = Policy::with(rules());
        let at = |address: &str| Some(address.parse().expect("an address"));
        assert!(policy.allows_anywhere(at("::ffff:192.0.2.1")));
        assert!(!policy.allows_anywhere(at("198.51.100.1")));
        assert!(!policy.allows_anywhere(None));
        let everyone = Policy::with(Rules {
            allow: Vec::new(),
            ..rules()
        });
        assert!(everyone.allows_anywhere(None));
    }

    #[test]
    fn an_address_must_be_within_both_lists() {
        let policy = Policy::with(rules());
        let all = door(|_| ());
        assert!(admit(&policy, "192.0.2.1", &all).is_ok());
        let blocked = admit(&policy, "198.51.100.1", &all);
        assert_eq!(blocked.err(), Some(ListenerError::CidrBlocked));
        let narrow =
            door(|config| config.allow_cidrs = vec!["192.0.2.7/32".parse().expect("a network")]);
        assert!(admit(&policy, "192.0.2.7", &narrow).is_ok());
        assert!(admit(&policy, "192.0.2.8", &narrow).is_err());
        assert_eq!(narrow.metrics.error(ListenerError::CidrBlocked).get(), 1);
    }

    #[test]
    fn a_mapped_address_is_the_address_it_maps() {
        let policy = Policy::with(rules());
        let permit = admit(&policy, "::ffff:192.0.2.1", &door(|_| ())).expect("let in");
        assert_eq!(permit.client(), from("192.0.2.1"));
        assert!(admit(&policy, "::ffff:198.51.100.1", &door(|_| ())).is_err());
    }

    #[test]
    fn every_limit_has_its_own_reason_and_a_refusal_holds_no_place() {
        let policy = Policy::with(rules());
        let (wide, narrow) = (door(|_| ()), door(|config| config.max_conn = Some(1)));
        let refused = |at: &Arc<Door>, who: &str| admit(&policy, who, at).err();
        let first = admit(&policy, "192.0.2.1", &narrow).expect("let in");
        assert_eq!(
            refused(&narrow, "192.0.2.2"),
            Some(ListenerError::MaxConnListener)
        );
        let second = admit(&policy, "192.0.2.1", &wide).expect("let in");
        assert_eq!(
            refused(&wide, "192.0.2.1"),
            Some(ListenerError::MaxConnClient)
        );
        let _third = admit(&policy, "192.0.2.2", &wide).expect("let in");
        assert_eq!(
            refused(&wide, "192.0.2.3"),
            Some(ListenerError::MaxConnTotal)
        );
        assert_eq!((policy.held(), narrow.held(), wide.held()), (3, 1, 2));
        drop((first, second));
        assert_eq!((policy.held(), narrow.held(), wide.held()), (1, 0, 1));
    }

    #[test]
    fn new_rules_hold_for_the_next_client() {
        let policy = Policy::with(rules());
        let door = door(|_| ());
        let permit = admit(&policy, "192.0.2.1", &door).expect("let in");
        policy.rules.store(Arc::new(Rules {
            allow: vec![],
            max_total: 1,
            ..rules()
        }));
        let next = admit(&policy, "198.51.100.1", &door);
        assert_eq!(next.err(), Some(ListenerError::MaxConnTotal));
        drop(permit);
        assert!(admit(&policy, "198.51.100.1", &door).is_ok());
    }

    #[test]
    fn whoever_is_too_fast_takes_nothing_from_the_others() {
        let rate = NonZeroU32::new;
        let policy = Policy::with(Rules {
            max_total: 100,
            max_per_client: 100,
            opens_per_sec: rate(6),
            opens_per_client: rate(3),
            ..rules()
        });
        let (fast, slow) = (
            door(|_| ()),
            door(|config| config.max_opens_per_sec = rate(1)),
        );
        let opened =
            |who: &str, at: &Arc<Door>| (0..20).filter(|_| admit(&policy, who, at).is_ok()).count();
        let refused = |at: &Door, why: ListenerError| at.metrics.error(why).get();
        assert_eq!(opened("192.0.2.1", &fast), 3);
        assert_eq!(refused(&fast, ListenerError::MaxOpensClient), 17);
        assert_eq!(opened("192.0.2.2", &slow), 1);
        assert_eq!(refused(&slow, ListenerError::MaxOpensListener), 2);
        assert_eq!(opened("192.0.2.3", &fast), 2);
        assert_eq!(refused(&fast, ListenerError::MaxOpensTotal), 1);
        assert_eq!(policy.held(), 0, "a refusal holds no place");
        policy.rules.store(Arc::new(rules()));
        assert!(
            admit(&policy, "192.0.2.1", &fast).is_ok(),
            "no limit any more"
        );
    }

    #[test]
    fn a_permit_knows_where_the_client_connected_to() {
        let policy = Policy::with(rules());
        let local = from("::ffff:192.0.2.99");
        let permit = policy.admit(from("192.0.2.1"), Some(local), &door(|_| ()));
        assert_eq!(
            permit.expect("let in").destination(),
            Some(from("192.0.2.99"))
        );
    }

    #[tokio::test]
    async fn the_announced_client_is_judged_and_only_trusted_balancers_announce() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let door = door(|config| config.proxy_protocol = ProxyProtocol::Any);
        let stranger = Policy::with(Rules {
            trusted_proxies: vec![],
            ..rules()
        });
        let policy = Policy::with(rules());
        for (policy, client, expected) in [
            (&policy, "192.0.2.1", None),
            (&policy, "198.51.100.1", Some(ListenerError::CidrBlocked)),
            (&policy, "nonsense", Some(ListenerError::ProxyHeader)),
            (&stranger, "192.0.2.1", Some(ListenerError::ProxyUntrusted)),
        ] {
            let address = listener.local_addr().expect("addr");
            let mut balancer = TcpStream::connect(address).await.expect("connect");
            let header = format!("PROXY TCP4 {client} 192.0.2.99 40000 389\r\n");
            balancer.write_all(header.as_bytes()).await.expect("write");
            let (mut stream, peer) = listener.accept().await.expect("accept");
            let judged = policy.admit_proxied(&mut stream, peer, &door, None).await;
            assert_eq!(judged.as_ref().err(), expected.as_ref(), "{client}");
            if let Ok(permit) = judged {
                assert_eq!(permit.client(), from("192.0.2.1"));
                let destination = "192.0.2.99:389".parse().ok();
                assert_eq!(permit.destination(), destination);
            }
            assert_eq!(policy.held(), 0);
        }
    }
}
