//! TLS in the hub itself: versions, files that change under living tunnels, client certificates.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nowconnect_link::dial::{Dialer, ProxyRules, TcpOptions, WsUrl};
use nowconnect_link::tls::{ClientFiles, Identity, LiveClientConfig, Roots};
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::http::upgrade_headers;
use nowconnect_testkit::lab::{AgentPlan, Hub, HubPlan, Lab, finish};
use nowconnect_testkit::log::{Event, Mark};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::ports;
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use nowconnect_testkit::wait::{until, within};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const RELOADS: &str = "nowconnect_cert_reloads_total";
const EXPIRY: &str = "nowconnect_cert_expiry_seconds";
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

/// A hub with the certificate `hub` of `authority`.
fn with_tls<'a>(plan: HubPlan<'a>, authority: &Authority) -> HubPlan<'a> {
    plan.set("tunnel.tls.cert_file", shown(authority.file("hub.crt")))
        .set("tunnel.tls.key_file", shown(authority.file("hub.key")))
}

fn agent<'a>(lab: &'a Lab, hub: &Hub, ca: &Path, to: &Target) -> Result<AgentPlan<'a>> {
    Ok(lab
        .agent("site-1")
        .target("echo", to.addr())
        .url(&format!(
            "wss://127.0.0.1:{}/tunnel",
            hub.tunnel_addr()?.port()
        ))
        .env("NC_CA_BUNDLE", &shown(ca)))
}

/// A client that trusts `authority` and shows the certificate `identity` of `by`.
fn client(
    authority: &Authority,
    identity: Option<(&Authority, &str)>,
) -> Result<Arc<ClientConfig>> {
    let identity = identity.map(|(by, name)| Identity {
        cert_file: by.file(&format!("{name}.crt")),
        key_file: by.file(&format!("{name}.key")),
    });
    let roots = Roots::Only(authority.bundle());
    Ok(LiveClientConfig::load(ClientFiles { roots, identity })?.current())
}

/// The same, but it speaks one version alone.
fn speaking(
    version: &'static SupportedProtocolVersion,
    authority: &Authority,
) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots(authority)?),
        provider.clone(),
    );
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_webpki_verifier(verifier.build()?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn roots(authority: &Authority) -> Result<rustls::RootCertStore> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut store = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority.bundle())? {
        store.add(certificate?)?;
    }
    Ok(store)
}

/// Sends `request` over TLS; returns the server's certificate and its answer.
async fn ask(at: SocketAddr, tls: &Arc<ClientConfig>, request: &str) -> Result<(Vec<u8>, String)> {
    let url: WsUrl = format!("wss://{at}/").parse()?;
    let dialer = Dialer {
        tls: Some(tls.clone()),
        proxies: ProxyRules::none(),
        timeout: Duration::from_secs(10),
        tcp: TcpOptions::default(),
    };
    let mut stream = dialer.dial(&url).await?;
    let chain = stream.peer_certificates().context("no certificate")?;
    let certificate = chain[0].to_vec();
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = within("an answer", stream.read_to_end(&mut answer)).await?;
    if answer.is_empty() {
        read?;
    }
    Ok((certificate, String::from_utf8_lossy(&answer).into_owned()))
}

