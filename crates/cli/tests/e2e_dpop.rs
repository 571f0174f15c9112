//! Tokens that are of use to nobody but the agent that they are for (DPoP), with real hubs and agents.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nowconnect_agent::proof::{ProofKey, Purpose};
use nowconnect_testkit::issuer::{claims, claims_of};
use nowconnect_testkit::lab::{AgentPlan, Hub, Lab, Pair};
use nowconnect_testkit::log::Mark;
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::program;
use nowconnect_testkit::raw_tunnel::RawTunnel;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::within;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const FAILURES: &str = "nowconnect_auth_failures_total";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// A key made by the binary.
struct Key {
    proof: ProofKey,
    file: PathBuf,
}

impl Key {
    async fn make(lab: &Lab, name: &str) -> Result<Self> {
        let file = lab.path(name);
        let path = file.display().to_string();
        let made = lab.run(&["token", "dpop-key", "--out", &path]).await?;
        ensure!(made.status.success(), "{made:?}");
        let proof = ProofKey::from_pem(&std::fs::read_to_string(&file)?)?;
        ensure!(made.stdout.contains(proof.thumbprint()), "{made:?}");
        Ok(Self { proof, file })
    }

    /// A token of `site-1` for this key.
    fn token(&self, lab: &Lab) -> Result<String> {
        let mut claims = claims("site-1", 3600);
        claims["cnf"] = json!({ "jkt": self.proof.thumbprint() });
        // Two tokens of one second must differ.
        claims["jti"] =
            json!(lab.path("x").display().to_string() + &format!("{:?}", SystemTime::now()));
        lab.issuer().sign(&claims)
    }

    fn request(&self, token: &str, url: &str, nonce: Option<&str>) -> Result<String> {
        let uri = url.parse()?;
        let purpose = Purpose {
            method: "GET",
            url: &uri,
            token,
            nonce,
        };
        let proof = self.proof.prove(&purpose, SystemTime::now())?;
        let host = uri.authority().context("a host")?;
        let headers = format!("Authorization: DPoP {token}\r\nDPoP: {proof}\r\n");
        Ok(upgrade(host.as_str(), &headers))
    }

    fn plan<'a>(&self, agent: AgentPlan<'a>, token: &str) -> AgentPlan<'a> {
        let file = self.file.display().to_string();
        agent.set("tunnel.auth.dpop_key_file", file).token(token)
    }
}

fn upgrade(host: &str, headers: &str) -> String {
    format!(
        "GET /tunnel HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: nowconnect.v2\r\n{headers}\r\n"
    )
}

/// Sends the bytes of an upgrade; returns what is answered up to the end of the head, or of the body
/// when it is refused.
async fn knock(hub: SocketAddr, request: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(hub).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") || !answer.starts_with(b"HTTP/1.1 101") {
            match stream.read_u8().await {
                Ok(byte) => answer.push(byte),
                Err(_) => break,
            }
        }
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    within("the hub to answer", exchange).await?
}

fn is_in(answer: &str) -> Result<()> {
    ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    Ok(())
}

fn is_out(answer: &str, reason: &str) -> Result<()> {
    let reason = format!(r#""error":"{reason}""#);
    ensure!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains(&reason),
        "{reason}: {answer}"
    );
    ensure!(answer.contains("www-authenticate: DPoP "), "{answer}");
    Ok(())
}

fn nonce(answer: &str) -> Result<&str> {
    is_out(answer, "use_dpop_nonce")?;
    ensure!(
        answer.contains(r#"DPoP error="use_dpop_nonce""#),
        "{answer}"
    );
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("dpop-nonce: "));
    line.with_context(|| answer.to_owned())
}

fn url(hub: &Hub) -> Result<String> {
    Ok(format!("ws://{}/tunnel", hub.tunnel_addr()?))
}

