//! No secret and no payload appears anywhere but where it belongs: markers are planted in all of them,
//! the system is put through its paces and its failures at the highest log level, and all that it says is
//! searched.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::connect_proxy::ConnectProxy;
use nowconnect_testkit::http::{self, get, upgrade_headers};
use nowconnect_testkit::lab::{Agent, Hub, Lab, peers};
use nowconnect_testkit::program::{self, Finished};
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::wait::{until, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REDIS: &str = "Redis0password0marker0q7";
const WRONG_REDIS: &str = "Wrong0redis0marker0w8";
const PROXY: &str = "Proxy0password0marker0e9";
const ADMIN: &str = "Admin0token0marker0r1";
const WRONG_ADMIN: &str = "Wrong0admin0marker0t2";
const WRONG_TOKEN: &str = "Wrong0agent0token0marker0z3";
const UP: &str = "Payload0from0client0marker0u4";
const BIND: &str = "Ldap0bind0password0marker0i5";
const TLV: &str = "Proxy0header0tlv0marker0o6";
const ENV: &str = "Environment0marker0p7";
const KEY_LINE: &str = "Joined0key0line0marker0a8";

/// A marker as it could be printed: as it is, in hexadecimal, as a list of bytes, and inside base64,
/// wherever in a group of three bytes it begins.
fn forms(marker: &str) -> Vec<String> {
    let hex: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<_> = marker.bytes().map(|byte| byte.to_string()).collect();
    let mut forms = vec![
        marker.to_owned(),
        hex.to_uppercase(),
        hex,
        list[..list.len().min(12)].join(", "),
    ];
    for before in 0..3 {
        let text = STANDARD.encode(format!("{}{marker}", "-".repeat(before)));
        forms.push(text[4..text.len() - 4].to_owned());
    }
    forms
}

/// What the system said, and where.
struct Said(Vec<(String, String)>);

impl Said {
    fn add(&mut self, place: &str, text: impl Into<String>) {
        self.0.push((place.to_owned(), text.into()));
    }

    fn ran(&mut self, place: &str, done: &Finished) {
        self.add(place, format!("{}\n{}", done.stdout, done.stderr));
    }

    /// Fails when any of it holds a marker in any form.
    fn search(&self, markers: &[String]) -> Result<()> {
        for marker in markers {
            for form in forms(marker) {
                for (place, text) in &self.0 {
                    let found = text.lines().find(|line| line.contains(&form));
                    ensure!(
                        found.is_none(),
                        "{place} shows {marker} as {form}: {found:?}"
                    );
                }
            }
        }
        Ok(())
    }
}

async fn admin(hub: &Hub, path: &str, token: &str) -> Result<String> {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let answer = http::request(hub.admin_addr()?, "GET", path, &headers, "").await?;
    Ok(format!("{} {}", answer.head, answer.body))
}

async fn pass(hub: &Hub, listener: &str, head: &[u8], payload: &[u8]) -> Result<()> {
    let mut client = hub.connect(listener).await?;
    client.write_all(&[head, payload].concat()).await?;
    let mut back = vec![0; payload.len()];
    within("the echo", client.read_exact(&mut back)).await??;
    ensure!(back == payload, "another echo");
    Ok(())
}

/// A PROXY header of version 2 with a field of its own that holds `TLV`.
fn proxy_header() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend((12 + 3 + TLV.len() as u16).to_be_bytes());
    header.extend([127, 0, 0, 9, 127, 0, 0, 1, 0x10, 0, 1, 0x85, 0xee]);
    header.extend((TLV.len() as u16).to_be_bytes());
    header.extend(TLV.as_bytes());
    header
}

/// An LDAP simple bind (RFC 4511 section 4.2).
fn bind_request() -> Vec<u8> {
    let mut bind = vec![
        2,
        1,
        3,
        4,
        4,
        b'c',
        b'n',
        b'=',
        b'a',
        0x80,
        BIND.len() as u8,
    ];
    bind.extend(BIND.as_bytes());
    let mut message = vec![2, 1, 1, 0x60, bind.len() as u8];
    message.extend(bind);
    [&[0x30, message.len() as u8], &message[..]].concat()
}

