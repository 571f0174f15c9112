//! The PROXY protocol header that tells a target who its client is.
//!
//! Rules: "The PROXY protocol", versions 1 and 2, haproxy.org. What is not known is not made up:
//! without both addresses, or when they are of different families, the header says that it has
//! none (version 1 `UNKNOWN`, version 2 `LOCAL`), which every receiver must accept.

use std::net::SocketAddr;

use proxy_header::{ProxiedAddress, ProxyHeader};

use crate::config::ProxyProtocol;

/// Longest header: version 1, with its CRLF.
const LONGEST: usize = 107;

/// The header for a connection of `client` to `destination`, both `ip:port`; empty for
/// [`ProxyProtocol::Off`].
pub(crate) fn header(version: ProxyProtocol, client: &str, destination: &str) -> Vec<u8> {
    let ends = address(client).zip(address(destination));
    let header = match ends.filter(|(from, to)| from.is_ipv4() == to.is_ipv4()) {
        Some((from, to)) => ProxyHeader::with_address(ProxiedAddress::stream(from, to)),
        None => ProxyHeader::with_local(),
    };
    let mut bytes = Vec::with_capacity(LONGEST);
    let written = match version {
        ProxyProtocol::Off => Ok(()),
        ProxyProtocol::V1 => header.encode_v1(&mut bytes),
        ProxyProtocol::V2 => header.encode_v2(&mut bytes),
    };
    debug_assert_eq!(written, Ok(()), "only mixed families and TLVs can fail");
    bytes
}

/// `::ffff:192.0.2.1`, as a dual-stack socket shows an IPv4 client, is 192.0.2.1.
fn address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(client: &str, destination: &str) -> String {
        String::from_utf8(header(ProxyProtocol::V1, client, destination)).expect("text")
    }

    #[test]
    fn version_1_is_a_line() {
        assert_eq!(
            v1("203.0.113.7:40000", "192.0.2.10:389"),
            "PROXY TCP4 203.0.113.7 192.0.2.10 40000 389\r\n"
        );
        assert_eq!(
            v1("[2001:db8::7]:40000", "[2001:db8::10]:389"),
            "PROXY TCP6 2001:db8::7 2001:db8::10 40000 389\r\n"
        );
        let long = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535";
        assert!(v1(long, long).len() <= LONGEST);
    }

    #[test]
    fn version_2_is_laid_out_as_specified() {
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let v4 = header(ProxyProtocol::V2, "203.0.113.7:40000", "192.0.2.10:389");
        let body = [203, 0, 113, 7, 192, 0, 2, 10, 0x9c, 0x40, 0x01, 0x85];
        assert_eq!(
            v4,
            [&signature[..], &[0x21, 0x11, 0, 12], &body[..]].concat()
        );
        let v6 = header(
            ProxyProtocol::V2,
            "[2001:db8::7]:40000",
            "[2001:db8::10]:389",
        );
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!((v6.len(), &v6[48..]), (52, &[0x9c, 0x40, 0x01, 0x85][..]));
    }

    #[test]
    fn a_mapped_address_is_the_address_it_maps() {
        assert_eq!(
            v1("[::ffff:203.0.113.7]:40000", "192.0.2.10:389"),
            "PROXY TCP4 203.0.113.7 192.0.2.10 40000 389\r\n"
        );
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
        for (client, destination) in [
            ("", ""),
            ("203.0.113.7:40000", ""),
            ("", "192.0.2.10:389"),
            ("203.0.113.7:40000", "[2001:db8::10]:389"),
            ("unix:/run/x", "192.0.2.10:389"),
            ("203.0.113.7", "192.0.2.10:389"),
            ("203.0.113.7:40000\r\nPROXY TCP4", "192.0.2.10:389"),
        ] {
            assert_eq!(v1(client, destination), "PROXY UNKNOWN\r\n", "{client}");
            assert_eq!(header(ProxyProtocol::V2, client, destination), local);
        }
    }

    #[test]
    fn off_is_nothing() {
        assert!(header(ProxyProtocol::Off, "203.0.113.7:1", "192.0.2.10:389").is_empty());
        assert!(header(ProxyProtocol::Off, "", "").is_empty());
    }
}
