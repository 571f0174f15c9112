//! A few lines of HTTP/1.1: enough to ask a health port, and to send what no real client would.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::within;

/// An answer with its body read to the end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and header fields.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// A header field's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// `GET path`.
///
/// # Errors
/// When there is no connection or no HTTP answer within the deadline.
pub async fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    request(addr, "GET", path, &[], "").await
}

/// Any request, on a connection of its own.
///
/// # Errors
/// When there is no connection or no HTTP answer within the deadline.
pub async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("connection"))
    {
        text += "Connection: close\r\n";
    }
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += body;
    let raw = exchange(addr, text.as_bytes()).await?;
    parse(&raw).with_context(|| format!("{method} http://{addr}{path}"))
}

/// The header fields of a WebSocket upgrade to the tunnel.
pub fn upgrade_headers(authorization: &str) -> Vec<(&str, &str)> {
    vec![
        ("Authorization", authorization),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "nowconnect.v2"),
    ]
}

/// Sends bytes and reads whatever comes until the other side closes.
///
/// # Errors
/// When the connection fails or stays open beyond the deadline.
pub async fn exchange(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let work = async {
        let mut stream = TcpStream::connect(addr)
            .await
            .with_context(|| addr.to_string())?;
        // A server may answer and close before it has read all of a bad request.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer).await {
            Err(error) if answer.is_empty() => Err(error.into()),
            _ => anyhow::Ok(answer),
        }
    };
    within(&format!("{addr} to answer and close"), work).await?
}

fn parse(raw: &[u8]) -> Result<Answer> {
    let text = String::from_utf8_lossy(raw);
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let answer = Answer {
        status: status.with_context(|| format!("no status: {head}"))?,
        head: head.to_owned(),
        body: body.to_owned(),
    };
    let chunked = answer
        .header("transfer-encoding")
        .is_some_and(|value| value == "chunked");
    Ok(if chunked {
        Answer {
            body: unchunk(body),
            ..answer
        }
    } else {
        answer
    })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_default();
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else {
            break;
        };
        body += chunk;
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}
