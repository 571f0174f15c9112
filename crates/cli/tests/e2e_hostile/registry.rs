//! A Redis that answers as it likes: replaced by somebody, or written to by somebody.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::lab::{HubPlan, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::list::cases;
use crate::scene::lab;

/// What the resident memory of a hub may grow by, whatever Redis sends.
const MOST_MEMORY: u64 = 96 << 20;

cases! { "Answers of Redis";
    garbage_for_an_answer: "the connection is given up; the hub claims for itself", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| Pattern(9).bytes(0, 4000));
    a_page_for_an_answer: "the connection is given up", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    a_bulk_of_a_petabyte: "the connection is given up; nothing is set aside for it", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"$1125899906842624\r\nx".to_vec());
    a_bulk_of_minus_two: "the connection is given up", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"$-2\r\n".to_vec());
    arrays_within_arrays: "the connection is given up", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"*1\r\n".repeat(100_000));
    an_array_of_four_billion: "the connection is given up; nothing is set aside for it", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"*4294967295\r\n:1\r\n".to_vec());
    a_line_without_an_end: "the connection is given up", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"+".iter().copied().chain(std::iter::repeat_n(b'x', 2_000_000)).collect());
    an_error_for_every_command: "the connection is given up", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b"-ERR no\r\n".to_vec());
    a_number_for_every_command: "the connection is given up", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| b":9223372036854775807\r\n".to_vec());
    nothing_at_all: "given up after 1.5 s", "`nowconnect_registry_healthy` 0, `registry_down`" => fake(|_| Vec::new());
    an_answer_without_an_end: "the connection is given up when it is longer than any answer", "`nowconnect_registry_healthy` 0, `registry_down`; resident memory stays" => endless(b"$1073741824\r\n");
    an_array_without_an_end: "the connection is given up when it is longer than any answer", "`nowconnect_registry_healthy` 0, `registry_down`; resident memory stays" => endless(b"*999999999\r\n");
    a_record_of_another_type: "the claim is granted by the hub alone", "`agent_connected`" => written(&[&["SET", "nowconnect:{agent:site-1}", "x"]]);
    a_record_with_a_negative_epoch: "an epoch at the clock or above", "`agent_connected`" => written(&[&["HSET", "nowconnect:{agent:site-1}", "epoch", "-1", "instance", "x"]]);
    a_record_with_an_epoch_of_2_to_the_63: "an epoch that hubs can compare", "`agent_connected`" => written(&[&["HSET", "nowconnect:{agent:site-1}", "epoch", "9223372036854775808", "instance", "00000000000000000000000000000009"]]);
    a_record_with_an_epoch_of_1e300: "an epoch that hubs can compare", "`agent_connected`" => written(&[&["HSET", "nowconnect:{agent:site-1}", "epoch", "1e300", "instance", "00000000000000000000000000000009"]]);
    a_record_full_of_letters: "an epoch that hubs can compare", "`agent_connected`" => written(&[&["HSET", "nowconnect:{agent:site-1}", "epoch", "NaN", "instance", "%", "at", "never", "rivals", "many"]]);
    a_table_of_another_type: "no routes", "no route to its hub" => written(&[&["SET", "nowconnect:{hub:hub-z}", "x"], &["ZADD", "nowconnect:hubs", "99999999999999", "hub-z"]]);
    a_table_with_an_address_for_a_hub: "no routes: hubs are found in the configuration alone", "no connection to that address" => written(&[&["HSET", "nowconnect:{hub:127.0.0.1:1}", "#nonce", "n", "#version", "1"], &["ZADD", "nowconnect:hubs", "99999999999999", "127.0.0.1:1"]]);
    an_entry_that_is_no_json: "the entry is left out", "no route to its hub" => written(&[&["HSET", "nowconnect:{hub:hub-z}", "#nonce", "n", "#version", "1", "site-1", "]["], &["ZADD", "nowconnect:hubs", "99999999999999", "hub-z"]]);
    an_owner_that_nobody_is: "the agent stays: only a later claim displaces it", "`agent_connected`, no `agent_superseded`" => written(&[&["HSET", "nowconnect:{hub:hub-z}", "#nonce", "n", "#version", "1", "site-1", r#"{"epoch":9007199254740991,"instance":"00000000000000000000000000000009","connectors":["echo"]}"#], &["ZADD", "nowconnect:hubs", "99999999999999", "hub-z"]]);
    the_hubs_of_another_type: "the list is made anew", "`nowconnect_registry_healthy` 1, `registry_up`" => written(&[&["SET", "nowconnect:hubs", "x"]]);
    a_notice_that_is_no_json: "nothing", "`nowconnect_registry_healthy` stays 1" => notice("][");
    a_notice_of_a_megabyte: "nothing", "`nowconnect_registry_healthy` stays 1" => notice(&"x".repeat(1_000_000));
}

fn member<'a>(plan: HubPlan<'a>, redis: &str) -> HubPlan<'a> {
    plan.listener("echo")
        .member("active", redis)
        .set("ha.mesh.require_mtls", false)
        .set("observability.log_level", "DEBUG")
}

