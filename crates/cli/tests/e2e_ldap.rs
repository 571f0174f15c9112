//! LDAP through the tunnel: a real OpenLDAP server and its real clients.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::program::succeed;
use nowconnect_testkit::slapd::{self, Slapd};
use nowconnect_testkit::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test]
async fn a_search_finds_the_same_as_without_the_tunnel_whole_and_in_pages() -> Result<()> {
    let (lab, slapd) = (lab()?, Slapd::start(1000).await?);
    let (hub, _agent) = lab.site(&[("ldap", slapd.addr())]).await?;
    let filter = "(objectClass=inetOrgPerson)";
    let direct = succeed(slapd.search(slapd.addr())?.arg(filter)).await?;
    assert_eq!(direct.matches("dn: uid=").count(), 1000);

    let listener = hub.listener_addr("ldap")?;
    assert_eq!(succeed(slapd.search(listener)?.arg(filter)).await?, direct);
    let mut paged = slapd.search(listener)?;
    let paged = succeed(paged.args(["-E", "pr=100/noprompt", filter])).await?;
    assert_eq!(paged.matches("dn: uid=").count(), 1000);

    hub.wait_idle("ldap").await?;
    let ldap = [("connector", "ldap")];
    assert_eq!(
        hub.metric("nowconnect_tcp_connections_total", &ldap)
            .await?,
        2.0
    );
    let closed = hub.log().wait_event("flow_closed").await?;
    assert_eq!(
        (closed.text("connector"), closed.text("agent_id")),
        ("ldap".into(), "site-1".into())
    );
    assert!(
        closed.number("bytes_a2c") >= Some(direct.len() as u64 / 2),
        "{}",
        closed.json()
    );
    Ok(())
}

#[tokio::test]
async fn start_tls_passes_untouched() -> Result<()> {
    let (lab, slapd) = (lab()?, Slapd::start(10).await?);
    let (hub, _agent) = lab.site(&[("ldap", slapd.addr())]).await?;
    let mut search = slapd.search(hub.listener_addr("ldap")?)?;
    let found = succeed(search.args(["-ZZ", "(uid=u7)", "mail"])).await?;
    assert!(found.contains("mail: u7@example.org"), "{found}");
    Ok(())
}

#[tokio::test]
async fn a_storm_of_binds_succeeds() -> Result<()> {
    let (lab, slapd) = (lab()?, Slapd::start(300).await?);
    let (hub, _agent) = lab.site(&[("ldap", slapd.addr())]).await?;
    let listener = hub.listener_addr("ldap")?;
    let mut clients = JoinSet::new();
    for index in 0..300 {
        clients.spawn(async move {
            let mut client = TcpStream::connect(listener).await?;
            bind(&mut client, 1, &slapd::person(index), slapd::USER_PASSWORD).await?;
            bind(&mut client, 2, slapd::ADMIN_DN, slapd::ADMIN_PASSWORD).await
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    hub.wait_idle("ldap").await
}

/// Nagle's algorithm on one leg and a delayed acknowledgement on another cost 40 ms per request.
#[tokio::test]
async fn a_request_waits_for_no_timer() -> Result<()> {
    let (lab, slapd) = (lab()?, Slapd::start(1).await?);
    let (hub, _agent) = lab.site(&[("ldap", slapd.addr())]).await?;
    let mut client = hub.connect("ldap").await?;
    let mut times = Vec::new();
    for id in 1..=100 {
        let start = Instant::now();
        bind(&mut client, id, slapd::ADMIN_DN, slapd::ADMIN_PASSWORD).await?;
        times.push(start.elapsed());
    }
    times.sort();
    assert!(
        times[50] < Duration::from_millis(20),
        "median {:?}",
        times[50]
    );
    Ok(())
}

async fn bind(client: &mut TcpStream, id: u8, dn: &str, password: &str) -> Result<()> {
    client
        .write_all(&slapd::bind_request(id, dn, password)?)
        .await?;
    let mut answer = [0; 14];
    within("the answer to a bind", client.read_exact(&mut answer)).await??;
    ensure!(answer[..] == slapd::bind_success(id), "{answer:02x?}");
    Ok(())
}
