//! An identity provider that has been taken over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::http;
use nowconnect_testkit::issuer::{Issuer, claims};
use nowconnect_testkit::lab::{Agent, Hub, Lab};
use nowconnect_testkit::pattern::Pattern;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::transfer::echo;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::list::cases;
use crate::scene::{AUTH, lab, refused};

const MOST_MEMORY: u64 = 64 << 20;

cases! { "Answers of the JWKS server";
    a_page_where_keys_should_be: "ignored; new agents get 503 `keys_unavailable` with Retry-After", "`jwks_refresh_failed`, `nowconnect_auth_failures_total{reason=\"keys_unavailable\"}` +1" => taken(Answer::Whole("200 OK", "<html>sign in</html>"));
    an_error_where_keys_should_be: "ignored; 503 `keys_unavailable`", "`jwks_refresh_failed`, `nowconnect_auth_failures_total{reason=\"keys_unavailable\"}` +1" => taken(Answer::Whole("500 Internal Server Error", "{}"));
    a_redirect_to_the_metadata_service: "not followed; 503 `keys_unavailable`", "`jwks_refresh_failed`, `nowconnect_auth_failures_total{reason=\"keys_unavailable\"}` +1" => taken(Answer::Redirect);
    a_hundred_megabytes_of_keys: "cut off; 503 `keys_unavailable`", "`jwks_refresh_failed`; resident memory stays" => taken(Answer::Huge);
    a_byte_a_second: "cut off after 5 s; 503 `keys_unavailable`", "`jwks_refresh_failed`, `nowconnect_auth_failures_total{reason=\"keys_unavailable\"}` +1" => taken(Answer::Drip);
    an_rsa_key_of_512_bits: "ignored; 503 `keys_unavailable`", "`jwks_refresh_failed`, which names the key" => taken(Answer::Whole("200 OK", r#"{"keys":[{"kty":"RSA","kid":"key-1","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXbw","e":"AQAB"}]}"#));
    a_key_for_encryption: "ignored; 503 `keys_unavailable`", "`jwks_refresh_failed`, which names the key" => taken(Answer::Whole("200 OK", r#"{"keys":[{"kty":"OKP","crv":"Ed25519","use":"enc","kid":"key-1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#));
    a_shared_secret_among_the_keys: "ignored; 503 `keys_unavailable`", "`jwks_refresh_failed`, which names the key" => taken(Answer::Whole("200 OK", r#"{"keys":[{"kty":"oct","kid":"key-1","k":"c2VjcmV0"}]}"#));
    ten_thousand_keys: "ignored; 503 `keys_unavailable`", "`jwks_refresh_failed`" => taken(Answer::Many);
    keys_nested_without_end: "ignored; 503 `keys_unavailable`", "`jwks_refresh_failed`" => taken(Answer::Nested);
    a_taken_provider_and_agents_that_are_known: "known keys serve on: the agent comes back", "`jwks_refresh_failed`; no tunnel is lost" => known();
    a_thousand_unknown_keys: "401 `unknown_key` for ten a second, 429 `busy` for the others; the provider is asked once", "`nowconnect_auth_failures_total{reason=\"unknown_key\"}`, `nowconnect_handshakes_shed_total{reason=\"failures\"}`; `jwt_rejected` at most once a second" => unknown_keys();
    a_jku_that_points_at_a_server: "401 `header_not_allowed`; nobody connects to that server", "`nowconnect_auth_failures_total{reason=\"header_not_allowed\"}` +1" => jku();
}

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Answer {
    Whole(&'static str, &'static str),
    Keys,
    Redirect,
    Huge,
    Drip,
    Many,
    Nested,
}

struct Idp {
    url: String,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Idp {
    async fn start(lab: &Lab, answer: Answer) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/jwks", listener.local_addr()?);
        let keys = std::fs::read_to_string(lab.path("jwks.json"))?;
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (now, count) = (answer.clone(), asked.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (answer, keys) = (*now.lock(), keys.clone());
                connections.spawn(async move { drop(serve(stream, answer, &keys).await) });
            }
        });
        let _task = AbortOnDropHandle::new(task);
        Ok(Self {
            url,
            answer,
            asked,
            _task,
        })
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, keys: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let whole = |status: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nCache-Control: max-age=1\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    match answer {
        Answer::Whole(status, body) => stream.write_all(whole(status, body).as_bytes()).await,
        Answer::Keys => stream.write_all(whole("200 OK", keys).as_bytes()).await,
        Answer::Redirect => {
            let location = "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/\r\n\
                            Content-Length: 0\r\n\r\n";
            stream.write_all(location.as_bytes()).await
        }
        Answer::Huge => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
                .await?;
            loop {
                stream.write_all(&[b' '; 64 * 1024]).await?;
            }
        }
        Answer::Drip => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
                .await?;
            loop {
                stream.write_all(b" ").await?;
                // The pause is the offence.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Answer::Many => {
            let key = r#"{"kty":"oct","k":"eA"}"#;
            let body = format!(r#"{{"keys":[{}]}}"#, vec![key; 10_000].join(","));
            stream.write_all(whole("200 OK", &body).as_bytes()).await
        }
        Answer::Nested => {
            let body = format!(r#"{{"keys":{}"#, "[".repeat(100_000));
            stream.write_all(whole("200 OK", &body).as_bytes()).await
        }
    }
}

async fn taken(answer: Answer) -> Result<()> {
    let lab = lab()?;
    let idp = Idp::start(&lab, answer).await?;
    let hub = lab
        .hub("hub-a")
        .listener("echo")
        .set("security.jwks_url", idp.url.as_str());
    let mut hub = hub.start().await?;
    let before = hub.resident_bytes()?;
    hub.log().wait_event("jwks_refresh_failed").await?;
    let bearer = format!("Bearer {}", lab.issuer().token("site-1")?);
    let headers = http::upgrade_headers(&bearer);
    let answer = http::request(hub.tunnel_addr()?, "GET", "/tunnel", &headers, "").await?;
    refused(&answer, 503, "keys_unavailable")?;
    ensure!(answer.header("retry-after").is_some(), "{answer:?}");
    hub.wait_metric(AUTH, &[("reason", "keys_unavailable")], |n| n == 1.0)
        .await?;
    let grown = hub.resident_bytes()?.saturating_sub(before);
    ensure!(grown < MOST_MEMORY, "{} MiB more", grown >> 20);
    // The provider recovers: so does the hub, by itself.
    *idp.answer.lock() = Answer::Keys;
    let server = Target::echo().await?;
    let _agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;
    hub.process().check_alive()
}

async fn site(lab: &Lab, idp: &Idp) -> Result<(Hub, Agent, Target)> {
    let server = Target::echo().await?;
    let hub = lab
        .hub("hub-a")
        .listener("echo")
        .set("security.jwks_url", idp.url.as_str());
    let hub = hub.start().await?;
    let agent = lab.attach(&hub, &[("echo", server.addr())]).await?;
    Ok((hub, agent, server))
}

async fn known() -> Result<()> {
    let lab = lab()?;
    let idp = Idp::start(&lab, Answer::Keys).await?;
    let (hub, mut agent, _server) = site(&lab, &idp).await?;
    *idp.answer.lock() = Answer::Whole("200 OK", r#"{"keys":[]}"#);
    let bearer = format!("Bearer {}", forged("somebody"));
    let headers = http::upgrade_headers(&bearer);
    // An unknown key makes the hub ask again, and what it gets is of no use.
    let answer = http::request(hub.tunnel_addr()?, "GET", "/tunnel", &headers, "").await?;
    ensure!([401, 503].contains(&answer.status), "{answer:?}");
    agent.restart().await?;
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await
}

fn forged(kid: &str) -> String {
    Issuer::forge(
        &json!({ "alg": "ES256", "kid": kid }),
        &claims("site-1", 3600),
        &[1; 64],
    )
}

async fn unknown_keys() -> Result<()> {
    let lab = lab()?;
    let idp = Idp::start(&lab, Answer::Keys).await?;
    let (mut hub, _agent, _server) = site(&lab, &idp).await?;
    let before = idp.asked.load(Ordering::SeqCst);
    let mut askers = tokio::task::JoinSet::new();
    for asker in 0..10 {
        let to = hub.tunnel_addr()?;
        askers.spawn(async move {
            for n in 0..100 {
                let bearer = format!("Bearer {}", forged(&format!("{asker}-{n}")));
                let headers = http::upgrade_headers(&bearer);
                let answer = http::request(to, "GET", "/tunnel", &headers, "").await?;
                ensure!([401, 429].contains(&answer.status), "{answer:?}");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = askers.join_next().await {
        done??;
    }
    // max-age=1 is raised to a minute: of two more requests, neither is a refresh in time.
    let asked = idp.asked.load(Ordering::SeqCst) - before;
    ensure!(asked <= 1, "{asked} requests");
    let scrape = hub.metrics().await?;
    let judged = scrape.sum(AUTH, &[("reason", "unknown_key")]);
    let shed = scrape.sum(
        "nowconnect_handshakes_shed_total",
        &[("reason", "failures")],
    );
    ensure!(
        judged + shed == 1000.0 && judged >= 10.0,
        "{judged} judged, {shed} shed"
    );
    let lines = hub.log().events("jwt_rejected", Default::default()).len();
    ensure!(lines < 40, "{lines} lines");
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await?;
    hub.process().check_alive()
}

async fn jku() -> Result<()> {
    let lab = lab()?;
    let idp = Idp::start(&lab, Answer::Keys).await?;
    let (hub, _agent, _server) = site(&lab, &idp).await?;
    let trap = TcpListener::bind("127.0.0.1:0").await?;
    let jku = format!("http://{}/jwks", trap.local_addr()?);
    let header = json!({ "alg": "ES256", "kid": "key-1", "jku": jku });
    let token = Issuer::forge(&header, &claims("site-1", 3600), &[1; 64]);
    let bearer = format!("Bearer {token}");
    let headers = http::upgrade_headers(&bearer);
    let answer = http::request(hub.tunnel_addr()?, "GET", "/tunnel", &headers, "").await?;
    refused(&answer, 401, "header_not_allowed")?;
    let asked = tokio::time::timeout(Duration::from_millis(300), trap.accept()).await;
    ensure!(asked.is_err(), "the hub asked where the token told it to");
    echo(&mut hub.connect("echo").await?, Pattern(2), 0, 1000).await
}
