//! Bytes and endings: what one side of a connection does, the other side sees.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports;
use nowconnect_testkit::target::{self, Target};
use nowconnect_testkit::transfer::{End, Transfer, echo, read_to_end, reset};
use nowconnect_testkit::wait::{until, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_200_megabytes_pass_both_ways_at_once() -> Result<()> {
    let (lab, bulk) = (lab()?, Target::bulk().await?);
    let (hub, _agent) = lab.site(&[("bulk", bulk.addr())]).await?;
    let transfer = Transfer {
        stream: 1,
        up: 200_000_000,
        down: 200_000_000,
    };
    transfer.run(hub.connect("bulk").await?).await?;
    hub.wait_idle("bulk").await?;
    for direction in ["c2a", "a2c"] {
        let labels = [("connector", "bulk"), ("direction", direction)];
        let bytes = hub.metric("nowconnect_tcp_bytes_total", &labels).await?;
        assert!((2e8..2.001e8).contains(&bytes), "{direction}: {bytes}");
    }
    Ok(())
}

#[tokio::test]
async fn a_half_closed_client_gets_its_whole_answer_every_time() -> Result<()> {
    let (lab, server) = (lab()?, Target::answer_after_end(1_000_000).await?);
    let (hub, _agent) = lab.site(&[("half", server.addr())]).await?;
    for size in 1..=20 {
        let mut client = hub.connect("half").await?;
        client.write_all(&vec![b'?'; size * 997]).await?;
        client.shutdown().await?;
        let (answer, end) = read_to_end(&mut client).await?;
        assert_eq!(
            (answer.len(), end),
            (1_000_000, End::Finished),
            "try {size}"
        );
        Pattern(u32::try_from(size * 997)?).check(0, &answer)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reset_of_the_target_reaches_the_client_as_a_reset() -> Result<()> {
    let (lab, server) = (lab()?, Target::resetter(0).await?);
    let (hub, _agent) = lab.site(&[("rst", server.addr())]).await?;
    for _ in 0..20 {
        let mut client = hub.connect("rst").await?;
        client.write_all(b"?").await?;
        assert_eq!(read_to_end(&mut client).await?.1, End::Reset);
    }
    hub.wait_idle("rst").await
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_target_as_a_reset() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, _agent) = lab.site(&[("echo", server.addr())]).await?;
    for index in 0..20 {
        let mut client = hub.connect("echo").await?;
        echo(&mut client, Pattern(1), 0, 1000).await?;
        reset(client)?;
        assert_eq!(server.wait_end(index).await?, target::End::Reset);
    }
    hub.wait_idle("echo").await
}

#[tokio::test]
async fn a_client_that_says_nothing_hears_the_server_and_ends_in_good_order() -> Result<()> {
    let (lab, server, sink) = (lab()?, Target::source(3).await?, Target::sink().await?);
    let (hub, _agent) = lab
        .site(&[("source", server.addr()), ("sink", sink.addr())])
        .await?;
    let mut client = hub.connect("source").await?;
    let mut bytes = vec![0; 3_000_000];
    within("the server's bytes", client.read_exact(&mut bytes)).await??;
    Pattern(3).check(0, &bytes)?;
    reset(client)?;

    drop(hub.connect("sink").await?);
    assert_eq!(sink.wait_end(0).await?, target::End::Finished(0));
    hub.wait_idle("source").await
}

#[tokio::test]
async fn a_target_that_refuses_ends_the_client_at_once() -> Result<()> {
    let lab = lab()?;
    let (hub, _agent) = lab
        .site(&[("gone", ports::local(ports::reserve()?))])
        .await?;
    let start = Instant::now();
    hub.turns_away("gone").await?;
    assert!(start.elapsed() < Duration::from_secs(5));
    let labels = [("connector", "gone"), ("type", "refused")];
    hub.wait_metric("nowconnect_listener_errors_total", &labels, |value| {
        value == 1.0
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_1000_connections_at_once_are_served() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, agent) = lab.site(&[("echo", server.addr())]).await?;
    let (hub_files, agent_files) = (hub.open_files()?, agent.open_files()?);
    let listener = hub.listener_addr("echo")?;
    let mut opening = JoinSet::new();
    for stream in 0..1000 {
        opening.spawn(async move {
            let mut client = TcpSocket::new_v4()?.connect(listener).await?;
            echo(&mut client, Pattern(stream), 0, 2000).await?;
            anyhow::Ok((client, stream))
        });
    }
    let clients = opening
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let active = hub
        .metric(
            "nowconnect_tcp_active_connections",
            &[("connector", "echo")],
        )
        .await?;
    assert_eq!((active, server.accepted()), (1000.0, 1000));
    let mut again = JoinSet::new();
    for (mut client, stream) in clients {
        again.spawn(async move { echo(&mut client, Pattern(stream), 2000, 2000).await });
    }
    again.join_all().await.into_iter().collect::<Result<()>>()?;
    hub.wait_idle("echo").await?;
    until("descriptors to be returned", async || {
        let (hub, agent) = (hub.open_files()?, agent.open_files()?);
        ensure!(
            hub <= hub_files + 5 && agent <= agent_files + 5,
            "hub {hub}, agent {agent}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn short_connections_half_of_them_aborted_leave_nothing_behind() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (hub, agent) = lab.site(&[("echo", server.addr())]).await?;
    let files = agent.open_files()?;
    for round in 0..10 {
        let mut clients = JoinSet::new();
        for stream in 0..50 {
            let mut client = hub.connect("echo").await?;
            clients.spawn(async move {
                match stream % 4 {
                    0 => reset(client),
                    1 => {
                        client.write_all(b"never answered").await?;
                        reset(client)
                    }
                    _ => echo(&mut client, Pattern(stream), round, 500).await,
                }
            });
        }
        clients
            .join_all()
            .await
            .into_iter()
            .collect::<Result<()>>()?;
    }
    hub.wait_idle("echo").await?;
    until("descriptors to be returned", async || {
        let now = agent.open_files()?;
        ensure!(now <= files + 5, "{now}, {files} before");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a_reader_that_stalls_stops_only_its_own_flow() -> Result<()> {
    let (lab, source, server) = (lab()?, Target::source(9).await?, Target::echo().await?);
    let connectors = [("source", source.addr()), ("echo", server.addr())];
    let (hub, _agent) = lab.site(&connectors).await?;
    let before = hub.resident_bytes()?;
    let mut stalled = hub.connect("source").await?;
    source.wait_accepted(1).await?;

    let median = median_echo_among(&hub, 50).await?;
    assert!(median < Duration::from_millis(500), "median {median:?}");
    let grown = hub.resident_bytes()?.saturating_sub(before) >> 20;
    assert!(grown < 64, "the hub grew by {grown} MiB");

    // What the stalled reader finally reads is the stream from its first byte, without a hole.
    let mut bytes = vec![0; 20_000_000];
    within("the stalled flow", stalled.read_exact(&mut bytes)).await??;
    Pattern(9).check(0, &bytes)
}

/// `flows` clients exchange 40 messages of 16 KiB each at the same time; the median time of one.
async fn median_echo_among(hub: &Hub, flows: u32) -> Result<Duration> {
    let mut clients = JoinSet::new();
    for stream in 0..flows {
        let mut client = hub.connect("echo").await?;
        clients.spawn(async move {
            let mut times = Vec::new();
            for round in 0..40 {
                let start = Instant::now();
                echo(&mut client, Pattern(stream), round * 16384, 16384).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let times: Result<Vec<_>> = clients.join_all().await.into_iter().collect();
    let mut times = times?.concat();
    times.sort();
    Ok(times[times.len() / 2])
}
