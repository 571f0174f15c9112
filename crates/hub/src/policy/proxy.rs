//! Reading the PROXY protocol header that a balancer puts in front of a client's bytes.
//!
//! Rules: "The PROXY protocol", versions 1 and 2, haproxy.org. Exactly the header is taken from the
//! socket, so what follows it is the client's first payload byte.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::ProxyProtocol;

/// How long a balancer may take to send the whole header.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(5);

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// Longest version 1 header with its CRLF.
const V1_MAX: usize = 107;
/// Longest version 2 header that is read. Addresses need 216 bytes, the rest is for TLVs; balancers
/// stay far below (a TLS client certificate's subject is the largest in use).
const V2_MAX: usize = 4096;

/// Why no client address could be had from a PROXY header.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Not one of the accepted versions, or malformed.
    #[error("no valid PROXY header of the configured version")]
    Malformed,
    /// Version 2 header beyond the bound.
    #[error("PROXY header of {0} bytes, at most {V2_MAX} are read")]
    TooLong(usize),
    /// It did not arrive in time.
    #[error("no PROXY header within {} s", HEADER_DEADLINE.as_secs())]
    Late,
    /// The connection ended first.
    #[error("connection ended before the PROXY header: {0}")]
    Io(#[from] io::Error),
}

/// Takes the header off `stream`. `None`: the balancer speaks for itself (version 2 `LOCAL`,
/// version 1 `UNKNOWN`, as health checks do) or for a client whose address is no IP address.
///
/// # Errors
/// See [`ProxyError`]; the connection is of no use then.
pub(super) async fn read_client(
    stream: &mut TcpStream,
    accepted: ProxyProtocol,
) -> Result<Option<SocketAddr>, ProxyError> {
    timeout(HEADER_DEADLINE, read(stream, accepted))
        .await
        .unwrap_or(Err(ProxyError::Late))
}

