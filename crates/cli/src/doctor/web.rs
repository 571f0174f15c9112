//! Names, and the clock of whatever answers HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use nowconnect_link::dial::WsUrl;
use nowconnect_link::stream::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::Report;

/// For a name, and for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A clock that is off by more is told of.
const SKEW: i64 = 5;
/// Hubs allow tokens this much, in seconds.
const LEEWAY: i64 = 30;

/// Resolves `host` and tells its addresses; `false` when it has none.
pub(super) async fn resolve(host: &str, port: u16, report: &mut Report) -> bool {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let next = "check its spelling and this machine's DNS (/etc/resolv.conf)";
    match timeout(PATIENCE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<String> = found.map(|addr| addr.ip().to_string()).collect();
            addresses.dedup();
            let more = addresses.len().saturating_sub(4);
            addresses.truncate(4);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            report.ok("dns", format!("{host} is {}{more}", addresses.join(", ")));
            true
        }
        Ok(Err(error)) => {
            report.fault("dns", format!("{host} has no address: {error}"), next);
            false
        }
        Err(_) => {
            report.fault("dns", format!("no answer for {host} within 5 s"), next);
            false
        }
    }
}

/// Compares this machine's clock with that of whatever answers at the other end of `stream`.
pub(super) async fn clock(stream: Stream, url: &WsUrl, report: &mut Report) {
    let Ok(Some(date)) = timeout(PATIENCE, date(stream, url)).await else {
        return report.ok("clock", "the hub does not tell its time");
    };
    let ours = SystemTime::now().duration_since(UNIX_EPOCH);
    let ours = ours.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let (ahead, word) = match ours - date {
        off if off < 0 => (-off, "behind"),
        off => (off, "ahead of"),
    };
    let fact = format!("this machine is {ahead} s {word} the hub");
    let next = "set the clock (NTP): tokens are judged by it, within 30 s";
    match ahead {
        ..=SKEW => report.ok(
            "clock",
            format!("this machine and the hub agree within {SKEW} s"),
        ),
        _ if ahead <= LEEWAY => report.warning("clock", fact, next),
        _ => report.fault("clock", fact, next),
    }
}

/// Whether whatever is at the other end of `socket` answers as an HTTP server does, even one that wants
/// TLS first.
pub(super) async fn answers_http(mut socket: TcpStream) -> bool {
    let ask = async {
        let question = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(question).await?;
        let mut start = [0; 2];
        socket.read_exact(&mut start).await?;
        // An alert of TLS: its content type and major version.
        std::io::Result::Ok(start == *b"HT" || start == [0x15, 3])
    };
    matches!(timeout(PATIENCE, ask).await, Ok(Ok(true)))
}

/// `Date` of the answer to a harmless question, in seconds since 1970.
async fn date(stream: Stream, url: &WsUrl) -> Option<i64> {
    let request = Request::get("/healthz")
        .header(header::HOST, url.authority())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection may end with the very answer.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    let answer = answer.ok()?;
    answer.headers().get(header::DATE).and_then(imf_fixdate)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
fn imf_fixdate(value: &HeaderValue) -> Option<i64> {
    let text = value.to_str().ok()?;
    let mut words = text.split(' ').skip(1);
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let year: i64 = words.next()?.parse().ok()?;
    let mut time = words
        .next()?
        .split(':')
        .map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (time.next()??, time.next()??, time.next()??);
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = i64::try_from(months.iter().position(|name| *name == month)?).ok()? + 1;
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from civil: years begin in March, so that the leap day comes last.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        let read = |text| imf_fixdate(&HeaderValue::from_static(text));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(read("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(read("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(read("yesterday"), None);
    }
}
