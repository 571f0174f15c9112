//! Gets the bytes of a JWKS document, from a file or over HTTP, within hard bounds.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, DATE};
use http::{HeaderMap, HeaderValue, Request, Uri};
use http_body_util::Full;

use crate::config::JwksSource;
use nowconnect_link::web_client::{WebClient, WebError};

/// Bytes of the largest document that is read.
pub(super) const MAX_DOCUMENT_BYTES: usize = 256 * 1024;

/// A document, and how long its server says it keeps.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) body: Bytes,
    pub(crate) max_age: Option<Duration>,
    /// The server's clock, as it says it.
    pub(crate) date: Option<HeaderValue>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Of a server.
    #[error(transparent)]
    Web(#[from] WebError),
    /// In a file.
    #[error("cannot read the file: {0}")]
    File(#[from] std::io::Error),
}

/// Fetches key documents.
#[derive(Debug)]
pub(crate) struct Fetcher {
    client: WebClient,
    timeout: Duration,
}

impl Fetcher {
    pub(crate) fn new(tls: rustls::ClientConfig, timeout: Duration) -> Self {
        Self {
            client: WebClient::new(tls, timeout, 0),
            timeout,
        }
    }

    /// Decides from the next fetch on which servers are trusted.
    pub(crate) fn trust(&self, tls: rustls::ClientConfig) {
        self.client.trust(tls);
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
            .unwrap_or(Err(WebError::Timeout(self.timeout).into()))
    }

    async fn get(&self, uri: &Uri) -> Result<Fetched, FetchError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uri.clone();
        request.headers_mut().insert(
            ACCEPT,
            HeaderValue::from_static("application/jwk-set+json, application/json"),
        );
        let response = self.client.send(request, MAX_DOCUMENT_BYTES).await?;
        let max_age = max_age(response.headers());
        let date = response.headers().get(DATE).cloned();
        let body = response.into_body();
        Ok(Fetched {
            body,
            max_age,
            date,
        })
    }
}

async fn read_file(path: PathBuf) -> Result<Fetched, FetchError> {
    let read = move || {
        let file = nowconnect_settings::open_file(&path)?;
        let mut body = Vec::new();
        file.take(MAX_DOCUMENT_BYTES as u64 + 1)
            .read_to_end(&mut body)?;
        if body.len() > MAX_DOCUMENT_BYTES {
            return Err(WebError::TooLarge(MAX_DOCUMENT_BYTES).into());
        }
        Ok(Fetched {
            body: body.into(),
            max_age: None,
            date: None,
        })
    };
    // A file may lie on a network file system: not on a runtime thread.
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|e| Err(FetchError::File(std::io::Error::other(e))))
}

/// `max-age` of Cache-Control (RFC 9111 section 5.2.2.1).
pub(crate) fn max_age(headers: &HeaderMap) -> Option<Duration> {
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