#[tokio::test]
async fn an_agent_with_its_key_gets_in_and_whoever_stole_its_token_does_not() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("security.fapi_mode", 2).start().await?;
    let key = Key::make(&lab, "agent.pem").await?;
    let token = key.token(&lab)?;
    let agent = lab.agent("site-1").target("echo", server.addr()).to(&hub);
    let _agent = key.plan(agent, &token).start().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100).await?;
    // A nonce is asked for, which is no failure.
    let failures = hub.metric(FAILURES, &[]).await?;
    assert_eq!(failures, 0.0);

    let addr = hub.tunnel_addr()?;
    let shown = |headers: &str| upgrade(&addr.to_string(), headers);
    let thief = Key::make(&lab, "thief.pem").await?;
    let unbound = lab.issuer().token("site-1")?;
    let own = key.request(&token, &url(&hub)?, None)?;
    let (_, proof) = own.split_once("DPoP: ").context("a proof")?;
    let proof = proof.trim();
    for (request, reason) in [
        (
            shown(&format!("Authorization: Bearer {token}\r\n")),
            "dpop_required",
        ),
        (
            shown(&format!("Authorization: Bearer {unbound}\r\n")),
            "dpop_required",
        ),
        (
            shown(&format!(
                "Authorization: Bearer {token}\r\nDPoP: {proof}\r\n"
            )),
            "dpop_required",
        ),
        (
            shown(&format!("Authorization: DPoP {token}\r\n")),
            "dpop_missing",
        ),
        (
            thief.request(&token, &url(&hub)?, None)?,
            "dpop_key_mismatch",
        ),
        (
            thief.request(&unbound, &url(&hub)?, None)?,
            "dpop_token_unbound",
        ),
        (
            key.request(&token, "ws://elsewhere/tunnel", None)?
                .replace("elsewhere", &addr.to_string()),
            "dpop_wrong_target",
        ),
        (
            shown(&format!(
                "Authorization: DPoP {token}\r\nDPoP: {proof}\r\nDPoP: {proof}\r\n"
            )),
            "dpop_malformed",
        ),
        (
            shown(&format!(
                "Authorization: DPoP {}\r\nDPoP: {proof}\r\n",
                key.token(&lab)?
            )),
            "dpop_wrong_token",
        ),
        (
            key.request(&token, &url(&hub)?, Some("guessed"))?,
            "dpop_bad_nonce",
        ),
    ] {
        let before = hub.metric(FAILURES, &[("reason", reason)]).await?;
        is_out(&knock(addr, &request).await?, reason)?;
        let after = hub.metric(FAILURES, &[("reason", reason)]).await?;
        ensure!(
            after == before + 1.0,
            "{reason} counted {before} to {after}"
        );
    }
    let log = hub.log().text();
    assert!(
        !log.contains(&token[token.len() - 30..]),
        "a token was logged"
    );
    assert!(
        !log.contains(&proof[proof.len() - 30..]),
        "a proof was logged"
    );
    Ok(())
}

#[tokio::test]
async fn a_captured_upgrade_is_of_no_use_at_the_hub_that_took_it() -> Result<()> {
    let lab = lab()?;
    let mut hub = lab
        .hub("hub-a")
        .set("security.fapi_mode", 2)
        .listener("echo")
        .start()
        .await?;
    let key = Key::make(&lab, "agent.pem").await?;
    let (token, addr) = (key.token(&lab)?, hub.tunnel_addr()?);
    let first = key.request(&token, &url(&hub)?, None)?;
    let answer = knock(addr, &first).await?;
    let second = key.request(&token, &url(&hub)?, Some(nonce(&answer)?))?;
    is_in(&knock(addr, &second).await?)?;
    is_out(&knock(addr, &second).await?, "dpop_replayed")?;
    nonce(&knock(addr, &first).await?)?;
    // A hub that was started again remembers nothing, and takes nothing of what was before.
    hub.restart().await?;
    is_out(&knock(addr, &second).await?, "dpop_bad_nonce")
}

