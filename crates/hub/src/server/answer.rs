//! The answers of the HTTP surface: small, JSON, and without a word about the inside.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

/// A response of the hub.
pub(crate) type Answer = Response<Full<Bytes>>;

/// `body` of the media type `kind`.
pub(crate) fn body(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    answer
}

/// A JSON document.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    body(status, "application/json", value.to_string())
}

/// `{"error": code}`.
pub(crate) fn error(status: StatusCode, code: &str) -> Answer {
    json(status, &json!({ "error": code }))
}

/// `{"error": code, "detail": ..}`: what is wrong, and what to do.
pub(crate) fn explained(status: StatusCode, code: &str, detail: &str) -> Answer {
    json(status, &json!({ "error": code, "detail": detail }))
}

/// An error after which the connection serves nothing more, so that whoever failed to upgrade
/// cannot use it for what an ingress would not let through.
pub(crate) fn closing(status: StatusCode, code: &str) -> Answer {
    let mut answer = error(status, code);
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The path exists, the method does not.
pub(crate) fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut answer = closing(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// Not now: come back after `seconds`, or go to another hub.
pub(crate) fn unavailable(code: &str, seconds: u32) -> Answer {
    let mut answer = closing(StatusCode::SERVICE_UNAVAILABLE, code);
    answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    answer
}
