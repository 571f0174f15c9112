//! Just enough HTTP to see that a server answers (RFC 9112): one request, the status of the answer.

/// Bytes of an answer that are looked at.
pub(super) const MOST_ANSWER: usize = 16 * 1024;

/// `GET path`, after which the server is to close.
pub(super) fn request(host: &str, path: &str) -> String {
    // An IPv6 address stands in brackets (RFC 3986 section 3.2.2).
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: nowconnect-probe/{}\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The final status in what came so far; `None` while that is not there. Informational answers (1xx)
/// are passed over.
///
/// # Errors
/// It is not HTTP.
pub(super) fn status(mut answer: &[u8]) -> Result<Option<u16>, String> {
    loop {
        let Some(status) = status_line(answer)? else {
            return Ok(None);
        };
        if status >= 200 {
            return Ok(Some(status));
        }
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        answer = answer.get(end + 4..).unwrap_or_default();
    }
}

/// Whether a status is one that is well.
pub(super) fn is_well(status: u16, expected: &[u16]) -> bool {
    match expected {
        [] => (200..400).contains(&status),
        some => some.contains(&status),
    }
}

fn status_line(answer: &[u8]) -> Result<Option<u16>, String> {
    const FORM: &[u8] = b"HTTP/1.x 999 ";
    let fits = |(at, byte): (usize, &u8)| match FORM[at] {
        b'x' | b'9' => byte.is_ascii_digit(),
        // The reason phrase may be missing, with the space before it.
        b' ' if at == 12 => matches!(byte, b' ' | b'\r'),
        exact => *byte == exact,
    };
    let head = &answer[..answer.len().min(FORM.len())];
    if !head.iter().enumerate().all(fits) {
        return Err(no_http());
    }
    if head.len() < FORM.len() {
        return Ok(None);
    }
    let digits = head[9..12].iter();
    let status = digits.fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    match status {
        100..=599 => Ok(Some(status)),
        _ => Err(no_http()),
    }
}

fn no_http() -> String {
    "the target does not speak HTTP/1: is the probe's type right, or is it https?".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_final_status_is_found() {
        let answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 204\r\n\r\n";
        for cut in 0..50 {
            assert_eq!(status(&answer[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(status(answer), Ok(Some(204)));
        assert_eq!(
            status(b"HTTP/1.1 503 Service Unavailable\r\n"),
            Ok(Some(503))
        );
    }

    #[test]
    fn what_is_not_http_is_refused_at_its_first_wrong_byte() {
        for answer in [
            &b"\x15\x03"[..],
            b"SSH-2.0-OpenSSH_9",
            b"HTTP/2",
            b"HTTP/1.1 9999",
            b"HTTP/1.1 099 x",
            b"HTTP/1.1 600 x",
            b"HTTP/1.1\t200",
        ] {
            assert!(status(answer).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn what_is_well_is_said_or_is_success_and_redirect() {
        assert!(is_well(200, &[]) && is_well(399, &[]) && !is_well(400, &[]));
        assert!(is_well(401, &[401]) && !is_well(200, &[401]));
    }

    #[test]
    fn a_request_names_its_host() {
        assert!(request("::1", "/x").starts_with("GET /x HTTP/1.1\r\nHost: [::1]\r\n"));
    }

    proptest! {
        #[test]
        fn nothing_panics(answer in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = status(&answer);
            let _ = status(&[b"HTTP/1.1 100 x\r\n\r\n", &answer[..]].concat());
        }
    }
}
