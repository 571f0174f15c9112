//! New configurations on a running hub.

use nowconnect_hub::config::{HaMode, ListenerConfig};
use nowconnect_proto::frame::Frame;
use nowconnect_proto::hello::{Body, UpdateAck};
use nowconnect_settings::Secret;
use nowconnect_testkit::anyhow::ensure;
use nowconnect_testkit::fault_proxy::{FaultProxy, Way};
use nowconnect_testkit::issuer::claims;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::{transfer, wait};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::Process;
use crate::rig::{Rig, echo, is_reset};

fn another(name: &str, like: &ListenerConfig, port: u16) -> ListenerConfig {
    let mut bind = like.bind;
    bind.set_port(port);
    ListenerConfig {
        name: name.into(),
        bind,
        ..like.clone()
    }
}

#[tokio::test]
async fn listeners_come_and_go_and_other_flows_stay() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut staying = rig.client().await;
    echo(&mut staying, 0, 10).await;

    let port = nowconnect_testkit::ports::reserve().unwrap();
    let mut config = rig.config();
    config
        .listeners
        .push(another("l2", &config.listeners[0], port));
    rig.hub.reload(config).await.expect("applied");
    let mut new = TcpStream::connect(rig.listener("l2")).await.unwrap();
    transfer::echo(&mut new, Pattern(2), 0, 10).await.unwrap();

    rig.hub.reload(rig.config()).await.expect("applied");
    is_reset(&mut new).await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    echo(&mut staying, 10, 10).await;
    rig.wait_metric(
        "nowconnect_config_reloads_total",
        &[("result", "applied")],
        2.0,
    )
    .await;
}

#[tokio::test]
async fn a_port_that_is_taken_changes_nothing() {
    let rig = Rig::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut config = rig.config();
    config.listeners[0].connector = "pg".into();
    config
        .listeners
        .push(another("l2", &config.listeners[0], port));
    let error = rig
        .hub
        .reload(config)
        .await
        .expect_err("rejected")
        .to_string();
    assert!(
        error.contains("listener l2") && error.contains("in use"),
        "{error}"
    );
    assert_eq!(rig.hub.config().await.listeners, rig.config().listeners);
    rig.wait_metric(
        "nowconnect_config_reloads_total",
        &[("result", "rejected")],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn clients_outside_of_new_networks_are_ended() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 10).await;
    let mut config = rig.config();
    config.listeners[0].name = "renamed".into();
    rig.hub.reload(config.clone()).await.expect("applied");
    echo(&mut client, 10, 10).await;

    config.security.allow_cidrs = vec!["192.0.2.0/24".parse().unwrap()];
    rig.hub.reload(config).await.expect("applied");
    is_reset(&mut client).await;
    let mut next = TcpStream::connect(rig.listener("renamed")).await.unwrap();
    is_reset(&mut next).await;
    let labels = [("connector", "echo"), ("type", "cidr_blocked")];
    rig.wait_metric("nowconnect_listener_errors_total", &labels, 1.0)
        .await;
}

#[tokio::test]
async fn what_cannot_change_live_is_named() {
    let rig = Rig::start().await;
    let mut config = rig.config();
    config.tunnel.bind.set_port(1);
    config.ha.replica_id = "other".into();
    let waiting = rig.hub.reload(config).await.expect("applied");
    assert_eq!(waiting, ["tunnel.port", "ha.replica_id"]);
}

#[tokio::test]
async fn a_start_with_a_taken_port_leaves_nothing_behind() {
    let rig = Rig::start().await;
    let free = nowconnect_testkit::ports::reserve().unwrap();
    let mut config = rig.config();
    config.listeners[0].bind.set_port(free);
    config.tunnel.bind = rig.http();
    let error = nowconnect_hub::hub::Hub::start(
        config,
        nowconnect_hub::listener::Inherited::default(),
        nowconnect_link::shards::Shards::current(),
        Box::new(|_| ()),
        nowconnect_link::trace::Tracer::default(),
    )
    .await
    .expect_err("taken");
    assert!(
        error.to_string().contains("tunnel cannot listen on"),
        "{error}"
    );
    TcpListener::bind(("127.0.0.1", free))
        .await
        .expect("still free");
}

#[tokio::test]
async fn connections_beyond_the_memory_of_the_process_are_refused() {
    let rig = Rig::start().await;
    let mut config = rig.config();
    config.limits.max_conn_total = 3000;
    rig.hub.reload(config.clone()).await.expect("applied");
    config.limits.memory_budget <<= 10;
    config.limits.max_conn_total = 100_000;
    let error = rig.hub.reload(config).await.expect_err("too many");
    let text = error.to_string();
    assert!(text.contains("limits.max_conn_total"), "{text}");
    assert_eq!(rig.hub.config().await.limits.max_conn_total, 3000);
}

#[tokio::test]
async fn rules_that_change_while_an_agent_says_hello_count_for_it() {
    let redis = Redis::start().await.unwrap();
    let proxy = FaultProxy::start(redis.addr()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let shared = |config: &mut nowconnect_hub::config::HubConfig| {
        config.ha.mode = HaMode::Shadow;
        config.ha.redis_url = Some(Secret::new(&url));
        config.ha.mesh.require_mtls = false;
    };
    let rig = Rig::start_with(|config| shared(config)).await;
    rig.wait_metric("nowconnect_registry_healthy", &[], 1.0)
        .await;
    let process = Process::new("site-1", 1).await;
    let mut narrow = claims("site-1", 600);
    narrow["connectors"] = ["pg"].into();
    let token = rig.issuer.sign(&narrow).unwrap();
    redis.signal(Signal::Stop).await.unwrap();
    let asked = proxy.bytes(Way::Up);
    let greeting = process.connect(rig.http(), &token);
    let reload = async {
        let claimed = wait::until("the claim", async || {
            ensure!(proxy.bytes(Way::Up) > asked);
            Ok(())
        });
        claimed.await.unwrap();
        let mut config = rig.config();
        shared(&mut config);
        config.security.require_connector_scopes = true;
        rig.hub.reload(config).await.expect("applied");
    };
    let (agent, ()) = tokio::join!(greeting, reload);
    let told = wait::within("a word of it", agent.unwrap().control.recv()).await;
    let Some(Frame::UpdateAck(body)) = told.unwrap() else {
        panic!("no UPDATE_ACK");
    };
    let told = UpdateAck::decode(&body).unwrap();
    assert!(told.accepted.is_empty(), "{told:?}");
    redis.signal(Signal::Cont).await.unwrap();
}
