//! SQL through the tunnel: a real PostgreSQL server and its real clients.

use anyhow::Result;
use nowconnect_testkit::fault_proxy::{Cut, Way};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::postgres::{Postgres, USER};
use nowconnect_testkit::program::succeed;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

#[tokio::test]
async fn queries_and_a_load_of_transactions_work_also_while_the_tunnel_is_cut() -> Result<()> {
    let (lab, postgres) = (lab()?, Postgres::start().await?);
    let (hub, proxy, _agent) = lab.faulty_site(&[("pg", postgres.addr())]).await?;
    let listener = hub.listener_addr("pg")?;

    let rows = "select i, md5(i::text), repeat('x', i % 500) from generate_series(1, 20000) i";
    let direct = succeed(postgres.client("psql", postgres.addr())?.args(["-c", rows])).await?;
    let through = succeed(postgres.client("psql", listener)?.args(["-c", rows])).await?;
    assert!(direct == through && direct.len() > 5_000_000);

    let init = ["-i", "-s", "1", "-q", USER];
    succeed(postgres.client("pgbench", listener)?.args(init)).await?;
    for n in 1..=5 {
        proxy.cut_after(Way::Down, 20_000 * n, Cut::Reset);
        let mut bench = postgres.client("pgbench", listener)?;
        let report = succeed(bench.args(["-c", "8", "-j", "2", "-t", "40", "-n", USER])).await?;
        assert!(report.contains("actually processed: 320/320"), "{report}");
        proxy.wait_cuts(n as usize).await?;
    }
    let balance = "select sum(abalance) = sum(delta) from \
                   (select sum(abalance) as abalance, 0 as delta from pgbench_accounts \
                    union all select 0, sum(delta) from pgbench_history) t";
    let agree = succeed(postgres.client("psql", listener)?.args(["-c", balance])).await?;
    assert_eq!(agree.trim(), "t", "every transaction counted once");
    Ok(())
}
