//! HTTP heads: the request for an upgrade at the hub, the answers at the agent.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, Uri};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nowconnect_hub::auth;
use nowconnect_link::dial::{Proxy, WsUrl};
use nowconnect_link::fuzzing;
use nowconnect_link::upgrade::{Bearer, ClientRequest, Offer, UpgradeError, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const PROTOCOLS: &[&str] = &["nowconnect.v2", "nowconnect.v1"];
/// The bounds of the hub.
const HEADER_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// Room of a connection in memory: more than any input has.
const ROOM: usize = 256 * 1024;
const PASSWORD: &str = "hush-hush-hush";

/// Runs a future that waits for nothing but memory.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Any bytes to the HTTP server of a hub: whoever is let through has asked for an upgrade by every
/// rule, as a second reading finds; whoever is not is told so, once, and gets no second request in.
pub fn upgrade_request(data: &[u8]) {
    let (requests, accepted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let answer = block_on(async {
        let (mut client, hub) = tokio::io::duplex(ROOM);
        client.write_all(data).await.expect("room");
        client.shutdown().await.expect("memory");
        let service = service_fn(|mut request| {
            requests.fetch_add(1, Ordering::Relaxed);
            let _ = auth::authorization(request.headers());
            let _ = auth::proof(request.headers());
            let answer = match Offer::from_request(&request) {
                Ok(offer) => {
                    accepted.fetch_add(1, Ordering::Relaxed);
                    let protocol = offer.choose(PROTOCOLS);
                    offer.accept(&mut request, protocol).0
                }
                Err(refusal) => refusal.into_response(),
            };
            async { Ok::<_, Infallible>(answer) }
        });
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            // The end of the input is not the client's change of mind.
            .half_close(true)
            .max_buf_size(HEADER_BYTES)
            .max_headers(HEADERS);
        // Ends in an error when what was sent is no HTTP.
        let connection = server.serve_connection(TokioIo::new(hub), service);
        let _ = connection.with_upgrades().await;
        everything(client).await
    });
    let accepted = accepted.into_inner() == 1;
    assert!(requests.into_inner() <= 1, "a request behind a refused one");
    let mut fields = [httparse::EMPTY_HEADER; HEADERS];
    let mut head = httparse::Response::new(&mut fields);
    if answer.is_empty() {
        return assert!(!accepted);
    }
    assert!(head.parse(&answer).expect("an answer").is_complete());
    assert_eq!(accepted, head.code == Some(101));
    let says = |name: &str, value: &str| {
        let mut found = head
            .headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case(name));
        found.any(|header| header.value.eq_ignore_ascii_case(value.as_bytes()))
    };
    if accepted {
        let key = judge_request(data);
        let expected = derive_accept_key(key.as_bytes());
        assert!(says("sec-websocket-accept", &expected) && says("upgrade", "websocket"));
    } else {
        assert!(says("connection", "close"));
    }
}

/// A second, simple reading of an accepted request; returns its key.
fn judge_request(data: &[u8]) -> String {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS];
    let mut head = httparse::Request::new(&mut fields);
    assert!(head.parse(data).expect("a request").is_complete());
    assert_eq!((head.method, head.version), (Some("GET"), Some(1)));
    let all = |name: &str| -> Vec<&[u8]> {
        let named = head
            .headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect()
    };
    assert!(all("origin").is_empty() && all("transfer-encoding").is_empty());
    assert!(all("content-length").iter().all(|length| *length == b"0"));
    assert_eq!(all("host").len(), 1);
    assert!(all("authorization").len() <= 1);
    assert_eq!(all("sec-websocket-version"), [b"13"]);
    let keys = all("sec-websocket-key");
    let [key] = keys.as_slice() else {
        panic!("not one key");
    };
    assert_eq!(BASE64_STANDARD.decode(key).expect("base64").len(), 16);
    String::from_utf8(key.to_vec()).expect("base64 is ASCII")
}

/// What stands for the right `Sec-WebSocket-Accept` in an answer.
const ACCEPT: &str = "{accept}";

