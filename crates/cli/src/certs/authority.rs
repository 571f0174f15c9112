//! Certificates of a mesh: what hubs demand of each other, and nothing more.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clocks of hubs may be behind by this.
const SKEW: Duration = Duration::from_secs(3600);
/// Longest common name (RFC 5280, appendix A.1, ub-common-name).
const LONGEST_COMMON_NAME: usize = 64;

/// A CA that can sign.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ends: SystemTime,
}

/// A certificate and its key, PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A certificate of a hub.
pub(super) struct Issued {
    pub(super) pair: Pair,
    /// It ends sooner than was asked for.
    pub(super) is_cut: bool,
}

impl Authority {
    /// A CA that signs hubs' certificates and no further CAs.
    pub(super) fn make(name: &str, days: u32) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let (from, until) = validity(days);
        params.not_before = from.into();
        params.not_after = until.into();
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let key = key.serialize_pem();
        Ok(Pair { certificate, key })
    }

    /// Reads a CA's files.
    pub(super) fn read(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| {
                let path = path.display();
                format!("cannot read {path}: make a CA with 'nowconnect certs init', or name its directory with --dir")
            })
        };
        let (certificate_pem, key_pem) = (read(certificate)?, read(key)?);
        let what = |path: &Path| format!("{} cannot be used", path.display());
        let signing = KeyPair::from_pem(&key_pem).with_context(|| what(key))?;
        let parsed = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .with_context(|| what(certificate))?;
        let ends = nowconnect_link::tls::expiry(&parsed).with_context(|| what(certificate))?;
        anyhow::ensure!(
            ends > SystemTime::now(),
            "{} has expired: make another CA with 'nowconnect certs init'",
            certificate.display()
        );
        let issuer =
            Issuer::from_ca_cert_der(&parsed, signing).with_context(|| what(certificate))?;
        Ok(Self { issuer, ends })
    }

    /// Signs a certificate of a hub with these names; the first is its common name.
    pub(super) fn issue(&self, names: &[ServerName<'static>], days: u32) -> anyhow::Result<Issued> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        for name in names {
            let text = name.to_str();
            params.subject_alt_names.push(match name {
                ServerName::IpAddress(address) => SanType::IpAddress((*address).into()),
                _ => SanType::DnsName(text.as_ref().try_into()?),
            });
        }
        let first = names.first().map(ServerName::to_str).unwrap_or_default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if first.len() <= LONGEST_COMMON_NAME {
            let name = first.as_ref();
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let (from, until) = validity(days);
        params.not_before = from.into();
        params.not_after = until.min(self.ends).into();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let key = key.serialize_pem();
        Ok(Issued {
            pair: Pair { certificate, key },
            is_cut: until > self.ends,
        })
    }
}

fn validity(days: u32) -> (SystemTime, SystemTime) {
    let now = SystemTime::now();
    (now - SKEW, now + DAY * days)
}
