//! The status page: a few files that are part of the binary, for a browser at the admin address.
//!
//! The files are the same for everyone and hold no data, so they are shown without the token; what the page
//! shows it asks of the API like any other client. It brings all that it needs: its policy lets it load
//! nothing else and talk to nobody but this hub, and no page of another origin can frame it.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};

use crate::server::{Answer, answer};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    // Kept, but only shown after asking whether it is still the one.
    (CACHE_CONTROL, "no-cache"),
    (CONTENT_SECURITY_POLICY, POLICY),
    (REFERRER_POLICY, "no-referrer"),
    (X_FRAME_OPTIONS, "DENY"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

const SCRIPT: &str = "text/javascript; charset=utf-8";
const FILES: [(&str, &str, &str); 6] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("page/index.html"),
    ),
    (
        "/page/page.css",
        "text/css; charset=utf-8",
        include_str!("page/page.css"),
    ),
    ("/page/page.js", SCRIPT, include_str!("page/page.js")),
    ("/page/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/page/draw.js", SCRIPT, include_str!("page/draw.js")),
    ("/page/tables.js", SCRIPT, include_str!("page/tables.js")),
];

/// The file that `request` asks for, if it is one of the page's. `has_token`: the API asks for a token, so
/// that the page asks its user for it first.
pub(super) fn file<B>(request: &Request<B>, has_token: bool) -> Option<Answer> {
    let path = request.uri().path();
    let (_, kind, text) = FILES.iter().find(|(name, _, _)| *name == path)?;
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Some(answer::method_not_allowed("GET, HEAD"));
    }
    let text = match has_token {
        true => text.replacen("data-token=\"none\"", "data-token=\"needed\"", 1),
        false => (*text).to_owned(),
    };
    let tag = tag(&text);
    let known = request.headers().get(IF_NONE_MATCH);
    let mut found = match known.is_some_and(|known| knows(known, &tag)) {
        true => answer::body(StatusCode::NOT_MODIFIED, kind, ""),
        false => answer::body(StatusCode::OK, kind, text),
    };
    let headers = found.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(ETAG, HeaderValue::try_from(tag).ok()?);
    Some(found)
}

fn tag(text: &str) -> String {
    let digest = digest(&SHA256, text.as_bytes());
    let start = digest.as_ref().iter().take(12);
    let hex = start.fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("\"{hex}\"")
}

/// Whether `tag` is among those of `If-None-Match`, weak or not (RFC 9110, 13.1.2).
fn knows(known: &HeaderValue, tag: &str) -> bool {
    let mut tags = known.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;

    use super::*;

    fn ask(method: Method, path: &str, known: &str) -> Option<Answer> {
        let request = Request::builder().method(method).uri(path);
        file(&request.header(IF_NONE_MATCH, known).body(()).ok()?, false)
    }

    #[test]
    fn the_page_is_small_and_brings_all_it_needs() {
        let weight: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(weight < 60_000, "{weight}");
        for (name, _, text) in FILES {
            for word in ["innerHTML", "style=", "eval(", "document.write", "https://"] {
                assert!(!text.contains(word), "{word} in {name}");
            }
        }
        let (_, _, index) = FILES[0];
        assert_eq!(index.matches("data-token=\"none\"").count(), 1);
        for (name, _, _) in &FILES[1..] {
            assert!(index.contains(name), "{name} is not loaded at once");
        }
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let first = ask(Method::GET, "/page/page.js", "\"other\"").expect("a file");
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[CONTENT_TYPE], SCRIPT);
        assert_eq!(first.headers()["x-content-type-options"], "nosniff");
        let tag = first.headers()[ETAG].to_str().expect("text").to_owned();
        for known in [tag.clone(), format!("\"a\", W/{tag}"), "*".to_owned()] {
            let again = ask(Method::GET, "/page/page.js", &known).expect("a file");
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        let other = ask(Method::GET, "/page/page.css", &tag).expect("a file");
        assert_eq!(other.status(), StatusCode::OK);
    }

    #[test]
    fn only_its_files_are_found_and_they_are_only_read() {
        for path in ["/page", "/page/", "/page/../page.js", "/index.html", "//"] {
            assert!(ask(Method::GET, path, "").is_none(), "{path}");
        }
        let posted = ask(Method::POST, "/", "").expect("an answer");
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
