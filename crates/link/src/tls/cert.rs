//! What is written in a certificate: dates and names.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::TlsError;

/// When a certificate ends, for metrics and warnings.
///
/// # Errors
/// The certificate cannot be parsed.
pub fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, TlsError> {
    Ok(system_time(parse(certificate)?.validity().not_after))
}

/// What is written in a certificate, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Whom it is for.
    pub subject: String,
    /// Who has signed it.
    pub issuer: String,
    /// See [`names`].
    pub names: Vec<String>,
    /// When it begins to be valid.
    pub begins: SystemTime,
    /// See [`expiry`].
    pub ends: SystemTime,
}

/// Reads a certificate out.
///
/// # Errors
/// The certificate cannot be parsed.
pub fn written(certificate: &CertificateDer<'_>) -> Result<Written, TlsError> {
    // From a stranger, for a terminal: one line, not too long.
    let plain = |name: String| -> String {
        let plain = name.chars().filter(|c| !c.is_control());
        plain.take(200).collect()
    };
    let parsed = parse(certificate)?;
    Ok(Written {
        subject: plain(parsed.subject().to_string()),
        issuer: plain(parsed.issuer().to_string()),
        names: names(certificate)?.into_iter().map(plain).collect(),
        begins: system_time(parsed.validity().not_before),
        ends: system_time(parsed.validity().not_after),
    })
}

/// When the first of some certificates ends.
pub(super) fn first_expiry(
    certificates: &[CertificateDer<'_>],
) -> Result<Option<SystemTime>, TlsError> {
    let ends = certificates.iter().map(expiry);
    let ends = ends.collect::<Result<Vec<_>, _>>()?;
    Ok(ends.into_iter().min())
}

/// The DNS names and IP addresses a certificate is for (subject alternative names, in lower case;
/// the common name does not count, RFC 9525 section 2).
///
/// # Errors
/// The certificate cannot be parsed.
pub fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, TlsError> {
    let parsed = parse(certificate)?;
    let extension = parsed
        .subject_alternative_name()
        .map_err(|error| TlsError::Config(error.to_string()))?;
    let names = extension.map_or(&[][..], |extension| &extension.value.general_names);
    Ok(names.iter().filter_map(name).collect())
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), bytes) {
            (Ok(v4), _) => Some(Ipv4Addr::from(v4).to_string()),
            (_, bytes) => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|v6| Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    }
}

/// Refuses a leaf that is not valid now; returns when it ends.
pub(super) fn check_dates(
    chain: &[CertificateDer<'_>],
    path: &Path,
) -> Result<Option<SystemTime>, TlsError> {
    let Some(leaf) = chain.first() else {
        return Ok(None);
    };
    let content = |problem| TlsError::Content {
        path: path.to_owned(),
        problem,
    };
    let validity = parse(leaf)
        .map_err(|error| content(error.to_string()))?
        .validity()
        .clone();
    let now = SystemTime::now();
    let ends = system_time(validity.not_after);
    if ends <= now {
        let since = validity.not_after;
        return Err(content(format!(
            "the certificate expired on {since}: renew it"
        )));
    }
    if system_time(validity.not_before) > now {
        let from = validity.not_before;
        return Err(content(format!(
            "the certificate is valid only from {from}: check this machine's clock"
        )));
    }
    Ok(Some(ends))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(TlsError::Config(format!(
            "a certificate cannot be parsed: {error}"
        ))),
    }
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    let end = if time.timestamp() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    end.unwrap_or(SystemTime::UNIX_EPOCH)
}
