//! The status page of a hub with many agents and flows, in a real browser.
//!
//! The hub is the binary. The agents are those of the product, whole, with a token and a tunnel each, but
//! several hundred share a process, so that a small machine can hold them. Every flow is a client's
//! connection through hub and agent to an echo server, has carried bytes, and some go on carrying them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nowconnect_agent::agent::Agent;
use nowconnect_agent::config::AgentConfig;
use nowconnect_link::trace::Tracer;
use nowconnect_settings::{Env, Source};
use nowconnect_testkit::anyhow::{self, Context, Result, ensure};
use nowconnect_testkit::browser::Browser;
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::target::Target;
use nowconnect_testkit::wait::until_within;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

const USAGE: &str = "page BINARY [--agents 1000] [--flows 10000] [--minutes 5] [--shots DIRECTORY]";
const CONNECTORS: usize = 20;
/// Sockets of the agents and their targets stay below the usual limit of open files.
const AGENTS_A_PROCESS: usize = 400;
const START: Duration = Duration::from_secs(300);
const FIRST_PAINT: &str =
    "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? false";

/// Watches every page from its first line on.
const OBSERVE: &str = "window.long = []; \
    new PerformanceObserver((list) => list.getEntries().forEach((one) => window.long.push(one.duration))) \
    .observe({ type: 'longtask', buffered: true });";
/// Notes how long the page takes to show what it was told, with the layout that follows.
const CLOCK: &str = "window.updates = []; window.looks = []; \
    const draws = window.show; window.show = (told) => { const begun = performance.now(); draws(told); \
      document.body.offsetHeight; window.updates.push(performance.now() - begun); }; \
    const asks = window.look; window.look = async () => { const begun = performance.now(); const told = await asks(); \
      window.looks.push(performance.now() - begun); return told; };";

struct Plan {
    binary: String,
    agents: usize,
    flows: usize,
    minutes: u64,
    shots: Option<PathBuf>,
}

