//! Ways for the fuzzer into parsers that are private. Nothing else may use them.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::dial::{DialError, Proxy, WsUrl, tunnel};

/// Has `proxy` at the other end of `io` connect to the host of `url`; returns what came along with
/// its answer.
///
/// # Errors
/// It refuses, or is no proxy.
pub async fn connect_answer<S>(io: S, proxy: &Proxy, url: &WsUrl) -> Result<BytesMut, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (_, leftover) = tunnel::open(io, proxy, url).await?;
    Ok(leftover)
}
