//! Both sides of the handshake, against tungstenite, against each other, and against nonsense.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in test helpers

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nowconnect_link::upgrade::{
    Bearer, ClientRequest, Offer, Refusal, UpgradeError, Upgraded, connect,
};
use nowconnect_link::ws::{Decoder, Limits, Mask, Message, Opcode, Role, write_message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite;
use tungstenite::client::IntoClientRequest;

const V2: &str = "nowconnect.v2";
const DEADLINE: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    max_frame: 1 << 16,
    max_message: 1 << 16,
};

async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("in time")
}

fn request<'a>(uri: &'a Uri, bearer: Option<&'a Bearer>) -> ClientRequest<'a> {
    let headers = HeaderMap::new();
    ClientRequest {
        uri,
        protocols: &[V2, "other"],
        bearer,
        user_agent: "test/1",
        headers,
    }
}

async fn read_message<S: AsyncRead + Unpin>(io: &mut S, buf: &mut BytesMut, role: Role) -> Message {
    let mut decoder = Decoder::new(role, LIMITS);
    loop {
        if let Some(message) = decoder.decode(buf).unwrap() {
            return message;
        }
        assert_ne!(
            within(io.read_buf(buf)).await.unwrap(),
            0,
            "closed before the message"
        );
    }
}

#[tokio::test]
#[allow(clippy::result_large_err)] // the callback's type is tungstenite's
async fn our_client_and_tungstenites_server() {
    use tungstenite::handshake::server as theirs;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = spawn_blocking(move || {
        let check = |request: &theirs::Request, mut response: theirs::Response| {
            let headers = request.headers();
            assert_eq!(request.uri().path(), "/tunnel");
            assert_eq!(headers["host"], format!("127.0.0.1:{}", addr.port()));
            assert_eq!(headers["authorization"], "Bearer to.ken");
            assert_eq!(headers["user-agent"], "test/1");
            assert_eq!(headers["sec-websocket-protocol"], "nowconnect.v2, other");
            response
                .headers_mut()
                .insert("sec-websocket-protocol", V2.parse().unwrap());
            Ok(response)
        };
        let mut socket = tungstenite::accept_hdr(listener.accept().unwrap().0, check).unwrap();
        socket.send(tungstenite::Message::text("hello")).unwrap();
        socket.read().unwrap()
    });

    let uri: Uri = format!("ws://{addr}/tunnel").parse().unwrap();
    let io = TcpStream::connect(addr).await.unwrap();
    let bearer = Bearer::new("to.ken\n").unwrap();
    let mut upgraded = within(connect(io, &request(&uri, Some(&bearer))))
        .await
        .unwrap();
    assert_eq!(upgraded.protocol, Some(V2));
    let hello = read_message(&mut upgraded.io, &mut upgraded.leftover, Role::Client).await;
    assert_eq!(hello, Message::Text("hello".into()));
    let mut out = BytesMut::new();
    write_message(&mut out, Opcode::Binary, b"thanks", Mask::Zero);
    upgraded.io.write_all(&out).await.unwrap();
    assert_eq!(within(server).await.unwrap().into_data(), &b"thanks"[..]);
}

/// Serves one connection: every upgrade is accepted, unless the path says otherwise.
async fn serve() -> (
    SocketAddr,
    mpsc::Receiver<Upgraded<TcpStream>>,
    JoinHandle<()>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (send, receive) = mpsc::channel(1);
    let server = tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        let answer = |request| answer(request, send.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(io), service_fn(answer));
        let _ = connection.with_upgrades().await;
    });
    (addr, receive, server)
}

async fn answer(
    mut request: Request<Incoming>,
    upgraded: mpsc::Sender<Upgraded<TcpStream>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let offer = match Offer::from_request(&request) {
        Ok(offer) => offer,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    match request.uri().path() {
        "/busy" => {
            let busy = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "move on");
            return Ok(busy.retry_after(Duration::from_secs(7)).into_response());
        }
        "/secret" => {
            let detail = format!("you sent {:?}", request.headers()["authorization"]);
            return Ok(
                Refusal::new(StatusCode::UNAUTHORIZED, "token_expired", detail).into_response(),
            );
        }
        _ => {}
    }
    let protocol = offer.choose(&[V2]);
    let (response, pending) = offer.accept(&mut request, protocol);
    tokio::spawn(async move { upgraded.send(pending.complete().await.unwrap()).await });
    Ok(response)
}

