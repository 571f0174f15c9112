//! Who the other side says it is: forwarded headers, certificates.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use nowconnect_hub::fuzzing;
use nowconnect_link::tls;
use rustls_pki_types::CertificateDer;

/// The first line is where a request came from, the others are `X-Forwarded-For`: only what a trusted
/// proxy said of its own peer is believed.
pub fn forwarded(data: &[u8]) {
    let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"]
        .map(|n| n.parse().unwrap())
        .into();
    let is_trusted = |ip: IpAddr| trusted.iter().any(|network| network.contains(&ip));
    let mut lines = data.split(|byte| *byte == b'\n');
    let peer = lines
        .next()
        .and_then(|line| std::str::from_utf8(line).ok()?.parse().ok());
    let peer: SocketAddr = peer.unwrap_or(([10, 0, 0, 1], 1).into());
    let name = HeaderName::from_static("x-forwarded-for");
    let values = lines.filter_map(|line| HeaderValue::from_bytes(line).ok());
    let headers: HeaderMap = values.map(|value| (name.clone(), value)).collect();

    let sender = fuzzing::sender(peer, &headers, &trusted);
    let first = peer.ip().to_canonical();
    // Every claim that there is, from the last to the first; one that is no address ends the chain.
    let texts = headers.values().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = texts.flat_map(|text| text.split(',')).collect();
    let claims = hops
        .iter()
        .rev()
        .map_while(|hop| hop.trim().parse::<IpAddr>().ok());
    let chain: Vec<IpAddr> = [first]
        .into_iter()
        .chain(claims.map(|ip| ip.to_canonical()))
        .collect();
    let expected = chain.iter().find(|ip| !is_trusted(**ip)).or(chain.last());
    assert_eq!(Some(&sender), expected);
    // The age of a key set is read from the same kind of list.
    let control = http::header::CACHE_CONTROL;
    let headers = headers
        .into_iter()
        .map(|(_, value)| (control.clone(), value));
    let _ = fuzzing::max_age(&headers.collect());
}

/// Any bytes as a certificate: names as they are compared, and no more of them than there are bytes.
pub fn certificate(data: &[u8]) {
    let certificate = CertificateDer::from(data);
    let ends = tls::expiry(&certificate);
    let Ok(names) = tls::names(&certificate) else {
        return;
    };
    assert!(ends.is_ok());
    assert!(names.iter().map(String::len).sum::<usize>() <= 4 * data.len());
    for name in names {
        assert_eq!(name, name.to_ascii_lowercase());
    }
}
