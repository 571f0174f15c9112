//! What must fit together across keys, and the values that only the hub knows how to judge.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use http::Uri;
use nowconnect_link::dial::WsUrl;
use nowconnect_settings::{Secret, Shown, Table, Value};

use super::redis_url::Target;

use super::{FapiMode, HaMode, HubConfig, JwksSource, ListenerConfig, MeshConfig, PdpConfig};

/// A flow that moves needs at least a small frame each way; less would starve it.
const MIN_FLOW_MEMORY: usize = 8 * 1024;

/// Addresses that the hub wants to listen on, by key.
#[derive(Default)]
pub(crate) struct Sockets(Vec<(String, SocketAddr)>);

impl Sockets {
    /// Wants to listen on `address`, as `key` says.
    pub(crate) fn take(&mut self, key: String, address: SocketAddr) {
        self.0.push((key, address));
    }

    /// Reports every address that another key has taken. Of two, the listener is at fault.
    pub(crate) fn report_clashes(mut self, root: &mut Table<'_>) {
        self.0.sort_by_key(|(key, _)| key.starts_with("listeners"));
        let mut by_port: HashMap<u16, Vec<(String, SocketAddr)>> = HashMap::new();
        for (key, address) in self.0 {
            let same_port = by_port.entry(address.port()).or_default();
            if let Some((other, taken)) = same_port.iter().find(|(_, a)| clash(*a, address)) {
                let message = format!("{address} is taken by {other} ({taken})");
                root.problem(&key, message, "choose another port");
            }
            same_port.push((key, address));
        }
    }
}

/// Whether two listening sockets cannot coexist. Port 0 is any free port; `[::]` takes IPv4 too.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, other: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || other.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

/// Checks across sections.
pub(crate) fn check(root: &mut Table<'_>, config: &HubConfig) {
    let limits = &config.limits;
    let least = (limits.max_conn_total * MIN_FLOW_MEMORY).div_ceil(1024 * 1024);
    if limits.memory_budget < limits.max_conn_total * MIN_FLOW_MEMORY {
        root.problem(
            "limits.memory_budget_mb",
            format!("too small for max_conn_total {}", limits.max_conn_total),
            &format!("at 8 KiB a flow it takes {least}"),
        );
    }
    for (i, listener) in config.listeners.iter().enumerate() {
        let no_balancer = config.tunnel.trusted_proxies.is_empty();
        if listener.proxy_protocol != super::ProxyProtocol::Off && no_balancer {
            let key = format!("listeners[{i}].proxy_protocol");
            let message = "no balancer is trusted to send the header";
            root.problem(&key, message, "list them in tunnel.trusted_proxies");
        }
    }
    if config.listeners.is_empty() {
        root.warning("listeners", "there are none, so no client can connect", "");
    }
    if let Some(open) = open_to_all(config) {
        let message = format!("empty, so whoever reaches {open} is let in");
        let hint = "list the networks of the clients, or 0.0.0.0/0 and ::/0 if that is meant";
        root.warning("security.allow_cidrs", message, hint);
    }
    if !config.admin.bind.ip().is_loopback() && config.tunnel.tls.is_none() {
        let message = "the token of the admin API crosses the network in clear";
        root.warning(
            "admin.bind",
            message,
            "set tunnel.tls, or bind to 127.0.0.1",
        );
    }
    let (ha, mesh) = (&config.ha, &config.ha.mesh);
    if ha.mode != HaMode::Off && !mesh.peers.is_empty() && ha.redis_url.is_none() {
        let message = "not set, so this hub cannot learn which agents its peers hold";
        root.warning("ha.redis_url", message, "");
    }
    let registry = ha.redis_url.as_ref().filter(|_| ha.mode != HaMode::Off);
    let registry = registry.and_then(|url| Target::parse(url.expose()));
    if registry
        .is_some_and(|to| !to.tls && !to.nodes.iter().all(|node| is_this_machine(&node.host)))
    {
        let message =
            "not encrypted: whoever is on the path can read what is sent, and say where agents are";
        root.warning("ha.redis_url", message, "use rediss://");
    }
    if mesh.per_link_max_inflight_bytes < config.tunnel.max_ws_payload {
        let hint = &format!("at least {}", config.tunnel.max_ws_payload);
        let key = "ha.mesh.per_link_max_inflight_bytes";
        root.problem(key, "smaller than one frame (tunnel.max_ws_payload)", hint);
    }
}

