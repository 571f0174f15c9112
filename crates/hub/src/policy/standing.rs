//! What the rules say about a client that is not here, for those who ask why.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Door, Policy};

/// How a list of networks takes an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The list is empty.
    Everyone,
    /// This network of it holds the address.
    Within(IpNet),
    /// None does.
    Nowhere,
}

impl Admission {
    fn of(networks: &[IpNet], client: IpAddr) -> Self {
        let holds = |network: &&IpNet| network.contains(&client);
        match networks.iter().find(holds) {
            Some(network) => Self::Within(*network),
            None if networks.is_empty() => Self::Everyone,
            None => Self::Nowhere,
        }
    }
}

/// How many connections there are, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Now.
    pub held: usize,
    /// At most; `None` = no limit.
    pub limit: Option<usize>,
}

impl Count {
    fn new(held: usize, limit: usize) -> Self {
        let limit = (limit < usize::MAX).then_some(limit);
        Self { held, limit }
    }

    /// Whether there is room for one more.
    pub fn has_room(self) -> bool {
        self.limit.is_none_or(|limit| self.held < limit)
    }
}

/// Networks and counts as they are for one client at one door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// By `security.allow_cidrs`.
    pub hub: Admission,
    /// By the listener's `allow_cidrs`.
    pub listener: Admission,
    /// Of `limits.max_conn_total`.
    pub total: Count,
    /// Of the listener's `max_conn`.
    pub door: Count,
    /// Of `limits.max_conn_per_client`.
    pub client: Count,
}

impl Policy {
    /// How a client of this address would be judged at `door` now. Counts nothing.
    pub fn standing(&self, client: IpAddr, door: &Door) -> Standing {
        let (rules, config) = (self.rules.load(), door.config());
        let client = client.to_canonical();
        Standing {
            hub: Admission::of(&rules.allow, client),
            listener: Admission::of(&config.allow_cidrs, client),
            total: Count::new(self.held(), rules.max_total),
            door: Count::new(door.held(), config.max_conn.unwrap_or(usize::MAX)),
            client: Count::new(self.clients.held(&client.into()), rules.max_per_client),
        }
    }
}
