//! Gets the bytes of a JWKS document, from a file or over HTTP, within hard bounds.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::config::JwksSource;

/// Bytes of the largest document that is read.
pub(super) const MAX_DOCUMENT_BYTES: usize = 256 * 1024;

/// A document, and how long its server says it keeps.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) body: Bytes,
    pub(crate) max_age: Option<Duration>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no complete answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("HTTP status {0}: redirects are not followed; configure the final address")]
    Redirect(u16),
    #[error("the answer broke off: {0}")]
    Body(String),
    #[error("larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    #[error("cannot read the file: {0}")]
    File(#[from] std::io::Error),
}

/// The HTTP client for key documents: no redirects, no kept connections, no proxies.
#[derive(Debug)]
pub(crate) struct Fetcher {
    client: ArcSwap<HttpClient>,
    timeout: Duration,
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

impl Fetcher {
    pub(crate) fn new(tls: rustls::ClientConfig, timeout: Duration) -> Self {
        Self {
            client: ArcSwap::from_pointee(http_client(tls, timeout)),
            timeout,
        }
    }

    /// Decides from the next fetch on which servers are trusted.
    pub(crate) fn trust(&self, tls: rustls::ClientConfig) {
        self.client.store(Arc::new(http_client(tls, self.timeout)));
    }

    /// Everything together, to the last byte, takes at most the timeout.
    pub(crate) async fn fetch(&self, source: &JwksSource) -> Result<Fetched, FetchError> {
        let work = async {
            match source {
                JwksSource::Url(uri) => self.get(uri).await,
                JwksSource::File(path) => read_file(path.clone()).await,
            }
        };
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or(Err(FetchError::Timeout(self.timeout)))
    }

    async fn get(&self, uri: &Uri) -> Result<Fetched, FetchError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri.clone();
        request.headers_mut().insert(
            ACCEPT,
            http::HeaderValue::from_static("application/jwk-set+json, application/json"),
        );
        let client = self.client.load_full();
        let response = client
            .request(request)
            .await
            .map_err(|e| FetchError::Connect(chain(&e)))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(FetchError::Redirect(status.as_u16()));
        }
        if status != http::StatusCode::OK {
            return Err(FetchError::Status(status.as_u16()));
        }
        let max_age = max_age(response.headers());
        let body = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES)
            .collect()
            .await
            .map_err(|e| match e.downcast_ref::<LengthLimitError>() {
                Some(_) => FetchError::TooLarge,
                None => FetchError::Body(chain(&*e)),
            })?
            .to_bytes();
        Ok(Fetched { body, max_age })
    }
}

fn http_client(mut tls: rustls::ClientConfig, timeout: Duration) -> HttpClient {
    tls.alpn_protocols.clear();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(timeout));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(https)
}

async fn read_file(path: PathBuf) -> Result<Fetched, FetchError> {
    let read = move || {
        let file = std::fs::File::open(&path)?;
        let mut body = Vec::new();
        file.take(MAX_DOCUMENT_BYTES as u64 + 1)
            .read_to_end(&mut body)?;
        if body.len() > MAX_DOCUMENT_BYTES {
            return Err(FetchError::TooLarge);
        }
        Ok(Fetched {
            body: body.into(),
            max_age: None,
        })
    };
    // A file may lie on a network file system: not on a runtime thread.
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|e| Err(FetchError::File(std::io::Error::other(e))))
}

/// `max-age` of Cache-Control (RFC 9111 section 5.2.2.1).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(','));
    let seconds = directives.find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("max-age")
            .then(|| value.trim().trim_matches('"'))
    })?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// An error with its causes: the HTTP client says the useful part last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_age_is_found_among_directives() {
        let headers = |value: &'static str| -> HeaderMap {
            [(CACHE_CONTROL, http::HeaderValue::from_static(value))]
                .into_iter()
                .collect()
        };
        assert_eq!(
            max_age(&headers("public, Max-Age=120")),
            Some(Duration::from_secs(120))
        );
        assert_eq!(max_age(&headers("no-store")), None);
        assert_eq!(max_age(&headers("max-age=-1")), None);
        assert_eq!(max_age(&HeaderMap::new()), None);
    }
}