/// The listeners that other machines may reach from any network.
fn open_to_all(config: &HubConfig) -> Option<String> {
    const NAMED: usize = 3;
    let is_open = |listener: &&ListenerConfig| {
        listener.allow_cidrs.is_empty() && !listener.bind.ip().is_loopback()
    };
    let all_let_in = config.security.allow_cidrs.is_empty();
    let open: Vec<_> = config.listeners.iter().filter(is_open).collect();
    if !all_let_in || open.is_empty() {
        return None;
    }
    let names: Vec<_> = open.iter().take(NAMED).map(|one| &*one.name).collect();
    let more = open.len().saturating_sub(NAMED);
    let names = names.join(", ");
    Some(match more {
        0 => names,
        more => format!("{names} and {more} more"),
    })
}

/// Checks of `ha.mesh` when HA is on.
pub(crate) fn check_mesh(t: &mut Table<'_>, mesh: &MeshConfig) {
    if mesh.require_mtls && mesh.tls.is_none() && !mesh.peers.is_empty() {
        let hint = "set ca_bundle, cert_file and key_file";
        t.problem("tls", "required by require_mtls", hint);
    }
    if !mesh.require_mtls {
        let message = "any host that reaches /mesh can join the mesh; for development only";
        t.warning("require_mtls", message, "");
    }
    for (i, peer) in mesh.peers.iter().enumerate() {
        if peer.path() == "/" {
            t.warning("peers", format!("{peer} has no path"), "hubs serve /mesh");
        }
        if let Err(problem) = WsUrl::try_from(peer.clone()) {
            t.problem("peers", problem.to_string(), "");
        }
        if mesh.peers[..i].contains(peer) {
            t.problem("peers", format!("{peer} is listed twice"), "remove one");
        }
    }
}

/// Checks of `pdp` when there is one.
pub(crate) fn check_pdp(t: &mut Table<'_>, pdp: &PdpConfig) {
    let is_https = pdp.url.scheme_str() == Some("https");
    if !is_https && !is_local(&pdp.url) {
        let message = "whoever is on the path can replace these decisions";
        t.warning("url", message, "use https://");
    }
    if !is_https && pdp.ca_bundle.is_some() {
        t.warning("ca_bundle", "has no effect: url is not https://", "");
    }
    if pdp.fail_open {
        let message = "while the decision point does not answer, everything is allowed";
        t.warning("fail_open", message, "");
    }
}

pub(crate) const REDIS_URL: &str =
    "redis://, rediss:// or either with +sentinel or +cluster, then a host";

pub(crate) fn is_redis_url(url: &Secret) -> bool {
    Target::parse(url.expose()).is_some()
}

pub(crate) fn is_ws(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("ws" | "wss"))
}

pub(crate) fn is_http(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("http" | "https"))
}

/// Whether a URL leads to this machine.
pub(crate) fn is_local(url: &Uri) -> bool {
    is_this_machine(url.host().unwrap_or_default().trim_matches(['[', ']']))
}

fn is_this_machine(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl Value for JwksSource {
    const KIND: &'static str = "a URL: http://, https:// or file:///path";

    fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            // RFC 8089 has an optional host, of which only this machine can be meant.
            let path = path.strip_prefix("localhost").unwrap_or(path);
            return match path.starts_with('/') {
                true => PathBuf::parse(path).map(Self::File),
                false => Err("a file URL has three slashes and a path from the root".into()),
            };
        }
        let url = Uri::parse(text)?;
        match is_http(&url) {
            true => Ok(Self::Url(url)),
            false => Err(String::new()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Value for FapiMode {
    const KIND: &'static str = "0 or 2";
    const TEXT: bool = false;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self::Off),
            "2" => Ok(Self::Dpop),
            _ => Err(String::new()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Plain(if *self == Self::Off { "0" } else { "2" }.to_owned())
    }
}