async fn read(
    stream: &mut TcpStream,
    accepted: ProxyProtocol,
) -> Result<Option<SocketAddr>, ProxyError> {
    // The shortest header of either version is longer than this.
    let mut header = vec![0; V2_SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_SIGNATURE {
        read_v2(stream, &mut header).await?;
    } else if header.starts_with(b"PROXY ") {
        read_v1(stream, &mut header).await?;
    } else {
        return Err(ProxyError::Malformed);
    }
    parse(&header, accepted)
}

async fn read_v2(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), ProxyError> {
    header.resize(V2_FIXED, 0);
    stream.read_exact(&mut header[V2_SIGNATURE.len()..]).await?;
    let length = V2_FIXED + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if length > V2_MAX {
        return Err(ProxyError::TooLong(length));
    }
    header.resize(length, 0);
    stream.read_exact(&mut header[V2_FIXED..]).await?;
    Ok(())
}

/// Version 1 ends with a newline that only looking ahead can find.
async fn read_v1(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), ProxyError> {
    while header.last() != Some(&b'\n') {
        let mut ahead = [0; V1_MAX];
        let room = V1_MAX.checked_sub(header.len()).filter(|room| *room > 0);
        let room = room.ok_or(ProxyError::Malformed)?;
        let seen = stream.peek(&mut ahead[..room]).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let take = ahead[..seen]
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(seen, |at| at + 1);
        stream.read_exact(&mut ahead[..take]).await?;
        header.extend_from_slice(&ahead[..take]);
    }
    Ok(())
}

fn parse(header: &[u8], accepted: ProxyProtocol) -> Result<Option<SocketAddr>, ProxyError> {
    let config = ParseConfig {
        include_tlvs: false,
        allow_v1: matches!(accepted, ProxyProtocol::V1 | ProxyProtocol::Any),
        allow_v2: matches!(accepted, ProxyProtocol::V2 | ProxyProtocol::Any),
    };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| ProxyError::Malformed)?;
    if length != header.len() {
        return Err(ProxyError::Malformed);
    }
    match parsed.proxied_address() {
        Some(address) if address.protocol == Protocol::Stream => Ok(Some(address.source)),
        Some(_) => Err(ProxyError::Malformed),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    const V1: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 389\r\n";

    fn v2(client: &str) -> Vec<u8> {
        let client: SocketAddr = client.parse().expect("an address");
        let hub = SocketAddr::new(client.ip(), 389);
        let mut bytes = Vec::new();
        ProxyHeader::with_address(proxy_header::ProxiedAddress::stream(client, hub))
            .encode_v2(&mut bytes)
            .expect("encodes");
        bytes
    }

    /// Sends `chunks` one by one, each once the one before has been taken, and returns what the
    /// header says and what is left for the target.
    async fn relay(
        chunks: &[&[u8]],
        accepted: ProxyProtocol,
    ) -> (Result<Option<SocketAddr>, ProxyError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("addr"))
            .await
            .expect("up");
        client.set_nodelay(true).expect("nodelay");
        let (mut stream, _) = listener.accept().await.expect("accept");
        let send = async {
            for chunk in chunks {
                client.write_all(chunk).await.expect("write");
                tokio::task::yield_now().await;
            }
            client.shutdown().await.expect("shutdown");
        };
        let (result, ()) = tokio::join!(read_client(&mut stream, accepted), send);
        let mut rest = Vec::new();
        if result.is_ok() {
            stream.read_to_end(&mut rest).await.expect("read");
        }
        (result, rest)
    }

    #[tokio::test]
    async fn both_versions_leave_the_payload_untouched() {
        let expected: SocketAddr = "203.0.113.7:40000".parse().expect("an address");
        for header in [V1.to_vec(), v2("203.0.113.7:40000")] {
            let whole = [&header[..], b"\x30\x0c bind"].concat();
            let (client, rest) = relay(&[&whole], ProxyProtocol::Any).await;
            assert_eq!(client.expect("valid"), Some(expected));
            assert_eq!(rest, b"\x30\x0c bind");
        }
    }

    #[tokio::test]
    async fn a_header_may_come_byte_by_byte() {
        for header in [V1.to_vec(), v2("[2001:db8::7]:40000")] {
            let bytes: Vec<_> = header.chunks(1).collect();
            let (client, rest) = relay(&bytes, ProxyProtocol::Any).await;
            assert_eq!(client.expect("valid").map(|a| a.port()), Some(40000));
            assert!(rest.is_empty());
        }
    }

    #[tokio::test]
    async fn a_health_check_has_no_client() {
        let (client, _) = relay(&[b"PROXY UNKNOWN\r\n"], ProxyProtocol::V1).await;
        assert_eq!(client.expect("valid"), None);
        let local = [&V2_SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        let (client, _) = relay(&[&local], ProxyProtocol::V2).await;
        assert_eq!(client.expect("valid"), None);
    }

    #[tokio::test]
    async fn the_other_version_and_no_header_are_refused() {
        for (bytes, accepted) in [
            (V1.to_vec(), ProxyProtocol::V2),
            (v2("203.0.113.7:40000"), ProxyProtocol::V1),
            (
                b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00".to_vec(),
                ProxyProtocol::Any,
            ),
            (
                [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat(),
                ProxyProtocol::Any,
            ),
            (
                b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n".to_vec(),
                ProxyProtocol::Any,
            ),
        ] {
            let (client, _) = relay(&[&bytes], accepted).await;
            assert!(matches!(client, Err(ProxyError::Malformed)), "{client:?}");
        }
        let huge = [&V2_SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        let (client, _) = relay(&[&huge], ProxyProtocol::Any).await;
        assert!(matches!(client, Err(ProxyError::TooLong(_))));
        let (client, _) = relay(&[b"PROXY TCP4 1.2"], ProxyProtocol::Any).await;
        assert!(matches!(client, Err(ProxyError::Io(_))));
    }
}
