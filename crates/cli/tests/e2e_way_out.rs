//! How an agent gets out of its network: TLS, private CAs, corporate proxies.

use anyhow::Result;
use nowconnect_testkit::connect_proxy::ConnectProxy;
use nowconnect_testkit::lab::{AgentPlan, Hub, Lab};
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::DEADLINE;

fn lab() -> Result<Lab> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    lab.certificates()?;
    Ok(lab)
}

/// A hub with TLS of its own; `metrics_port` stays plain.
async fn tls_hub(lab: &Lab) -> Result<Hub> {
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set(
        "tunnel.tls.cert_file",
        lab.path("server.crt").display().to_string(),
    );
    hub.set(
        "tunnel.tls.key_file",
        lab.path("server.key").display().to_string(),
    )
    .start()
    .await
}

fn agent<'a>(lab: &'a Lab, hub: &Hub, server: &Target) -> Result<AgentPlan<'a>> {
    let url = format!("wss://127.0.0.1:{}/tunnel", hub.tunnel_addr()?.port());
    let ca = lab.path("ca.pem").display().to_string();
    Ok(lab
        .agent("site-1")
        .target("echo", server.addr())
        .url(&url)
        .env("NC_CA_BUNDLE", &ca))
}

#[tokio::test]
async fn tls_works_with_a_private_ca_and_follows_a_new_certificate() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = tls_hub(&lab).await?;
    let mut site = agent(&lab, &hub, &server)?.start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 300_000).await?;
    // Another CA and certificate: flows live on, and the agent trusts the new one at once.
    let mark = hub.log().mark();
    lab.certificates()?;
    hub.reload().await?;
    hub.log().wait_event_since("config_reloaded", mark).await?;
    echo(&mut client, Pattern(1), 300_000, 1000).await?;
    site.restart().await?;
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;
    let expiry = hub.metric("nowconnect_cert_expiry_seconds", &[]).await?;
    assert!(expiry > 0.0, "{expiry}");
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_does_not_verify_is_refused_and_the_agent_keeps_trying() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = tls_hub(&lab).await?;
    // `ca.pem` is replaced: now it is a CA that did not sign the hub's certificate.
    let (crt, key) = (lab.path("server.crt"), lab.path("server.key"));
    let (old_crt, old_key) = (std::fs::read(&crt)?, std::fs::read(&key)?);
    lab.certificates()?;
    std::fs::write(&crt, old_crt)?;
    std::fs::write(&key, old_key)?;
    let mut site = agent(&lab, &hub, &server)?.spawn()?;
    for _ in 0..2 {
        let mark = site.log().mark();
        let refusal = |line: &str| line.to_lowercase().contains("certificate").then_some(());
        site.log()
            .wait_line("word of the certificate", mark, DEADLINE, refusal)
            .await?;
    }
    site.process().check_alive()?;
    hub.wait_agents(0).await
}

/// Nobody is there (RFC 5737), and it is not this machine, which is never reached by a proxy.
const FAR: &str = "192.0.2.1:443";

fn far_agent<'a>(lab: &'a Lab, server: &Target) -> AgentPlan<'a> {
    let ca = lab.path("ca.pem").display().to_string();
    let site = lab
        .agent("site-1")
        .target("echo", server.addr())
        .env("NC_CA_BUNDLE", &ca);
    site.url(&format!("wss://{FAR}/tunnel"))
}

#[tokio::test]
async fn a_proxy_with_credentials_leads_out() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = tls_hub(&lab).await?;
    let proxy = ConnectProxy::start(hub.tunnel_addr()?, Some("us er:p@ss:word")).await?;
    let url = format!("http://us%20er:p%40ss%3Aword@{}", proxy.addr());
    let site = far_agent(&lab, &server)
        .env("NC_TRUST_ENV", "true")
        .env("HTTPS_PROXY", &url);
    let site = site.start().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100_000).await?;
    assert_eq!(proxy.asked(), [FAR]);
    assert!(
        !site.log().text().contains("p%40ss"),
        "the proxy's password was logged"
    );
    drop(site);

    let site = far_agent(&lab, &server)
        .set("proxy.https_proxy", url)
        .start()
        .await?;
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;
    assert_eq!(proxy.asked().len(), 2);
    drop(site);
    Ok(())
}

#[tokio::test]
async fn a_plain_tunnel_takes_the_plain_proxy() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo").start().await?;
    let proxy = ConnectProxy::start(hub.tunnel_addr()?, None).await?;
    let site = far_agent(&lab, &server)
        .url("ws://192.0.2.1/tunnel")
        .env("NC_TRUST_ENV", "true");
    let site = site
        .env("HTTP_PROXY", &format!("http://{}", proxy.addr()))
        .start()
        .await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 1000).await?;
    assert_eq!(proxy.asked(), ["192.0.2.1:80"]);
    drop(site);
    Ok(())
}

#[tokio::test]
async fn a_refusing_proxy_is_diagnosed() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let proxy = ConnectProxy::start(server.addr(), Some("user:password")).await?;
    let url = format!("http://user:wrong@{}", proxy.addr());
    let site = far_agent(&lab, &server)
        .env("NC_TRUST_ENV", "true")
        .env("HTTPS_PROXY", &url);
    let site = site.spawn()?;
    let refusal = |line: &str| line.contains("407").then_some(());
    site.log()
        .wait_line("word of status 407", Mark::default(), DEADLINE, refusal)
        .await?;
    assert!(
        !site.log().text().contains("wrong@"),
        "the proxy's password was logged"
    );
    Ok(())
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_used_only_when_trusted_and_not_for_exceptions()
-> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let proxy = ConnectProxy::start(server.addr(), None).await?;
    let url = format!("http://{}", proxy.addr());
    let cases = [
        ("false", ""),
        ("true", "example.org,192.0.2.1"),
        ("true", "192.0.2.0/24"),
    ];
    for (index, (trust, exceptions)) in cases.into_iter().enumerate() {
        let site = far_agent(&lab, &server).instance(&format!("case-{index}"));
        let site = site.env("NC_TRUST_ENV", trust).env("HTTPS_PROXY", &url);
        let site = site.env("NO_PROXY", exceptions).spawn()?;
        let tried =
            |line: &str| (line.contains("WARN") && line.contains("192.0.2.1")).then_some(());
        site.log()
            .wait_line("word of a failure", Mark::default(), DEADLINE, tried)
            .await?;
    }
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
    Ok(())
}
