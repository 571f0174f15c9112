//! Judges and answers a request to switch to WebSocket.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Upgraded, accept_key, list, list_has};

/// A valid upgrade request that has not been answered yet. The caller decides in between: who asks,
/// and with which subprotocol to go on.
#[derive(Debug)]
pub struct Offer {
    accept: String,
    protocols: Vec<String>,
}

impl Offer {
    /// Checks a request against RFC 6455 section 4.2.1, strictly: it must be an upgrade, one that
    /// no browser sent, with nothing in it that another parser might read differently.
    ///
    /// # Errors
    /// The answer to send instead.
    pub fn from_request<B>(request: &Request<B>) -> Result<Self, Refusal> {
        check_is_upgrade(request)?;
        let headers = request.headers();
        let key = one(headers, header::SEC_WEBSOCKET_KEY).unwrap_or_default();
        let count = |name| headers.get_all(name).iter().count();
        let problem = if BASE64_STANDARD.decode(key).map(|key| key.len()) != Ok(16) {
            "exactly one Sec-WebSocket-Key of 16 bytes in base64 is needed"
        } else if count(header::HOST) != 1 {
            "exactly one Host is needed"
        } else if count(header::AUTHORIZATION) > 1 {
            "there are several Authorization headers"
        } else if has_body(headers) {
            "an upgrade request has no body"
        } else {
            let protocols = list(headers, header::SEC_WEBSOCKET_PROTOCOL);
            return Ok(Self {
                accept: accept_key(key.as_bytes()),
                protocols: protocols.map(str::to_owned).collect(),
            });
        };
        Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad_upgrade",
            problem,
        ))
    }

    /// The first of `supported` that the client offers.
    #[must_use]
    pub fn choose(&self, supported: &[&'static str]) -> Option<&'static str> {
        supported
            .iter()
            .copied()
            .find(|name| self.protocols.iter().any(|offer| offer == name))
    }

    /// The 101 answer, and what waits for hyper to have sent it. `request` is the one that was
    /// judged; the connection must be served `with_upgrades`.
    pub fn accept<B>(
        self,
        request: &mut Request<B>,
        protocol: Option<&'static str>,
    ) -> (Response<Full<Bytes>>, Pending) {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::try_from(self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = protocol {
            headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(protocol),
            );
        }
        (
            response,
            Pending {
                upgrade: hyper::upgrade::on(request),
                protocol,
            },
        )
    }
}

/// An upgrade whose answer is on its way.
#[derive(Debug)]
pub struct Pending {
    upgrade: OnUpgrade,
    protocol: Option<&'static str>,
}

impl Pending {
    /// Waits until the answer is sent, then takes the connection from hyper. `S` is the stream
    /// that the connection was served on (inside `TokioIo`).
    ///
    /// # Errors
    /// The connection broke first, or is not an `S`.
    pub async fn complete<S>(self) -> Result<Upgraded<S>, PendingError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let parts = self
            .upgrade
            .await?
            .downcast::<TokioIo<S>>()
            .map_err(|_| PendingError::OtherStream(std::any::type_name::<S>()))?;
        Ok(Upgraded {
            io: parts.io.into_inner(),
            leftover: BytesMut::from(parts.read_buf),
            protocol: self.protocol,
        })
    }
}

/// Why an accepted upgrade did not happen.
#[derive(Debug, thiserror::Error)]
pub enum PendingError {
    /// The connection ended, or was not served with upgrades.
    #[error("the connection ended before the upgrade: {0}")]
    Broken(#[from] hyper::Error),
    /// A mistake of the caller.
    #[error("the connection is not served over {0}")]
    OtherStream(&'static str),
}

/// An answer that ends the connection: after a refused upgrade, proxies in between may think that
/// the connection is a tunnel now, so nothing further is read from it.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    reason: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal for `reason`, a code that programs compare, explained by `detail` to people.
    pub fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            detail: detail.into(),
            headers: Vec::new(),
        }
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Tells the client when to come back, in whole seconds.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(delay.as_secs()))
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason code.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The explanation for people.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The answer: `{"error": reason, "detail": detail}` and `Connection: close`.
    #[must_use]
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (error, detail) = (quoted(self.reason), quoted(&self.detail));
        let body = format!(r#"{{"error":{error},"detail":{detail}}}"#);
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.status;
        if self.status == StatusCode::HTTP_VERSION_NOT_SUPPORTED {
            // In an answer of 1.1 hyper adds the keep-alive that a client of 1.0 asked for.
            *response.version_mut() = Version::HTTP_10;
        }
        let headers = response.headers_mut();
        headers.extend(self.headers);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.entry(header::WWW_AUTHENTICATE).or_insert(bearer);
        }
        response
    }
}

/// Whether a request with these headers announces a body.
#[must_use]
pub fn has_body(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    headers.contains_key(header::TRANSFER_ENCODING) || lengths.any(|length| length != "0")
}

/// Whether this asks for a WebSocket at all, and not from within a browser.
fn check_is_upgrade<B>(request: &Request<B>) -> Result<(), Refusal> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        return Err(Refusal::new(
            status,
            "bad_http_version",
            "only HTTP/1.1 upgrades",
        ));
    }
    if request.method() != Method::GET {
        let allow = HeaderValue::from_static("GET");
        let detail = "a WebSocket is opened with GET";
        return Err(
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", detail)
                .with_header(header::ALLOW, allow),
        );
    }
    if headers.contains_key(header::ORIGIN) {
        let detail = "requests with an Origin header are refused";
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "browser_origin",
            detail,
        ));
    }
    let is_upgrade = list_has(headers, header::UPGRADE, "websocket")
        && list_has(headers, header::CONNECTION, "upgrade");
    if !is_upgrade {
        return Err(upgrade_required(
            "not_an_upgrade",
            "this path speaks only WebSocket",
        ));
    }
    if one(headers, header::SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(upgrade_required(
            "bad_websocket_version",
            "only version 13 is spoken",
        ));
    }
    Ok(())
}

/// 426 names what would be accepted (RFC 9110 section 15.5.22, RFC 6455 section 4.2.2).
fn upgrade_required(reason: &'static str, detail: &str) -> Refusal {
    Refusal::new(StatusCode::UPGRADE_REQUIRED, reason, detail)
        .with_header(header::UPGRADE, HeaderValue::from_static("websocket"))
        .with_header(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        )
}

/// The value of a header that must not come twice.
fn one(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}
