//! Judging certificates after the handshake: one port serves paths that trust different CAs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Files, Material, TlsError, cert, pem, provider, root_store};

/// A bundle of CA certificates; `None` trusts nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFiles {
    /// CA certificates, PEM.
    pub bundle: Option<PathBuf>,
}

/// Judges chains whose owner has proven, in a handshake, to hold the key of the first certificate.
#[derive(Clone)]
pub struct Trust(Option<Verifiers>);

#[derive(Clone)]
struct Verifiers {
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// Whether `chain` (leaf first) is that of a client of ours: signed by one of the CAs, valid
    /// when it was shown `at`, and meant for clients.
    ///
    /// # Errors
    /// What is wrong with it, see [`CertificateFault::of`](super::CertificateFault::of).
    pub fn judge_client(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let verifiers = self.verifiers()?;
        verifiers
            .clients
            .verify_client_cert(leaf, rest, unix_time(at))
            .map(drop)
    }

    /// Whether `chain` is that of the server `name`: signed by one of the CAs, valid when it was
    /// shown `at`, and meant for this server.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge_server(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        at: SystemTime,
    ) -> Result<(), Error> {
        let (leaf, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let verifiers = self.verifiers()?;
        verifiers
            .servers
            .verify_server_cert(leaf, rest, name, &[], unix_time(at))
            .map(drop)
    }

    fn verifiers(&self) -> Result<&Verifiers, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        self.0.as_ref().ok_or(unknown)
    }
}

fn unix_time(at: SystemTime) -> UnixTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unwrap_or_default())
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = if self.0.is_some() {
            "known CAs"
        } else {
            "nobody"
        };
        f.debug_tuple("Trust").field(&known).finish()
    }
}

impl Files for TrustFiles {
    type Config = Trust;

    fn load(&self) -> Result<Material, TlsError> {
        let roots = self.bundle.as_deref().map(pem::certificates).transpose()?;
        let roots = roots.unwrap_or_default();
        Ok(Material {
            roots_expire: cert::first_expiry(&roots)?,
            ..Material::new(None, roots)?
        })
    }

    fn build(&self, material: &Material) -> Result<Trust, TlsError> {
        if material.roots.is_empty() {
            return Ok(Trust(None));
        }
        let roots = Arc::new(root_store(&material.roots)?);
        let config = |error: &dyn fmt::Display| TlsError::Config(error.to_string());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider());
        Ok(Trust(Some(Verifiers {
            clients: clients.build().map_err(|error| config(&error))?,
            servers: servers.build().map_err(|error| config(&error))?,
        })))
    }
}

/// Takes any certificate whose key the client has proven to hold, and vouches for none: what serves
/// the connection asks a [`Trust`].
#[derive(Debug)]
pub(super) struct Postponed {
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Postponed {
    /// Names the CAs whose certificates `roots` are to the client, which may have several of its
    /// own to choose from.
    pub(super) fn new(roots: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        Ok(Self {
            hints: root_store(roots)?.subjects(),
            algorithms: provider().signature_verification_algorithms,
        })
    }
}

impl ClientCertVerifier for Postponed {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        ParsedCertificate::try_from(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
