//! One attempt at a peer: from its URL to a link that takes flows.
//!
//! What the certificate of the connection proves depends on who vouches for it. If the mesh CA does,
//! for the host of the URL, the peer itself ends TLS. If only a public CA does, an ingress may, and the
//! hub behind it has proven nothing: then only mutual TLS inside the WebSocket will do.

use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use nowconnect_link::dial::{Dialer, ProxyRules, TcpOptions, WsUrl};
use nowconnect_link::session::Carrier;
use nowconnect_link::stream::{Stream, TLS_WRITES, WsBytes};
use nowconnect_link::upgrade::{self, ClientRequest, Upgraded};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::{Mask, Role};
use nowconnect_proto::Reason;
use nowconnect_proto::hello::Body;
use nowconnect_proto::mesh_hello::MeshHello;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::credentials::{Credentials, Mutual};
use super::failure::Failure;
use super::proof::Shown;
use super::terms::Terms;
use super::{GOODBYE, HANDSHAKE, PLAIN, SEALED};

/// From the name of a peer to the end of the TLS handshake.
const DIAL: Duration = Duration::from_secs(10);
/// How long a link may be silent before the kernel probes it too.
const KEEPALIVE: Duration = Duration::from_secs(15);
const USER_AGENT: &str = concat!("nowconnect-hub/", env!("CARGO_PKG_VERSION"));

/// What the frames of a link travel in.
pub(super) enum Way {
    /// The WebSocket as it is.
    Open(Box<Carrier<Stream>>),
    /// Mutual TLS inside the WebSocket.
    Sealed(Box<Carrier<TlsStream<WsBytes<Stream>>>>),
}

/// A peer that was reached.
pub(super) struct Reached {
    pub(super) way: Way,
    /// What it says of itself.
    pub(super) hello: MeshHello,
    /// The certificate by which it has proven who it is, if it had to.
    pub(super) certificate: Option<Shown>,
}

/// Dials `url` and introduces this hub; `resumes`: flows wait for the link.
pub(super) async fn reach(
    url: &WsUrl,
    terms: &Terms,
    credentials: &Credentials,
    resumes: bool,
) -> Result<Reached, Failure> {
    let dialer = dialer(url, terms, credentials)?;
    let stream = dialer.dial(url).await?;
    let introduced = async {
        let mutual = credentials.mutual.as_ref();
        let (way, certificate) = prove(stream, url, terms, mutual).await?;
        let hello = terms.greeting(url, resumes);
        introduce(way, certificate, &hello).await
    };
    timeout(HANDSHAKE, introduced)
        .await
        .map_err(|_| Failure::Timeout(HANDSHAKE))?
}

/// How the peer of `url` is dialed.
pub(super) fn dialer(
    url: &WsUrl,
    terms: &Terms,
    credentials: &Credentials,
) -> Result<Dialer, Failure> {
    Ok(Dialer {
        tls: match (&credentials.outer, url.is_tls()) {
            (Some(tls), true) => Some(tls.current()),
            (None, true) => return Err(Failure::NoTls),
            (_, false) => None,
        },
        proxies: ProxyRules::none(),
        timeout: DIAL,
        tcp: TcpOptions {
            keepalive: Some(KEEPALIVE),
            user_timeout: Some(terms.ping_interval + terms.ping_timeout),
        },
    })
}

async fn introduce(
    mut way: Way,
    certificate: Option<Shown>,
    hello: &MeshHello,
) -> Result<Reached, Failure> {
    let hello = match &mut way {
        Way::Open(carrier) => greet(carrier, hello).await?,
        Way::Sealed(carrier) => greet(carrier, hello).await?,
    };
    Ok(Reached {
        way,
        hello,
        certificate,
    })
}

/// Upgrades, and has the peer prove who it is if it must; we have proven who we are then.
pub(super) async fn prove(
    stream: Stream,
    url: &WsUrl,
    terms: &Terms,
    mutual: Option<&Mutual>,
) -> Result<(Way, Option<Shown>), Failure> {
    let outer = stream.peer_certificates().map(Shown::from);
    let request = request(url, acceptable(&stream, url, terms, mutual));
    let upgraded = upgrade::connect(stream, &request).await?;
    match (upgraded.protocol, mutual) {
        (Some(PLAIN), _) => {
            let Upgraded { io, leftover, .. } = upgraded;
            let carrier = carrier(io, leftover, url.mask(), terms);
            Ok((Way::Open(Box::new(carrier)), outer))
        }
        (Some(_), Some(mutual)) => {
            let bytes = WsBytes::new(upgraded, Role::Client);
            let sealed = TlsConnector::from(mutual.client.current())
                .connect_with(url.server_name(), bytes, |tls| {
                    tls.set_buffer_limit(Some(TLS_WRITES));
                })
                .await
                .map_err(|error| Failure::Tls { error })?;
            let inner = sealed.get_ref().1.peer_certificates().map(Shown::from);
            let carrier = carrier(sealed, BytesMut::new(), Mask::Zero, terms);
            Ok((Way::Sealed(Box::new(carrier)), inner))
        }
        _ => Err(Failure::NoProtocol),
    }
}

/// How it is asked for the upgrade.
pub(super) fn request<'a>(url: &'a WsUrl, protocols: &'a [&'static str]) -> ClientRequest<'a> {
    ClientRequest {
        uri: url.uri(),
        protocols,
        bearer: None,
        user_agent: USER_AGENT,
        headers: http::HeaderMap::new(),
    }
}

/// The subprotocols by which the peer can prove who it is, over this connection.
fn acceptable(
    stream: &Stream,
    url: &WsUrl,
    terms: &Terms,
    mutual: Option<&Mutual>,
) -> &'static [&'static str] {
    let Some(mutual) = mutual else {
        // The configuration does not allow this while certificates are required.
        return if terms.require_mtls { &[] } else { &[PLAIN] };
    };
    let vouched = stream.peer_certificates().is_some_and(|chain| {
        let trust = mutual.trust.current();
        let judged = trust.judge_server(chain, &url.server_name(), SystemTime::now());
        judged.is_ok()
    });
    if vouched || !terms.require_mtls {
        &[PLAIN, SEALED]
    } else {
        &[SEALED]
    }
}

fn carrier<S>(io: S, leftover: BytesMut, mask: Mask, terms: &Terms) -> Carrier<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let max_payload = terms.max_payload as usize;
    let wire = Wire::V2 { max_payload };
    Carrier::new(io, leftover, Role::Client, mask, wire, max_payload)
}

/// Says HELLO and waits for the answer.
async fn greet<S>(carrier: &mut Carrier<S>, hello: &MeshHello) -> Result<MeshHello, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let body = carrier.greet(hello.encode()?.into()).await?;
    Ok(MeshHello::decode(&body)?)
}

impl Way {
    /// Tells the peer why it is not to be linked with.
    pub(super) async fn close(self, reason: Reason) {
        let said = async {
            match self {
                Self::Open(mut carrier) => carrier.close(reason).await,
                Self::Sealed(mut carrier) => carrier.close(reason).await,
            }
        };
        // It hears why if it listens; if not, the connection is closed all the same.
        let _ = timeout(GOODBYE, said).await;
    }
}
