//! The one HTTP client: for key documents, policy decisions and spans. Everything that a server
//! can send is bounded; redirects are not followed, and no proxy is used.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

use crate::tls::{CertificateFault, ClientFiles, LiveClientConfig, Roots, TlsError};

/// How long a connection without a request is kept: less than servers usually do.
const KEPT: Duration = Duration::from_secs(20);

/// Why there is no answer to use.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Time is up.
    #[error("no complete answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// No name, nobody there, or a firewall.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// No TLS; with what is wrong with the server's certificate, if it is that.
    #[error("cannot connect: {1}")]
    Tls(Option<CertificateFault>, String),
    /// It hung up.
    #[error("the connection ended before the answer: {0}")]
    Lost(String),
    /// Something other than 200.
    #[error("HTTP status {0}")]
    Status(u16),
    /// 3xx.
    #[error("HTTP status {0}: redirects are not followed; configure the final address")]
    Redirect(u16),
    /// It hung up in the middle.
    #[error("the answer broke off: {0}")]
    Body(String),
    /// More than is read.
    #[error("larger than {0} bytes")]
    TooLarge(usize),
}

/// An HTTP/1.1 client for `http://` and `https://`.
#[derive(Debug)]
pub struct WebClient {
    client: ArcSwap<HttpClient>,
    connect_timeout: Duration,
    kept: usize,
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

impl WebClient {
    /// A client that trusts servers by `tls` and keeps up to `kept` idle connections to each.
    pub fn new(tls: ClientConfig, connect_timeout: Duration, kept: usize) -> Self {
        Self {
            client: ArcSwap::from_pointee(http_client(tls, connect_timeout, kept)),
            connect_timeout,
            kept,
        }
    }

    /// Decides from the next request on which servers are trusted.
    pub fn trust(&self, tls: ClientConfig) {
        let client = http_client(tls, self.connect_timeout, self.kept);
        self.client.store(Arc::new(client));
    }

    /// The answer with status 200 and a body of up to `most` bytes. The caller sets the deadline.
    ///
    /// # Errors
    /// There is none; see [`WebError`].
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        most: usize,
    ) -> Result<Response<Bytes>, WebError> {
        let client = self.client.load_full();
        let response = client
            .request(request)
            .await
            .map_err(|e| match e.is_connect() {
                true => not_connected(&e),
                false => WebError::Lost(chain(&e)),
            })?;
        let status = response.status();
        if status.is_redirection() {
            return Err(WebError::Redirect(status.as_u16()));
        }
        if status != http::StatusCode::OK {
            return Err(WebError::Status(status.as_u16()));
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, most)
            .collect()
            .await
            .map_err(|e| match e.downcast_ref::<LengthLimitError>() {
                Some(_) => WebError::TooLarge(most),
                None => WebError::Body(chain(&*e)),
            })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

fn http_client(mut tls: ClientConfig, connect_timeout: Duration, kept: usize) -> HttpClient {
    tls.alpn_protocols.clear();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_timeout));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(kept)
        .pool_idle_timeout(KEPT)
        .pool_timer(TokioTimer::new())
        .build(https)
}

/// Whom to trust: for `https` those in `bundle`, or else the system's; for plain HTTP nobody, so that
/// a machine without a certificate store will do.
///
/// # Errors
/// The certificates cannot be read.
pub fn trust(https: bool, bundle: Option<&Path>) -> Result<ClientConfig, TlsError> {
    if !https {
        return no_trust();
    }
    let files = ClientFiles {
        roots: bundle.map_or(Roots::System, |bundle| Roots::Only(bundle.to_owned())),
        identity: None,
    };
    Ok(ClientConfig::clone(
        &LiveClientConfig::load(files)?.current(),
    ))
}

fn no_trust() -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| TlsError::Config(error.to_string()))?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

fn not_connected(error: &(dyn Error + 'static)) -> WebError {
    match tls_error(error) {
        Some(tls) => WebError::Tls(CertificateFault::of(tls), cause(error)),
        None => WebError::Connect(cause(error)),
    }
}

/// Why there is no connection, without that there is none, which the HTTP client says twice.
fn cause(error: &dyn Error) -> String {
    let text = chain(error);
    let text = text
        .strip_prefix("client error (Connect): ")
        .unwrap_or(&text);
    let text = text.strip_prefix("tcp connect error: ").unwrap_or(text);
    text.to_owned()
}

/// What TLS says, under whatever it is wrapped in: the source of an I/O error is that of what it holds.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let held = match error.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().map(|held| held as &(dyn Error + 'static)),
        None => error.source(),
    };
    error.downcast_ref().or_else(|| tls_error(held?))
}

/// An error with its causes: the HTTP client says the useful part last.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
