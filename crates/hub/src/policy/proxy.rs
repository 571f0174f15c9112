//! Reading the PROXY protocol header that a balancer puts in front of a client's bytes.
//!
//! Rules: "The PROXY protocol", versions 1 and 2, haproxy.org. Exactly the header is taken from the
//! socket, so what follows it is the client's first payload byte.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::ProxyProtocol;

/// How long a balancer may take to send the whole header.
pub(crate) const HEADER_DEADLINE: Duration = Duration::from_secs(5);

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

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Announced {
    /// Who connected to the balancer.
    pub(super) client: SocketAddr,
    /// The address that it connected to.
    pub(super) destination: SocketAddr,
}

/// Takes the header off `stream`. `None`: the balancer speaks for itself (version 2 `LOCAL`,
/// version 1 `UNKNOWN`, as health checks do) or for a client whose address is no IP address.
///
/// # Errors
/// See [`ProxyError`]; the connection is of no use then.
pub(super) async fn read_client(
    stream: &mut TcpStream,
    accepted: ProxyProtocol,
) -> Result<Option<Announced>, ProxyError> {
    timeout(HEADER_DEADLINE, read(stream, accepted))
        .await
        .unwrap_or(Err(ProxyError::Late))
}

async fn read(
    stream: &mut TcpStream,
    accepted: ProxyProtocol,
) -> Result<Option<Announced>, ProxyError> {
    let mut header = Vec::new();
    loop {
        match next(&header)? {
            Next::Bytes(count) => {
                let seen = header.len();
                header.resize(seen + count, 0);
                stream.read_exact(&mut header[seen..]).await?;
            }
            Next::Line(most) => read_line(stream, &mut header, most).await?,
            Next::Nothing => return parse(&header, accepted),
        }
    }
}

/// What to take off the socket to come nearer to the end of a header, and not beyond.
enum Next {
    /// So many bytes.
    Bytes(usize),
    /// What there is up to the end of a line, of at most so many bytes.
    Line(usize),
    /// The header is there.
    Nothing,
}

/// What follows when `seen` is there of a header.
fn next(seen: &[u8]) -> Result<Next, ProxyError> {
    // The shortest header of either version is longer than what tells the two apart.
    if seen.len() < V2_SIGNATURE.len() {
        return Ok(Next::Bytes(V2_SIGNATURE.len() - seen.len()));
    }
    if seen.starts_with(&V2_SIGNATURE) {
        let Some(&[high, low]) = seen.get(14..V2_FIXED) else {
            return Ok(Next::Bytes(V2_FIXED - seen.len()));
        };
        let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
        return match length.saturating_sub(seen.len()) {
            _ if length > V2_MAX => Err(ProxyError::TooLong(length)),
            0 => Ok(Next::Nothing),
            missing => Ok(Next::Bytes(missing)),
        };
    }
    match V1_MAX.saturating_sub(seen.len()) {
        _ if !seen.starts_with(b"PROXY ") => Err(ProxyError::Malformed),
        _ if seen.ends_with(b"\n") => Ok(Next::Nothing),
        0 => Err(ProxyError::Malformed),
        room => Ok(Next::Line(room)),
    }
}

/// Only looking ahead finds the end of a line.
async fn read_line(
    stream: &mut TcpStream,
    header: &mut Vec<u8>,
    most: usize,
) -> Result<(), ProxyError> {
    let mut ahead = [0; V1_MAX];
    let seen = stream.peek(&mut ahead[..most]).await?;
    if seen == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let line = ahead[..seen].iter().position(|byte| *byte == b'\n');
    let take = line.map_or(seen, |at| at + 1);
    stream.read_exact(&mut ahead[..take]).await?;
    header.extend_from_slice(&ahead[..take]);
    Ok(())
}

/// The client that the header at the start of `bytes` names, and the length of that header; `None`
/// while the header is not whole. For the fuzzer.
pub(crate) fn client_in(
    bytes: &[u8],
    accepted: ProxyProtocol,
) -> Result<Option<(Option<SocketAddr>, usize)>, ProxyError> {
    let mut size = 0;
    loop {
        let header = &bytes[..size];
        let rest = &bytes[size..];
        size += match next(header)? {
            Next::Nothing => {
                let announced = parse(header, accepted)?;
                return Ok(Some((announced.map(|announced| announced.client), size)));
            }
            Next::Bytes(count) if count <= rest.len() => count,
            Next::Line(most) if !rest.is_empty() => {
                let ahead = &rest[..most.min(rest.len())];
                let line = ahead.iter().position(|byte| *byte == b'\n');
                line.map_or(ahead.len(), |at| at + 1)
            }
            _ => return Ok(None),
        };
    }
}

