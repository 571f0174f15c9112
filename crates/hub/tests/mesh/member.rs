//! A hub of a mesh: each has an address of its own on the loopback network, which is its host name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nowconnect_hub::config::{HubConfig, MeshTls, ServerTls};
use nowconnect_hub::hub::Hub;
use nowconnect_hub::mesh::PeerStatus;
use nowconnect_link::session::Link;
use nowconnect_link::shards::Shards;
use nowconnect_link::trace::Tracer;
use nowconnect_settings::{Env, Source};
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::metrics::Scrape;
use nowconnect_testkit::{anyhow, http, wait};

pub(crate) struct Member {
    pub(crate) hub: Hub,
    pub(crate) name: &'static str,
    pub(crate) config: HubConfig,
}

/// The host of a member: `hub-a` is 127.0.0.10, `hub-b` 127.0.0.11, and so on.
pub(crate) fn host(name: &str) -> IpAddr {
    let letter = name.bytes().last().unwrap();
    IpAddr::from([127, 0, 0, 10 + letter - b'a'])
}

/// A configuration with high availability on, no peers, and no certificates.
pub(crate) fn config(name: &str) -> HubConfig {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cloud.yaml");
    let text = format!(
        "tunnel: {{ host: {} }}\nha: {{ mode: active, replica_id: {name}, mesh: {{ require_mtls: false }} }}\n",
        host(name)
    );
    std::fs::write(&file, text).unwrap();
    let source = Source::new(Some(file), Env::default());
    let mut config = HubConfig::inspect(&source).expect("valid").config;
    config.tunnel.bind.set_port(0);
    config.admin.bind = SocketAddr::new(host(name), 0);
    config.observability.metrics_port = None;
    config.ha.mesh.connect_backoff_max = std::time::Duration::from_secs(1);
    config
}

/// Certificates of the mesh for `name`, which proof is demanded by.
pub(crate) fn with_mtls(config: &mut HubConfig, authority: &Authority, name: &str) {
    let host = host(name).to_string();
    authority.issue(name, &Certificate::good(&[&host])).unwrap();
    config.ha.mesh.require_mtls = true;
    config.ha.mesh.tls = Some(mesh_tls(authority, name));
}

pub(crate) fn mesh_tls(authority: &Authority, name: &str) -> MeshTls {
    MeshTls {
        ca_bundle: authority.bundle(),
        cert_file: authority.file(&format!("{name}.crt")),
        key_file: authority.file(&format!("{name}.key")),
    }
}

/// TLS in the hub itself, by the same certificate.
pub(crate) fn with_tls(config: &mut HubConfig, authority: &Authority, name: &str) {
    config.tunnel.tls = Some(ServerTls {
        cert_file: authority.file(&format!("{name}.crt")),
        key_file: authority.file(&format!("{name}.key")),
        client_ca: None,
    });
}

impl Member {
    pub(crate) async fn start(name: &'static str, adjust: impl FnOnce(&mut HubConfig)) -> Self {
        let mut config = config(name);
        adjust(&mut config);
        let hub = Hub::start(
            config.clone(),
            nowconnect_hub::listener::Inherited::default(),
            Shards::current(),
            Box::new(|_| ()),
            Tracer::default(),
        )
        .await
        .expect("a hub");
        Self { hub, name, config }
    }

    /// Where its `/mesh` is.
    pub(crate) fn address(&self) -> SocketAddr {
        let addresses = self.hub.addresses();
        addresses.mesh.unwrap_or(addresses.tunnel)
    }

    pub(crate) fn url(&self) -> String {
        let tls = self.config.tunnel.tls.is_some() || self.hub.addresses().mesh.is_some();
        let scheme = if tls { "wss" } else { "ws" };
        format!("{scheme}://{}/mesh", self.address())
    }

    /// Reloads with these peers.
    pub(crate) async fn dial(&mut self, urls: &[String]) {
        self.change(|config| {
            let parse = |url: &String| url.parse().unwrap();
            config.ha.mesh.peers = urls.iter().map(parse).collect();
        })
        .await;
    }

