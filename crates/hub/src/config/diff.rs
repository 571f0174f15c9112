//! What a reload has to do: a pure comparison of two configurations.
//!
//! A listener is its address: the same address keeps its socket and the clients that wait in it,
//! whatever else about it changes.

use std::net::SocketAddr;

use nowconnect_settings::{Fixed, fixed};

use super::{HaMode, HubConfig, ListenerConfig};

/// What differs between the running configuration and a new one.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What the hub runs with from now on: the new configuration, but with the running values of
    /// the keys in `needs_restart`.
    pub config: HubConfig,
    /// Listeners on addresses that are not listened on yet.
    pub listeners_added: Vec<ListenerConfig>,
    /// Addresses to stop listening on.
    pub listeners_removed: Vec<SocketAddr>,
    /// Listeners that keep their socket and serve new connections by other settings.
    pub listeners_changed: Vec<ListenerConfig>,
    /// Sections and keys with a difference that takes effect now.
    pub live: Vec<&'static str>,
    /// Keys with a difference that takes effect when the process is started again.
    pub needs_restart: Vec<&'static str>,
}

impl Change {
    /// Whether nothing takes effect now.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

const FIXED: &[Fixed<HubConfig>] = &[
    Fixed {
        key: "tunnel.host",
        same: |old, new| old.tunnel.bind.ip() == new.tunnel.bind.ip(),
        keep: |config, old| config.tunnel.bind.set_ip(old.tunnel.bind.ip()),
    },
    Fixed {
        key: "tunnel.port",
        same: |old, new| old.tunnel.bind.port() == new.tunnel.bind.port(),
        keep: |config, old| config.tunnel.bind.set_port(old.tunnel.bind.port()),
    },
    // Certificates are swapped live, a plain socket does not become a TLS one.
    Fixed {
        key: "tunnel.tls",
        same: |old, new| old.tunnel.tls.is_some() == new.tunnel.tls.is_some(),
        keep: |config, old| config.tunnel.tls.clone_from(&old.tunnel.tls),
    },
    // Windows of running flows are cut from it.
    fixed!("limits.memory_budget_mb", limits.memory_budget),
    fixed!("observability.metrics_port", observability.metrics_port),
    fixed!("observability.log_format", observability.log_format),
    // `observability.otlp_endpoint` and `observability.traces`.
    fixed!("observability.traces", observability.traces),
    Fixed {
        key: "admin.bind",
        same: |old, new| old.admin.bind == new.admin.bind,
        keep: |config, old| {
            config.admin.bind = old.admin.bind;
            // A token that the new address does without may be all that guards the running one.
            if config.admin.token_file.is_none() {
                config.admin.token_file.clone_from(&old.admin.token_file);
            }
        },
    },
    fixed!("ha.replica_id", ha.replica_id),
    // With HA off nothing uses it yet.
    Fixed {
        key: "ha.mesh.listen",
        same: |old, new| old.ha.mode == HaMode::Off || old.ha.mesh.listen == new.ha.mesh.listen,
        keep: |config, old| config.ha.mesh.listen = old.ha.mesh.listen,
    },
];

impl HubConfig {
    /// Keys that keep their running value until the process is started again.
    pub fn fixed_keys() -> impl Iterator<Item = &'static str> {
        FIXED.iter().map(|fixed| fixed.key)
    }

    /// What a running hub has to do to go over to `new`.
    pub fn diff(&self, new: &Self) -> Change {
        let mut config = new.clone();
        let needs_restart = Fixed::keep_running(FIXED, self, &mut config);
        let on = |listeners: &[ListenerConfig], bind| listeners.iter().any(|l| l.bind == bind);
        let listeners = |keep: &dyn Fn(&ListenerConfig) -> bool| {
            config
                .listeners
                .iter()
                .filter(|l| keep(l))
                .cloned()
                .collect::<Vec<_>>()
        };
        let changed =
            |l: &ListenerConfig| on(&self.listeners, l.bind) && !self.listeners.contains(l);
        let removed = self.listeners.iter().map(|listener| listener.bind);
        Change {
            listeners_added: listeners(&|l| !on(&self.listeners, l.bind)),
            listeners_changed: listeners(&changed),
            listeners_removed: removed
                .filter(|bind| !on(&config.listeners, *bind))
                .collect(),
            live: self.live_changes(&config),
            needs_restart,
            config,
        }
    }

    fn live_changes(&self, new: &Self) -> Vec<&'static str> {
        let (old_log, new_log) = (self.observability.log_level, new.observability.log_level);
        let parts = [
            ("listeners", self.listeners != new.listeners),
            ("tunnel", self.tunnel != new.tunnel),
            ("limits", self.limits != new.limits),
            ("security", self.security != new.security),
            ("observability.log_level", old_log != new_log),
            ("pdp", self.pdp != new.pdp),
            (
                "admin.token_file",
                self.admin.token_file != new.admin.token_file,
            ),
            ("audit", self.audit != new.audit),
            ("probes", self.probes != new.probes),
            ("ha.mode", self.ha.mode != new.ha.mode),
            ("ha.redis_url", self.ha.redis_url != new.ha.redis_url),
            ("ha.redis_ca", self.ha.redis_ca != new.ha.redis_ca),
            ("ha.mesh", self.ha.mesh != new.ha.mesh),
        ];
        parts
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(part, _)| part)
            .collect()
    }
}
