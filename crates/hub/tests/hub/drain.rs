//! The end of a hub.

use std::time::Duration;

use nowconnect_proto::Reason;
use nowconnect_testkit::transfer::{self, End};
use nowconnect_testkit::{anyhow, http, wait};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::agent::Process;
use crate::rig::{Rig, echo, is_reset};

#[tokio::test]
async fn a_drain_lets_flows_end_and_sends_agents_away() {
    let rig = Rig::start().await;
    let process = Process::new("site-1", 1).await;
    let mut agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 10).await;
    let (listener, http_port) = (rig.listener("l1"), rig.http());
    let token = format!("Bearer {}", rig.issuer.token("site-2").unwrap());
    let client_side = async {
        assert_eq!(agent.sent_away().await, Reason::Draining);
        let ready = http::get(http_port, "/readyz").await.unwrap();
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains("draining"));
        let headers = http::upgrade_headers(&token);
        let refused = http::request(http_port, "GET", "/tunnel", &headers, "")
            .await
            .unwrap();
        assert_eq!(refused.status, 503);
        assert!(refused.header("retry-after").is_some());
        wait::until("the listener to close", async || {
            anyhow::ensure!(TcpStream::connect(listener).await.is_err(), "it is open");
            Ok(())
        })
        .await
        .unwrap();
        echo(&mut client, 10, 100_000).await;
        client.shutdown().await.unwrap();
        assert_eq!(
            transfer::read_to_end(&mut client).await.unwrap().1,
            End::Finished
        );
    };
    let both = async { tokio::join!(rig.hub.drain(), client_side) };
    wait::within("the drain", both).await.unwrap();
    assert_eq!(agent.closed().await.reason, Reason::Shutdown);
    assert!(TcpStream::connect(http_port).await.is_err());
}

#[tokio::test]
async fn flows_that_do_not_end_are_reset_when_the_time_is_over() {
    let rig = Rig::start_with(|config| {
        config.limits.drain_timeout = Duration::from_millis(100);
    })
    .await;
    let process = Process::new("site-1", 1).await;
    let _agent = rig.tunnel(&process).await;
    let mut client = rig.client().await;
    echo(&mut client, 0, 10).await;
    wait::within("the drain", rig.hub.drain()).await.unwrap();
    is_reset(&mut client).await;
    wait::until("the agent to hear of it", async || {
        anyhow::ensure!(process.flows() == 0, "it holds the flow");
        Ok(())
    })
    .await
    .unwrap();
}
