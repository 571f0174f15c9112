//! A handshake for the sake of the certificate: for looking at a server, not for trusting it.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsError, provider};

/// Remembers the chain that a server shows and has proven to hold the key of, whoever has signed it.
/// Whether it is to be trusted is for a [`Trust`](super::Trust) to say, afterwards: nothing that
/// nobody else may read must be sent over such a connection.
#[derive(Debug)]
pub struct Witness {
    algorithms: WebPkiSupportedAlgorithms,
    chain: Mutex<Vec<CertificateDer<'static>>>,
    refuses: bool,
}

impl Witness {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::that(false)
    }

    /// One that refuses the server once it has seen the chain, whatever it is: no handshake with its
    /// configuration ever succeeds, and no key is proven.
    #[must_use]
    pub fn refusing() -> Arc<Self> {
        Self::that(true)
    }

    fn that(refuses: bool) -> Arc<Self> {
        Arc::new(Self {
            algorithms: provider().signature_verification_algorithms,
            chain: Mutex::default(),
            refuses,
        })
    }

    /// A configuration for one handshake, in which `alpn` is offered.
    ///
    /// # Errors
    /// [`TlsError::Config`].
    pub fn config(self: &Arc<Self>, alpn: Option<&[u8]>) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Config(error.to_string()))?;
        let verifier = Arc::clone(self) as Arc<dyn ServerCertVerifier>;
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        Ok(config)
    }

    /// What was shown, leaf first; empty when it did not come to that.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.lock().clone()
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        *self.chain.lock() = chain
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        if self.refuses {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
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
