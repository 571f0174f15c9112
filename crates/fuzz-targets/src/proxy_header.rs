//! The header that a balancer puts in front of a client's bytes.

use std::net::{IpAddr, SocketAddr};

use nowconnect_hub::config::ProxyProtocol;
use nowconnect_hub::fuzzing::proxy_header;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Any bytes at the start of a connection: exactly the header is taken, by which version it is does
/// not depend on what follows, and the address is what a second reading finds.
pub fn header(data: &[u8]) {
    let read = proxy_header(data, ProxyProtocol::Any);
    let single = [ProxyProtocol::V1, ProxyProtocol::V2].map(|version| proxy_header(data, version));
    let Ok(Some((client, length))) = read else {
        return assert!(single.iter().all(|read| !matches!(read, Ok(Some(_)))));
    };
    // One version takes it, the other does not.
    let taken = single
        .iter()
        .filter(|read| matches!(read, Ok(Some(found)) if *found == (client, length)));
    assert_eq!(taken.count(), 1);
    let (header, payload) = data.split_at(length);
    if header.starts_with(SIGNATURE) {
        assert_eq!(client, version_2(header));
        assert!(length <= 4096);
    } else {
        assert_eq!(client, version_1(header));
        assert!(length <= 107);
    }
    // What follows the header changes nothing, and nothing less is a header.
    let again = proxy_header(header, ProxyProtocol::Any);
    assert!(matches!(again, Ok(Some(found)) if found == (client, length)));
    let less = proxy_header(&header[..length - 1], ProxyProtocol::Any);
    assert!(matches!(less, Ok(None)));
    if let Some(client) = client {
        for written in [write_1(client), write_2(client)] {
            let whole = [&written[..], payload].concat();
            let read = proxy_header(&whole, ProxyProtocol::Any);
            assert!(matches!(read, Ok(Some(found)) if found == (Some(client), written.len())));
        }
    }
}

fn version_1(header: &[u8]) -> Option<SocketAddr> {
    assert!(header.ends_with(b"\r\n"));
    // What follows UNKNOWN is to be ignored, whatever it is.
    if header.starts_with(b"PROXY UNKNOWN") {
        return None;
    }
    let text = std::str::from_utf8(header).expect("ASCII");
    let line = text.trim_end_matches("\r\n");
    let words: Vec<&str> = line.split(' ').collect();
    let [
        "PROXY",
        family @ ("TCP4" | "TCP6"),
        client,
        hub,
        port,
        hub_port,
    ] = words[..]
    else {
        panic!("{line}");
    };
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let (client, hub) = (address(client), address(hub));
    assert!(client.is_ipv4() == (family == "TCP4") && hub.is_ipv4() == client.is_ipv4());
    assert!(hub_port.parse::<u16>().is_ok());
    Some((client, port.parse::<u16>().expect("a port")).into())
}

fn version_2(header: &[u8]) -> Option<SocketAddr> {
    let (version, family, body) = (header[12], header[13], &header[16..]);
    assert_eq!(version & 0xf0, 0x20);
    let number = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match (version & 0x0f, family) {
        (1, 0x11) => {
            let ip = <[u8; 4]>::try_from(&body[..4]).expect("4 bytes");
            Some((ip, number(8)).into())
        }
        (1, 0x21) => {
            let ip = <[u8; 16]>::try_from(&body[..16]).expect("16 bytes");
            Some((ip, number(32)).into())
        }
        // LOCAL, or a kind of address that a TCP client does not have.
        _ => None,
    }
}

fn write_1(client: SocketAddr) -> Vec<u8> {
    let (ip, port) = (client.ip(), client.port());
    let family = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {ip} {ip} {port} 389\r\n").into_bytes()
}

fn write_2(client: SocketAddr) -> Vec<u8> {
    let (family, ip) = match client.ip() {
        IpAddr::V4(ip) => (0x11, ip.octets().to_vec()),
        IpAddr::V6(ip) => (0x21, ip.octets().to_vec()),
    };
    let body = [
        &ip[..],
        &ip,
        &client.port().to_be_bytes(),
        &389u16.to_be_bytes(),
    ]
    .concat();
    [SIGNATURE, &[0x21, family, 0, body.len() as u8], &body].concat()
}
