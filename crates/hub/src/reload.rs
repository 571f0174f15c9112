//! What a new configuration changes, found before anything is touched.
//!
//! A listener is its address: the same address keeps its socket and the clients that wait in it,
//! whatever else about it changes.

use std::net::SocketAddr;

use crate::config::{HubConfig, ListenerConfig};

/// What becomes of the listeners.
#[derive(Debug, Default, PartialEq)]
pub struct ListenerChanges {
    /// Addresses to bind.
    pub opened: Vec<ListenerConfig>,
    /// Listeners that stay and follow other rules.
    pub altered: Vec<ListenerConfig>,
    /// Addresses to close.
    pub closed: Vec<SocketAddr>,
}

impl ListenerChanges {
    /// From `old` to `new`.
    pub fn between(old: &[ListenerConfig], new: &[ListenerConfig]) -> Self {
        let mut changes = Self::default();
        for listener in new {
            match old.iter().find(|before| before.bind == listener.bind) {
                None => changes.opened.push(listener.clone()),
                Some(before) if before != listener => changes.altered.push(listener.clone()),
                Some(_) => {}
            }
        }
        let gone = |before: &&ListenerConfig| new.iter().all(|after| after.bind != before.bind);
        changes.closed = old.iter().filter(gone).map(|before| before.bind).collect();
        changes
    }
}

/// The keys whose new values wait for the next start.
pub fn needs_restart(old: &HubConfig, new: &HubConfig) -> Vec<&'static str> {
    let pairs = [
        (
            "tunnel.host and tunnel.port",
            old.tunnel.bind != new.tunnel.bind,
        ),
        (
            "tunnel.tls (on or off)",
            old.tunnel.tls.is_some() != new.tunnel.tls.is_some(),
        ),
        (
            "limits.memory_budget_mb",
            old.limits.memory_budget != new.limits.memory_budget,
        ),
        (
            "observability.metrics_port",
            old.observability.metrics_port != new.observability.metrics_port,
        ),
        (
            "observability.log_format",
            old.observability.log_format != new.observability.log_format,
        ),
        ("admin.bind", old.admin.bind != new.admin.bind),
        ("ha.replica_id", old.ha.replica_id != new.ha.replica_id),
        ("ha.mesh.listen", old.ha.mesh.listen != new.ha.mesh.listen),
    ];
    pairs
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyProtocol;

    fn listener(name: &str, port: u16, connector: &str) -> ListenerConfig {
        ListenerConfig {
            name: name.into(),
            bind: SocketAddr::from(([127, 0, 0, 1], port)),
            connector: connector.into(),
            allow_cidrs: Vec::new(),
            max_conn: None,
            idle_timeout: None,
            proxy_protocol: ProxyProtocol::Off,
        }
    }

    #[test]
    fn an_address_that_stays_keeps_its_socket() {
        let old = [
            listener("a", 1, "ldap"),
            listener("b", 2, "pg"),
            listener("c", 3, "pg"),
        ];
        let new = [
            listener("a", 1, "ldap"),
            listener("renamed", 2, "pg"),
            listener("c", 4, "pg"),
        ];
        let expected = ListenerChanges {
            opened: vec![new[2].clone()],
            altered: vec![new[1].clone()],
            closed: vec![old[2].bind],
        };
        assert_eq!(ListenerChanges::between(&old, &new), expected);
    }

    #[test]
    fn the_same_listeners_change_nothing() {
        let same = [listener("a", 1, "ldap")];
        assert_eq!(
            ListenerChanges::between(&same, &same),
            ListenerChanges::default()
        );
    }
}
