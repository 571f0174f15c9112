//! A hub with a listener `l1` for connector `echo`, and an issuer whose tokens it takes.

use std::net::SocketAddr;

use nowconnect_hub::config::HubConfig;
use nowconnect_hub::hub::Hub;
use nowconnect_hub::metrics::Format;
use nowconnect_settings::{Env, Source};
use nowconnect_testkit::issuer::Issuer;
use nowconnect_testkit::metrics::Scrape;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::transfer::{self, End};
use nowconnect_testkit::{anyhow, wait};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::agent::{Agent, Process};

pub(crate) struct Rig {
    pub(crate) hub: Hub,
    pub(crate) issuer: Issuer,
    dir: TempDir,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(adjust: impl FnOnce(&mut HubConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::new(dir.path()).unwrap();
        let mut config = config(&dir, &issuer);
        adjust(&mut config);
        let hub = Hub::start(
            config,
            nowconnect_hub::listener::Inherited::default(),
            nowconnect_link::shards::Shards::current(),
            Box::new(|_| ()),
            nowconnect_link::trace::Tracer::default(),
        )
        .await
        .expect("a hub");
        Self { hub, issuer, dir }
    }

    /// The configuration that the hub began with.
    pub(crate) fn config(&self) -> HubConfig {
        config(&self.dir, &self.issuer)
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.hub.addresses().tunnel
    }

    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        let listeners = self.hub.addresses().listeners;
        listeners
            .into_iter()
            .find(|(known, _)| known == name)
            .expect("a listener")
            .1
    }

    /// A client of `l1`.
    pub(crate) async fn client(&self) -> TcpStream {
        TcpStream::connect(self.listener("l1"))
            .await
            .expect("the listener")
    }

    /// A tunnel of `process`, acknowledged.
    pub(crate) async fn tunnel(&self, process: &Process) -> Agent {
        let token = self.issuer.token(&process.agent_id).unwrap();
        process
            .connect(self.http(), &token)
            .await
            .expect("a tunnel")
    }

    pub(crate) async fn scrape(&self) -> Scrape {
        // Strangers may be told what was so a moment ago.
        let metrics = self.hub.metrics().render(Format::Prometheus).unwrap();
        Scrape::parse(&metrics).unwrap()
    }

    /// Waits until a series has this value.
    pub(crate) async fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        wait::until(name, async || {
            let found = self.scrape().await.get(name, labels);
            anyhow::ensure!(
                found == Some(value),
                "{name}{labels:?} is {found:?}, not {value}"
            );
            Ok(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn wait_flows(&self, count: usize) {
        wait::until("flows", async || {
            let found = self.hub.router().count();
            anyhow::ensure!(found == count, "{found} flows, not {count}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// What the client sends comes back.
pub(crate) async fn echo(client: &mut TcpStream, at: u64, len: usize) {
    let echoed = transfer::echo(client, Pattern(1), at, len).await;
    echoed.unwrap();
}

/// The client's connection ends with a reset.
pub(crate) async fn is_reset(client: &mut TcpStream) {
    let (_, end) = transfer::read_to_end(client).await.unwrap();
    assert_eq!(end, End::Reset);
}

fn config(dir: &TempDir, issuer: &Issuer) -> HubConfig {
    let file = dir.path().join("cloud.yaml");
    let text = format!(
        "listeners:\n  - {{ name: l1, bind: '127.0.0.1:1', connector: echo }}\n\
         security: {{ jwks_url: '{}' }}\nha: {{ enabled: false }}\n",
        issuer.jwks_url()
    );
    std::fs::write(&file, text).unwrap();
    let source = Source::new(Some(file), Env::default());
    let mut config = HubConfig::inspect(&source).expect("valid").config;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    config.tunnel.bind = any;
    config.admin.bind = any;
    config.observability.metrics_port = None;
    config.listeners[0].bind = any;
    config
}
