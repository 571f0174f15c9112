//! The address behind an ingress, for logs.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// Who really sent a request that came from `peer`: the last address of `X-Forwarded-For` that a
/// trusted proxy added and that is none itself. Only for logs; no right hangs on it.
pub(crate) fn sender(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut sender = peer.ip().to_canonical();
    let lines = headers.get_all("x-forwarded-for").iter();
    let mut hops: Vec<&str> = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .collect();
    while is_trusted(sender) {
        let Some(hop) = hops.pop().and_then(|hop| hop.trim().parse::<IpAddr>().ok()) else {
            break;
        };
        sender = hop.to_canonical();
    }
    sender
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, forwarded: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", forwarded.parse().expect("a value"));
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        sender(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_added_is_believed() {
        assert_eq!(seen("10.0.0.1:1", "203.0.113.7"), "203.0.113.7");
        assert_eq!(
            seen("10.0.0.1:1", "198.51.100.1, 203.0.113.7, 10.0.0.2"),
            "203.0.113.7"
        );
        assert_eq!(seen("192.0.2.9:1", "203.0.113.7"), "192.0.2.9");
        assert_eq!(seen("10.0.0.1:1", "nonsense"), "10.0.0.1");
        assert_eq!(seen("[::ffff:10.0.0.1]:1", "203.0.113.7"), "203.0.113.7");
    }
}