#[tokio::test]
async fn a_captured_upgrade_is_of_no_use_at_any_hub_with_or_without_the_registry() -> Result<()> {
    let pair = Pair::start_with(lab()?, "active", &[("security.fapi_mode", 2)]).await?;
    let key = Key::make(&pair.lab, "agent.pem").await?;
    let token = key.token(&pair.lab)?;
    let (a, b) = (pair.a.tunnel_addr()?, pair.b.tunnel_addr()?);
    // Data that are so young say nothing about proofs of before.
    let early = key.request(&token, &url(&pair.a)?, None)?;
    is_out(&knock(a, &early).await?, "use_dpop_nonce")?;
    pair.redis.seem_old().await?;
    // The bytes name the first hub, as both do behind one name.
    let shared = key.request(&token, &url(&pair.a)?, None)?;
    is_in(&knock(a, &shared).await?)?;
    is_out(&knock(a, &shared).await?, "dpop_replayed")?;
    is_out(&knock(b, &shared).await?, "dpop_replayed")?;

    pair.redis.signal(Signal::Stop).await?;
    let alone = key.request(&token, &url(&pair.b)?, None)?;
    let answer = knock(b, &alone).await?;
    let alone = key.request(&token, &url(&pair.b)?, Some(nonce(&answer)?))?;
    is_in(&knock(b, &alone).await?)?;
    is_out(&knock(b, &alone).await?, "dpop_replayed")?;
    is_out(&knock(a, &alone).await?, "dpop_bad_nonce")?;
    is_out(&knock(a, &shared).await?, "use_dpop_nonce")?;
    // Agents get in all the while.
    let agent = pair.agent(&[&pair.a, &pair.b], "all");
    let _agent = key.plan(agent, &token).start().await?;
    pair.redis.signal(Signal::Cont).await?;
    for hub in [&pair.a, &pair.b] {
        hub.wait_agents(1).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_renewed_in_band_and_another_key_gets_a_tunnel_of_its_own() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("security.fapi_mode", 2).start().await?;
    let key = Key::make(&lab, "agent.pem").await?;
    let agent = lab.agent("site-1").target("echo", server.addr()).to(&hub);
    let agent = key.plan(agent, &key.token(&lab)?).start().await?;
    let mut client = hub.connect("echo").await?;
    echo(&mut client, Pattern(1), 0, 100).await?;

    agent.replace_token(&key.token(&lab)?)?;
    hub.log().wait_event("token_renewed").await?;
    agent.log().wait_event("token_renewed").await?;
    assert_eq!(
        hub.log().events("agent_connected", Mark::default()).len(),
        1
    );

    // Another key, and the token for it, whichever comes first.
    let mark = hub.log().mark();
    let next = Key::make(&lab, "next.pem").await?;
    program::write(&key.file, &std::fs::read_to_string(&next.file)?)?;
    agent.replace_token(&next.token(&lab)?)?;
    hub.log().wait_event_since("agent_connected", mark).await?;
    echo(&mut client, Pattern(1), 100, 100).await?;
    hub.wait_agents(1).await?;
    let epochs: Vec<_> = hub.log().events("agent_connected", Mark::default());
    let epochs: Vec<_> = epochs
        .iter()
        .map(|event| event.json()["epoch"].clone())
        .collect();
    assert_eq!(epochs[0], epochs[1], "the same agent");
    Ok(())
}

#[tokio::test]
async fn an_agent_without_a_key_is_told_what_to_do_whatever_it_speaks() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub.set("security.fapi_mode", 2).start().await?;
    let plain = lab
        .agent("site-1")
        .target("echo", server.addr())
        .to(&hub)
        .spawn()?;
    let failed = plain.log().wait_event("tunnel_failed").await?;
    let error = failed.text("error");
    for part in [
        "dpop_required",
        "NC_DPOP_KEY_FILE",
        "nowconnect token dpop-key --out FILE",
    ] {
        ensure!(error.contains(part), "{part}: {error}");
    }
    drop(plain);
    let older = RawTunnel::dial(hub.tunnel_addr()?, &lab.issuer().token("site-1")?).await;
    assert!(older.is_err(), "version 1 without a proof");

    // Ours speaks version 1 with a proof as well, and names a key that is none.
    let key = Key::make(&lab, "agent.pem").await?;
    let agent = lab.agent("site-1").target("echo", server.addr()).to(&hub);
    let agent = agent.instance("v1").env("NC_PROTOCOL", "1");
    let agent = key.plan(agent, &key.token(&lab)?).start().await?;
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 100).await?;
    drop(agent);
    program::write(&key.file, "no key")?;
    let agent = lab.agent("site-1").target("echo", server.addr()).to(&hub);
    let agent = key.plan(agent.instance("bad"), &key.token(&lab)?).spawn()?;
    let failed = agent.log().wait_event("tunnel_failed").await?;
    assert_eq!(failed.text("reason"), "dpop_key_file", "{}", failed.json());
    Ok(())
}

