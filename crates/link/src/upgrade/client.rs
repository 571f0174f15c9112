//! Asks a server to switch to WebSocket.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, BytesMut};
use http::header;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Bearer, Upgraded, accept_key, list, list_has};
use crate::reply::{self, Head, ReplyError};

/// What is asked of the server.
#[derive(Debug)]
pub struct ClientRequest<'a> {
    /// Where to: gives the `Host` header and the path.
    pub uri: &'a Uri,
    /// Subprotocols that we speak, best first; none is fine.
    pub protocols: &'a [&'static str],
    /// Goes into `Authorization`.
    pub bearer: Option<&'a Bearer>,
    /// Goes into `User-Agent`.
    pub user_agent: &'a str,
    /// Further headers.
    pub headers: HeaderMap,
}

/// Why the connection does not speak WebSocket now.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The request cannot be written as HTTP.
    #[error("cannot ask for the upgrade: {0}")]
    BadRequest(&'static str),
    /// The connection broke while the request was sent.
    #[error("the connection broke while the upgrade was requested: {0}")]
    Io(#[from] io::Error),
    /// No usable answer.
    #[error("no answer to the upgrade: {error}{hint}", error = .0, hint = unanswered_hint(.0))]
    Reply(#[from] ReplyError),
    /// The server said no.
    #[error("the upgrade was refused with {status}{}; {}", shown(.body), hint(*.status, .reason.as_deref(), .body))]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's reason code: `error` in its JSON body.
        reason: Option<String>,
        /// The body, shortened to one line.
        body: String,
        /// When to try again, when the server said so.
        retry_after: Option<Duration>,
        /// What a proof of possession must be made with, when the server said so (RFC 9449 section 9).
        nonce: Option<String>,
    },
    /// The server said yes, but not the way RFC 6455 section 4.1 wants it.
    #[error(
        "the answer to the upgrade is wrong: {0}; something between us and the hub, or a \
             server that is no hub, does not speak WebSocket"
    )]
    BadAnswer(&'static str),
}

fn shown(body: &str) -> String {
    match body {
        "" => String::new(),
        page if page.starts_with('<') => format!(" ({})", title(page)),
        body => format!(" ({body})"),
    }
}

/// What an ingress says on a page: its title is all there is to it.
fn title(page: &str) -> &str {
    let title = page.split_once("<title>").map(|(_, from)| from);
    let title = title.and_then(|from| from.split_once("</title>"));
    title.map_or("an HTML page", |(title, _)| title)
}

fn unanswered_hint(error: &ReplyError) -> &'static str {
    let alert = match error {
        ReplyError::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    };
    // With TLS 1.3, what the server says of our certificate comes after the handshake.
    match alert {
        Some(rustls::Error::AlertReceived(_)) => "; its own log says why",
        _ => "; check that the URL leads to a hub",
    }
}

fn hint(status: StatusCode, reason: Option<&str>, body: &str) -> &'static str {
    match status.as_u16() {
        401 if reason.is_some_and(|reason| reason.contains("dpop")) => {
            "the token is to be shown with a proof that it is ours"
        }
        300..=399 => "the URL must be the hub's own, redirects are not followed",
        401 => "check the token: expiry, audience, and that the hub trusts its issuer",
        403 => "the hub or something in front of it does not let this client in",
        404 | 405 => {
            "check port and path of the URL: agents dial /tunnel and hubs /mesh, on tunnel.port"
        }
        407 => "a proxy in between wants credentials",
        426 => "this path wants a WebSocket and something in between took the request for it out",
        503 if reason == Some("ha_off") => "turn it on there too",
        503 if reason == Some("keys_unavailable") => "the hub's log says why it has no keys",
        429 | 503 => "the hub is busy or draining, try again later",
        502 | 504 => "the ingress does not reach the hub",
        _ if body.starts_with('<') => {
            "that is no hub's answer: see the log of what is in front of it"
        }
        _ => "see the hub's log",
    }
}

/// Asks for the upgrade over `io` and reads the answer. Not bounded in time: the caller has a
/// deadline.
///
/// # Errors
/// See [`UpgradeError`]; the connection is of no further use.
pub async fn connect<S>(mut io: S, request: &ClientRequest<'_>) -> Result<Upgraded<S>, UpgradeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    io.write_all(&request.encode(&key)?).await?;
    io.flush().await?;
    let mut buf = BytesMut::new();
    let head = reply::read_head(&mut io, &mut buf).await?;
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        let secret = request.bearer.map(Bearer::token);
        let body = reply::body_excerpt(&mut io, &mut buf, &head, secret).await;
        return Err(refused(&head, body));
    }
    let protocol = check(&head.headers, &key, request.protocols)?;
    Ok(Upgraded {
        io,
        leftover: buf,
        protocol,
    })
}

