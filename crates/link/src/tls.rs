//! TLS configurations from files, and their replacement while connections run.
//!
//! TLS 1.2 and 1.3 by rustls and aws-lc-rs, HTTP/1.1 by ALPN. Certificates are always verified;
//! there is deliberately no way to turn that off. What only looks at a server and tells it nothing
//! ([`Witness`]) judges what it has seen afterwards. All calls to the provider are in here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

mod cert;
mod fault;
mod live;
mod pem;
mod trust;
mod witness;

pub use cert::{Written, expiry, names, written};
pub use fault::CertificateFault;
pub use live::{Live, LiveClientConfig, LiveServerConfig, LiveTrust, Prepared};
pub use trust::{Trust, TrustFiles};
pub use witness::Witness;

/// A certificate chain (leaf first) and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain.
    pub cert_file: PathBuf,
    /// The key: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key_file: PathBuf,
}

/// Whom a client trusts to vouch for servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The operating system's store (or `SSL_CERT_FILE`, `SSL_CERT_DIR`).
    System,
    /// The system's and those in a bundle.
    SystemAnd(PathBuf),
    /// Those in a bundle and no others.
    Only(PathBuf),
}

/// What a client configuration is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Whom to trust.
    pub roots: Roots,
    /// What to present to a server that asks for a certificate.
    pub identity: Option<Identity>,
}

/// What a server configuration is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// What to present.
    pub identity: Identity,
    /// Whether to ask clients for a certificate.
    pub client_auth: ClientAuth,
}

/// Whether a server asks its clients for certificates, and which CAs it takes them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// Does not ask.
    Off,
    /// Asks, and lets in who has none. One that is shown must verify.
    Optional(PathBuf),
    /// Asks, and refuses who has none.
    Required(PathBuf),
    /// Asks, and lets in whoever has none, or shows one whose key it holds, be it signed by whomever:
    /// what serves the connection must judge it with a [`Trust`]. The files are the CAs that clients
    /// are told of.
    Postponed(Vec<PathBuf>),
}

/// Why files do not make a configuration. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Key and certificate are not a pair.
    #[error(
        "the key {} does not belong to the certificate {}: replace both at once",
        key.display(),
        cert.display()
    )]
    KeyMismatch {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// There is nobody to trust.
    #[error(
        "the system has no trusted CA certificates ({0}): install the package ca-certificates or \
         name a CA bundle"
    )]
    NoSystemRoots(String),
    /// rustls does not take them together.
    #[error("TLS cannot be set up: {0}")]
    Config(String),
}

/// A kind of files that can be loaded and made into a configuration.
pub trait Files: Clone + PartialEq {
    /// What it makes.
    type Config;

    /// Reads the files and checks each. Blocks on file I/O.
    ///
    /// # Errors
    /// See [`TlsError`].
    fn load(&self) -> Result<Material, TlsError>;

    /// Puts together what [`load`](Self::load) read.
    ///
    /// # Errors
    /// [`TlsError::KeyMismatch`] or [`TlsError::Config`].
    fn build(&self, material: &Material) -> Result<Self::Config, TlsError>;
}

/// The content of the files of one configuration, for building it and for noticing changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Material {
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    roots: Vec<CertificateDer<'static>>,
    expires: Option<SystemTime>,
    /// The first end among CAs that were named one by one, not those of the system.
    roots_expire: Option<SystemTime>,
}

impl Files for ClientFiles {
    type Config = ClientConfig;

    fn load(&self) -> Result<Material, TlsError> {
        let (mut roots, with_system) = match &self.roots {
            Roots::System => (Vec::new(), true),
            Roots::Only(bundle) => (pem::certificates(bundle)?, false),
            Roots::SystemAnd(bundle) => (pem::certificates(bundle)?, true),
        };
        let roots_expire = cert::first_expiry(&roots)?;
        if with_system {
            match system_roots() {
                Ok(system) => roots.extend(system),
                // The bundle is what the user said; a bare system must not get in its way.
                Err(_) if !roots.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Material {
            roots_expire,
            ..Material::new(self.identity.as_ref(), roots)?
        })
    }

    fn build(&self, material: &Material) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Config(error.to_string()))?
            .with_root_certificates(root_store(&material.roots)?);
        let mut config = match (&self.identity, &material.identity) {
            (Some(files), Some((chain, key))) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|error| identity_error(files, &error))?,
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Files for ServerFiles {
    type Config = ServerConfig;

    fn load(&self) -> Result<Material, TlsError> {
        let roots = match &self.client_auth {
            ClientAuth::Off => Vec::new(),
            ClientAuth::Optional(ca) | ClientAuth::Required(ca) => pem::certificates(ca)?,
            ClientAuth::Postponed(cas) => {
                let each = cas.iter().map(|ca| pem::certificates(ca));
                each.collect::<Result<Vec<_>, _>>()?.concat()
            }
        };
        Material::new(Some(&self.identity), roots)
    }

    fn build(&self, material: &Material) -> Result<ServerConfig, TlsError> {
        let config_error = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| config_error(&error))?;
        let verifier = || {
            let roots = Arc::new(root_store(&material.roots)?);
            Ok(WebPkiClientVerifier::builder_with_provider(
                roots,
                provider(),
            ))
        };
        let builder = match &self.client_auth {
            ClientAuth::Off => builder.with_no_client_auth(),
            ClientAuth::Optional(_) => builder.with_client_cert_verifier(
                verifier()?
                    .allow_unauthenticated()
                    .build()
                    .map_err(|e| config_error(&e))?,
            ),
            ClientAuth::Required(_) => builder
                .with_client_cert_verifier(verifier()?.build().map_err(|e| config_error(&e))?),
            ClientAuth::Postponed(_) => {
                builder.with_client_cert_verifier(Arc::new(trust::Postponed::new(&material.roots)?))
            }
        };
        let Some((chain, key)) = &material.identity else {
            return Err(TlsError::Config("a server needs a certificate".to_owned()));
        };
        let mut config = builder
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| identity_error(&self.identity, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Material {
    fn new(
        identity: Option<&Identity>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let Some(files) = identity else {
            return Ok(Self {
                identity: None,
                roots,
                expires: None,
                roots_expire: None,
            });
        };
        let chain = pem::certificates(&files.cert_file)?;
        let key = pem::private_key(&files.key_file)?;
        let expires = cert::check_dates(&chain, &files.cert_file)?;
        Ok(Self {
            identity: Some((chain, key)),
            roots,
            expires,
            roots_expire: None,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let problems: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
    if found.certs.is_empty() {
        let problems = if problems.is_empty() {
            "none found".into()
        } else {
            problems.join("; ")
        };
        return Err(TlsError::NoSystemRoots(problems));
    }
    for problem in problems {
        tracing::warn!(event = "system_ca_unreadable", reason = %problem);
    }
    Ok(found.certs)
}

/// System stores hold oddities that rustls does not take; bundles were checked one by one before.
fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots.iter().cloned());
    if added == 0 {
        return Err(TlsError::Config(
            "none of the CA certificates is usable".to_owned(),
        ));
    }
    Ok(store)
}

fn identity_error(files: &Identity, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
            cert: files.cert_file.clone(),
            key: files.key_file.clone(),
        },
        other => TlsError::Content {
            path: files.key_file.clone(),
            problem: other.to_string(),
        },
    }
}
