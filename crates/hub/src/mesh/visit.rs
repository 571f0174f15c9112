//! A visit to a peer that turns back before HELLO: what it shows on the way, and whether both prove to
//! each other who they are. Links stay as they are.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use nowconnect_link::dial::{DialError, Dialer, WsUrl, WsUrlError};
use nowconnect_link::session::CarrierError;
use nowconnect_link::stream::{Stream, WsBytes};
use nowconnect_link::tls::{CertificateFault, TlsError, Witness, Written, written};
use nowconnect_link::upgrade::{self, UpgradeError};
use nowconnect_link::ws::Role;
use nowconnect_proto::{Frame, Reason};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::credentials::Credentials;
use super::dial::{self, Way};
use super::failure::Failure;
use super::terms::Terms;
use super::{GOODBYE, HANDSHAKE, SEALED};
use crate::config::HubConfig;

/// How long a peer may take to refuse our certificate: inside the WebSocket it first waits
/// [`GOODBYE`] for our HELLO.
const VERDICT: Duration = GOODBYE.saturating_mul(2);

/// The way to one peer.
#[derive(Debug)]
pub struct Visit {
    url: WsUrl,
    terms: Terms,
    credentials: Credentials,
}

/// Why there is nothing to visit it with.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// The URL of a peer.
    #[error("ha.mesh.peers: {0}")]
    Url(#[from] WsUrlError),
    /// Certificates or keys.
    #[error("ha.mesh.tls: {0}")]
    Tls(#[from] TlsError),
}

/// A peer that would be linked with.
#[derive(Debug)]
pub struct Met {
    /// The proof goes through an ingress, inside the WebSocket.
    pub sealed: bool,
    /// The certificates that it has proven itself with, leaf first; none without TLS.
    pub chain: Vec<Written>,
}

/// A peer that would not.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct NotMet {
    /// What is in the way, and what to do about it.
    what: Failure,
    /// The certificate that is.
    pub fault: Option<(Whose, CertificateFault)>,
}

/// Whose certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// That of whatever answers at the URL: the peer or an ingress.
    Doors,
    /// The peer's, inside the WebSocket.
    Peers,
    /// This hub's.
    Ours,
}

impl Visit {
    /// Reads the certificates. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`VisitError`].
    pub fn new(config: &HubConfig, url: &Uri) -> Result<Self, VisitError> {
        Ok(Self {
            url: url.clone().try_into()?,
            terms: Terms::of(config).map_err(|error| match error {
                super::MeshError::Peer(_, error) => VisitError::Url(error),
                super::MeshError::Tls(error) => VisitError::Tls(error),
            })?,
            credentials: Credentials::load(&config.ha.mesh)?,
        })
    }

    /// Where to.
    #[must_use]
    pub fn url(&self) -> &WsUrl {
        &self.url
    }

    /// Connects, TLS with our certificate included.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn dial(&self) -> Result<Stream, NotMet> {
        Ok(self
            .dialer()?
            .dial(&self.url)
            .await
            .map_err(Failure::from)?)
    }

    /// Has both prove who they are.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn knock(&self) -> Result<Met, NotMet> {
        let stream = self.dial().await?;
        let mutual = self.credentials.mutual.as_ref();
        let proven = dial::prove(stream, &self.url, &self.terms, mutual);
        let proven = timeout(HANDSHAKE, proven).await;
        let (mut way, shown) = proven.map_err(|_| Failure::Timeout(HANDSHAKE))??;
        // In TLS 1.3 the server judges our certificate after the handshake is over for us.
        let refused = async {
            match &mut way {
                Way::Open(carrier) => carrier.receive().await,
                Way::Sealed(carrier) => carrier.receive().await,
            }
        };
        match timeout(VERDICT, refused).await {
            Ok(Ok(Frame::GoAway { reason, .. })) => Err(Failure::Refused(reason).into()),
            Ok(Err(error)) => Err(Failure::from(error).into()),
            Ok(Ok(_)) => Err(Failure::Unexpected("a frame before HELLO").into()),
            Err(_) => Ok(Met {
                sealed: matches!(way, Way::Sealed(_)),
                chain: shown.as_deref().map(read).unwrap_or_default(),
            }),
        }
    }

    /// The certificates of whatever answers at the URL, or of the peer inside the WebSocket, trusted or
    /// not; none if it does not come to that.
    pub async fn shown(&self, whose: Whose) -> Vec<Written> {
        let shown = async {
            match whose {
                Whose::Doors => self.shown_at_the_door().await,
                Whose::Peers => self.shown_inside().await,
                Whose::Ours => None,
            }
        };
        let shown = timeout(HANDSHAKE, shown).await;
        shown.ok().flatten().unwrap_or_default()
    }

    async fn shown_at_the_door(&self) -> Option<Vec<Written>> {
        let witness = Witness::refusing();
        let dialer = Dialer {
            tls: Some(Arc::new(witness.config(None).ok()?)),
            ..self.dialer().ok()?
        };
        // It never succeeds, and what failed is told by the dial that may.
        drop(dialer.dial(&self.url).await);
        Some(read(&witness.chain()))
    }

    async fn shown_inside(&self) -> Option<Vec<Written>> {
        let witness = Witness::refusing();
        let stream = self.dial().await.ok()?;
        let request = dial::request(&self.url, &[SEALED]);
        let upgraded = upgrade::connect(stream, &request).await.ok()?;
        let tls = TlsConnector::from(Arc::new(witness.config(None).ok()?));
        let bytes = WsBytes::new(upgraded, Role::Client);
        drop(tls.connect(self.url.server_name(), bytes).await);
        Some(read(&witness.chain()))
    }

    fn dialer(&self) -> Result<Dialer, Failure> {
        dial::dialer(&self.url, &self.terms, &self.credentials)
    }
}

fn read(chain: &[CertificateDer<'_>]) -> Vec<Written> {
    chain.iter().filter_map(|one| written(one).ok()).collect()
}

impl From<Failure> for NotMet {
    fn from(what: Failure) -> Self {
        let fault = match &what {
            Failure::Dial(DialError::Tls { source, .. }) => {
                let theirs = CertificateFault::of_io(source).map(|fault| (Whose::Doors, fault));
                theirs.or_else(|| what.of_ours())
            }
            Failure::Tls { error } => {
                let theirs = CertificateFault::of_io(error).map(|fault| (Whose::Peers, fault));
                theirs.or_else(|| what.of_ours())
            }
            _ => what.of_ours(),
        };
        Self { what, fault }
    }
}

impl Failure {
    /// What the other side says about our certificate.
    fn of_ours(&self) -> Option<(Whose, CertificateFault)> {
        let fault = match self {
            Self::Dial(DialError::Tls { source: error, .. })
            | Self::Tls { error }
            | Self::Carrier {
                error: CarrierError::Io(error),
            } => CertificateFault::of_ours(error),
            Self::Upgrade {
                error: UpgradeError::Refused { reason, .. },
            } => reason.as_deref().and_then(CertificateFault::from_code),
            Self::Upgrade { error } => {
                super::failure::upgrade_io(error).and_then(CertificateFault::of_ours)
            }
            // It chains to the mesh CA, or the handshake would have failed.
            Self::Refused(Reason::AuthFailed) => Some(CertificateFault::WrongName),
            _ => None,
        };
        fault.map(|fault| (Whose::Ours, fault))
    }
}