fn parse(header: &[u8], accepted: ProxyProtocol) -> Result<Option<Announced>, ProxyError> {
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
        Some(ProxiedAddress {
            protocol: Protocol::Stream,
            source,
            destination,
        }) => Ok(Some(Announced {
            client: *source,
            destination: *destination,
        })),
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
    ) -> (Result<Option<Announced>, ProxyError>, Vec<u8>) {
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
        for (header, destination) in [
            (V1.to_vec(), "10.0.0.1:389"),
            (v2("203.0.113.7:40000"), "203.0.113.7:389"),
        ] {
            let expected = Announced {
                client: "203.0.113.7:40000".parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            };
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
            assert_eq!(client.expect("valid").map(|a| a.client.port()), Some(40000));
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

    /// A version 2 header of command and version, family and protocol, and what follows.
    fn raw(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, body].concat()
    }

    const V4_BODY: [u8; 12] = [203, 0, 113, 7, 10, 0, 0, 1, 0x9c, 0x40, 1, 0x85];

    #[tokio::test]
    async fn what_else_a_header_holds_is_skipped() {
        let tlvs = [
            3, 0, 4, 1, 2, 3, 4, 2, 0, 4, b'a', b'.', b'd', b'e', 0xee, 0, 0,
        ];
        let with_tlvs = raw(0x21, 0x11, &[&V4_BODY[..], &tlvs].concat());
        let most = vec![0; V2_MAX - V2_FIXED - V4_BODY.len()];
        let largest = raw(0x21, 0x11, &[&V4_BODY[..], &most].concat());
        for header in [with_tlvs, largest] {
            let (client, rest) = relay(&[&header, b"payload"], ProxyProtocol::V2).await;
            let client = client.expect("valid").expect("a client").client;
            assert_eq!(client.to_string(), "203.0.113.7:40000");
            assert_eq!(rest, b"payload");
        }
        let unknown = b"PROXY UNKNOWN ffff::1 ::2 65535 1\r\npayload";
        let (client, rest) = relay(&[unknown], ProxyProtocol::V1).await;
        assert_eq!((client.expect("valid"), &rest[..]), (None, &b"payload"[..]));
    }

    #[tokio::test]
    async fn an_address_that_is_none_or_not_to_be_used_is_not_used() {
        for header in [
            raw(0x20, 0x11, &V4_BODY), // LOCAL: addresses are to be ignored
            raw(0x21, 0x00, b""),      // AF_UNSPEC
            raw(0x21, 0x00, &[0xff; 9]),
            raw(0x21, 0x31, &[b'/'; 216]), // AF_UNIX
        ] {
            let (client, rest) = relay(&[&header, b"payload"], ProxyProtocol::Any).await;
            assert_eq!(client.expect("valid"), None, "{header:?}");
            assert_eq!(rest, b"payload");
        }
    }

    #[tokio::test]
    async fn what_the_specification_has_not_is_refused() {
        for header in [
            raw(0x11, 0x11, &V4_BODY),      // version 1 in binary
            raw(0x22, 0x11, &V4_BODY),      // command 2
            raw(0x21, 0x12, &V4_BODY),      // UDP over TCP
            raw(0x21, 0x41, &V4_BODY),      // family 4
            raw(0x21, 0x11, &V4_BODY[..8]), // cut short
            raw(0x21, 0x21, &V4_BODY),
            raw(0x21, 0x31, &[b'/'; 100]),
            b"proxy TCP4 203.0.113.7 10.0.0.1 40000 389\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 40000 65536\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 389\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 2001:db8::1 40000 389\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.7 10.0.0.1 40000 389\r\n".to_vec(),
            b"PROXY TCP4  203.0.113.7 10.0.0.1 40000 389\r\n".to_vec(),
        ] {
            let shown = String::from_utf8_lossy(&header).into_owned();
            let (client, _) = relay(&[&header], ProxyProtocol::Any).await;
            assert!(
                matches!(client, Err(ProxyError::Malformed)),
                "{shown:?}: {client:?}"
            );
        }
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