impl Plan {
    fn read(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Self {
            binary: args.next().context(USAGE)?,
            agents: 1000,
            flows: 10_000,
            minutes: 5,
            shots: None,
        };
        while let Some(name) = args.next() {
            let value = args.next().context(USAGE)?;
            match name.as_str() {
                "--agents" => plan.agents = value.parse()?,
                "--flows" => plan.flows = value.parse()?,
                "--minutes" => plan.minutes = value.parse()?,
                "--shots" => plan.shots = Some(value.into()),
                _ => anyhow::bail!(USAGE),
            }
        }
        Ok(plan)
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match std::env::var("NOWCONNECT_PAGE_AGENTS") {
        Ok(files) => agents(files.lines()).await,
        Err(_) => measure(&Plan::read(&mut args)?).await,
    }
}

/// The other half of this program: runs agents, and what they lead to, until its standard input ends.
async fn agents(files: impl Iterator<Item = &str>) -> Result<()> {
    let env = Env::of_process();
    let mut running = Vec::new();
    // Here, because no process may hold all sockets.
    let echo = Target::echo().await?;
    for file in files {
        let source = Source::new(Some(file.into()), env.clone());
        let loaded =
            AgentConfig::load(&source).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        let mut config = loaded.config;
        for target in config.targets.values_mut() {
            target.port = echo.addr().port();
        }
        running.push(Agent::start(config, Tracer::default()).await?);
    }
    let read = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(read).await??;
    Ok(())
}

fn connector(number: usize) -> String {
    format!("c{:02}", number % CONNECTORS)
}

/// A hub, its agents, and the clients.
struct Crowd {
    _lab: Lab,
    hub: Hub,
    _processes: Vec<Child>,
    _clients: Vec<TcpStream>,
    _chatter: JoinSet<Result<()>>,
}

impl Crowd {
    async fn gather(plan: &Plan) -> Result<Self> {
        let lab = Lab::new(std::path::absolute(&plan.binary)?)?;
        let hub = (0..CONNECTORS).fold(lab.hub("hub-a"), |hub, at| hub.listener(&connector(at)));
        let hub = hub
            .set("limits.max_conn_total", plan.flows + 100)
            .set("limits.max_handshakes_per_sec", 1000)
            .set("observability.log_level", "WARN")
            .start()
            .await?;
        let files = (0..plan.agents).map(|at| agent_file(&lab, &hub, at));
        let files = files.collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        let processes = files.chunks(AGENTS_A_PROCESS).map(spawn_agents);
        let processes = processes.collect::<Result<Vec<_>>>()?;
        let there = async || {
            let agents = hub.metric("nowconnect_agents_connected", &[]).await?;
            ensure!(agents as usize == plan.agents, "{agents} agents");
            Ok(())
        };
        until_within(START, "agents", there).await?;
        println!("{} agents in {:.1?}", plan.agents, begun.elapsed());
        let begun = Instant::now();
        let mut clients = Vec::new();
        let mut opening = JoinSet::new();
        for at in 0..plan.flows {
            while opening.len() >= 100 {
                clients.extend(opening.join_next().await.context("a client")??);
            }
            opening.spawn(client(hub.listener_addr(&connector(at))?));
        }
        while let Some(opened) = opening.join_next().await {
            clients.push(opened??);
        }
        println!("{} flows in {:.1?}", plan.flows, begun.elapsed());
        let mut chatter = JoinSet::new();
        for talker in clients.drain(..clients.len().min(50)) {
            chatter.spawn(talk(talker));
        }
        Ok(Self {
            _lab: lab,
            hub,
            _processes: processes,
            _clients: clients,
            _chatter: chatter,
        })
    }
}

fn agent_file(lab: &Lab, hub: &Hub, at: usize) -> Result<String> {
    let (id, connector) = (format!("site-{at:04}"), connector(at));
    let token = lab.write(&format!("{id}.jwt"), &lab.issuer().token(&id)?)?;
    let config = json!({
        "tunnel": {
            "url": format!("ws://{}/tunnel", hub.tunnel_addr()?), "agent_id": id,
            "exported_connectors": [connector], "auth": { "token_file": token },
        },
        "targets": { connector: { "host": "127.0.0.1", "port": 1 } },
        "health": { "port": 0 },
    });
    lab.write(&format!("{id}.yaml"), &config.to_string())
}

fn spawn_agents(files: &[String]) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env("NOWCONNECT_PAGE_AGENTS", files.join("\n"));
    Ok(command.stdin(Stdio::piped()).kill_on_drop(true).spawn()?)
}

async fn client(listener: std::net::SocketAddr) -> Result<TcpStream> {
    let mut client = TcpStream::connect(listener).await?;
    say(&mut client).await?;
    Ok(client)
}

async fn say(client: &mut TcpStream) -> Result<()> {
    let mut word = [7; 100];
    client.write_all(&word).await?;
    client.read_exact(&mut word).await?;
    Ok(())
}

async fn talk(mut client: TcpStream) -> Result<()> {
    loop {
        say(&mut client).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn measure(plan: &Plan) -> Result<()> {
    let crowd = Crowd::gather(plan).await?;
    let url = format!("http://{}/", crowd.hub.admin_addr()?);
    let browser = Browser::start().await?;
    browser.prepare(OBSERVE).await?;
    let mut paints = Vec::new();
    for _ in 0..7 {
        browser.open("about:blank").await?;
        browser.open(&url).await?;
        let paint = browser.wait("the first paint", FIRST_PAINT).await?;
        paints.push(paint.as_f64().context("a time")?);
    }
    told("first paint, ms", &mut paints);
    let filled =
        "return document.querySelectorAll('#flows tbody tr').length === 100 && performance.now()";
    let filled = browser.wait("the tables", filled).await?;
    println!("tables filled at most {filled} ms after the page was asked for");
    browser.run(CLOCK).await?;
    keyboard_and_filter(&browser).await?;
    if let Some(dir) = &plan.shots {
        std::fs::create_dir_all(dir)?;
        shots(&browser, dir).await?;
    }
    watch(&browser, Duration::from_secs(plan.minutes * 60)).await?;
    let mut updates = numbers(&browser, "window.updates").await?;
    told("an update with its layout, ms", &mut updates);
    told(
        "asking the hub, ms",
        &mut numbers(&browser, "window.looks").await?,
    );
    told(
        "tasks above 50 ms, ms",
        &mut numbers(&browser, "window.long").await?,
    );
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}

async fn numbers(browser: &Browser, name: &str) -> Result<Vec<f64>> {
    let all = browser.run(&format!("return {name}")).await?;
    let all = all.as_array().context("numbers")?;
    Ok(all.iter().filter_map(Value::as_f64).collect())
}

fn told(what: &str, all: &mut [f64]) {
    all.sort_by(f64::total_cmp);
    let at = |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1)));
    match (at(50), at(99)) {
        (Some(median), Some(most)) => {
            println!(
                "{what}: median {median:.1}, p99 {most:.1}, {} times",
                all.len()
            );
        }
        _ => println!("{what}: none"),
    }
}

