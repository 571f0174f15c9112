//! The part of the configuration that mesh links go by.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use nowconnect_link::dial::WsUrl;
use nowconnect_link::meter::Bounds;
use nowconnect_proto::frame::MAX_PAYLOAD;
use nowconnect_proto::hello::Instance;
use nowconnect_proto::mesh_hello::{MeshHello, QUERY, RESUME};

use super::MeshError;
use crate::config::{HaMode, HubConfig};

/// Credit that a peer starts with on a new flow, in bytes: what the link may hold, shared by many
/// flows, but neither too little to be useful nor more than a first answer needs.
const FIRST_WINDOW: std::ops::RangeInclusive<u32> = 4 * 1024..=32 * 1024;
/// Flows that the first windows of a link are meant for.
const FLOWS_A_LINK: usize = 1024;

/// Drawn when the first mesh of the process is made.
static INSTANCE: LazyLock<Instance> = LazyLock::new(|| Instance(rand::random()));

/// What peers are told and held to, exchanged as a whole when the configuration changes.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) hub: Arc<str>,
    /// This start of the process.
    pub(super) instance: Instance,
    pub(super) on: bool,
    pub(super) has_port: bool,
    pub(super) peers: Vec<Configured>,
    pub(super) require_mtls: bool,
    pub(super) max_payload: u32,
    pub(super) first_window: u32,
    pub(super) ping_interval: Duration,
    pub(super) ping_timeout: Duration,
    pub(super) backoff_max: Duration,
    /// How long flows wait for a path.
    pub(super) grace: Duration,
    pub(super) bounds: Bounds,
    pub(super) trusted_proxies: Vec<IpNet>,
}

/// One entry of `ha.mesh.peers`.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub(super) url: WsUrl,
    /// What stands for it in labels and logs.
    pub(super) label: Arc<str>,
}

impl Terms {
    pub(super) fn of(config: &HubConfig) -> Result<Self, MeshError> {
        let mesh = &config.ha.mesh;
        let max_payload = config.tunnel.max_ws_payload.min(MAX_PAYLOAD);
        let window = mesh.per_link_max_inflight_bytes / FLOWS_A_LINK;
        let window = u32::try_from(window).unwrap_or(u32::MAX);
        Ok(Self {
            hub: config.ha.replica_id.as_str().into(),
            instance: *INSTANCE,
            on: config.ha.mode != HaMode::Off,
            has_port: mesh.listen.is_some(),
            peers: configured(&mesh.peers)?,
            require_mtls: mesh.require_mtls,
            max_payload: u32::try_from(max_payload).unwrap_or(u32::MAX),
            first_window: window.clamp(*FIRST_WINDOW.start(), *FIRST_WINDOW.end()),
            ping_interval: config.tunnel.ping_interval,
            ping_timeout: config.tunnel.ping_timeout,
            backoff_max: mesh.connect_backoff_max,
            grace: config.limits.resume_grace,
            bounds: Bounds {
                frames: mesh.send_queue_depth,
                bytes: mesh.per_link_max_inflight_bytes as u64,
            },
            trusted_proxies: config.tunnel.trusted_proxies.clone(),
        })
    }

    /// What this hub says of itself to one that has dialed it.
    pub(super) fn answer(&self) -> MeshHello {
        self.hello(None, &[QUERY])
    }

    /// The same to one that it reaches `via` this URL; flows may wait to resume there.
    pub(super) fn greeting(&self, via: &WsUrl, resumes: bool) -> MeshHello {
        self.hello(Some(via), if resumes { &[QUERY, RESUME] } else { &[QUERY] })
    }

    fn hello(&self, via: Option<&WsUrl>, features: &[&str]) -> MeshHello {
        MeshHello {
            hub: self.hub.to_string(),
            instance: Some(self.instance),
            via: via.map(WsUrl::to_string).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            initial_window: self.first_window,
            max_payload: self.max_payload,
            features: features.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// Those of `names` that are hosts of our peers, each once.
    pub(super) fn peers_among(&self, names: &[String]) -> Vec<Arc<str>> {
        let mut hosts: Vec<Arc<str>> = Vec::new();
        for peer in &self.peers {
            let host = canonical(peer.url.host());
            let known = hosts.iter().any(|known| **known == *host);
            if !known && names.contains(&host) {
                hosts.push(host.into());
            }
        }
        hosts
    }
}

/// A host as certificates spell it: an address has several spellings, which mean the same.
pub(super) fn canonical(host: &str) -> String {
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.trim_end_matches('.').to_ascii_lowercase(),
    }
}

fn configured(urls: &[Uri]) -> Result<Vec<Configured>, MeshError> {
    let urls = urls.iter().map(|url| {
        WsUrl::try_from(url.clone()).map_err(|problem| MeshError::Peer(url.clone(), problem))
    });
    let urls = urls.collect::<Result<Vec<_>, _>>()?;
    let mut hosts: HashMap<String, usize> = HashMap::new();
    let mut authorities: HashMap<String, usize> = HashMap::new();
    for url in &urls {
        *hosts.entry(canonical(url.host())).or_default() += 1;
        *authorities.entry(url.authority()).or_default() += 1;
    }
    let label = |url: &WsUrl| -> Arc<str> {
        if hosts.get(&canonical(url.host())) == Some(&1) {
            return url.host().into();
        }
        if authorities.get(&url.authority()) == Some(&1) {
            return url.authority().into();
        }
        format!("{}{}", url.authority(), url.uri().path()).into()
    };
    let labelled = |url: &WsUrl| Configured {
        label: label(url),
        url: url.clone(),
    };
    Ok(urls.iter().map(labelled).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(urls: &[&'static str]) -> Vec<String> {
        let urls: Vec<_> = urls.iter().map(|url| Uri::from_static(url)).collect();
        let configured = configured(&urls).expect("valid");
        configured.iter().map(|one| one.label.to_string()).collect()
    }

    #[test]
    fn a_peer_is_called_by_its_host_unless_another_has_the_same() {
        let seen = labels(&[
            "wss://b.example.com/mesh",
            "wss://c.example.com:8765/mesh",
            "wss://[fd00::1]:1/mesh",
            "ws://127.0.0.1:1/mesh",
            "ws://127.0.0.1:2/mesh",
            "ws://127.0.0.1:2/other",
        ]);
        let expected = [
            "b.example.com",
            "c.example.com",
            "fd00::1",
            "127.0.0.1:1",
            "127.0.0.1:2/mesh",
            "127.0.0.1:2/other",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn hosts_are_compared_as_certificates_spell_them() {
        assert_eq!(canonical("FD00:0:0:0:0:0:0:1"), "fd00::1");
        assert_eq!(canonical("B.Example.com."), "b.example.com");
    }
}
