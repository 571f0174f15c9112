//! Hubs are drained and restarted one after the other behind a real balancer, and no client notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::fault_proxy::Way;
use nowconnect_testkit::http::get;
use nowconnect_testkit::lab::{Hub, Lab, Pair, finish};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::{Process, Signal};
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::{until, within};
use nowconnect_testkit::{ports, program};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

/// Between new connections.
const EVERY: Duration = Duration::from_millis(5);
const CONNECTIONS: &str = "nowconnect_tcp_connections_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// HAProxy in front of the listeners `echo` of both hubs.
struct Balancer {
    _process: Process,
    addr: SocketAddr,
}

impl Balancer {
    async fn start(pair: &Pair) -> Result<Self> {
        let addr = ports::local(ports::reserve()?);
        let mut text = format!(
            "defaults\n mode tcp\n option redispatch 1\n retries 3\n timeout connect 5s\n \
             timeout client 2m\n timeout server 2m\n timeout check 5s\n\
             listen clients\n bind {addr}\n balance roundrobin\n option httpchk GET /readyz\n \
             default-server check inter 250ms fall 1 rise 1\n"
        );
        for (name, hub) in [("hub-a", &pair.a), ("hub-b", &pair.b)] {
            let (to, health) = (hub.listener_addr("echo")?, hub.http_addr()?.port());
            text += &format!(" server {name} {to} port {health}\n");
        }
        let file = pair.lab.write("haproxy.cfg", &text)?;
        let mut command = Command::new(program::find("haproxy", "haproxy")?);
        command.args(["-db", "-f", &file]);
        let mut process = Process::spawn("haproxy", &mut command, pair.lab.dir())?;
        let up = until("the balancer", async || try_echo(addr, 0).await);
        process.while_alive(up).await?;
        Ok(Self {
            _process: process,
            addr,
        })
    }
}

async fn try_echo(addr: SocketAddr, stream: u32) -> Result<()> {
    let mut client = within("a connection", TcpStream::connect(addr)).await??;
    echo(&mut client, Pattern(stream), 0, 100).await
}

/// Clients that come one after the other, as long as it lives.
struct Clients {
    stop: watch::Sender<bool>,
    count: Count,
    task: JoinHandle<Result<Duration>>,
}

/// How many clients there were so far.
type Count = watch::Receiver<u32>;

impl Clients {
    fn start(addr: SocketAddr) -> Self {
        let stop = watch::Sender::new(false);
        let (counter, count) = watch::channel(0);
        let task = tokio::spawn(keep_coming(addr, stop.subscribe(), counter));
        Self { stop, count, task }
    }

    /// Does `work` while they come.
    async fn during(&mut self, work: impl Future<Output = Result<()>>) -> Result<()> {
        tokio::select! {
            done = work => done,
            failed = &mut self.task => failed?.map(drop),
        }
    }

    /// How many there were, and the longest that one of them took.
    async fn finish(self) -> Result<(u32, Duration)> {
        self.stop.send_replace(true);
        let longest = self.task.await??;
        Ok((*self.count.borrow(), longest))
    }
}

/// Waits for so many more to come.
async fn wait_more(count: &mut Count, more: u32) -> Result<()> {
    let enough = *count.borrow() + more;
    within("more clients", count.wait_for(|count| *count >= enough)).await??;
    Ok(())
}

async fn keep_coming(
    addr: SocketAddr,
    stop: watch::Receiver<bool>,
    count: watch::Sender<u32>,
) -> Result<Duration> {
    let (start, mut clients, mut longest) = (Instant::now(), JoinSet::new(), Duration::ZERO);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for stream in 1.. {
        if *stop.borrow() {
            break;
        }
        ticks.tick().await;
        let from = start.elapsed();
        clients.spawn(async move {
            let done = try_echo(addr, stream).await;
            let context = || format!("client {stream}, {from:?} after the first");
            done.with_context(context).map(|()| start.elapsed() - from)
        });
        while let Some(done) = clients.try_join_next() {
            longest = longest.max(done??);
            count.send_modify(|count| *count += 1);
        }
    }
    while let Some(done) = clients.join_next().await {
        longest = longest.max(done??);
    }
    Ok(longest)
}