/// Two hubs with one registry, an agent that comes through a proxy, and secrets wherever there may
/// be any.
struct System {
    lab: Lab,
    redis: Redis,
    mesh: Authority,
    admin_file: String,
    token: String,
    hubs: [Hub; 2],
    site: Agent,
    said: Said,
    _server: Target,
    _way_out: ConnectProxy,
}

impl System {
    async fn start() -> Result<Self> {
        let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
        let redis = Redis::plan().user("nc", REDIS).start().await?;
        let (server, mesh) = (Target::echo().await?, Authority::new("mesh")?);
        let admin_file = lab.write("admin.token", ADMIN)?;
        let hubs = start_hubs(&lab, &redis, &mesh, &admin_file).await?;
        let login = format!("me:{PROXY}");
        let way_out = ConnectProxy::start(hubs[0].tunnel_addr()?, Some(&login)).await?;
        let token = lab.issuer().token("site-1")?;
        let site = lab
            .agent("site-1")
            .target("echo", server.addr())
            .url("ws://192.0.2.1/tunnel")
            .set("observability.log_level", "TRACE")
            .set("observability.log_format", "json")
            .env("NC_TRUST_ENV", "true")
            .env("HTTP_PROXY", &format!("http://{login}@{}", way_out.addr()))
            .token(&token);
        let site = site.start().await?;
        Ok(Self {
            lab,
            redis,
            mesh,
            admin_file,
            token,
            hubs,
            site,
            said: Said(Vec::new()),
            _server: server,
            _way_out: way_out,
        })
    }

    /// What must not appear.
    fn markers(&self) -> Result<Vec<String>> {
        let planted = [
            REDIS,
            WRONG_REDIS,
            PROXY,
            ADMIN,
            WRONG_ADMIN,
            WRONG_TOKEN,
            UP,
            BIND,
            TLV,
            ENV,
            KEY_LINE,
        ];
        let key = program::read(&self.mesh.file("hub-a.key"))?;
        let key_line = &key.lines().nth(1).unwrap_or_default()[..40];
        let parts: Vec<_> = self.token.split('.').collect();
        let made = [key_line, &parts[1][..40], parts[2]];
        Ok(planted.into_iter().chain(made).map(str::to_owned).collect())
    }

    /// Clients, the admin API, and commands.
    async fn serve(&mut self) -> Result<()> {
        for hub in &self.hubs {
            until("the agent to be reached", async || {
                pass(hub, "echo", b"", UP.as_bytes()).await
            })
            .await?;
            pass(hub, "proxied", &proxy_header(), &bind_request()).await?;
            for path in ["status", "agents", "flows", "mesh", "config", "nonsense"] {
                let answer = admin(hub, &format!("/api/v1/{path}"), ADMIN).await?;
                let status = if path == "nonsense" { 404 } else { 200 };
                ensure!(
                    answer.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{answer}"
                );
                self.said.add(path, answer);
            }
            let refusal = admin(hub, "/api/v1/status", WRONG_ADMIN).await?;
            self.said.add("refusal", refusal);
        }
        let url = format!("http://{}", self.hubs[0].admin_addr()?);
        let access = ["--url", &url, "--token-file", &self.admin_file];
        for command in ["status", "reload"] {
            let done = self.lab.run(&[&[command][..], &access].concat()).await?;
            self.said.ran(command, &done);
        }
        let config = self.hubs[0].file().display().to_string();
        let print = ["check", "--config", &config, "--print"];
        self.said.ran("check", &self.lab.run(&print).await?);
        Ok(())
    }

    /// Tokens of no use, and a PROXY header that is none.
    async fn refuse_peers(&mut self) -> Result<()> {
        let hub = &self.hubs[0];
        let unsigned = self.token.rsplit_once('.').map_or("", |(signed, _)| signed);
        for bearer in [WRONG_TOKEN, &format!("{}x", self.token), unsigned] {
            let bearer = format!("Bearer {bearer}");
            let headers = upgrade_headers(&bearer);
            let answer = http::request(hub.tunnel_addr()?, "GET", "/tunnel", &headers, "").await?;
            ensure!(answer.status == 401, "{answer:?}");
            self.said
                .add("tunnel", format!("{} {}", answer.head, answer.body));
        }
        pass(hub, "proxied", TLV.as_bytes(), UP.as_bytes())
            .await
            .ok();
        Ok(())
    }

