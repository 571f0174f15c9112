//! Who a hub proves to be by its certificate.

use std::sync::Arc;
use std::time::SystemTime;

use nowconnect_link::tls::{CertificateFault, names};
use rustls_pki_types::CertificateDer;

use super::credentials::Mutual;
use super::terms::Terms;

/// Names of a certificate that are logged.
const SHOWN_NAMES: usize = 8;

/// Certificates that the other side of a connection has shown, leaf first, whose key it has proven to
/// hold.
pub type Shown = Arc<[CertificateDer<'static>]>;

/// Who a hub has proven to be.
#[derive(Debug, Clone, Default)]
pub struct Proof {
    /// Those of our peers' hosts that its certificate is for; empty only while no certificate is
    /// demanded.
    pub names: Vec<Arc<str>>,
    /// Its certificate.
    pub(super) chain: Option<Shown>,
}

/// Why a certificate makes nobody a peer.
#[derive(Debug, thiserror::Error)]
#[error("{fault}{}", in_brackets(.detail))]
pub(super) struct Unproven {
    pub(super) fault: CertificateFault,
    detail: String,
}

/// The hosts among our peers that the owner of the chain `shown` has proven to be `at` some time.
pub(super) fn prove(
    mutual: &Mutual,
    terms: &Terms,
    shown: Option<Shown>,
    at: SystemTime,
) -> Result<Proof, Unproven> {
    let chain = shown.as_deref().unwrap_or_default();
    let unproven = |fault, detail: String| Unproven { fault, detail };
    mutual
        .trust
        .current()
        .judge_client(chain, at)
        .map_err(|error| {
            let fault = CertificateFault::of(&error).unwrap_or(CertificateFault::Other);
            unproven(fault, String::new())
        })?;
    let names = chain.first().map(names).transpose().ok().flatten();
    let names = names.unwrap_or_default();
    let hosts = terms.peers_among(&names);
    if hosts.is_empty() {
        let detail = match names.is_empty() {
            true => "it has no subject alternative name".to_owned(),
            false => format!(
                "it is for {}, none of which is the host of one of ha.mesh.peers",
                names[..names.len().min(SHOWN_NAMES)].join(", ")
            ),
        };
        return Err(unproven(CertificateFault::WrongName, detail));
    }
    Ok(Proof {
        names: hosts,
        chain: shown,
    })
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}
