//! A way through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6).

use bytes::BytesMut;
use http::{StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{DialError, Proxy, WsUrl};
use crate::reply::{self, Head};

/// Has `proxy` connect to the host of `url`. The server's first bytes may come along with the
/// proxy's answer; they are returned next to the stream.
pub(crate) async fn open<S>(
    mut io: S,
    proxy: &Proxy,
    url: &WsUrl,
) -> Result<(S, BytesMut), DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let to = url.authority();
    let failed = |source| DialError::Proxy {
        proxy: proxy.to_string(),
        source,
    };
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
    if let Some(authorization) = proxy.authorization() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    io.write_all(&request)
        .await
        .map_err(|error| failed(error.into()))?;
    let mut buf = BytesMut::new();
    let head = reply::read_head(&mut io, &mut buf).await.map_err(failed)?;
    // Length and encoding of a 2xx answer mean nothing: all that follows is the tunnel's.
    if head.status.is_success() {
        return Ok((io, buf));
    }
    if head.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        return Err(DialError::ProxyAuth {
            proxy: proxy.to_string(),
            schemes: schemes(&head),
            sent: proxy.authorization().is_some(),
        });
    }
    let secret = proxy
        .authorization()
        .and_then(|value| value.to_str().ok()?.split(' ').next_back());
    let body = reply::body_excerpt(&mut io, &mut buf, &head, secret).await;
    Err(DialError::ProxyRefused {
        proxy: proxy.to_string(),
        to,
        status: head.status,
        body,
    })
}

/// The names of the schemes in `Proxy-Authenticate`. One line may hold several challenges, and
/// commas also separate the parameters of one.
fn schemes(head: &Head) -> Vec<String> {
    let lines = head.headers.get_all(header::PROXY_AUTHENTICATE).iter();
    let items = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    let words = items.filter_map(|item| item.split_whitespace().next());
    words
        .filter(|word| !word.contains(['=', '"']))
        .take(8)
        .map(str::to_owned)
        .collect()
}
