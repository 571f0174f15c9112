//! A certificate authority, and the certificates it signs, good and bad.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA whose certificate is `ca.pem` in its directory.
#[derive(Debug)]
pub struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Host names and addresses that it is for.
    pub names: Vec<String>,
    /// When it begins to be valid.
    pub from: SystemTime,
    /// When it ends.
    pub until: SystemTime,
    /// What it may be used for.
    pub uses: Vec<ExtendedKeyUsagePurpose>,
}

impl Certificate {
    /// One that is as it should be, for clients and servers, valid now.
    #[must_use]
    pub fn good(names: &[&str]) -> Self {
        let now = SystemTime::now();
        Self {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            from: now - DAY,
            until: now + 30 * DAY,
            uses: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }

    /// The same, but its time is over.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.until = SystemTime::now() - Duration::from_secs(3600);
        self
    }

    /// The same, but its time has not come.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        self.from = SystemTime::now() + DAY;
        self
    }

    /// The same, but for servers alone.
    #[must_use]
    pub fn for_servers(mut self) -> Self {
        self.uses = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self
    }

    fn params(&self) -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        params.extended_key_usages.clone_from(&self.uses);
        for name in &self.names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        Ok(params)
    }
}

impl Authority {
    /// A new CA in a directory of its own.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let dir = tempfile::tempdir()?;
        write(&dir.path().join("ca.pem"), &issuer.pem())?;
        Ok(Self { dir, issuer })
    }

    /// A file of its directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The CA's certificate.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Signs `certificate`: `NAME.crt` and `NAME.key`, both replaced whole.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn issue(&self, name: &str, certificate: &Certificate) -> Result<()> {
        let key = KeyPair::generate()?;
        let signed = certificate.params()?.signed_by(&key, &self.issuer)?;
        self.write_pair(name, &signed.pem(), &key)
    }

    /// Writes `certificate` as one that has signed itself.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn self_signed(&self, name: &str, certificate: &Certificate) -> Result<()> {
        let key = KeyPair::generate()?;
        let signed = certificate.params()?.self_signed(&key)?;
        self.write_pair(name, &signed.pem(), &key)
    }

    fn write_pair(&self, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
        write(&self.file(&format!("{name}.crt")), certificate)?;
        write(&self.file(&format!("{name}.key")), &key.serialize_pem())
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    crate::program::write(file, text)
}
