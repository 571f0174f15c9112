//! PEM files, with errors that name file and block.

use std::fs::{File, metadata};
use std::io::{self, Read};
use std::path::Path;

use rustls::RootCertStore;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::TlsError;

/// Larger than any CA bundle; keeps a wrong path (a disk image, `/dev/zero`) out of memory.
const MAX_FILE: u64 = 8 << 20;

/// All certificates of a file, at least one, each of them well-formed.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let mut certificates = Vec::new();
    for (at, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let at = at + 1;
        let certificate: CertificateDer<'static> = certificate
            .map_err(|error| content(path, format!("certificate {at} {}", damage(&error))))?;
        // The parser of the handshake is the judge of what a certificate is.
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|error| content(path, format!("certificate {at} is unusable: {error}")))?;
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err(content(
            path,
            format!("no certificates found{}", hint(&pem, "CERTIFICATE")),
        ));
    }
    Ok(certificates)
}

/// The first private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        PemError::NoItemsFound => content(
            path,
            format!("no private key found{}", hint(&pem, "PRIVATE KEY")),
        ),
        error => content(path, format!("the private key {}", damage(&error))),
    })
}

/// What is wrong with a block, without a word of its content: it may be a key.
fn damage(error: &PemError) -> &'static str {
    match error {
        PemError::MissingSectionEnd { .. } => {
            "breaks off: its END line is missing, or its lines were joined"
        }
        PemError::IllegalSectionStart { .. } => {
            "is damaged: its BEGIN line has more on it; the lines were joined"
        }
        PemError::Base64Decode(_) => "is damaged: its text is not base64",
        _ => "is damaged",
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read_error = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut pem = Vec::new();
    // Whoever opens a pipe may wait for ever.
    let file = match metadata(path).map_err(read_error)?.is_file() {
        true => File::open(path).map_err(read_error)?,
        false => return Err(read_error(io::Error::other("it is no file"))),
    };
    file.take(MAX_FILE + 1)
        .read_to_end(&mut pem)
        .map_err(read_error)?;
    if pem.len() as u64 > MAX_FILE {
        return Err(content(
            path,
            format!("larger than {} MiB, not a PEM file", MAX_FILE >> 20),
        ));
    }
    Ok(pem)
}

fn content(path: &Path, problem: String) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        problem,
    }
}

/// What there is instead of a block `wanted`.
fn hint(pem: &[u8], wanted: &str) -> String {
    let has = |text: &str| {
        pem.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    if pem.is_empty() {
        ": the file is empty".to_owned()
    } else if has("-----BEGIN ENCRYPTED PRIVATE KEY") {
        ": the key is encrypted, decrypt it with 'openssl pkey'".to_owned()
    } else if has("-----BEGIN ") {
        format!(": the file holds PEM blocks, but none is a {wanted}")
    } else if pem.first() == Some(&0x30) {
        ": the file looks like DER, convert it to PEM with 'openssl x509' or 'openssl pkey'"
            .to_owned()
    } else {
        format!(": expected '-----BEGIN {wanted}-----'")
    }
}
