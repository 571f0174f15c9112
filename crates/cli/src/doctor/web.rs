//! Names, and the clock of whatever answers HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use nowconnect_hub::probe::WebError;
use nowconnect_link::dial::WsUrl;
use nowconnect_link::stream::Stream;
use nowconnect_link::tls::CertificateFault;
use nowconnect_settings::mask_url;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::claims::{LEEWAY, span};
use super::report::Report;

/// For a name, and for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A clock that is off by more is told of.
const SKEW: i64 = 5;

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

/// Compares this machine's clock with that of `who`, whatever answers at the other end of `stream`;
/// returns the time there, in seconds since 1970.
pub(super) async fn clock(
    stream: Stream,
    url: &WsUrl,
    who: &str,
    report: &mut Report,
) -> Option<i64> {
    match timeout(PATIENCE, date(stream, url)).await {
        Ok(Some(date)) => compare_clocks(&date, who, report),
        _ => {
            report.ok("clock", format!("{who} does not tell its time"));
            None
        }
    }
}

/// Compares this machine's clock with a `Date` of `who` that has just come; returns the latter.
pub(super) fn compare_clocks(date: &HeaderValue, who: &str, report: &mut Report) -> Option<i64> {
    let date = imf_fixdate(date)?;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH);
    let ours = ours.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let (ahead, word) = match ours - date {
        off if off < 0 => (-off, "behind"),
        off => (off, "ahead of"),
    };
    let fact = format!("this machine is {} {word} {who}", span(ahead));
    let next = "set the clock (NTP): tokens are judged by it, within 30 s";
    match ahead {
        ..=SKEW => report.ok(
            "clock",
            format!("this machine and {who} agree within {SKEW} s"),
        ),
        _ if ahead <= LEEWAY => report.warning("clock", fact, next),
        _ => report.fault("clock", fact, next),
    }
    Some(date)
}

/// A URL without its password.
pub(super) fn shown(url: &Uri) -> String {
    mask_url(&url.to_string())
}

/// What to do about the server at the URL of `key`, whose private CA would be in `ca`.
pub(super) fn next(error: &WebError, key: &str, ca: &str) -> String {
    match error {
        WebError::Timeout(_) => {
            format!("it is overloaded, or {key} leads to what does not speak HTTP")
        }
        WebError::Connect(_) => {
            format!(
                "check host and port of {key}, that it runs, and firewalls; no proxy is used for it"
            )
        }
        WebError::Tls(Some(CertificateFault::UnknownCa), _) => {
            format!("if it has a certificate of a private CA, put that CA into {ca}")
        }
        WebError::Tls(Some(CertificateFault::WrongName), _) => {
            format!("use a host name in {key} that its certificate is for")
        }
        WebError::Tls(Some(CertificateFault::Expired | CertificateFault::NotYetValid), _) => {
            "have its certificate renewed, or correct this machine's clock".into()
        }
        WebError::Tls(Some(_), _) => "it needs another certificate".into(),
        WebError::Tls(None, _) => {
            format!("does it speak TLS on that port? Check the scheme and port of {key}")
        }
        WebError::Lost(_) | WebError::Body(_) => {
            format!("check scheme and port of {key}, and its log")
        }
        WebError::Status(401 | 403) => {
            format!("it does not let this hub in: {key} must be open to it")
        }
        WebError::Status(404 | 405 | 410) => format!("correct the path of {key}"),
        WebError::Status(_) => "it is in trouble itself: see its log".into(),
        WebError::Redirect(_) => format!("put the address that it redirects to into {key}"),
        WebError::TooLarge(_) => format!("does {key} lead to the right document?"),
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

/// `Date` of the answer to a harmless question.
async fn date(stream: Stream, url: &WsUrl) -> Option<HeaderValue> {
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
    answer.headers().get(header::DATE).cloned()
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