    /// Reloads with another configuration.
    pub(crate) async fn change(&mut self, adjust: impl FnOnce(&mut HubConfig)) {
        adjust(&mut self.config);
        self.hub.reload(self.config.clone()).await.expect("applied");
    }

    /// Waits until it has a link that `name` has dialed.
    pub(crate) async fn is_dialed_by(&self, name: &str) {
        wait::until("an inbound link", async || {
            let hubs = self.hub.mesh().hubs();
            let from = |peer: &&PeerStatus| peer.hub.as_deref() == Some(name);
            let inbound = hubs.iter().find(from).map(|peer| peer.inbound.state);
            anyhow::ensure!(inbound == Some("established"), "{hubs:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Waits until it has no link with anybody.
    pub(crate) async fn is_alone(&self) {
        wait::until("no links", async || {
            let hubs = self.hub.mesh().hubs();
            let up = |peer: &PeerStatus| {
                [peer.outbound.state, peer.inbound.state].contains(&"established")
            };
            anyhow::ensure!(!hubs.iter().any(up), "{hubs:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Waits until a series has a value like this.
    pub(crate) async fn measures(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        fits: impl Fn(f64) -> bool,
    ) {
        wait::until(name, async || {
            let found = self.scrape().await.get(name, labels);
            anyhow::ensure!(found.is_some_and(&fits), "{name}{labels:?} is {found:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// What it knows of a peer.
    pub(crate) fn peer(&self, host: &str) -> Option<PeerStatus> {
        let hubs = self.hub.mesh().hubs();
        hubs.into_iter().find(|peer| &*peer.peer == host)
    }

    /// The link that it has dialed to `name`, once it is there.
    pub(crate) async fn linked(&self, name: &str) -> Arc<Link> {
        wait::until("a link", async || {
            let link = self.hub.mesh().link(name);
            link.ok_or_else(|| anyhow::anyhow!("{:?}", self.hub.mesh().hubs()))
        })
        .await
        .unwrap()
    }

    /// The one link that it has dialed to `name`, when `other` is gone.
    pub(crate) async fn relinked(&self, name: &str, other: &Arc<Link>) -> Arc<Link> {
        wait::until("another link", async || {
            let link = self.hub.mesh().link(name);
            let link = link.filter(|link| !Arc::ptr_eq(link, other));
            link.ok_or_else(|| anyhow::anyhow!("{:?}", self.hub.mesh().hubs()))
        })
        .await
        .unwrap()
    }

    /// Waits until an attempt at a link has failed for a reason like this.
    pub(crate) async fn fails(&self, host: &str, reason: &str) {
        wait::until(reason, async || {
            let error = self.peer(host).and_then(|peer| peer.last_error);
            let fits = error.as_ref().is_some_and(|error| error.contains(reason));
            anyhow::ensure!(fits, "{host}: {error:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn scrape(&self) -> Scrape {
        let address = self.hub.addresses().tunnel;
        Scrape::parse(&http::get(address, "/metrics").await.unwrap().body).unwrap()
    }

    /// Waits until nothing is wrong with its links.
    pub(crate) async fn is_ready(&self) {
        self.readiness("\"ready\"").await;
    }

    /// Waits until its readiness says `word`.
    pub(crate) async fn readiness(&self, word: &str) {
        wait::until(word, async || {
            let answer = http::get(self.hub.addresses().tunnel, "/readyz").await?;
            anyhow::ensure!(answer.body.contains(word), "{}", answer.body);
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// Two hubs that know of each other.
pub(crate) async fn pair(adjust: impl Fn(&mut HubConfig, &str)) -> (Member, Member) {
    let mut a = Member::start("hub-a", |config| adjust(config, "hub-a")).await;
    let mut b = Member::start("hub-b", |config| adjust(config, "hub-b")).await;
    a.dial(&[b.url()]).await;
    b.dial(&[a.url()]).await;
    (a, b)
}

/// Both have a link to the other.
pub(crate) async fn both_linked(a: &Member, b: &Member) -> (Arc<Link>, Arc<Link>) {
    (a.linked(b.name).await, b.linked(a.name).await)
}
