//! What is wrong with a certificate, in words that programs and people can tell apart.

use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Why a peer's certificate was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFault {
    /// None was shown.
    Missing,
    /// No CA that is trusted here has signed it; also when it has signed itself.
    UnknownCa,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It is for somebody else.
    WrongName,
    /// Its key may not be used for this.
    WrongUse,
    /// Something else, see the detail.
    Other,
}

impl CertificateFault {
    const ALL: [Self; 7] = [
        Self::Missing,
        Self::UnknownCa,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongName,
        Self::WrongUse,
        Self::Other,
    ];

    /// What `error` says about the peer's certificate; `None` when it is about something else.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        let Error::InvalidCertificate(certificate) = error else {
            return matches!(error, Error::NoCertificatesPresented).then_some(Self::Missing);
        };
        Some(match certificate {
            // A bad signature is a known name with another key: also a CA that we do not know.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongUse
            }
            _ => Self::Other,
        })
    }

    /// The same for the error of a TLS stream.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<Self> {
        Self::of(error.get_ref()?.downcast_ref()?)
    }

    /// What the peer says, by the alert in `error`, about the certificate that we have shown it.
    #[must_use]
    pub fn of_ours(error: &io::Error) -> Option<Self> {
        let Some(Error::AlertReceived(alert)) = error.get_ref()?.downcast_ref() else {
            return None;
        };
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                Some(Self::Missing)
            }
            // The second: a CA of the same name with another key.
            AlertDescription::UnknownCA | AlertDescription::DecryptError => Some(Self::UnknownCa),
            AlertDescription::CertificateExpired => Some(Self::Expired),
            AlertDescription::UnsupportedCertificate => Some(Self::WrongUse),
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => Some(Self::Other),
            _ => None,
        }
    }

    /// The fault that has this [`CertificateFault::code`].
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.code() == code)
    }

    /// The code for logs and answers.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "certificate_missing",
            Self::UnknownCa => "certificate_unknown_ca",
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::WrongName => "certificate_wrong_name",
            Self::WrongUse => "certificate_wrong_use",
            Self::Other => "certificate_bad",
        }
    }
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no certificate was shown",
            Self::UnknownCa => "no CA that is trusted here has signed the certificate",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet, or a clock is wrong",
            Self::WrongName => "the certificate is for another host",
            Self::WrongUse => "the certificate's extended key usage does not allow this",
            Self::Other => "the certificate is not accepted",
        })
    }
}