/// Restarts `hub` as an operator does, while flows of its clients run.
async fn roll(hub: &mut Hub, clients: &mut Count) -> Result<()> {
    let running = hub.transfers(3, 10_000_000).await?;
    wait_more(clients, 20).await?;
    hub.signal(Signal::Term).await?;
    let status = hub.process().wait_exit().await?;
    ensure!(status.success(), "{status:?}");
    finish(running).await?;
    wait_more(clients, 50).await?;
    hub.start_again().await?;
    // Whoever is ready can serve at once.
    try_echo(hub.listener_addr("echo")?, 0).await?;
    hub.wait_metric(CONNECTIONS, &[("connector", "echo")], |own| own >= 10.0)
        .await?;
    wait_more(clients, 50).await
}

async fn rolling_restart(mode: &str) -> Result<()> {
    let more = [("limits.drain_timeout_sec", 20)];
    let mut pair = Pair::start_with(lab()?, "active", &more).await?;
    let agent = pair.agent(&[&pair.a, &pair.b], mode).start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let balancer = Balancer::start(&pair).await?;
    let mut clients = Clients::start(balancer.addr);
    let mut count = clients.count.clone();
    let both = async {
        roll(&mut pair.a, &mut count).await?;
        roll(&mut pair.b, &mut count).await
    };
    clients.during(both).await?;
    let (count, longest) = clients.finish().await?;
    eprintln!("tunnel.mode {mode}: {count} connections, the slowest took {longest:?}");
    // The hubs served others than those of the balancer as well.
    assert_eq!(pair.bulk.accepted(), 6, "no target was dialled again");
    ensure!(pair.to_a.bytes(Way::Up) > 0 && pair.to_b.bytes(Way::Up) > 0);
    drop(agent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_client_of_an_agent_at_both_hubs() -> Result<()> {
    rolling_restart("all").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_client_of_an_agent_at_one_hub() -> Result<()> {
    rolling_restart("first").await
}

/// A balancer that has not noticed the restart sends clients from the first moment on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_a_hub_starts_is_served_by_the_agents_of_others() -> Result<()> {
    let mut pair = Pair::start(lab()?, "active").await?;
    let _agent = pair.agent(&[&pair.b], "all").start().await?;
    pair.wait_routes(&pair.a, 1).await?;
    let addr = pair.a.listener_addr("echo")?;
    for stream in 1..=3 {
        pair.a.process().kill().await?;
        pair.a.spawn_again()?;
        let first = async || Ok(TcpStream::connect(addr).await?);
        let mut client = until("an open port", first).await?;
        echo(&mut client, Pattern(stream), 0, 1000).await?;
        pair.a.wait_ready().await?;
    }
    let turned_away = [("connector", "echo"), ("type", "no_agent")];
    let turned_away = pair
        .a
        .metric("nowconnect_listener_errors_total", &turned_away);
    assert_eq!(turned_away.await?, 0.0);
    Ok(())
}

/// The command of the operator, with flows that cross the mesh and must move with the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_of_other_hubs_leave_one_that_drains() -> Result<()> {
    let more = [("limits.drain_timeout_sec", 20)];
    let mut pair = Pair::start_with(lab()?, "active", &more).await?;
    let _agent = pair.agent(&[&pair.a, &pair.b], "first").start().await?;
    pair.wait_routes(&pair.b, 1).await?;
    let (mut across, mut local) = (pair.b.connect("echo").await?, pair.a.connect("echo").await?);
    echo(&mut across, Pattern(1), 0, 1000).await?;
    echo(&mut local, Pattern(2), 0, 1000).await?;
    let running = pair.b.transfers(3, 10_000_000).await?;
    pair.bulk.wait_accepted(3).await?;
    let admin = format!("http://{}", pair.a.admin_addr()?);
    let told = pair.lab.run(&["drain", "--url", &admin]).await?;
    ensure!(told.status.success(), "{told:?}");
    ensure!(told.stdout.contains("draining"), "{told:?}");
    let ready = get(pair.a.http_addr()?, "/readyz").await?;
    ensure!(
        ready.status == 503 && ready.body.contains("draining"),
        "{ready:?}"
    );
    pair.b.wait_agents(1).await?;
    finish(running).await?;
    finish(pair.b.transfers(2, 500_000).await?).await?;
    echo(&mut across, Pattern(1), 1000, 100_000).await?;
    // Its own client still has time.
    echo(&mut local, Pattern(2), 1000, 100_000).await?;
    drop(local);
    let ended = pair.a.process().wait_exit().await?;
    ensure!(ended.success(), "{ended:?}");
    let last = pair.a.log().wait_event("drain_ended").await?;
    ensure!(last.text("finished") == "true", "{last:?}");
    echo(&mut across, Pattern(1), 101_000, 1000).await?;
    assert_eq!(pair.bulk.accepted(), 5, "no target was dialled again");
    Ok(())
}