#[tokio::test]
async fn the_mode_changes_while_agents_are_connected() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let mut hub = lab.hub("hub-a").listener("echo").start().await?;
    let key = Key::make(&lab, "agent.pem").await?;
    let token = key.token(&lab)?;
    let bearer = upgrade("x", &format!("Authorization: Bearer {token}\r\n"));
    let keyed = lab.agent("site-1").target("echo", server.addr()).to(&hub);
    let _keyed = key.plan(keyed, &token).start().await?;
    let plain = lab.agent("site-2").target("echo", server.addr()).to(&hub);
    let plain = plain.start().await?;
    hub.wait_agents(2).await?;
    // Not even without the mode does a token for a key pass as a bearer token.
    is_out(&knock(hub.tunnel_addr()?, &bearer).await?, "dpop_required")?;

    hub.rewrite("security.fapi_mode", 2)?;
    hub.reload().await?;
    let revoked = hub.log().wait_event("token_revoked").await?;
    assert_eq!(
        (revoked.text("agent_id"), revoked.text("reason")),
        ("site-2".into(), "dpop_required".into())
    );
    plain.log().wait_event("goaway").await?;
    hub.wait_agents(1).await?;
    let failed = plain.log().wait_event("tunnel_failed").await?;
    assert!(
        failed.text("error").contains("dpop_required"),
        "{}",
        failed.json()
    );
    assert_eq!(
        hub.log().events("agent_connected", Mark::default()).len(),
        2,
        "the other stays"
    );

    hub.rewrite("security.fapi_mode", 0)?;
    hub.reload().await?;
    hub.wait_agents(2).await
}

#[tokio::test]
async fn behind_an_ingress_the_public_url_counts() -> Result<()> {
    let lab = lab()?;
    let key = Key::make(&lab, "agent.pem").await?;
    let token = key.token(&lab)?;
    let public = key.request(&token, "wss://api.example.com/tunnel", None)?;
    let forwarded = "X-Forwarded-Proto: wss\r\nX-Forwarded-Host: api.example.com\r\n";
    let inside = |request: &str| {
        let renamed = request.replace("Host: api.example.com", "Host: hub:8765");
        renamed.replace("Authorization", &format!("{forwarded}Authorization"))
    };
    let plan = |name: &str| lab.hub(name).set("security.fapi_mode", 2).listener("echo");

    let direct = plan("direct").start().await?;
    is_out(
        &knock(direct.tunnel_addr()?, &public).await?,
        "dpop_wrong_target",
    )?;
    is_out(
        &knock(direct.tunnel_addr()?, &inside(&public)).await?,
        "dpop_wrong_target",
    )?;
    let trusting = plan("trusting").set("tunnel.trusted_proxies", json!(["127.0.0.0/8"]));
    let trusting = trusting.start().await?;
    nonce(&knock(trusting.tunnel_addr()?, &inside(&public)).await?)?;
    let named = plan("named").set(
        "security.dpop_htu",
        json!(["https://api.example.com/tunnel"]),
    );
    let named = named.start().await?;
    nonce(&knock(named.tunnel_addr()?, &public).await?)?;
    let by_host = key.request(&token, &url(&named)?, None)?;
    is_out(
        &knock(named.tunnel_addr()?, &by_host).await?,
        "dpop_wrong_target",
    )
}

#[tokio::test]
async fn the_binary_makes_shows_and_binds_keys() -> Result<()> {
    let (lab, key) = (lab()?, "agent.pem");
    let made = lab.run(&["token", "dpop-key", "--out", key]).await?;
    let shown = lab.run(&["token", "dpop-key", "--show", key]).await?;
    assert!(
        made.status.success() && made.stdout == shown.stdout,
        "{made:?} {shown:?}"
    );
    assert!(!made.stdout.contains(r#""d":"#), "{made:?}");
    let again = lab.run(&["token", "dpop-key", "--out", key]).await?;
    assert!(
        !again.status.success() && again.stderr.contains("--force"),
        "{again:?}"
    );
    let jkt = shown
        .stdout
        .split_whitespace()
        .nth(1)
        .context("jkt")?
        .to_owned();
    let mint = ["token", "mint", "--key", "dev.pem", "--agent-id", "site-1"];
    for option in [["--dpop-key", key], ["--dpop-jkt", jkt.as_str()]] {
        let minted = lab.run(&[&mint[..], &option].concat()).await?;
        ensure!(minted.status.success(), "{minted:?}");
        assert_eq!(claims_of(&minted.stdout)?["cnf"], json!({ "jkt": jkt }));
    }
    for wrong in [
        &["token", "dpop-key"][..],
        &[&mint[..], &["--dpop-jkt", "short"]].concat(),
    ] {
        let refused = lab.run(wrong).await?;
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
    Ok(())
}
