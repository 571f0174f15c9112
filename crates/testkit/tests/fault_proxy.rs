//! The proxy breaks what it is told to break, at the byte it is told, and nothing else.

use std::time::{Duration, Instant};

use anyhow::Result;
use nowconnect_testkit::fault_proxy::{Cut, FaultProxy, Way};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::{End, Target};
use nowconnect_testkit::transfer::{self, Transfer, echo, read_to_end};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn bytes_pass_unchanged_both_ways_at_once() -> Result<()> {
    let target = Target::bulk().await?;
    let proxy = FaultProxy::start(target.addr()).await?;
    let transfer = Transfer {
        stream: 1,
        up: 5_000_000,
        down: 5_000_001,
    };
    transfer
        .run(TcpStream::connect(proxy.addr()).await?)
        .await?;
    assert!(proxy.bytes(Way::Up) > 5_000_000 && proxy.bytes(Way::Down) > 5_000_000);
    assert_eq!(target.wait_end(0).await?, End::Finished(5_000_000));
    Ok(())
}

#[tokio::test]
async fn a_cut_comes_after_the_exact_byte() -> Result<()> {
    let target = Target::sink().await?;
    let proxy = FaultProxy::start(target.addr()).await?;
    proxy.cut_after(Way::Up, 1000, Cut::Fin);
    let mut client = TcpStream::connect(proxy.addr()).await?;
    client.write_all(&[7; 1500]).await?;
    assert_eq!(target.wait_end(0).await?, End::Finished(1000));

    proxy.cut_after(Way::Up, 3, Cut::Reset);
    let mut client = TcpStream::connect(proxy.addr()).await?;
    client.write_all(&[7; 4]).await?;
    assert_eq!(read_to_end(&mut client).await?.1, transfer::End::Reset);
    assert_eq!(target.wait_end(1).await?, End::Reset);
    proxy.wait_cuts(2).await
}

#[tokio::test]
async fn held_bytes_arrive_later_and_swallowed_ones_never() -> Result<()> {
    let target = Target::echo().await?;
    let proxy = FaultProxy::start(target.addr()).await?;
    let mut client = TcpStream::connect(proxy.addr()).await?;
    echo(&mut client, Pattern(1), 0, 100).await?;
    proxy.hold();
    client.write_all(b"x").await?;
    assert!(
        timeout(Duration::from_millis(100), client.read_u8())
            .await
            .is_err()
    );
    proxy.heal();
    assert_eq!(client.read_u8().await?, b'x');
    proxy.swallow(Way::Up);
    client.write_all(b"y").await?;
    proxy.heal();
    client.write_all(b"z").await?;
    assert!(
        timeout(Duration::from_millis(100), client.read_u8())
            .await
            .is_err()
    );
    let mut client = TcpStream::connect(proxy.addr()).await?;
    echo(&mut client, Pattern(2), 0, 100).await
}

#[tokio::test]
async fn delay_and_rate_take_their_time() -> Result<()> {
    let target = Target::echo().await?;
    let proxy = FaultProxy::start(target.addr()).await?;
    proxy.delay(Duration::from_millis(30));
    let mut client = TcpStream::connect(proxy.addr()).await?;
    let start = Instant::now();
    echo(&mut client, Pattern(1), 0, 100).await?;
    assert!(
        start.elapsed() >= Duration::from_millis(60),
        "{:?}",
        start.elapsed()
    );
    proxy.heal();
    proxy.rate(1_000_000);
    let start = Instant::now();
    echo(&mut client, Pattern(1), 100, 200_000).await?;
    assert!(
        start.elapsed() >= Duration::from_millis(150),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn targets_end_connections_the_way_they_say() -> Result<()> {
    let target = Target::resetter(10).await?;
    let mut client = TcpStream::connect(target.addr()).await?;
    client.write_all(b"?").await?;
    let (bytes, end) = read_to_end(&mut client).await?;
    assert_eq!((bytes.len(), end), (10, transfer::End::Reset));

    let target = Target::answer_after_end(100_000).await?;
    let mut client = TcpStream::connect(target.addr()).await?;
    client.write_all(b"12345").await?;
    client.shutdown().await?;
    let (bytes, end) = read_to_end(&mut client).await?;
    assert_eq!((bytes.len(), end), (100_000, transfer::End::Finished));
    Pattern(5).check(0, &bytes)
}
