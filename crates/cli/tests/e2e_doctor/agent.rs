//! What is in the way of an agent.

use anyhow::Result;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::connect_proxy::ConnectProxy;
use nowconnect_testkit::issuer::{claims, now};
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::ports;
use nowconnect_testkit::program::succeed;
use nowconnect_testkit::target::Target;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{answering, doctor, http, lab, showing};

/// An agent `site-1` that exports `echo`, with a token of `claims`.
fn agent(lab: &Lab, url: &str, target: &Target, claims: &Value) -> Result<Value> {
    let token_file = lab.write("doctor.jwt", &lab.issuer().sign(claims)?)?;
    let (host, port) = (target.addr().ip().to_string(), target.addr().port());
    Ok(json!({
        "tunnel": { "url": url, "agent_id": "site-1", "exported_connectors": ["echo"],
                    "auth": { "token_file": token_file } },
        "targets": { "echo": { "host": host, "port": port } },
    }))
}

fn url(hub: &Hub) -> Result<String> {
    Ok(format!("ws://{}/tunnel", hub.tunnel_addr()?))
}

#[tokio::test]
async fn a_healthy_agent_is_told_so_and_its_tunnel_stays() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let (hub, _agent) = lab.site(&[("echo", target.addr())]).await?;
    let mut client = hub.connect("echo").await?;
    let config = agent(&lab, &url(&hub)?, &target, &claims("site-1", 3600))?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    assert_eq!(found.code, Some(0), "{}", found.report);
    assert_eq!(found.report["faults"], 0, "{}", found.report);
    for (area, fact) in [
        ("token", "agent_id site-1"),
        ("upgrade", "takes the token"),
        ("clock", "agree"),
        ("target", "connected in"),
    ] {
        assert!(
            found.said("ok", area).contains(fact),
            "{area}: {}",
            found.report
        );
    }
    // The agent that runs under the same id has noticed nothing.
    client.write_all(b"still here").await?;
    let mut echo = [0; 10];
    client.read_exact(&mut echo).await?;
    assert_eq!(&echo, b"still here");
    hub.wait_agents(1).await?;
    assert_eq!(
        hub.metric("nowconnect_protocol_errors_total", &[])
            .await
            .unwrap_or(0.0),
        0.0
    );
    Ok(())
}

#[tokio::test]
async fn tokens_are_judged_here_and_by_the_hub() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let hub = lab.hub_for(&[("echo", target.addr())]).start().await?;
    let url = url(&hub)?;

    let expired = agent(&lab, &url, &target, &claims("site-1", -7200))?;
    let found = doctor(&lab, "agent", &expired, &[]).await?;
    assert_eq!(found.code, Some(1), "{}", found.report);
    assert!(
        found.said("fault", "token").contains("expired 2 h ago"),
        "{}",
        found.report
    );
    assert!(
        found.said("fault", "upgrade").contains("401"),
        "{}",
        found.report
    );

    let mut other = claims("site-1", 3600);
    other["connectors"] = json!(["ldap"]);
    let found = doctor(&lab, "agent", &agent(&lab, &url, &target, &other)?, &[]).await?;
    let said = found.said("warning", "scopes");
    assert!(said.contains("does not cover echo"), "{}", found.report);

    let somebody = agent(&lab, &url, &target, &claims("site-2", 3600))?;
    let found = doctor(&lab, "agent", &somebody, &[]).await?;
    assert!(
        found.said("fault", "token").contains("site-2"),
        "{}",
        found.report
    );
    Ok(())
}

#[tokio::test]
async fn names_proxies_and_targets_that_do_not_work_are_named() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let mut config = agent(
        &lab,
        "wss://hub.invalid/tunnel",
        &target,
        &claims("site-1", 3600),
    )?;
    config["targets"]["echo"]["port"] = ports::reserve()?.into();
    let found = doctor(&lab, "agent", &config, &[]).await?;
    assert_eq!(found.code, Some(1), "{}", found.report);
    assert!(
        found.said("fault", "dns").contains("hub.invalid"),
        "{}",
        found.report
    );
    assert!(
        found.said("fault", "target").contains("nothing listens"),
        "{}",
        found.report
    );

    // A proxy that wants what only Windows speaks.
    let proxy = Target::serve(async |mut client| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let answer = b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n";
        client.write_all(answer).await?;
        Ok(0)
    })
    .await?;
    config["proxy"] = json!({ "https_proxy": format!("http://{}", proxy.addr()) });
    let found = doctor(&lab, "agent", &config, &[]).await?;
    let said = found.said("fault", "proxy");
    assert!(
        said.contains("NTLM") && said.contains("only Basic"),
        "{}",
        found.report
    );
    Ok(())
}

