//! Somebody who dials `/mesh` and is no hub: shows what certificates it likes, says what it likes.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderMap;
use nowconnect_link::dial::{Dialer, ProxyRules, TcpOptions, WsUrl};
use nowconnect_link::session::{Carrier, CarrierError};
use nowconnect_link::stream::{Stream, WsBytes};
use nowconnect_link::tls::CertificateFault;
use nowconnect_link::upgrade::{self, ClientRequest, UpgradeError, Upgraded};
use nowconnect_link::wire::Wire;
use nowconnect_link::ws::{Mask, Role};
use nowconnect_proto::hello::Body;
use nowconnect_proto::mesh_hello::MeshHello;
use nowconnect_proto::{Frame, Reason};
use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::{anyhow, wait};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

pub(crate) const PLAIN: &str = "nowconnect.mesh.v1";
pub(crate) const SEALED: &str = "nowconnect.mesh.v1.tls";

/// How far somebody got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// A link, with the hub of this replica id.
    Linked(String),
    /// An HTTP status and a reason code.
    Refused(u16, String),
    /// A verdict about the certificate, by TLS.
    Alert(CertificateFault),
    /// A word of farewell.
    Farewell(Reason),
    /// No more than an end.
    Cut,
}

/// Trusts `authority`; shows the certificate `NAME.crt` of `shown`.
pub(crate) fn tls(authority: &Authority, shown: Option<(&Authority, &str)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(authority.bundle()).unwrap() {
        roots.add(ca.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some((by, name)) => {
            let chain = CertificateDer::pem_file_iter(by.file(&format!("{name}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(by.file(&format!("{name}.key"))).unwrap();
            let chain = chain.collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// Dials `url` and calls itself `hub`.
pub(crate) async fn join(
    url: &str,
    tls: Option<&Arc<ClientConfig>>,
    protocols: &'static [&'static str],
    hub: &str,
) -> Got {
    let url: WsUrl = url.parse().unwrap();
    let got = wait::within("an answer", attempt(&url, tls, protocols, hub)).await;
    got.unwrap().unwrap_or(Got::Cut)
}

async fn attempt(
    url: &WsUrl,
    tls: Option<&Arc<ClientConfig>>,
    protocols: &[&'static str],
    hub: &str,
) -> anyhow::Result<Got> {
    let dialer = Dialer {
        tls: tls.cloned(),
        proxies: ProxyRules::none(),
        timeout: Duration::from_secs(5),
        tcp: TcpOptions::default(),
    };
    let stream = dialer.dial(url).await?;
    let request = ClientRequest {
        uri: url.uri(),
        protocols,
        bearer: None,
        user_agent: "stranger",
        headers: HeaderMap::new(),
    };
    let upgraded = match upgrade::connect(stream, &request).await {
        Ok(upgraded) => upgraded,
        Err(UpgradeError::Refused { status, reason, .. }) => {
            return Ok(Got::Refused(status.as_u16(), reason.unwrap_or_default()));
        }
        Err(UpgradeError::Io(error) | UpgradeError::Reply(upgrade::ReplyError::Io(error))) => {
            return Ok(verdict(&error));
        }
        Err(error) => return Err(error.into()),
    };
    if upgraded.protocol == Some(PLAIN) {
        let Upgraded { io, leftover, .. } = upgraded;
        return introduce(io, leftover, url.mask(), hub).await;
    }
    let Some(tls) = tls else { return Ok(Got::Cut) };
    match seal(upgraded, url, tls).await {
        Ok(sealed) => introduce(sealed, BytesMut::new(), Mask::Zero, hub).await,
        Err(error) => Ok(verdict(&error)),
    }
}

async fn seal(
    upgraded: Upgraded<Stream>,
    url: &WsUrl,
    tls: &Arc<ClientConfig>,
) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
    let bytes = WsBytes::new(upgraded, Role::Client);
    let name = ServerName::try_from(url.host().to_owned()).unwrap();
    TlsConnector::from(tls.clone()).connect(name, bytes).await
}

async fn introduce<S>(io: S, leftover: BytesMut, mask: Mask, hub: &str) -> anyhow::Result<Got>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let wire = Wire::V2 { max_payload: 65536 };
    let mut carrier = Carrier::new(io, leftover, Role::Client, mask, wire, 65536);
    let hello = MeshHello {
        hub: hub.to_owned(),
        instance: None,
        via: String::new(),
        version: "0".to_owned(),
        initial_window: 4096,
        max_payload: 65536,
        features: Vec::new(),
    };
    if let Err(error) = carrier.send(Frame::Hello(hello.encode()?.into())).await {
        return Ok(verdict(&error));
    }
    Ok(match carrier.receive().await {
        Ok(Frame::HelloAck(body)) => Got::Linked(MeshHello::decode(&body)?.hub),
        Ok(Frame::GoAway { reason, .. }) => Got::Farewell(reason),
        Err(CarrierError::Io(error)) => verdict(&error),
        _ => Got::Cut,
    })
}

fn verdict(error: &std::io::Error) -> Got {
    CertificateFault::of_ours(error).map_or(Got::Cut, Got::Alert)
}