#[tokio::test]
async fn tungstenites_client_and_our_server() {
    let (addr, mut accepted, _server) = serve().await;
    let client = spawn_blocking(move || {
        let mut request = format!("ws://{addr}/tunnel").into_client_request().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", V2.parse().unwrap());
        let io = std::net::TcpStream::connect(addr).unwrap();
        let (mut socket, response) = tungstenite::client(request, io).unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], V2);
        socket
            .send(tungstenite::Message::binary(vec![1, 2, 3]))
            .unwrap();
        socket.read().unwrap()
    });
    let mut upgraded = within(accepted.recv()).await.unwrap();
    let message = read_message(&mut upgraded.io, &mut upgraded.leftover, Role::Server).await;
    assert_eq!(message, Message::Binary(Bytes::from_static(&[1, 2, 3])));
    let mut out = BytesMut::new();
    write_message(&mut out, Opcode::Text, b"ok", Mask::None);
    upgraded.io.write_all(&out).await.unwrap();
    assert_eq!(
        within(client).await.unwrap().into_text().unwrap().as_str(),
        "ok"
    );
}

/// What a hasty client sends with its request must reach the codec.
#[tokio::test]
async fn bytes_behind_the_request_are_kept() {
    let (addr, mut accepted, _server) = serve().await;
    let mut wire = BytesMut::from(good_request("").as_bytes());
    write_message(&mut wire, Opcode::Binary, b"early", Mask::Random);
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(&wire).await.unwrap();
    let mut upgraded = within(accepted.recv()).await.unwrap();
    let message = read_message(&mut upgraded.io, &mut upgraded.leftover, Role::Server).await;
    assert_eq!(message, Message::Binary(Bytes::from_static(b"early")));
    assert_eq!(upgraded.protocol, None);
}

