//! High availability is rolled out and back on running hubs, with mutual TLS, by the configuration that
//! operators have.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nowconnect_testkit::http::get;
use nowconnect_testkit::lab::{Agent, Hub, HubPlan, Lab};
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::{Transfer, echo};
use nowconnect_testkit::wait::until;
use serde_json::json;
use tokio::task::JoinHandle;

const DECISIONS: &str = "nowconnect_shadow_decisions_total";
const CROSSED: &str = "nowconnect_cross_hub_flows_total";

/// Two hubs, each with an address of its own, and an agent at the first.
struct Site {
    lab: Lab,
    _redis: Redis,
    a: Hub,
    b: Hub,
    _agent: Agent,
}

/// Hosts that the certificates are for.
const HOSTS: [&str; 2] = ["127.0.0.10", "127.0.0.11"];

fn member<'a>(lab: &'a Lab, at: usize, redis: &Redis) -> HubPlan<'a> {
    let name = ["hub-a", "hub-b"][at];
    let certs = |file: &str| lab.path("certs").join(file).display().to_string();
    let (cert_file, key_file) = (certs(&format!("{name}.crt")), certs(&format!("{name}.key")));
    lab.hub(name)
        .file_in_env()
        .listener_with("l1", "ldap", json!({}))
        .listener_with("l2", "echo", json!({}))
        .listener_with("l3", "nobody", json!({}))
        .set("tunnel.host", "0.0.0.0")
        .set("tunnel.max_ws_payload", 65536)
        .set("tunnel.ping_interval_sec", 1)
        .set("tunnel.ping_timeout_sec", 10)
        .set("tunnel.tls.cert_file", &*cert_file)
        .set("tunnel.tls.key_file", &*key_file)
        .member("shadow", &format!("{}/0", redis.url()))
        .set("ha.mesh.listen", "")
        .set("ha.mesh.require_mtls", true)
        .set("ha.mesh.tls.ca_bundle", certs("ca.pem"))
        .set("ha.mesh.tls.cert_file", cert_file)
        .set("ha.mesh.tls.key_file", key_file)
        .set("ha.mesh.send_queue_depth", 1000)
        .set("ha.mesh.per_link_max_inflight_bytes", 8_388_608)
        .set("ha.mesh.connect_backoff_max_sec", 30)
}

fn url(host: &str, addr: SocketAddr, path: &str) -> String {
    format!("wss://{host}:{}/{path}", addr.port())
}

impl Site {
    async fn start(bulk: &Target, server: &Target) -> Result<Self> {
        let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
        let redis = Redis::start().await?;
        run(&lab, &["certs", "init", "--dir", "certs"]).await?;
        for (name, host) in ["hub-a", "hub-b"].iter().zip(HOSTS) {
            let issue = ["certs", "issue", host, "--dir", "certs", "--file", name];
            run(&lab, &issue).await?;
        }
        let (a, b) = (member(&lab, 0, &redis), member(&lab, 1, &redis));
        let [to_a, to_b] = [
            url(HOSTS[0], a.tunnel_addr()?, "mesh"),
            url(HOSTS[1], b.tunnel_addr()?, "mesh"),
        ];
        let a = a.set("ha.mesh.peers", json!([to_b])).start().await?;
        let b = b.set("ha.mesh.peers", json!([to_a])).start().await?;
        let agent = lab
            .agent("site-1")
            .url(&url(HOSTS[0], a.tunnel_addr()?, "tunnel"))
            .set(
                "proxy.ca_bundle",
                lab.path("certs/ca.pem").display().to_string(),
            )
            .target("ldap", bulk.addr())
            .target("echo", server.addr());
        let agent = agent.start().await?;
        Ok(Self {
            lab,
            _redis: redis,
            a,
            b,
            _agent: agent,
        })
    }

    /// Puts the first hub in `mode` by the command, the second by nothing but its file.
    async fn set_mode(&mut self, mode: &str) -> Result<()> {
        let marks = [self.a.log().mark(), self.b.log().mark()];
        self.b.rewrite("ha.mode", mode)?;
        self.a.rewrite("ha.mode", mode)?;
        let admin = format!("http://{}", self.a.admin_addr()?);
        run(&self.lab, &["reload", "--url", &admin]).await?;
        for (hub, mark) in [&self.a, &self.b].into_iter().zip(marks) {
            let changed = hub.log().wait_event_since("ha_mode_changed", mark).await?;
            ensure!(changed.text("to") == mode, "{changed:?}");
            ensure!(changed.text("audit") == "true", "{changed:?}");
            hub.wait_metric("nowconnect_ha_mode", &[("mode", mode)], |on| on == 1.0)
                .await?;
            let told = get(hub.http_addr()?, "/readyz").await?;
            ensure!(told.body.contains(&format!("{mode:?}")), "{told:?}");
        }
        Ok(())
    }

    /// Waits until both hubs know each other and the second knows of the agent.
    async fn wait_together(&self) -> Result<()> {
        for hub in [&self.a, &self.b] {
            let up = [("state", "established")];
            hub.wait_metric("nowconnect_mesh_links", &up, |links| links == 1.0)
                .await?;
            hub.wait_metric("nowconnect_registry_healthy", &[], |up| up == 1.0)
                .await?;
            hub.wait_status("ready").await?;
        }
        until("the route", async || {
            let mesh = self.b.mesh().await?;
            ensure!(mesh["routes"][0]["hub"] == "hub-a", "{mesh}");
            Ok(())
        })
        .await
    }
}