/// How many stops from the top to the filter of flows, and how soon a filter shows.
async fn keyboard_and_filter(browser: &Browser) -> Result<()> {
    let mut stops = 0;
    while browser
        .run("return document.activeElement.closest?.('form[data-list=flows]') === null")
        .await?
        == json!(true)
    {
        browser.type_in("\u{e004}").await?;
        stops += 1;
        ensure!(stops < 200, "the filter cannot be reached by keyboard");
    }
    println!("keyboard: {stops} stops to the filter of flows");
    let begun = Instant::now();
    browser.type_in("c07").await?;
    let shown = "const rows = [...document.querySelectorAll('#flows tbody tr')]; \
        return rows.length > 0 && rows.every((row) => row.children[2].textContent === 'c07')";
    browser.wait("the filtered flows", shown).await?;
    println!(
        "filter: {} ms from the first key to the rows",
        begun.elapsed().as_millis()
    );
    let focus = "return document.activeElement.closest?.('form[data-list=flows]') !== null \
        && document.activeElement.value === 'c07'";
    ensure!(
        browser.run(focus).await? == json!(true),
        "the focus is lost"
    );
    browser.type_in("\u{e003}\u{e003}\u{e003}").await?;
    Ok(())
}

/// Dark and light, wide and narrow.
async fn shots(browser: &Browser, dir: &Path) -> Result<()> {
    browser
        .run("document.activeElement.blur(); scrollTo(0, 0)")
        .await?;
    for (width, name) in [(1440, "wide"), (420, "narrow")] {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        browser
            .command("Emulation.setDeviceMetricsOverride", size)
            .await?;
        for theme in ["light", "dark"] {
            let features = json!([{ "name": "prefers-color-scheme", "value": theme }]);
            let media = json!({ "features": features });
            browser.command("Emulation.setEmulatedMedia", media).await?;
            for (part, whole) in [("top", false), ("whole", true)] {
                let png = browser.screenshot(whole).await?;
                std::fs::write(dir.join(format!("{name}-{theme}-{part}.png")), png)?;
            }
        }
    }
    browser
        .command("Emulation.clearDeviceMetricsOverride", json!({}))
        .await?;
    Ok(())
}

/// Memory and elements while the page goes on updating.
async fn watch(browser: &Browser, how_long: Duration) -> Result<()> {
    let begun = Instant::now();
    let step = how_long / 10;
    browser.command("Performance.enable", json!({})).await?;
    for at in 0..=10 {
        tokio::time::sleep_until((begun + step * at).into()).await;
        browser
            .command("HeapProfiler.collectGarbage", json!({}))
            .await?;
        let metrics = browser.command("Performance.getMetrics", json!({})).await?;
        let metric = |name: &str| {
            let all = metrics["metrics"].as_array().into_iter().flatten();
            let mut named = all.filter(|one| one["name"] == name);
            named
                .next()
                .and_then(|one| one["value"].as_f64())
                .unwrap_or(f64::NAN)
        };
        let elements = browser
            .run("return document.querySelectorAll('*').length")
            .await?;
        println!(
            "after {:>3} s: heap {:.2} MB, {elements} elements, {} nodes, {} listeners, main thread busy {:.1} s",
            begun.elapsed().as_secs(),
            metric("JSHeapUsedSize") / 1e6,
            metric("Nodes"),
            metric("JSEventListeners"),
            metric("TaskDuration"),
        );
    }
    Ok(())
}
