//! The doctor, in front of patients whose illness is known.

use anyhow::{Context, Result};
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::issuer::claims;
use nowconnect_testkit::lab::{Hub, Lab};
use nowconnect_testkit::ports;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// What the doctor said.
struct Finding {
    code: Option<i32>,
    report: Value,
}

impl Finding {
    /// Facts and next steps of one area with one result, as one text.
    fn said(&self, result: &str, area: &str) -> String {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        let wanted = findings.filter(|one| one["result"] == result && one["area"] == area);
        wanted
            .map(|one| format!("{} -> {}\n", one["fact"], one["next"]))
            .collect()
    }
}

async fn doctor(lab: &Lab, kind: &str, config: &Value, env: &[(&str, &str)]) -> Result<Finding> {
    let file = lab.write(&format!("doctor-{kind}.yaml"), &config.to_string())?;
    let mut command = lab.command(&["doctor", kind, "--json", "--config", &file]);
    for (key, value) in env {
        command.env(key, value);
    }
    let done = nowconnect_testkit::program::finish(&mut command).await?;
    let report = serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?;
    Ok(Finding {
        code: done.status.code(),
        report,
    })
}

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

/// A hub's configuration on free ports.
fn hub(lab: &Lab) -> Result<Value> {
    let port = ports::reserve;
    Ok(json!({
        "listeners": [{ "name": "l1", "bind": format!("127.0.0.1:{}", port()?), "connector": "echo" }],
        "tunnel": { "host": "127.0.0.1", "port": port()? },
        "admin": { "bind": format!("127.0.0.1:{}", port()?) },
        "security": { "jwks_url": lab.issuer().jwks_url() },
    }))
}

#[tokio::test]
async fn a_hub_is_looked_at_before_and_while_it_runs() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let mut config = hub(&lab)?;
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(0), "{}", found.report);
    assert!(
        found.said("ok", "ports").contains("free:"),
        "{}",
        found.report
    );
    assert!(
        found.said("ok", "token keys").contains("1 usable key"),
        "{}",
        found.report
    );

    let taken = target.addr();
    config["listeners"][0]["bind"] = taken.to_string().into();
    config["security"]["jwks_url"] = "http://127.0.0.1:1/jwks.json".into();
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(1), "{}", found.report);
    let said = found.said("fault", "ports");
    assert!(
        said.contains("another program") && said.contains("ss -ltnp"),
        "{}",
        found.report
    );
    assert!(
        found.said("fault", "token keys").contains("127.0.0.1:1"),
        "{}",
        found.report
    );

    config["tunnel"]["prot"] = 1.into();
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(2), "{}", found.report);
    assert!(
        found.said("fault", "configuration").contains("prot"),
        "{}",
        found.report
    );

    let running = lab.hub_for(&[("echo", target.addr())]).start().await?;
    let found = doctor(&lab, "hub", running.config(), &[]).await?;
    assert!(
        found.said("ok", "ports").contains("a hub runs here"),
        "{}",
        found.report
    );
    Ok(())
}

#[tokio::test]
async fn redis_is_tried_as_a_hub_uses_it() -> Result<()> {
    let lab = lab()?;
    let redis = Redis::plan().user("hub", "r1ght-secret").start().await?;
    let mut config = hub(&lab)?;
    config["ha"] = json!({ "mode": "shadow", "replica_id": "hub-a" });
    for (password, works) in [("r1ght-secret", true), ("wr0ng-secret", false)] {
        let url = format!("redis://hub:{password}@{}/0", redis.addr());
        config["ha"]["redis_url"] = url.into();
        let found = doctor(&lab, "hub", &config, &[]).await?;
        let (ok, fault) = (found.said("ok", "redis"), found.said("fault", "redis"));
        assert!(
            !found.report.to_string().contains(password),
            "{}",
            found.report
        );
        match works {
            true => assert!(
                ok.contains("master") && ok.contains("scripts"),
                "{}",
                found.report
            ),
            false => assert!(fault.contains("password"), "{}", found.report),
        }
    }
    Ok(())
}

#[tokio::test]
async fn peers_prove_themselves_to_each_other_or_it_is_said_why_not() -> Result<()> {
    let (lab, other) = (lab()?, Authority::new("other mesh CA")?);
    let ours = Authority::new("mesh CA")?;
    for (authority, name) in [(&ours, "hub"), (&other, "stranger")] {
        authority.issue(name, &Certificate::good(&["127.0.0.1", "localhost"]))?;
    }
    let tls = |authority: &Authority, name: &str| {
        json!({
            "ca_bundle": authority.bundle(),
            "cert_file": authority.file(&format!("{name}.crt")),
            "key_file": authority.file(&format!("{name}.key")),
        })
    };
    // Nobody needs the registry to be shared for a link.
    let peer = lab.hub("hub-b").listener("echo");
    let at = peer.tunnel_addr()?;
    let mut peer = peer
        .member("shadow", "redis://127.0.0.1:1/0")
        .set(
            "ha.mesh.peers",
            json!(["ws://localhost:1/mesh", "ws://127.0.0.1:1/mesh"]),
        )
        .set("ha.mesh.tls", tls(&ours, "hub"))
        .spawn()?;
    peer.wait_ready().await?;

    let mut config = hub(&lab)?;
    config["ha"] = json!({
        "mode": "shadow", "replica_id": "hub-a", "redis_url": "redis://127.0.0.1:1/0",
        "mesh": { "peers": [format!("ws://{at}/mesh")] },
    });
    config["ha"]["mesh"]["tls"] = tls(&ours, "hub");
    let found = doctor(&lab, "hub", &config, &[]).await?;
    let said = found.said("ok", "peer");
    assert!(
        said.contains("both have proven who they are"),
        "{}",
        found.report
    );

    config["ha"]["mesh"]["tls"] = tls(&other, "stranger");
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(1), "{}", found.report);
    let said = found.said("fault", "peer");
    assert!(
        said.contains("mutual TLS") && said.contains("ha.mesh.tls"),
        "{}",
        found.report
    );
    Ok(())
}