    /// Configurations with secrets out of place, checked and loaded.
    async fn refuse_files(&mut self) -> Result<()> {
        let hub = &self.hubs[0];
        let good = program::read(hub.file())?;
        let spoilt = [
            good.replace(&format!("nc:{REDIS}@"), &format!("nc:{WRONG_REDIS}@ [}}")),
            good.replace("redis://", "radish://"),
            good.replace("\"redis_url\"", "\"redis_urll\""),
            good.replace(
                &format!("\"{}\"", self.redis.url()),
                "[\"redis://:Wrong0redis0marker0w8@h\"]",
            ),
            format!("redis_url: 'redis://u:{WRONG_REDIS}@h\n{good}"),
            good.replace("redis://nc", "redis://nc:${SOME_PASSWORD}"),
        ];
        for (at, text) in spoilt.iter().enumerate() {
            let mark = hub.log().mark();
            self.lab.write("spoilt.yaml", text)?;
            let print = ["check", "--config", "spoilt.yaml", "--print"];
            self.said.ran("check", &self.lab.run(&print).await?);
            program::write(hub.file(), text)?;
            hub.reload().await?;
            // The last one is fit to use, with a password that is wrong.
            let told = if at + 1 == spoilt.len() {
                "config_reloaded"
            } else {
                "config_rejected"
            };
            hub.log().wait_event_since(told, mark).await?;
        }
        program::write(hub.file(), &good)
    }

    /// A key whose lines were joined, as by a variable that lost its line ends.
    async fn refuse_a_key(&self) -> Result<()> {
        let (hub, file) = (&self.hubs[0], self.mesh.file("hub-a.key"));
        let key = program::read(&file)?;
        let rest = key[30..].replace('\n', " ");
        let mark = hub.log().mark();
        program::write(
            &file,
            &format!("-----BEGIN PRIVATE KEY----- {KEY_LINE}{rest}"),
        )?;
        hub.reload().await?;
        hub.log().wait_event_since("config_rejected", mark).await?;
        program::write(&file, &key)
    }

    /// The agent's token is replaced by worse ones, and the registry goes away.
    async fn fail(&mut self) -> Result<()> {
        self.site.replace_token(WRONG_TOKEN)?;
        self.site.log().wait_event("token_refused").await?;
        self.site
            .replace_token(&format!("{WRONG_TOKEN} and more"))?;
        self.site.log().wait_event("token_unreadable").await?;
        self.site.replace_token(&self.token)?;
        self.redis.kill().await?;
        for hub in &self.hubs {
            hub.log().wait_event("registry_down").await?;
        }
        Ok(())
    }

    /// Where else things are shown: metrics, health and command lines.
    async fn show(&mut self) -> Result<()> {
        let [a, b] = &self.hubs;
        for (name, at) in [
            ("hub-a", a.http_addr()?),
            ("hub-b", b.http_addr()?),
            ("agent", self.site.health_addr()),
        ] {
            for path in ["/metrics", "/readyz", "/healthz"] {
                let answer = answer_of(at, path).await?;
                self.said.add(&format!("{name} {path}"), answer);
            }
        }
        for pid in [a.pid(), b.pid(), self.site.pid()] {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
            self.said.add("cmdline", line);
        }
        Ok(())
    }

    /// Ends all processes, and takes their logs.
    async fn end(&mut self) -> Result<()> {
        let [a, b] = &mut self.hubs;
        let mut debugged = false;
        for (name, process) in [
            ("hub-a", a.process()),
            ("hub-b", b.process()),
            ("agent", self.site.process()),
        ] {
            process.kill().await?;
            process.log().wait_end().await;
            let text = process.log().text();
            ensure!(
                text.contains("hub_started") || text.contains("tunnel_up"),
                "{name}"
            );
            debugged |= text.contains("\"DEBUG\"");
            self.said.add(name, text);
        }
        ensure!(debugged, "nothing was said at this level");
        Ok(())
    }

    /// Nothing was written but what tests write: configuration, tokens, logs.
    fn check_files(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.lab.dir())? {
            let name = entry?.file_name().into_string().unwrap_or_default();
            let known = ["yaml", "jwt", "log", "json", "token"];
            ensure!(
                known.iter().any(|end| name.ends_with(end)),
                "{name} was written"
            );
        }
        Ok(())
    }
}

