//! `probes`: what the hub asks the targets of connectors, to know whether they are well.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nowconnect_settings::{NAME, Table, choices, is_name};
use rustls_pki_types::ServerName;

/// Connectors that are probed at most.
pub(crate) const MOST_PROBES: usize = 256;

/// How the targets of one connector are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// What is asked.
    pub kind: ProbeKind,
    /// Time between the probes of one agent's target.
    pub interval: Duration,
    /// How long one may take in all.
    pub timeout: Duration,
    /// Failures one after the other that make a target down.
    pub down_after: u32,
    /// Successes one after the other that make it up again.
    pub up_after: u32,
    /// LDAP: turns TLS on by StartTLS before it asks.
    pub starttls: bool,
    /// The host that the certificate must be for, and the `Host` of HTTP.
    pub server_name: Option<String>,
    /// CA certificates, PEM, that the target's must chain to; `None` = any certificate will do.
    pub ca_file: Option<PathBuf>,
    /// HTTP: path and query that are asked for.
    pub path: String,
    /// HTTP: status codes that are well; empty = 200 to 399.
    pub expect_status: Vec<u16>,
}

choices! {
    /// What a probe does once the agent has connected to the target.
    pub enum ProbeKind {
        /// Nothing more: the target has accepted.
        Tcp = "tcp",
        /// A TLS handshake.
        Tls = "tls",
        /// Reads the root DSE without a bind (RFC 4512 section 5.1).
        Ldap = "ldap",
        /// The same over TLS.
        Ldaps = "ldaps",
        /// `GET`.
        Http = "http",
        /// The same over TLS.
        Https = "https",
    }
}

impl ProbeConfig {
    /// Whether the target shows a certificate.
    pub fn over_tls(&self) -> bool {
        match self.kind {
            ProbeKind::Tls | ProbeKind::Ldaps | ProbeKind::Https => true,
            ProbeKind::Ldap => self.starttls,
            ProbeKind::Tcp | ProbeKind::Http => false,
        }
    }

    fn over_http(&self) -> bool {
        matches!(self.kind, ProbeKind::Http | ProbeKind::Https)
    }
}

/// Reads the section. `connectors` are those that listeners lead to.
pub(super) fn probes(t: &mut Table<'_>, connectors: &[String]) -> BTreeMap<String, ProbeConfig> {
    let mut named = Vec::new();
    let probes = t.named("probes", |name, t| {
        named.push(name.to_owned());
        probe(name, t)
    });
    for name in named.iter().filter(|name| !connectors.contains(name)) {
        let key = format!("probes.{name}");
        // Clients of other hubs may reach the agents of this one.
        let message = "no listener of this hub leads to a connector of this name";
        t.warning(
            &key,
            message,
            "agents that export it are probed all the same",
        );
    }
    if named.len() > MOST_PROBES {
        let message = format!("more than {MOST_PROBES} connectors");
        t.problem("probes", message, "probe those that matter most");
    }
    probes
}

fn probe(name: &str, t: &mut Table<'_>) -> Option<ProbeConfig> {
    if !name.is_empty() && !is_name(name) {
        t.problem("", "names no connector", &format!("a name has {NAME}"));
    }
    let kind = t.field("type").required();
    let config = ProbeConfig {
        // Asked for the other keys all the same, or they would pass for unknown.
        kind: kind.unwrap_or(ProbeKind::Tcp),
        interval: t.seconds("interval_sec", 1..=86_400, 10),
        timeout: t.millis("timeout_ms", 10..=60_000, 5000),
        down_after: t.field("down_after").range(1..=100).or(3),
        up_after: t.field("up_after").range(1..=100).or(2),
        starttls: t.field("starttls").or(false),
        server_name: t
            .field("server_name")
            .check("a host name or IP address", |name: &String| {
                ServerName::try_from(name.as_str()).is_ok()
            })
            .optional(),
        ca_file: t.field("ca_file").file(),
        path: t
            .field("path")
            .check("a path like /healthz", |path: &String| is_path(path))
            .or("/".to_owned()),
        expect_status: t
            .field("expect_status")
            .check("100 to 599", |status: &u16| (100..=599).contains(status))
            .up_to(64)
            .list(),
    };
    kind?;
    check(t, &config);
    Some(config)
}

/// What stands in a request line as it is (RFC 9112 section 3.2.1).
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= 1024 && path.bytes().all(|byte| byte.is_ascii_graphic())
}

fn check(t: &mut Table<'_>, config: &ProbeConfig) {
    if config.timeout > config.interval {
        t.problem(
            "timeout_ms",
            "longer than interval_sec",
            "a probe must be over before the next one is due",
        );
    }
    if config.ca_file.is_some() && config.server_name.is_none() {
        let hint = "the host that the target's certificate is for";
        t.problem("server_name", "required beside ca_file", hint);
    }
    let (tls, http) = (config.over_tls(), config.over_http());
    let used = [
        ("starttls", config.kind == ProbeKind::Ldap),
        ("server_name", tls || http),
        ("ca_file", tls),
        ("path", http),
        ("expect_status", http),
    ];
    for (key, is_used) in used {
        if !is_used && t.is_set(key) {
            t.warning(key, format!("has no effect with type: {}", config.kind), "");
        }
    }
}