fn good_request(more: &str) -> String {
    format!(
        "GET /tunnel HTTP/1.1\r\nHost: hub\r\nUpgrade: WebSocket\r\n\
         Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn bad_requests_are_answered_and_the_connection_closed() {
    let good = good_request("");
    let cases = [
        ("405", good.replace("GET", "POST"), "bad_method"),
        (
            "403",
            good_request("Origin: https://evil.example\r\n"),
            "browser_origin",
        ),
        (
            "426",
            good.replace("Upgrade: WebSocket", "X: y"),
            "not_an_upgrade",
        ),
        (
            "426",
            good.replace("keep-alive, Upgrade", "keep-alive"),
            "not_an_upgrade",
        ),
        (
            "426",
            good.replace("Version: 13", "Version: 8"),
            "bad_websocket_version",
        ),
        (
            "426",
            good_request("Sec-WebSocket-Version: 13\r\n"),
            "bad_websocket_version",
        ),
        ("400", good.replace("dGhl", ""), "bad_upgrade"),
        (
            "400",
            good_request("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            "bad_upgrade",
        ),
        ("400", good.replace("Host: hub\r\n", ""), "bad_upgrade"),
        (
            "400",
            good_request("Authorization: a\r\nAuthorization: b\r\n"),
            "bad_upgrade",
        ),
        ("400", good_request("Content-Length: 5\r\n"), "bad_upgrade"),
        (
            "400",
            good_request("Transfer-Encoding: chunked\r\n"),
            "bad_upgrade",
        ),
    ];
    for (status, request, reason) in cases {
        let (addr, _accepted, _server) = serve().await;
        let mut io = TcpStream::connect(addr).await.unwrap();
        io.write_all(request.as_bytes()).await.unwrap();
        // A second request must not be answered on the same connection.
        let _ = io
            .write_all(b"GET /admin HTTP/1.1\r\nHost: hub\r\n\r\n")
            .await;
        let mut bytes = Vec::new();
        let _ = within(io.read_to_end(&mut bytes)).await;
        let answer = String::from_utf8(bytes).unwrap().to_lowercase();
        assert!(
            answer.starts_with(&format!("http/1.1 {status}")),
            "{request}{answer}"
        );
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(
            answer.contains(&format!("\"error\":\"{reason}\"")),
            "{request}{answer}"
        );
        assert_eq!(answer.matches("http/1.1").count(), 1, "{answer}");
        if status == "426" {
            assert!(answer.contains("sec-websocket-version: 13"), "{answer}");
        }
    }
    let (addr, _accepted, _server) = serve().await;
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(good.replace("HTTP/1.1", "HTTP/1.0").as_bytes())
        .await
        .unwrap();
    let mut answer = [0; 12];
    within(io.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer[9..], b"505");
}

#[tokio::test]
async fn refusals_reach_the_client_typed() {
    let (addr, _accepted, _server) = serve().await;
    let uri: Uri = format!("ws://{addr}/busy").parse().unwrap();
    let io = TcpStream::connect(addr).await.unwrap();
    match within(connect(io, &request(&uri, None))).await.unwrap_err() {
        UpgradeError::Refused {
            status,
            reason,
            retry_after,
            body,
            nonce,
        } => {
            assert_eq!(nonce, None);
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(reason.as_deref(), Some("draining"));
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
            assert_eq!(body, r#"{"error":"draining","detail":"move on"}"#);
        }
        other => panic!("{other}"),
    }

    let (addr, _accepted, _server) = serve().await;
    let uri: Uri = format!("ws://{addr}/secret").parse().unwrap();
    let io = TcpStream::connect(addr).await.unwrap();
    let bearer = Bearer::new("hush.hush").unwrap();
    let error = within(connect(io, &request(&uri, Some(&bearer))))
        .await
        .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("401 Unauthorized") && text.contains("token_expired"),
        "{text}"
    );
    assert!(!text.contains("hush"), "{text}");
}

/// Answers `reply` to whatever is asked, `step` bytes at a time; `{accept}` is filled in.
async fn scripted(reply: &str, step: usize) -> Result<Upgraded<tokio::io::DuplexStream>, String> {
    let (io, mut server) = tokio::io::duplex(64 * 1024);
    let reply = reply.to_owned();
    let script = tokio::spawn(async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            server.read_buf(&mut asked).await.unwrap();
        }
        let asked = String::from_utf8(asked).unwrap();
        let (_, key) = asked.split_once("sec-websocket-key: ").unwrap();
        let key = key.lines().next().unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        for piece in reply.replace("{accept}", &accept).as_bytes().chunks(step) {
            if server.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    });
    let uri = Uri::from_static("wss://hub.example/tunnel?x=1");
    let result = within(connect(io, &request(&uri, None))).await;
    script.await.unwrap();
    result.map_err(|error| error.to_string())
}

const SWITCH: &str = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n";

#[tokio::test]
async fn answers_may_come_in_any_pieces() {
    let reply = format!(
        "HTTP/1.1 100 Continue\r\n\r\n{SWITCH}Sec-WebSocket-Accept: {{accept}}\r\n\
         Sec-WebSocket-Protocol: nowconnect.v2\r\n\r\n\x01\x03Hel"
    );
    for step in (1..reply.len()).chain([10_000]) {
        let mut upgraded = scripted(&reply, step).await.unwrap();
        assert_eq!(upgraded.protocol, Some(V2));
        within(upgraded.io.read_buf(&mut upgraded.leftover))
            .await
            .unwrap();
        while upgraded.leftover.len() < 5 {
            within(upgraded.io.read_buf(&mut upgraded.leftover))
                .await
                .unwrap();
        }
        assert_eq!(&upgraded.leftover[..], b"\x01\x03Hel", "in steps of {step}");
    }
}

#[tokio::test]
async fn wrong_answers_are_named() {
    let accept = "Sec-WebSocket-Accept: {accept}\r\n";
    let switch = |more: &str| format!("{SWITCH}{accept}{more}\r\n");
    let cases = [
        (format!("{SWITCH}\r\n"), "Accept does not match"),
        (
            format!("{SWITCH}Sec-WebSocket-Accept: x\r\n\r\n"),
            "Accept does not match",
        ),
        (switch(accept), "Accept does not match"),
        (
            switch("").replace("Upgrade: websocket", "Upgrade: h2c"),
            "Upgrade is not websocket",
        ),
        (
            switch("").replace("Connection: upgrade", "X: y"),
            "Connection is not Upgrade",
        ),
        (
            switch("Sec-WebSocket-Extensions: permessage-deflate\r\n"),
            "extension",
        ),
        (switch("Sec-WebSocket-Protocol: mqtt\r\n"), "not offered"),
        (
            switch("Sec-WebSocket-Protocol: other, nowconnect.v2\r\n"),
            "several",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), "not HTTP/1"),
        ("HTTP/1.1 200 OK\r\nX: ".into(), "closed after"),
        (
            ["HTTP/1.1 200 OK\r\nX: ", &"y".repeat(40_000)].concat(),
            "longer than 16384",
        ),
        (
            "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n".into(),
            "refused with 302 Found; the URL must be the hub's own",
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n\
             6\r\n<html>\r\n4\r\n oh!\r\n0\r\n\r\n"
                .into(),
            "502 Bad Gateway (an HTML page); the ingress does not reach the hub",
        ),
        (
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 42\r\n\r\n<html>\r\n<title>The SSL certificate</title>"
                .into(),
            "400 Bad Request (The SSL certificate); that is no hub's answer",
        ),
    ];
    for (reply, expected) in cases {
        let error = scripted(&reply, 1000).await.map(drop).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