async fn certificate(at: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Vec<u8>> {
    Ok(ask(at, tls, HEALTH).await?.0)
}

/// A request for `/tunnel` with a token that is good for nothing.
fn knock() -> String {
    let mut request = "GET /tunnel HTTP/1.1\r\nHost: localhost\r\n".to_owned();
    for (name, value) in upgrade_headers("Bearer nonsense") {
        request += &format!("{name}: {value}\r\n");
    }
    request + "\r\n"
}

/// A ClientHello (RFC 5246 section 7.4.1.2) of version 3.`minor`, which has no word of TLS 1.3.
fn hello(minor: u8) -> Vec<u8> {
    let suites = [0xc0, 0x2b, 0xc0, 0x09, 0xc0, 0x13, 0x00, 0x2f];
    // supported_groups: secp256r1; signature_algorithms: ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    body.extend([0, 0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0, 0, extensions.len() as u8]);
    body.extend(extensions);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    hello
}

/// The first bytes that `at` answers.
async fn answer(at: SocketAddr, hello: &[u8]) -> Result<[u8; 7]> {
    let mut socket = tokio::net::TcpStream::connect(at).await?;
    socket.write_all(hello).await?;
    let mut first = [0; 7];
    within("an answer", socket.read_exact(&mut first)).await??;
    Ok(first)
}

#[tokio::test]
async fn every_port_speaks_tls_1_2_and_1_3_and_nothing_older() -> Result<()> {
    let (lab, authority) = (lab()?, Authority::new("site")?);
    authority.issue("hub", &Certificate::good(&["127.0.0.1"]))?;
    let (admin, mesh) = (ports::reserve()?, ports::reserve()?);
    let token = lab.write("admin.token", "s3cret")?;
    let hub = with_tls(lab.hub("hub-a").listener("echo"), &authority)
        .set("admin.bind", format!("0.0.0.0:{admin}"))
        .set("admin.token_file", token)
        .set("ha.enabled", true)
        .set("ha.mode", "shadow")
        .set("ha.replica_id", "hub-a")
        .set("ha.mesh.listen", format!("127.0.0.1:{mesh}"))
        .set("ha.mesh.tls.ca_bundle", shown(authority.bundle()))
        .set("ha.mesh.tls.cert_file", shown(authority.file("hub.crt")))
        .set("ha.mesh.tls.key_file", shown(authority.file("hub.key")))
        .start()
        .await?;
    let [admin, mesh] = [admin, mesh].map(ports::local);
    for at in [hub.tunnel_addr()?, admin, mesh] {
        for minor in [0, 1, 2] {
            // A fatal alert: protocol_version (RFC 5246 section 7.2).
            let told = answer(at, &hello(minor)).await?;
            ensure!(
                matches!(told, [21, 3, _, 0, 2, 2, 70]),
                "{at} 3.{minor}: {told:?}"
            );
        }
        // The same of TLS 1.2 is answered with a ServerHello.
        let told = answer(at, &hello(3)).await?;
        ensure!(matches!(told, [22, 3, 3, .., 2, _]), "{at}: {told:?}");
    }
    for version in [&TLS12, &TLS13] {
        let tls = speaking(version, &authority)?;
        let (_, health) = ask(hub.tunnel_addr()?, &tls, HEALTH).await?;
        ensure!(health.starts_with("HTTP/1.1 200"), "{health}");
        let status = "GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (_, refused) = ask(admin, &tls, status).await?;
        ensure!(refused.starts_with("HTTP/1.1 401"), "{refused}");
        // TLS 1.3 tells only who reads that a certificate was demanded.
        let stranger = ask(mesh, &tls, HEALTH).await;
        ensure!(stranger.is_err(), "{stranger:?}");
    }
    let member = client(&authority, Some((&authority, "hub")))?;
    let (_, not_found) = ask(mesh, &member, HEALTH).await?;
    ensure!(not_found.starts_with("HTTP/1.1 404"), "{not_found}");
    for r#use in ["tunnel", "mesh", "mesh_ca"] {
        let left = hub.metric(EXPIRY, &[("use", r#use)]).await?;
        ensure!(left > 0.0, "{use}: {left}");
    }
    let insecure = http_status(&lab, admin, &authority).await?;
    ensure!(insecure.contains("hub-a"), "{insecure}");
    Ok(())
}

/// What `nowconnect status` prints over TLS.
async fn http_status(lab: &Lab, admin: SocketAddr, authority: &Authority) -> Result<String> {
    let (url, ca) = (format!("https://{admin}"), shown(authority.bundle()));
    let token = shown(lab.path("admin.token"));
    let access = ["--url", &url, "--ca-bundle", &ca, "--token-file", &token];
    let done = lab.run(&[&["status"][..], &access[..]].concat()).await?;
    ensure!(done.status.success(), "{done:?}");
    Ok(done.stdout)
}

/// Files as Kubernetes mounts a Secret: `NAME` is a link to `..data/NAME`, and `..data` is swapped.
struct Mount {
    dir: PathBuf,
    swaps: u32,
}

impl Mount {
    fn new(lab: &Lab) -> Result<Self> {
        let dir = lab.path("mount");
        std::fs::create_dir(&dir)?;
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), dir.join(name))?;
        }
        Ok(Self { dir, swaps: 0 })
    }

    fn swap(&mut self, authority: &Authority, name: &str) -> Result<()> {
        self.swaps += 1;
        let version = format!("..version_{}", self.swaps);
        std::fs::create_dir(self.dir.join(&version))?;
        for (from, to) in [("crt", "tls.crt"), ("key", "tls.key")] {
            let from = authority.file(&format!("{name}.{from}"));
            std::fs::copy(from, self.dir.join(&version).join(to))?;
        }
        symlink(&version, self.dir.join("..data_tmp"))?;
        std::fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data"))?;
        Ok(())
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_from_every_kind_of_change_while_flows_run() -> Result<()> {
    let (lab, server, authority) = (lab()?, Target::echo().await?, Authority::new("site")?);
    let mut mount = Mount::new(&lab)?;
    let good = Certificate::good(&["127.0.0.1"]);
    authority.issue("hub", &good)?;
    mount.swap(&authority, "hub")?;
    let hub = lab.hub("hub-a").listener("echo");
    let hub = hub
        .set("tunnel.tls.cert_file", shown(mount.dir.join("tls.crt")))
        .set("tunnel.tls.key_file", shown(mount.dir.join("tls.key")))
        .start()
        .await?;
    let site = agent(&lab, &hub, &authority.bundle(), &server)?
        .start()
        .await?;
    let (at, tls) = (hub.tunnel_addr()?, client(&authority, None)?);
    let mut flow = hub.connect("echo").await?;
    let mut seen = certificate(at, &tls).await?;
    // Twice by a swap of links, then by SIGHUP, then by command.
    for round in 0..4_u64 {
        authority.issue("hub", &good)?;
        mount.swap(&authority, "hub")?;
        match round {
            2 => hub.reload().await?,
            3 => {
                let url = format!("http://{}", hub.admin_addr()?);
                let done = lab.run(&["reload", "--url", &url]).await?;
                ensure!(done.status.success(), "{done:?}");
                // A command that has ended well has had its effect.
                ensure!(certificate(at, &tls).await? != seen, "the old one is shown");
            }
            _ => {}
        }
        seen = until("the next certificate", async || {
            let now = certificate(at, &tls).await?;
            ensure!(now != seen, "the old one is shown");
            Ok(now)
        })
        .await?;
        echo(&mut flow, Pattern(1), round * 1000, 1000).await?;
    }
    let applied = [("use", "tunnel"), ("result", "applied")];
    hub.wait_metric(RELOADS, &applied, |count| count == 4.0)
        .await?;
    let changes = hub.log().events("certificate_changed", Default::default());
    ensure!(changes.len() == 4 && changes[0].text("audit") == "true");
    ensure!(hub.metric(RELOADS, &[("result", "rejected")]).await? == 0.0);
    let left = hub.log().events("agent_disconnected", Default::default());
    ensure!(left.is_empty(), "{left:?}");
    drop(site);
    Ok(())
}

/// Waits for word of `event` that the files at fault were not taken; it names the file.
async fn refused(hub: &Hub, event: &str, from: Mark, words: &[&str]) -> Result<()> {
    let told = |event: &Event| words.iter().all(|word| event.text("error").contains(word));
    let word = hub.log().wait_event_where(event, from, told).await;
    word.map(drop).with_context(|| words.join(": "))
}

#[tokio::test]
async fn files_of_no_use_change_nothing_and_the_next_good_ones_are_taken() -> Result<()> {
    let (lab, server, authority) = (lab()?, Target::echo().await?, Authority::new("site")?);
    let good = Certificate::good(&["127.0.0.1"]);
    for name in ["hub", "other"] {
        authority.issue(name, &good)?;
    }
    let [crt, key, other] = ["hub.crt", "hub.key", "other.key"].map(|name| authority.file(name));
    let hub = with_tls(lab.hub("hub-a").listener("echo"), &authority)
        .start()
        .await?;
    let _site = agent(&lab, &hub, &authority.bundle(), &server)?
        .start()
        .await?;
    let mut flow = hub.connect("echo").await?;
    let (at, tls) = (hub.tunnel_addr()?, client(&authority, None)?);
    let first = certificate(at, &tls).await?;
    let (good_crt, good_key) = (std::fs::read(&crt)?, std::fs::read(&key)?);
    let (crt_shown, key_shown) = (shown(&crt), shown(&key));
    let issue = |certificate: Certificate| authority.issue("hub", &certificate);
    type Spoil<'a> = Box<dyn Fn() -> Result<()> + 'a>;
    let cases: [(Spoil<'_>, [&str; 2]); 6] = [
        (
            Box::new(|| Ok(std::fs::copy(&other, &key).map(drop)?)),
            [&key_shown, "does not belong to the certificate"],
        ),
        (
            Box::new(|| issue(good.clone().expired())),
            [&crt_shown, "renew it"],
        ),
        (
            Box::new(|| issue(good.clone().not_yet_valid())),
            [&crt_shown, "clock"],
        ),
        (
            Box::new(|| Ok(std::fs::write(&key, "garbage")?)),
            [&key_shown, "no private key"],
        ),
        (
            Box::new(|| Ok(std::fs::write(&crt, &good_crt[..good_crt.len() / 2])?)),
            [&crt_shown, "certificate"],
        ),
        (
            Box::new(|| Ok(std::fs::remove_file(&key)?)),
            [&key_shown, "file"],
        ),
    ];
    for (rejected, (spoil, words)) in cases.into_iter().enumerate() {
        let mark = hub.log().mark();
        spoil()?;
        // Every look says so: that of an order to reload, and, within seconds, the hub's own.
        hub.reload().await?;
        refused(&hub, "config_rejected", mark, &words).await?;
        if rejected == 0 {
            refused(&hub, "certificate_kept", mark, &words).await?;
            let result = [("use", "tunnel"), ("result", "rejected")];
            hub.wait_metric(RELOADS, &result, |count| count == 1.0)
                .await?;
        }
        ensure!(
            certificate(at, &tls).await? == first,
            "{words:?}: another is shown"
        );
        echo(&mut flow, Pattern(1), rejected as u64 * 100, 100).await?;
        // What was good is good again.
        std::fs::write(&crt, &good_crt)?;
        std::fs::write(&key, &good_key)?;
        hub.reload().await?;
        hub.log().wait_event_since("config_reloaded", mark).await?;
    }
    issue(good)?;
    until("the next good certificate", async || {
        ensure!(
            certificate(at, &tls).await? != first,
            "the old one is shown"
        );
        Ok(())
    })
    .await?;
    let left = hub.log().events("agent_disconnected", Default::default());
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn agents_show_a_certificate_and_a_ca_that_is_taken_out_counts_at_once() -> Result<()> {
    let (lab, server) = (lab()?, Target::echo().await?);
    let (servers, old, new) = (
        Authority::new("servers")?,
        Authority::new("old agents")?,
        Authority::new("new agents")?,
    );
    servers.issue("hub", &Certificate::good(&["127.0.0.1"]))?;
    for authority in [&old, &new] {
        authority.issue("agent", &Certificate::good(&["site-1"]))?;
    }
    let ca = lab.write("client-ca.pem", &std::fs::read_to_string(old.bundle())?)?;
    let [crt, key] = ["agent.crt", "agent.key"].map(|name| lab.path(name));
    let issue = |by: &Authority| -> Result<()> {
        std::fs::copy(by.file("agent.crt"), &crt)?;
        std::fs::copy(by.file("agent.key"), &key)?;
        Ok(())
    };
    let hub = with_tls(lab.hub("hub-a").listener("echo"), &servers)
        .set("tunnel.tls.client_ca", &*ca)
        .start()
        .await?;
    ensure!(hub.metric(EXPIRY, &[("use", "client_ca")]).await? > 0.0);

    let without = agent(&lab, &hub, &servers.bundle(), &server)?.spawn()?;
    let refused = hub.log().wait_event("agent_refused").await?;
    ensure!(
        refused.text("reason") == "certificate_missing",
        "{refused:?}"
    );
    let failed = without.log().wait_event("tunnel_failed").await?;
    ensure!(
        failed.text("error").contains("client_certificate"),
        "{failed:?}"
    );
    drop(without);

    issue(&old)?;
    let site = agent(&lab, &hub, &servers.bundle(), &server)?
        .env("NC_CLIENT_CERT", &shown(&crt))
        .env("NC_CLIENT_KEY", &shown(&key))
        .start()
        .await?;
    for r#use in ["client", "hub_ca"] {
        let left = site.metrics().await?.sum(EXPIRY, &[("use", r#use)]);
        ensure!(left > 0.0, "{use}: {left}");
    }
    let mut flow = hub.connect("echo").await?;
    echo(&mut flow, Pattern(1), 0, 1000).await?;
    // It has a session of before to resume.
    let known = client(&servers, Some((&old, "agent")))?;
    let (_, answer) = ask(hub.tunnel_addr()?, &known, &knock()).await?;
    ensure!(answer.starts_with("HTTP/1.1 401"), "{answer}");

    // Another CA: the tunnel is cut, and what was shown before leads in nowhere.
    let mark = hub.log().mark();
    lab.write("client-ca.pem", &std::fs::read_to_string(new.bundle())?)?;
    let refused = hub.log().wait_event_since("agent_refused", mark).await?;
    ensure!(
        refused.text("reason") == "certificate_unknown_ca",
        "{refused:?}"
    );
    let gone = hub
        .log()
        .wait_event_since("agent_disconnected", mark)
        .await?;
    ensure!(gone.text("reason") == "auth_failed", "{gone:?}");
    let (_, answer) = ask(hub.tunnel_addr()?, &known, &knock()).await?;
    ensure!(answer.starts_with("HTTP/1.1 403"), "{answer}");

    // With a certificate of the new CA the agent comes back, and the flow goes on.
    issue(&new)?;
    echo(&mut flow, Pattern(1), 1000, 1000).await?;
    let counted = [("reason", "client_certificate")];
    ensure!(
        hub.metric("nowconnect_auth_failures_total", &counted)
            .await?
            >= 3.0
    );
    drop(site);
    Ok(())
}

#[tokio::test]
async fn an_agent_keeps_its_last_good_ca_bundle_and_certificate() -> Result<()> {
    let (lab, server, authority) = (lab()?, Target::echo().await?, Authority::new("site")?);
    for name in ["hub", "agent"] {
        authority.issue(name, &Certificate::good(&["127.0.0.1"]))?;
    }
    let bundle = lab.write("bundle.pem", &std::fs::read_to_string(authority.bundle())?)?;
    let mut hub = with_tls(lab.hub("hub-a").listener("echo"), &authority)
        .set("tunnel.tls.client_ca", shown(authority.bundle()))
        .start()
        .await?;
    let site = agent(&lab, &hub, Path::new(&bundle), &server)?
        .set("tunnel.tls.cert_file", shown(authority.file("agent.crt")))
        .set("tunnel.tls.key_file", shown(authority.file("agent.key")))
        .start()
        .await?;
    lab.write("bundle.pem", "-----BEGIN CERTIFICATE-----\nnonsense")?;
    site.log().wait_event("config_rejected").await?;
    hub.restart().await?;
    hub.wait_agents(1).await?;
    let kept = site.log().wait_event("certificate_kept").await?;
    ensure!(kept.text("error").contains(&bundle), "{kept:?}");
    let rejected = [("use", "hub"), ("result", "rejected")];
    ensure!(site.metrics().await?.sum(RELOADS, &rejected) >= 1.0);
    echo(&mut hub.connect("echo").await?, Pattern(1), 0, 1000).await
}

/// Hosts that the certificates of the mesh are for.
const HOSTS: [&str; 2] = ["127.0.0.10", "127.0.0.11"];

fn member<'a>(lab: &'a Lab, at: usize, redis: &Redis, own_port: Option<u16>) -> HubPlan<'a> {
    let name = ["hub-a", "hub-b"][at];
    let file = |name: String| shown(lab.path(&name));
    let plan = lab
        .hub(name)
        .listener("bulk")
        .listener("echo")
        .set("tunnel.host", "0.0.0.0")
        .member("active", &redis.url())
        .set("ha.mesh.require_mtls", true)
        .set("ha.mesh.connect_backoff_max_sec", 1)
        .set("ha.mesh.tls.ca_bundle", file(format!("{name}-ca.pem")))
        .set("ha.mesh.tls.cert_file", file(format!("{name}.crt")))
        .set("ha.mesh.tls.key_file", file(format!("{name}.key")));
    match own_port {
        Some(port) => plan.set("ha.mesh.listen", format!("0.0.0.0:{port}")),
        None => plan,
    }
}

/// Puts the certificates of both hubs in place, and the CAs that they are to trust.
fn equip(lab: &Lab, by: &Authority, trusted: &[&Authority]) -> Result<()> {
    let cas = trusted
        .iter()
        .map(|ca| Ok(std::fs::read_to_string(ca.bundle())?));
    let cas = cas.collect::<Result<Vec<_>>>()?.concat();
    for (name, host) in ["hub-a", "hub-b"].iter().zip(HOSTS) {
        by.issue(name, &Certificate::good(&[host]))?;
        for end in ["crt", "key"] {
            let file = format!("{name}.{end}");
            lab.write(&file, &std::fs::read_to_string(by.file(&file))?)?;
        }
        lab.write(&format!("{name}-ca.pem"), &cas)?;
    }
    Ok(())
}

/// The CA of a mesh is taken out under standing links, over `own_ports` or over the tunnel's port without
/// TLS of its own, where mutual TLS is inside the WebSocket.
async fn a_mesh_ca_is_taken_out(own_ports: bool) -> Result<()> {
    let (lab, redis) = (lab()?, Redis::start().await?);
    let (bulk, server) = (Target::bulk().await?, Target::echo().await?);
    let (old, new) = (Authority::new("old mesh")?, Authority::new("new mesh")?);
    equip(&lab, &old, &[&old])?;
    let port = || own_ports.then(ports::reserve).transpose();
    let (port_a, port_b) = (port()?, port()?);
    let (a, b) = (
        member(&lab, 0, &redis, port_a),
        member(&lab, 1, &redis, port_b),
    );
    let url = |at: usize, own: Option<u16>, plan: &HubPlan<'_>| -> Result<String> {
        Ok(match own {
            Some(port) => format!("wss://{}:{port}/mesh", HOSTS[at]),
            None => format!("ws://{}:{}/mesh", HOSTS[at], plan.tunnel_addr()?.port()),
        })
    };
    let (to_a, to_b) = (url(0, port_a, &a)?, url(1, port_b, &b)?);
    let a = a.set("ha.mesh.peers", json!([to_b])).start().await?;
    let b = b.set("ha.mesh.peers", json!([to_a])).start().await?;
    let linked = async |wanted: f64| -> Result<()> {
        for hub in [&a, &b] {
            let up = [("state", "established")];
            hub.wait_metric("nowconnect_mesh_links", &up, |links| links == wanted)
                .await?;
        }
        Ok(())
    };
    linked(1.0).await?;
    let site = lab
        .agent("site-1")
        .to(&a)
        .target("bulk", bulk.addr())
        .target("echo", server.addr());
    let _site = site.start().await?;
    until("the other hub to know the agent", async || {
        let mesh = b.mesh().await?;
        ensure!(
            mesh["routes"].as_array().is_some_and(|all| !all.is_empty()),
            "{mesh}"
        );
        Ok(())
    })
    .await?;
    let mut flow = b.connect("echo").await?;
    echo(&mut flow, Pattern(1), 0, 1000).await?;
    let running = b.transfers(2, 8 << 20).await?;

    // Only the CAs of one hub change: what it cuts, it cuts both ways.
    let mark = a.log().mark();
    lab.write("hub-a-ca.pem", &std::fs::read_to_string(new.bundle())?)?;
    for direction in ["inbound", "outbound"] {
        let told = |event: &Event| event.text("direction") == direction;
        let cut = a
            .log()
            .wait_event_where("mesh_peer_untrusted", mark, told)
            .await?;
        ensure!(cut.text("reason") == "certificate_unknown_ca", "{cut:?}");
    }
    linked(0.0).await?;
    a.log().wait_event_since("mesh_refused", mark).await?;

    equip(&lab, &new, &[&new])?;
    linked(1.0).await?;
    echo(&mut flow, Pattern(1), 1000, 1000).await?;
    finish(running).await?;
    for hub in [&a, &b] {
        let applied = [("use", "mesh"), ("result", "applied")];
        ensure!(hub.metric(RELOADS, &applied).await? >= 1.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_ca_is_taken_out_on_ports_of_their_own() -> Result<()> {
    a_mesh_ca_is_taken_out(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_ca_is_taken_out_where_tls_is_inside_the_websocket() -> Result<()> {
    a_mesh_ca_is_taken_out(false).await
}