/// A server that answers whatever it reads with what `answer` makes.
async fn serve<F, Fut>(work: F) -> Result<(String, AbortOnDropHandle<()>)>
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("redis://{}", listener.local_addr()?);
    let work = Arc::new(work);
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let work = work.clone();
            connections.spawn(async move { work(stream).await });
        }
    });
    Ok((url, AbortOnDropHandle::new(task)))
}

async fn fake(answer: fn(usize) -> Vec<u8>) -> Result<()> {
    let work = move |mut stream: TcpStream| async move {
        let mut buf = [0; 4096];
        for round in 0.. {
            match stream.read(&mut buf).await {
                Ok(1..) => {}
                _ => return,
            }
            if stream.write_all(&answer(round)).await.is_err() {
                return;
            }
        }
    };
    let (url, _redis) = serve(work).await?;
    down(&lab()?, &url).await
}

async fn endless(begin: &'static [u8]) -> Result<()> {
    let work = move |mut stream: TcpStream| async move {
        let mut buf = [0; 4096];
        let _ = stream.read(&mut buf).await;
        let _ = stream.write_all(begin).await;
        let filler = if begin[0] == b'*' {
            b":1\r\n".repeat(16 * 1024)
        } else {
            vec![b'x'; 64 * 1024]
        };
        while stream.write_all(&filler).await.is_ok() {}
    };
    let (url, _redis) = serve(work).await?;
    down(&lab()?, &url).await
}

/// A hub whose registry is at `url` notes that it has none, and serves its own.
async fn down(lab: &Lab, url: &str) -> Result<()> {
    let server = Target::echo().await?;
    let mut hub = member(lab.hub("hub-a"), url).start().await?;
    let before = hub.resident_bytes()?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    hub.log().wait_event("registry_down").await?;
    hub.wait_metric("nowconnect_registry_healthy", &[], |up| up == 0.0)
        .await?;
    hub.wait_status("degraded").await?;
    let mut client = hub.connect("echo").await?;
    // For two seconds, in which it is dialed again and answers again.
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    for round in 0..20 {
        looks.tick().await;
        echo(&mut client, Pattern(2), round * 1000, 1000).await?;
        let grown = hub.resident_bytes()?.saturating_sub(before);
        ensure!(grown < MOST_MEMORY, "{} MiB more", grown >> 20);
    }
    hub.process().check_alive()
}

async fn written(commands: &[&[&str]]) -> Result<()> {
    let (lab, server, redis) = (lab()?, Target::echo().await?, Redis::start().await?);
    for command in commands {
        redis.run(command).await?;
    }
    let mut hub = member(lab.hub("hub-a"), &redis.url()).start().await?;
    hub.wait_metric("nowconnect_registry_healthy", &[], |up| up == 1.0)
        .await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let connected = hub.log().wait_event("agent_connected").await?;
    let epoch = connected.number("epoch").unwrap_or_default();
    let clock = u64::try_from(nowconnect_testkit::issuer::now())? * 1000;
    ensure!(
        (clock - 60_000..(1 << 53)).contains(&epoch),
        "epoch {epoch} at {clock}"
    );
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;
    ensure!(
        hub.log()
            .events("agent_superseded", Default::default())
            .is_empty(),
        "the agent was displaced"
    );
    hub.process().check_alive()
}

async fn notice(message: &str) -> Result<()> {
    let (lab, server, redis) = (lab()?, Target::echo().await?, Redis::start().await?);
    let mut hub = member(lab.hub("hub-a"), &redis.url()).start().await?;
    hub.log().wait_event("registry_up").await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    let script = "return redis.call('PUBLISH', 'nowconnect:changes:0', string.rep(ARGV[1], tonumber(ARGV[2])))";
    let (text, times) = match message.len() {
        length @ 1000.. => ("x", length.to_string()),
        _ => (message, "1".to_owned()),
    };
    for _ in 0..20 {
        redis.run(&["EVAL", script, "0", text, &times]).await?;
    }
    hub.log().wait_event("registry_notice_unread").await?;
    hub.wait_metric("nowconnect_registry_healthy", &[], |up| up == 1.0)
        .await?;
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;
    hub.process().check_alive()
}
