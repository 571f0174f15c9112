//! The part of the configuration that tunnels go by.

use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;
use nowconnect_proto::frame::MAX_PAYLOAD;

use crate::config::HubConfig;

/// What agents are told, exchanged as a whole when the configuration changes.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) hub: String,
    pub(super) max_payload: u32,
    pub(super) ping_interval: Duration,
    pub(super) ping_timeout: Duration,
    pub(super) resume_grace: Duration,
    pub(super) queue_depth: usize,
    pub(super) queue_bytes: usize,
    pub(super) max_handshakes_per_sec: Option<NonZeroU32>,
    pub(super) trusted_proxies: Vec<IpNet>,
    /// On top of their token, agents must show a certificate of `tunnel.tls.client_ca`.
    pub(super) certificates: bool,
}

impl Terms {
    pub(super) fn of(config: &HubConfig) -> Self {
        let max_payload = config.tunnel.max_ws_payload.min(MAX_PAYLOAD);
        Self {
            hub: config.ha.replica_id.clone(),
            max_payload: u32::try_from(max_payload).unwrap_or(u32::MAX),
            ping_interval: config.tunnel.ping_interval,
            ping_timeout: config.tunnel.ping_timeout,
            resume_grace: config.limits.resume_grace,
            queue_depth: config.limits.queue_depth_per_cid,
            queue_bytes: config.limits.memory_budget / 8,
            max_handshakes_per_sec: config.limits.max_handshakes_per_sec,
            trusted_proxies: config.tunnel.trusted_proxies.clone(),
            certificates: config
                .tunnel
                .tls
                .as_ref()
                .is_some_and(|tls| tls.client_ca.is_some()),
        }
    }
}