impl ClientRequest<'_> {
    fn encode(&self, key: &str) -> Result<BytesMut, UpgradeError> {
        let bad = UpgradeError::BadRequest;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = self.headers.clone();
        let value = |text: &str, what| HeaderValue::from_str(text).map_err(|_| bad(what));
        headers.insert(
            header::HOST,
            value(&host(self.uri)?, "bad characters in the host")?,
        );
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(
            header::SEC_WEBSOCKET_KEY,
            value(key, "bad characters in the key")?,
        );
        headers.insert(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        );
        headers.insert(
            header::USER_AGENT,
            value(self.user_agent, "bad characters in the user agent")?,
        );
        if !self.protocols.is_empty() {
            let protocols = value(
                &self.protocols.join(", "),
                "bad characters in a subprotocol",
            )?;
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
        }
        if let Some(bearer) = self.bearer {
            headers.insert(header::AUTHORIZATION, bearer.0.clone());
        }
        let mut out = BytesMut::with_capacity(1024);
        out.put_slice(format!("GET {path} HTTP/1.1\r\n").as_bytes());
        for (name, value) in &headers {
            out.put_slice(name.as_str().as_bytes());
            out.put_slice(b": ");
            out.put_slice(value.as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
        Ok(out)
    }
}

/// `Host` without the scheme's default port, which some ingresses would not recognise.
fn host(uri: &Uri) -> Result<String, UpgradeError> {
    let host = uri
        .host()
        .ok_or(UpgradeError::BadRequest("the URL has no host"))?;
    let default = match uri.scheme_str() {
        Some("ws" | "http") => Some(80),
        Some("wss" | "https") => Some(443),
        _ => None,
    };
    Ok(match uri.port_u16() {
        Some(port) if Some(port) != default => format!("{host}:{port}"),
        _ => host.to_owned(),
    })
}

fn refused(head: &Head, body: String) -> UpgradeError {
    let answer: Option<serde_json::Value> = serde_json::from_str(&body).ok();
    let reason = answer
        .as_ref()
        .and_then(|answer| answer.get("error")?.as_str());
    UpgradeError::Refused {
        status: head.status,
        reason: reason.map(str::to_owned),
        retry_after: reply::retry_after(&head.headers),
        nonce: nonce(&head.headers),
        body,
    }
}

fn nonce(headers: &HeaderMap) -> Option<String> {
    const MAX_NONCE: usize = 256;
    let value = headers.get("dpop-nonce")?.to_str().ok()?;
    ((1..=MAX_NONCE).contains(&value.len())).then(|| value.to_owned())
}

/// The checks of RFC 6455 section 4.1; returns the subprotocol.
fn check(
    headers: &HeaderMap,
    key: &str,
    offered: &[&'static str],
) -> Result<Option<&'static str>, UpgradeError> {
    let bad = |what| Err(UpgradeError::BadAnswer(what));
    if !list_has(headers, header::UPGRADE, "websocket") {
        return bad("Upgrade is not websocket");
    }
    if !list_has(headers, header::CONNECTION, "upgrade") {
        return bad("Connection is not Upgrade");
    }
    let mut accepts = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    match (accepts.next(), accepts.next()) {
        (Some(accept), None) if accept.as_bytes() == accept_key(key.as_bytes()).as_bytes() => {}
        _ => return bad("Sec-WebSocket-Accept does not match the key"),
    }
    if list(headers, header::SEC_WEBSOCKET_EXTENSIONS)
        .next()
        .is_some()
    {
        return bad("it names an extension that was not offered");
    }
    let mut chosen = list(headers, header::SEC_WEBSOCKET_PROTOCOL);
    match (chosen.next(), chosen.next()) {
        (None, _) => Ok(None),
        (Some(name), None) => match offered.iter().find(|offer| **offer == name) {
            Some(offer) => Ok(Some(*offer)),
            None => bad("it names a subprotocol that was not offered"),
        },
        _ => bad("it names several subprotocols"),
    }
}