/// Any bytes as the answer to an upgrade request: an error that does not show the token, or a
/// connection whose first bytes are what followed the answer.
pub fn upgrade_answer(data: &[u8]) {
    let bearer = Bearer::new(PASSWORD).expect("a token");
    let uri = Uri::from_static("wss://hub.example/tunnel");
    let request = ClientRequest {
        uri: &uri,
        protocols: PROTOCOLS,
        bearer: Some(&bearer),
        user_agent: "fuzz",
        headers: HeaderMap::new(),
    };
    let (upgraded, sent) = block_on(async {
        let (agent, mut hub) = tokio::io::duplex(ROOM);
        let answer = async {
            let key = key_of_request(&mut hub).await;
            let answer = replaced(data, ACCEPT, &derive_accept_key(key.as_bytes()));
            // The agent may have had enough.
            let _ = hub.write_all(&answer).await;
            let _ = hub.shutdown().await;
            answer
        };
        tokio::join!(connect(agent, &request), answer)
    });
    match upgraded {
        Ok(upgraded) => {
            assert!(sent.ends_with(&upgraded.leftover));
            assert!(
                upgraded
                    .protocol
                    .is_none_or(|name| PROTOCOLS.contains(&name))
            );
            let text = String::from_utf8_lossy(data);
            assert!(text.contains(ACCEPT) && text.contains(" 101"));
        }
        Err(error) => {
            let is_refused = matches!(error, UpgradeError::Refused { .. });
            check_error(&error.to_string(), is_refused);
        }
    }
}

async fn key_of_request(hub: &mut DuplexStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(hub.read_u8().await.expect("a request"));
    }
    judge_request(&request)
}

fn replaced(data: &[u8], what: &str, with: &str) -> Vec<u8> {
    let at = data.windows(what.len()).position(|w| w == what.as_bytes());
    match at {
        Some(at) => [&data[..at], with.as_bytes(), &data[at + what.len()..]].concat(),
        None => data.to_vec(),
    }
}

/// Any bytes as what an HTTP proxy answers to CONNECT: an error that does not show the password, or a
/// way whose first bytes are what followed the answer.
pub fn connect_answer(data: &[u8]) {
    let proxy = format!("http://user:{PASSWORD}@proxy.example:3128");
    let proxy = Proxy::parse("HTTPS_PROXY", &proxy).expect("a proxy");
    let uri = Uri::from_static("wss://hub.example/tunnel");
    let url = WsUrl::try_from(uri).expect("a URL");
    let io = tokio::io::join(data, tokio::io::sink());
    match block_on(fuzzing::connect_answer(io, &proxy, &url)) {
        Ok(leftover) => {
            let mut fields = [httparse::EMPTY_HEADER; HEADERS];
            let (head, rest) = final_head(data, &mut fields).expect("an answer");
            assert!((200..300).contains(&head));
            assert_eq!(leftover, rest);
        }
        Err(error) => check_error(&error.to_string(), true),
    }
}

/// Status of the first answer that is not an interim one, and what follows it.
fn final_head<'a>(
    mut data: &'a [u8],
    fields: &mut [httparse::Header<'a>],
) -> Option<(u16, &'a [u8])> {
    loop {
        let mut head = httparse::Response::new(fields);
        let httparse::Status::Complete(size) = head.parse(data).ok()? else {
            return None;
        };
        let code = head.code?;
        data = &data[size..];
        if code == 101 || code >= 200 {
            return Some((code, data));
        }
    }
}

/// Errors go to logs: one line, and no secret, in whatever form it was echoed.
fn check_error(shown: &str, is_one_line: bool) {
    let encoded = BASE64_STANDARD.encode(format!("user:{PASSWORD}"));
    assert!(
        !shown.contains(PASSWORD) && !shown.contains(&encoded),
        "{shown}"
    );
    assert!(shown.len() < 2000, "{}", shown.len());
    if is_one_line {
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
}

async fn everything(mut io: DuplexStream) -> Vec<u8> {
    let mut read = Vec::new();
    io.read_to_end(&mut read).await.expect("memory");
    read
}
