//! Reads one HTTP/1 response off a connection that turns into something else afterwards.
//!
//! An HTTP client library would keep what it read beyond the header; here it stays in the caller's
//! buffer, where the next protocol finds it.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// Longest response head that is accepted, in bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Bytes read at once.
const READ: usize = 2048;
/// How much of an error body is read, and how long it may take.
const MAX_BODY: usize = 4 * 1024;
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// Characters of an error body that are shown.
const EXCERPT: usize = 256;

/// Status line and headers.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// Why there is no usable response.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The connection broke.
    #[error("the connection broke before the answer was complete: {0}")]
    Io(#[from] io::Error),
    /// The connection was closed.
    #[error("the connection was closed after {0} bytes of the answer")]
    Closed(usize),
    /// More header than any honest server sends.
    #[error("the answer's header is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// Not an HTTP/1 response.
    #[error("the answer is not HTTP/1 ({0})")]
    NotHttp(String),
}

/// Reads up to the empty line; what follows it stays in `buf`. Interim answers (100, 103) are
/// skipped. Not bounded in time: the caller has a deadline.
pub(crate) async fn read_head<S>(io: &mut S, buf: &mut BytesMut) -> Result<Head, ReplyError>
where
    S: AsyncRead + Unpin,
{
    let mut fresh = 0;
    loop {
        // Parsing starts over every time, so it waits for a line to end.
        if buf.get(fresh..).is_some_and(|read| read.contains(&b'\n'))
            && let Some((size, head)) = parse(buf)?
        {
            buf.advance(size);
            if is_interim(head.status) {
                fresh = 0;
                continue;
            }
            return Ok(head);
        }
        if buf.len() >= MAX_HEAD {
            return Err(ReplyError::TooLong);
        }
        fresh = buf.len();
        buf.reserve(READ);
        if io.read_buf(buf).await? == 0 {
            return Err(ReplyError::Closed(buf.len()));
        }
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

fn parse(buf: &[u8]) -> Result<Option<(usize, Head)>, ReplyError> {
    let not_http = |error: &dyn std::fmt::Display| ReplyError::NotHttp(error.to_string());
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let size = match response.parse(buf).map_err(|error| not_http(&error))? {
        httparse::Status::Complete(size) => size,
        httparse::Status::Partial => return Ok(None),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or_default())
        .map_err(|error| not_http(&error))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|e| not_http(&e))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|e| not_http(&e))?;
        headers.append(name, value);
    }
    Ok(Some((size, Head { status, headers })))
}

/// The beginning of an error answer's body, on one line, fit for a log. Empty when there is none
/// or it does not come soon. `secret` is blanked, should the server echo it.
pub(crate) async fn body_excerpt<S>(
    io: &mut S,
    buf: &mut BytesMut,
    head: &Head,
    secret: Option<&str>,
) -> String
where
    S: AsyncRead + Unpin,
{
    let length = head
        .headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(as_number);
    let chunked = head.headers.contains_key(http::header::TRANSFER_ENCODING);
    let is_whole = |buf: &[u8]| match length {
        _ if chunked => buf.ends_with(b"0\r\n\r\n"),
        Some(length) => buf.len() as u64 >= length,
        None => false,
    };
    // A body that breaks off or stalls is shown as far as it came.
    let _ = timeout(BODY_PATIENCE, async {
        while !is_whole(buf) && buf.len() < MAX_BODY {
            buf.reserve(READ);
            if !matches!(io.read_buf(buf).await, Ok(1..)) {
                break;
            }
        }
    })
    .await;
    let body = if chunked { dechunk(buf) } else { buf.to_vec() };
    let mut text = String::from_utf8_lossy(&body).into_owned();
    if let Some(secret) = secret.filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[hidden]");
    }
    one_line(&text)
}

fn as_number(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

/// `Retry-After` in its form of seconds; the date form is for caches and left to the backoff.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get(http::header::RETRY_AFTER)
        .and_then(as_number)
        .map(Duration::from_secs)
}

fn dechunk(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(raw) {
        let Some(rest) = raw.get(at..) else { break };
        let chunk = rest
            .get(..usize::try_from(size).unwrap_or(usize::MAX))
            .unwrap_or(rest);
        body.extend_from_slice(chunk);
        match rest.get(chunk.len() + 2..) {
            Some(next) if size > 0 => raw = next,
            _ => break,
        }
    }
    body
}

fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match line.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_one_short_line() {
        assert_eq!(one_line(" a\r\n\tb\u{1b}[31mc \0"), "a b [31mc");
        let long = one_line(&"é".repeat(1000));
        assert_eq!(long.chars().count(), EXCERPT + 3);
    }

    #[test]
    fn chunks_are_joined_as_far_as_they_came() {
        assert_eq!(dechunk(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"), b"abcde");
        assert_eq!(dechunk(b"3\r\nabc\r\nff\r\nde"), b"abcde");
        assert_eq!(dechunk(b"3\r\nabc"), b"abc");
        assert_eq!(dechunk(b"<html>"), b"");
    }

    #[tokio::test]
    async fn interim_answers_are_skipped_and_the_rest_is_kept() {
        let mut wire: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
            HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n\x82\x00";
        let mut buf = BytesMut::new();
        let head = read_head(&mut wire, &mut buf).await.unwrap();
        assert_eq!(
            (head.status.as_u16(), &head.headers["a"]),
            (101, &"b".parse().unwrap())
        );
        assert_eq!(&buf[..], b"\x82\x00");
    }

    #[tokio::test]
    async fn endless_headers_are_refused() {
        let wire = ["HTTP/1.1 200 OK\r\nX: ", &"y".repeat(2 * MAX_HEAD)].concat();
        let mut buf = BytesMut::new();
        let error = read_head(&mut wire.as_bytes(), &mut buf).await.unwrap_err();
        assert!(matches!(error, ReplyError::TooLong));
        assert!(buf.capacity() <= 2 * MAX_HEAD);
    }

    #[tokio::test]
    async fn an_echoed_secret_is_hidden() {
        let head = Head {
            status: StatusCode::FORBIDDEN,
            headers: HeaderMap::new(),
        };
        let mut buf = BytesMut::from(&b"you sent Bearer abc.def"[..]);
        let text = body_excerpt(&mut tokio::io::empty(), &mut buf, &head, Some("abc.def")).await;
        assert_eq!(text, "you sent Bearer [hidden]");
    }
}