#[tokio::test]
async fn whoever_opens_tls_on_the_way_is_named() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    lab.certificates()?;
    let hub = lab
        .hub_for(&[("echo", target.addr())])
        .set(
            "tunnel.tls.cert_file",
            lab.path("server.crt").display().to_string(),
        )
        .set(
            "tunnel.tls.key_file",
            lab.path("server.key").display().to_string(),
        )
        .start()
        .await?;
    let url = format!("wss://{}/tunnel", hub.tunnel_addr()?);
    let mut config = agent(&lab, &url, &target, &claims("site-1", 3600))?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    let said = found.said("fault", "tls");
    assert!(
        said.contains("CN=test CA") && said.contains("ca_bundle"),
        "{}",
        found.report
    );

    config["proxy"] = json!({ "ca_bundle": lab.path("ca.pem") });
    let found = doctor(&lab, "agent", &config, &[]).await?;
    assert_eq!(found.code, Some(0), "{}", found.report);
    assert!(
        found.said("ok", "tls").contains("signed by CN=test CA"),
        "{}",
        found.report
    );
    Ok(())
}

#[tokio::test]
async fn proxies_are_told_apart_by_what_they_say() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let hub = lab.hub_for(&[("echo", target.addr())]).start().await?;
    let at = hub.tunnel_addr()?;
    // The name means something to the proxy alone.
    let mut config = agent(
        &lab,
        "ws://hub.example:80/tunnel",
        &target,
        &claims("site-1", 3600),
    )?;
    let basic = ConnectProxy::start(at, Some("user:right")).await?;
    let refusing = answering(http("403 Forbidden", "X: y", "not on the list")).await?;
    let negotiating = answering(http(
        "407 No",
        "Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM",
        "",
    ))
    .await?;
    let web = answering(http("405 Method Not Allowed", "Allow: GET", "")).await?;
    let unreachable = answering(http("502 Bad Gateway", "X: y", "no such host")).await?;
    let nobody = format!("127.0.0.1:{}", ports::reserve()?);
    for (proxy, words) in [
        (
            format!("http://{}", basic.addr()),
            &["offers: Basic", "put them into the proxy's URL"][..],
        ),
        (
            format!("http://user:wrong@{}", basic.addr()),
            &["offers: Basic", "are not accepted"],
        ),
        (
            format!("http://{}", negotiating.addr()),
            &["Negotiate, NTLM", "only Basic"],
        ),
        (
            format!("http://{}", refusing.addr()),
            &["403 Forbidden (not on the list)", "ask its operator"],
        ),
        (
            format!("http://{}", unreachable.addr()),
            &["502 Bad Gateway", "cannot reach the host itself"],
        ),
        (
            format!("http://{}", web.addr()),
            &["405", "no proxy for CONNECT"],
        ),
        (
            format!("http://{nobody}"),
            &["the proxy", "nothing listens there"],
        ),
        (
            "http://proxy.invalid:3128".into(),
            &["proxy.invalid", "DNS"],
        ),
    ] {
        config["proxy"] = json!({ "https_proxy": proxy, "http_proxy": proxy });
        let found = doctor(&lab, "agent", &config, &[]).await?;
        let area = if proxy.contains("invalid") {
            "dns"
        } else {
            "proxy"
        };
        found.has("fault", area, words)?;
        assert!(
            !found.report.to_string().contains("wrong@"),
            "{}",
            found.report
        );
    }
    let right = format!("http://user:right@{}", basic.addr());
    config["proxy"] = json!({ "http_proxy": right });
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("ok", "proxy", &["through"])?;
    found.has("ok", "upgrade", &["takes the token"])?;
    assert!(
        !found.report.to_string().contains("right@"),
        "{}",
        found.report
    );
    Ok(())
}

#[tokio::test]
async fn certificates_of_the_hub_are_read_out() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let authority = Authority::new("corp CA")?;
    authority.issue("old", &Certificate::good(&["127.0.0.1"]).expired())?;
    authority.issue("early", &Certificate::good(&["127.0.0.1"]).not_yet_valid())?;
    authority.issue("other", &Certificate::good(&["hub.example", "api.example"]))?;
    for (name, words) in [
        ("old", &["has expired", "ended 60 min ago", "renew it"][..]),
        ("early", &["not valid yet", "begins in", "clock"]),
        (
            "other",
            &["is for hub.example, api.example", "not for 127.0.0.1"],
        ),
    ] {
        let server = showing(&authority, name).await?;
        let url = format!("wss://{}/tunnel", server.addr());
        let mut config = agent(&lab, &url, &target, &claims("site-1", 3600))?;
        config["proxy"] = json!({ "ca_bundle": authority.bundle() });
        doctor(&lab, "agent", &config, &[])
            .await?
            .has("fault", "tls", words)?;
    }
    // No TLS at all.
    let hub = lab.hub_for(&[("echo", target.addr())]).start().await?;
    let url = format!("wss://{}/tunnel", hub.tunnel_addr()?);
    let config = agent(&lab, &url, &target, &claims("site-1", 3600))?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("fault", "tls", &["does not speak TLS"])
}