async fn run(lab: &Lab, args: &[&str]) -> Result<()> {
    let done = lab.run(args).await?;
    ensure!(done.status.success(), "{args:?}: {done:?}");
    Ok(())
}

async fn transfer(hub: &Hub, stream: u32, bytes: u64) -> Result<JoinHandle<Result<()>>> {
    let (up, down) = (bytes, bytes + 1);
    let client = hub.connect("l1").await?;
    Ok(tokio::spawn(Transfer { stream, up, down }.run(client)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadow_shows_what_active_would_do() -> Result<()> {
    let (bulk, server) = (Target::bulk().await?, Target::echo().await?);
    let site = Site::start(&bulk, &server).await?;
    site.wait_together().await?;
    for (hub, listener, decision) in [
        (&site.b, "l1", "remote"),
        (&site.a, "l3", "none"),
        (&site.b, "l3", "none"),
    ] {
        assert_eq!(hub.metric(DECISIONS, &[("decision", decision)]).await?, 0.0);
        hub.turns_away(listener).await?;
        hub.wait_metric(DECISIONS, &[("decision", decision)], |made| made == 1.0)
            .await?;
        hub.log().wait_event("no_agent_for_connector").await?;
    }
    transfer(&site.a, 1, 1_000_000).await?.await??;
    assert_eq!(
        site.a.metric(DECISIONS, &[("decision", "local")]).await?,
        1.0
    );
    for hub in [&site.a, &site.b] {
        for kind in ["M_HELLO", "M_HELLO_ACK", "M_PING", "M_PONG"] {
            for dir in ["in", "out"] {
                let labels = [("dir", dir), ("type", kind)];
                hub.wait_metric("nowconnect_mesh_frames_total", &labels, |n| n >= 1.0)
                    .await?;
            }
        }
        for kind in ["M_OPEN", "M_DATA"] {
            let frames = "nowconnect_mesh_frames_total";
            assert_eq!(hub.metric(frames, &[("type", kind)]).await?, 0.0);
        }
        for unit in ["ms", "seconds"] {
            let name = format!("nowconnect_mesh_rtt_{unit}_count");
            hub.wait_metric(&name, &[], |count| count >= 1.0).await?;
        }
        assert_eq!(hub.metric(CROSSED, &[]).await?, 0.0);
        assert_eq!(hub.metric(DECISIONS, &[("decision", "error")]).await?, 0.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_change_under_traffic_and_back() -> Result<()> {
    let (bulk, server) = (Target::bulk().await?, Target::echo().await?);
    let mut site = Site::start(&bulk, &server).await?;
    site.wait_together().await?;
    site.b.turns_away("l2").await?;
    let mut local = site.a.connect("l2").await?;
    echo(&mut local, Pattern(1), 0, 1000).await?;

    site.set_mode("active").await?;
    site.wait_together().await?;
    let (mut first, mut second) = (site.b.connect("l2").await?, site.b.connect("l2").await?);
    echo(&mut first, Pattern(2), 0, 1000).await?;
    echo(&mut second, Pattern(3), 0, 1000).await?;
    transfer(&site.b, 4, 1_000_000).await?.await??;
    assert_eq!(site.b.metric(CROSSED, &[]).await?, 3.0);

    let running = transfer(&site.b, 5, 20_000_000).await?;
    bulk.wait_accepted(2).await?;
    site.set_mode("shadow").await?;
    site.b.turns_away("l2").await?;
    echo(&mut first, Pattern(2), 1000, 500_000).await?;
    running.await??;

    site.set_mode("active").await?;
    let running = transfer(&site.b, 6, 20_000_000).await?;
    bulk.wait_accepted(3).await?;
    site.set_mode("off").await?;
    site.b.turns_away("l2").await?;
    for (client, pattern, offset) in [
        (&mut first, Pattern(2), 501_000),
        (&mut second, Pattern(3), 1000),
        (&mut local, Pattern(1), 1000),
    ] {
        echo(client, pattern, offset, 500_000).await?;
    }
    running.await??;
    transfer(&site.a, 7, 1_000_000).await?.await??;
    assert_eq!(bulk.accepted(), 4);
    drop((first, second));
    for hub in [&site.a, &site.b] {
        let up = [("state", "established")];
        hub.wait_metric("nowconnect_mesh_links", &up, |links| links == 0.0)
            .await?;
    }

    site.set_mode("active").await?;
    site.wait_together().await?;
    transfer(&site.b, 8, 1_000_000).await?.await??;
    echo(&mut local, Pattern(1), 501_000, 1000).await?;
    for hub in [&site.a, &site.b] {
        assert_eq!(hub.metric("nowconnect_rst_sent_total", &[]).await?, 0.0);
    }
    assert_eq!(
        site.a
            .log()
            .events("agent_connected", Mark::default())
            .len(),
        1
    );
    Ok(())
}