async fn start_hubs(
    lab: &Lab,
    redis: &Redis,
    mesh: &Authority,
    admin_file: &str,
) -> Result<[Hub; 2]> {
    let file = |name: String| mesh.file(&name).display().to_string();
    let mut plans = Vec::new();
    for name in ["hub-a", "hub-b"] {
        mesh.issue(name, &Certificate::good(&["127.0.0.1"]))?;
        let tls = json!({
            "ca_bundle": file("ca.pem".into()),
            "cert_file": file(format!("{name}.crt")),
            "key_file": file(format!("{name}.key")),
        });
        let plan = lab
            .hub(name)
            .listener("echo")
            .listener_with("proxied", "echo", json!({ "proxy_protocol": "v2" }))
            .set("tunnel.trusted_proxies", json!(["127.0.0.1"]))
            .set("observability.log_level", "TRACE")
            .set("admin.token_file", admin_file)
            .set("ha.mesh.tls", tls)
            .env("SOME_PASSWORD", ENV);
        plans.push(plan);
    }
    let mut plans = peers(plans, "active", &redis.url()).into_iter();
    let (Some(a), Some(b)) = (plans.next(), plans.next()) else {
        bail!("there are two");
    };
    // The URL of one stands in its file, that of the other in its environment.
    let b = b
        .set("ha.redis_url", "")
        .env("NOWCONNECT__HA__REDIS_URL", &redis.url());
    let mut hubs = [a.spawn()?, b.spawn()?];
    for hub in &mut hubs {
        hub.wait_ready().await?;
    }
    Ok(hubs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_marker_appears_in_anything_that_is_said() -> Result<()> {
    let mut system = System::start().await?;
    let markers = system.markers()?;
    system.serve().await?;
    system.refuse_peers().await?;
    system.refuse_files().await?;
    system.refuse_a_key().await?;
    system.fail().await?;
    system.show().await?;
    system.end().await?;
    system.check_files()?;
    system.said.search(&markers)
}

async fn answer_of(at: SocketAddr, path: &str) -> Result<String> {
    let answer = get(at, path).await?;
    Ok(format!("{} {}", answer.head, answer.body))
}

#[test]
fn a_marker_is_found_in_every_form() {
    for text in [
        format!("x{REDIS}y"),
        STANDARD.encode(format!("user:{REDIS}")),
        STANDARD.encode(format!("a:{REDIS}")),
        format!("{:?}", format!("ab{REDIS}").as_bytes()),
        REDIS.bytes().map(|byte| format!("{byte:02X}")).collect(),
    ] {
        let said = Said(vec![("here".to_owned(), text.clone())]);
        assert!(said.search(&[REDIS.to_owned()]).is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_secret_that_everybody_can_change_is_refused_at_the_start_and_on_reload() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    let token = lab.write("admin.token", ADMIN)?;
    let open = |mode| std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode));
    let plan = || {
        lab.hub("hub-a")
            .listener("echo")
            .set("admin.token_file", &*token)
    };
    open(0o606)?;
    let mut refused = plan().spawn()?;
    let status = refused.process().wait_exit().await?;
    let text = refused.log().text();
    ensure!(
        status.code() == Some(2) && text.contains(&format!("chmod 600 {token}")),
        "{text}"
    );
    open(0o604)?;
    let hub = plan().start().await?;
    let warned = hub.log().wait_event("config_warning").await?;
    ensure!(
        warned.text("problem").contains("admin.token_file"),
        "{warned:?}"
    );
    // A chmod is noticed by itself; what is wrong is said once.
    open(0o602)?;
    let rejected = hub.log().wait_event("config_rejected").await?;
    ensure!(
        rejected.text("error").contains("can change the secret"),
        "{rejected:?}"
    );
    for mode in [0o604, 0o600] {
        let mark = hub.log().mark();
        open(mode)?;
        hub.log().wait_event_since("config_reloaded", mark).await?;
        let again = hub.log().events("config_warning", mark);
        ensure!(again.is_empty(), "{again:?}");
    }
    let mark = hub.log().mark();
    open(0o604)?;
    hub.log().wait_event_since("config_warning", mark).await?;
    // The processes leave no core, and nobody looks into them.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", hub.pid()))?;
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<_> = core.unwrap_or_default().split_whitespace().collect();
    ensure!(words[4..6] == ["0", "0"], "{words:?}");
    Ok(())
}