#[tokio::test]
async fn upgrades_that_are_refused_are_told_apart() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let hub = lab.hub_for(&[("echo", target.addr())]).start().await?;
    let at = hub.tunnel_addr()?;
    let claims = claims("site-1", 3600);
    let config = agent(&lab, &format!("ws://{at}/tunel"), &target, &claims)?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("fault", "upgrade", &["404", "path"])?;

    let mut stranger = claims.clone();
    stranger["aud"] = "other".into();
    let config = agent(&lab, &format!("ws://{at}/tunnel"), &target, &stranger)?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("fault", "upgrade", &["wrong_audience", "audience"])?;

    for (status, words) in [
        ("403 Forbidden", &["403", "does not let this client in"][..]),
        ("502 Bad Gateway", &["502", "ingress does not reach"]),
        ("301 Moved", &["301", "redirects are not followed"]),
        ("200 OK", &["200"]),
    ] {
        let ingress = answering(http(status, "Server: edge", "")).await?;
        let url = format!("ws://{}/tunnel", ingress.addr());
        let config = agent(&lab, &url, &target, &claims)?;
        let found = doctor(&lab, "agent", &config, &[]).await?;
        found.has("fault", "upgrade", words)?;
    }
    Ok(())
}

/// `Date` of a server whose clock is `off` seconds from ours.
async fn date(off: i64) -> Result<String> {
    let mut command = Command::new("date");
    command
        .env("LC_ALL", "C")
        .args(["-u", "+Date: %a, %d %b %Y %H:%M:%S GMT"]);
    let date = succeed(command.arg(format!("-d@{}", now() + off))).await?;
    Ok(date.trim().to_owned())
}

#[tokio::test]
async fn clocks_are_compared_with_the_hub_and_with_the_token() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    for (off, lifetime, result, words) in [
        (2, 3600, "ok", &["agree within 5 s"][..]),
        (-20, 3600, "warning", &["20 s ahead of the hub", "NTP"]),
        (7200, 600, "fault", &["behind the hub"]),
        (
            7200,
            600,
            "fault",
            &["by the hub's clock the token expired 110 min ago"],
        ),
        (
            -7200,
            3600,
            "warning",
            &["by the hub's clock the token was issued 2 h from now (iat)"],
        ),
        (
            -7200,
            -3600,
            "warning",
            &["by the hub's clock the token has not expired"],
        ),
    ] {
        let hub = answering(http("404 Not Found", &date(off).await?, "")).await?;
        let url = format!("ws://{}/tunnel", hub.addr());
        let config = agent(&lab, &url, &target, &claims("site-1", lifetime))?;
        let found = doctor(&lab, "agent", &config, &[]).await?;
        found.has(result, "clock", words)?;
    }
    Ok(())
}

#[tokio::test]
async fn tokens_are_read_out() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let url = format!("ws://127.0.0.1:{}/tunnel", ports::reserve()?);
    let config = agent(&lab, &url, &target, &claims("site-1", 3600))?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("ok", "token", &["signed with ES256", "key-1"])?;
    found.has("fault", "connection", &["nothing listens"])?;
    let hmac = lab
        .issuer()
        .sign_with_hmac(&claims("site-1", 300), "key-1", "secret")?;
    lab.write("doctor.jwt", &hmac)?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("fault", "token", &["HS256", "take nothing else"])?;
    found.has("warning", "token", &["ends in", "renew"])?;
    lab.write("doctor.jwt", "changeme\n")?;
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("fault", "token", &["no JWT"])
}

#[tokio::test]
async fn targets_that_do_not_answer_are_told_apart() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let url = format!("ws://127.0.0.1:{}/tunnel", ports::reserve()?);
    let mut config = agent(&lab, &url, &target, &claims("site-1", 3600))?;
    config["limits"] = json!({ "connect_timeout_ms": 300 });
    // Two connections fill it: whoever comes then hears nothing.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    full.bind(&ports::local(0).into())?;
    full.listen(0)?;
    let port = full.local_addr()?.as_socket_ipv4().map(|addr| addr.port());
    let addr = ports::local(port.unwrap_or_default());
    let _first = tokio::net::TcpStream::connect(addr).await?;
    config["targets"]["echo"]["port"] = addr.port().into();
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has(
        "fault",
        "target",
        &["echo", "no connection within 300 ms", "firewall"],
    )?;
    config["targets"]["echo"]["host"] = "dc1.invalid".into();
    let found = doctor(&lab, "agent", &config, &[]).await?;
    found.has("fault", "target", &["dc1.invalid", "DNS"])
}
