//! What a request was before an ingress passed it on.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Request};
use ipnet::IpNet;

/// Who really sent a request that came from `peer`: the last address of `X-Forwarded-For` that a
/// trusted proxy added and that is none itself. For logs, and for counting bad tokens by address; it
/// grants nothing.
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

/// The URL that a request from `peer` was sent to, as far as it and trusted proxies tell: the last
/// word of `X-Forwarded-Proto` and `X-Forwarded-Host`, else how it came here and `Host`.
pub(crate) fn url<B>(
    peer: SocketAddr,
    request: &Request<B>,
    over_tls: bool,
    trusted: &[IpNet],
) -> String {
    let headers = request.headers();
    let peer = peer.ip().to_canonical();
    let is_trusted = trusted.iter().any(|network| network.contains(&peer));
    let forwarded = |name| last(headers, name).filter(|_| is_trusted);
    let scheme = forwarded("x-forwarded-proto").unwrap_or(if over_tls { "https" } else { "http" });
    let host = forwarded("x-forwarded-host").or_else(|| last(headers, "host"));
    let path = request.uri().path();
    format!("{scheme}://{}{path}", host.unwrap_or_default())
}

fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    line.rsplit(',').next().map(str::trim)
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

    fn reached(peer: &str, over_tls: bool, more: &[(&str, &str)]) -> String {
        let mut request = Request::get("/tunnel?x=1").header("host", "hub:8765");
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        let request = request.body(()).expect("a request");
        url(
            peer.parse().expect("an address"),
            &request,
            over_tls,
            &trusted,
        )
    }

    #[test]
    fn the_url_is_what_trusted_proxies_say_else_what_came_here() {
        let forwarded = [
            ("x-forwarded-proto", "wss"),
            ("x-forwarded-host", "api.example.com"),
        ];
        assert_eq!(
            reached("10.0.0.1:1", false, &forwarded),
            "wss://api.example.com/tunnel"
        );
        assert_eq!(
            reached("192.0.2.9:1", false, &forwarded),
            "http://hub:8765/tunnel"
        );
        assert_eq!(reached("192.0.2.9:1", true, &[]), "https://hub:8765/tunnel");
        let appended = [
            ("x-forwarded-host", "evil, a.example"),
            ("x-forwarded-host", "b, c "),
        ];
        assert_eq!(reached("10.0.0.1:1", false, &appended), "http://c/tunnel");
    }
}
