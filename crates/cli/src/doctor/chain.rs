//! Certificates, for people.

use std::path::Path;

use nowconnect_link::tls::{CertificateFault, Written, written};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::claims::{seconds_left, span};
use super::report::Report;

/// A certificate that ends sooner is about to be missed, in seconds.
const SOON: i64 = 14 * 86_400;
/// Names that are told.
const TOLD: usize = 8;

/// Tells of a chain that is trusted; `whose`: "its", "our".
pub(super) fn told(area: &str, whose: &str, chain: &[Written], report: &mut Report) {
    let (Some(leaf), Some(top)) = (chain.first(), chain.last()) else {
        return;
    };
    let between: Vec<&str> = chain.iter().skip(1).map(|one| &*one.subject).collect();
    let by = match between.is_empty() {
        true => top.issuer.clone(),
        false => format!("{} through {}", top.issuer, between.join(", ")),
    };
    let fact = format!(
        "{whose} certificate: for {}, signed by {by}, {}",
        names(leaf),
        life(leaf)
    );
    match chain.iter().any(|one| seconds_left(one.ends) < SOON) {
        true => report.warning(area, fact, "have it renewed before it ends"),
        false => report.ok(area, fact),
    }
}

/// A chain that nobody here vouches for; without `bundle` the system's CAs count.
pub(super) fn unknown_ca(chain: &[Written], bundle: Option<&Path>) -> String {
    let (leaf, top) = (chain.first(), chain.last());
    let leaf = leaf.map_or_else(String::new, |leaf| format!(" for {}", names(leaf)));
    let signer = top.map_or("somebody unknown", |top| top.issuer.as_str());
    let bundle = match bundle {
        Some(bundle) => format!("{} does not vouch for", bundle.display()),
        None => "this machine does not trust".to_owned(),
    };
    format!("the certificate{leaf} is signed by {signer}, whom {bundle}")
}

/// What is wrong with a chain of a CA that is known, which `host` has shown.
pub(super) fn fault(fault: CertificateFault, chain: &[Written], host: &str) -> String {
    match (fault, chain.first()) {
        (CertificateFault::WrongName, Some(leaf)) => {
            format!("the certificate is for {}, and not for {host}", names(leaf))
        }
        (fault, Some(leaf)) => format!("{fault} (for {}, {})", names(leaf), life(leaf)),
        (fault, None) => fault.to_string(),
    }
}

/// Whom it is for; the subject of one without names.
pub(super) fn names(leaf: &Written) -> String {
    let names = &leaf.names;
    if names.is_empty() {
        return format!("{} (no subject alternative name)", leaf.subject);
    }
    let more = names.len().saturating_sub(TOLD);
    let told = names[..names.len() - more].join(", ");
    match more {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

/// From when or until when it is valid.
pub(super) fn life(leaf: &Written) -> String {
    let (begins, left) = (seconds_left(leaf.begins), seconds_left(leaf.ends));
    match (begins, left) {
        (begins, _) if begins > 0 => format!("begins in {}", span(begins)),
        (_, left) if left < 0 => format!("ended {} ago", span(left)),
        (_, left) => format!("ends in {}", span(left)),
    }
}

/// The chain of a PEM file.
pub(super) fn read(file: &Path) -> Option<Vec<Written>> {
    let chain = CertificateDer::pem_file_iter(file).ok()?;
    chain.map(|one| written(&one.ok()?).ok()).collect()
}
