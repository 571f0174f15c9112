//! Mistakes at the command line and in files are told all at once, with the place and the cure.

use anyhow::{Result, ensure};
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::ports;
use nowconnect_testkit::program::Finished;
use tokio::net::TcpListener;

/// Wrong in five places, each on a line of its own.
const HUB: &str = "\
listeners:
  - { name: l1, bind: '0.0.0.0:389', connector: 'ldap' }
  - { name: l1, bind: '0.0.0.0:389', connector: 'pg' }
tunnel:
  prot: 8765
limits:
  max_conn_total: lots
security:
  allow_cidrs: ['10.0.0.0/99']
observability:
  log_format: xml
";

const AGENT: &str = "\
tunnel:
  url: http://hub/tunnel
  agent_id: 'site 1'
  exported_connectors: [ldap, pg]
targets:
  ldap: { host: dc1, port: 70000 }
limitz: {}
";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

fn ensure_told(done: &Finished, code: i32, words: &[&str]) -> Result<()> {
    ensure!(
        done.status.code() == Some(code),
        "expected exit {code}: {done:?}"
    );
    let said = format!("{}\n{}", done.stdout, done.stderr);
    for word in words {
        ensure!(said.contains(word), "nothing about {word:?}:\n{said}");
    }
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

#[tokio::test]
async fn every_mistake_of_a_hub_file_is_told_with_its_line() -> Result<()> {
    let lab = lab()?;
    let file = lab.write("cloud.yaml", HUB)?;
    let words = [
        "cloud.yaml:5",
        "prot",
        "port", // did you mean
        "cloud.yaml:7",
        "max_conn_total",
        "cloud.yaml:9",
        "10.0.0.0/99",
        "cloud.yaml:11",
        "log_format",
        "json",
        "cloud.yaml:3",
        "l1",
    ];
    ensure_told(&lab.run(&["check", "--config", &file]).await?, 2, &words)?;
    ensure_told(&lab.run(&["hub", "--config", &file]).await?, 2, &words)
}

#[tokio::test]
async fn every_mistake_of_an_agent_file_is_told_with_its_line() -> Result<()> {
    let lab = lab()?;
    let file = lab.write("premise.yaml", AGENT)?;
    let words = [
        "premise.yaml:2",
        "ws://",
        "premise.yaml:3",
        "agent_id",
        "pg",
        "premise.yaml:6",
        "70000",
        "premise.yaml:7",
        "limitz",
        "limits",
        "token_file",
    ];
    ensure_told(&lab.run(&["check", "--config", &file]).await?, 2, &words)?;
    ensure_told(&lab.run(&["agent", "--config", &file]).await?, 2, &words)
}

#[tokio::test]
async fn a_good_file_checks_and_prints_without_its_secrets() -> Result<()> {
    let lab = lab()?;
    let text = "listeners: [{ name: l1, bind: '127.0.0.1:1389', connector: ldap }]\n\
                security: { jwks_url: 'https://idp.example/keys' }\n\
                ha: { redis_url: 'redis://user:hunter2@redis:6379/0', mode: 'off' }\n";
    let file = lab.write("cloud.yaml", text)?;
    ensure_told(&lab.run(&["check", "--config", &file]).await?, 0, &[])?;
    let printed = lab.run(&["check", "--config", &file, "--print"]).await?;
    ensure_told(&printed, 0, &["idp.example", "ldap", "memory_budget_mb"])?;
    ensure!(
        !format!("{printed:?}").contains("hunter2"),
        "a secret was printed"
    );
    Ok(())
}

#[tokio::test]
async fn a_file_that_does_not_exist_is_named() -> Result<()> {
    let lab = lab()?;
    for command in ["hub", "agent", "check"] {
        let done = lab
            .run(&[command, "--config", "/nowhere/at-all.yaml"])
            .await?;
        ensure_told(&done, 2, &["/nowhere/at-all.yaml"])?;
    }
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named_and_ends_the_start() -> Result<()> {
    let lab = lab()?;
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let busy = taken.local_addr()?.to_string();
    let mut hub = lab
        .hub("hub-a")
        .listener("echo")
        .set("admin.bind", busy.clone())
        .spawn()?;
    let status = hub.process().wait_exit().await?;
    assert_eq!(status.code(), Some(1));
    assert!(hub.log().text().contains(&busy), "{}", hub.log().text());
    let mut hub = lab
        .hub("hub-b")
        .listener("echo")
        .set("tunnel.port", taken.local_addr()?.port());
    hub = hub.set("tunnel.host", "127.0.0.1");
    let mut hub = hub.spawn()?;
    assert_eq!(hub.process().wait_exit().await?.code(), Some(1));
    assert!(hub.log().text().contains(&busy), "{}", hub.log().text());
    Ok(())
}

#[tokio::test]
async fn a_missing_token_file_and_a_bad_ca_bundle_are_named() -> Result<()> {
    let lab = lab()?;
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let server = ports::local(ports::reserve()?);
    let agent = lab.agent("site-1").to(&hub).target("echo", server);
    let agent = agent.env("NC_TOKEN_FILE", "/nowhere/agent.jwt").spawn()?;
    let named = |line: &str| line.contains("/nowhere/agent.jwt").then_some(());
    let deadline = nowconnect_testkit::wait::DEADLINE;
    agent
        .log()
        .wait_line(
            "word of the token file",
            Default::default(),
            deadline,
            named,
        )
        .await?;

    let bundle = lab.write("bundle.pem", "-----BEGIN CERTIFICATE-----\nnot one\n")?;
    let agent = lab
        .agent("site-2")
        .url("wss://127.0.0.1:1/tunnel")
        .target("echo", server);
    let agent = agent.env("NC_CA_BUNDLE", &bundle).spawn()?;
    let named = |line: &str| line.contains("bundle.pem").then_some(());
    agent
        .log()
        .wait_line("word of the CA bundle", Default::default(), deadline, named)
        .await
}

#[tokio::test]
async fn the_environment_alone_configures_an_agent_and_overrides_a_hub() -> Result<()> {
    let lab = lab()?;
    let hub = lab
        .hub("hub-a")
        .listener("ldap")
        .env("NOWCONNECT__LIMITS__MAX_CONN_TOTAL", "77");
    let hub = hub
        .set("security.jwks_url", "")
        .env("NOWCONNECT_JWKS_URL", &lab.issuer().jwks_url());
    let hub = hub.start().await?;
    let token = lab.write("agent.jwt", &lab.issuer().token("env-1")?)?;
    let mut command = lab.command(&["agent"]);
    command
        .env(
            "NC_AGENT_URL",
            format!("ws://{}/tunnel", hub.tunnel_addr()?),
        )
        .env("NC_AGENT_ID", "env-1")
        .env("NC_TOKEN_FILE", &token)
        .env("NC_CONNECTORS", "ldap")
        .env("NC_TARGET_ldap_HOST", "127.0.0.1")
        .env("NC_TARGET_ldap_PORT", "1")
        .env("NC_HEALTH_PORT", ports::reserve()?.to_string())
        .kill_on_drop(true);
    let _agent = command.stdout(std::process::Stdio::null()).spawn()?;
    hub.wait_agents(1).await?;
    let url = format!("http://{}/api/v1/config", hub.admin_addr()?);
    let config = nowconnect_testkit::http::get(hub.admin_addr()?, "/api/v1/config").await?;
    assert!(config.body.contains("77"), "{url}: {}", config.body);
    Ok(())
}

#[tokio::test]
async fn every_command_has_help_with_examples_and_wrong_usage_exits_with_2() -> Result<()> {
    let lab = lab()?;
    let commands = [
        &["hub"][..],
        &["agent"],
        &["dev"],
        &["check"],
        &["status"],
        &["reload"],
        &["drain"],
        &["token", "mint"],
        &["token", "jwks"],
        &["completions"],
        &["man"],
    ];
    for command in commands {
        let help = lab.run(&[command, &["--help"]].concat()).await?;
        let name = command.join(" ");
        ensure_told(&help, 0, &[&format!("nowconnect {name}"), "Example"])?;
        let wrong = lab.run(&[command, &["--no-such-flag"]].concat()).await?;
        ensure_told(&wrong, 2, &["--no-such-flag"])?;
    }
    ensure_told(&lab.run(&["hubb"]).await?, 2, &["hub"])?;
    ensure_told(
        &lab.run(&["completions", "bash"]).await?,
        0,
        &["nowconnect"],
    )?;
    ensure_told(&lab.run(&["--version"]).await?, 0, &["nowconnect"])
}
