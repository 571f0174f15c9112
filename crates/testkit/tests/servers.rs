//! The real servers start, serve and go.

use anyhow::Result;
use nowconnect_testkit::postgres::Postgres;
use nowconnect_testkit::program::succeed;
use nowconnect_testkit::slapd::{self, Slapd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn slapd_finds_people_also_over_start_tls() -> Result<()> {
    let slapd = Slapd::start(100).await?;
    let mut search = slapd.search(slapd.addr())?;
    let found = succeed(search.args(["-ZZ", "(objectClass=inetOrgPerson)", "uid"])).await?;
    assert_eq!(found.matches("dn: uid=").count(), 100);

    let mut client = TcpStream::connect(slapd.addr()).await?;
    let bind = slapd::bind_request(1, &slapd::person(7), slapd::USER_PASSWORD)?;
    client.write_all(&bind).await?;
    let mut answer = [0; 14];
    client.read_exact(&mut answer).await?;
    assert_eq!(answer[..], slapd::bind_success(1));
    Ok(())
}

#[tokio::test]
async fn postgres_answers_a_query() -> Result<()> {
    let postgres = Postgres::start().await?;
    let mut psql = postgres.client("psql", postgres.addr())?;
    assert_eq!(
        succeed(psql.args(["-c", "select 6 * 7"])).await?.trim(),
        "42"
    );
    Ok(())
}
