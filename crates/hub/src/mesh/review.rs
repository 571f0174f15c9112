//! Whether links that stand may stay, when the configuration or certificates have changed.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nowconnect_link::session::Link;
use nowconnect_link::tls::CertificateFault;
use nowconnect_proto::Reason;

use super::Mesh;
use super::credentials::Tended;
use super::leaving::{NO_DEADLINE, log_kept, see_off};
use super::peer::{Peer, note_untrusted};
use super::proof::prove;

impl Mesh {
    /// Looks whether the files of certificates have changed, and goes on with those: links to hubs
    /// that the CAs do not vouch for any more are cut. Blocks on file I/O.
    pub fn tend(&self) {
        match self.credentials.load_full().tend() {
            Tended::Same => {}
            Tended::Changed => {
                self.note_certificates_changed();
                self.review_all();
            }
            Tended::Kept => self.metrics.tunnels.note_certificate("mesh", "rejected"),
        }
    }

    pub(super) fn note_certificates_changed(&self) {
        self.metrics.tunnels.note_certificate("mesh", "applied");
        tracing::info!(event = "certificate_changed", r#use = "mesh", audit = true);
    }

    /// When this hub's certificate ends, and the first of the mesh CAs.
    pub fn expiry(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let credentials = self.credentials.load();
        let mutual = credentials.mutual.as_ref();
        let own = mutual.and_then(|mutual| mutual.server.expires());
        (own, mutual.and_then(|mutual| mutual.trust.trust_expires()))
    }

    /// Whether links may stay under the configuration and the certificates in force.
    pub(super) fn review_all(&self) {
        for inward in self.links.inbound() {
            self.review(&inward.link, &inward.peer, inward.since);
        }
        for outbound in &*self.outbound.lock() {
            outbound.review(self);
        }
    }

    /// Whether a link that a peer dialed, which was let in at `since`, may stay. That a certificate has
    /// ended in the meantime ends no link.
    pub(super) fn review(&self, link: &Arc<Link>, peer: &Peer, since: SystemTime) {
        let terms = self.terms.load();
        let credentials = self.credentials.load();
        let mutual = credentials.mutual.as_ref();
        let proof = mutual.map(|mutual| prove(mutual, &terms, peer.proof.chain.clone(), since));
        let unproven = match proof {
            // Who goes off may forget peers and certificates; running flows go on all the same.
            Some(Err(unproven)) if !terms.on && unproven.fault == CertificateFault::WrongName => {
                None
            }
            Some(Err(unproven)) => Some((unproven.fault.code(), unproven.to_string())),
            None if !terms.on => None,
            None => Some(("certificate_missing", "ha.mesh.tls is not set".to_owned())),
            Some(Ok(_)) => None,
        };
        if let Some((reason, detail)) = unproven.filter(|_| terms.require_mtls) {
            note_untrusted("inbound", &peer.label, reason, &detail);
            link.close(Reason::Denied);
        } else if !terms.on && link.takes_flows() {
            link.go_away(Reason::NotActive, NO_DEADLINE);
            let flows = link.active_flows();
            if flows > 0 {
                log_kept("inbound", &peer.label, &peer.hub, flows);
            }
            // Who has dialed knows best when the last flow has ended, also of those that wait for their
            // agent just now; this is for one that does not close it.
            let (link, stop, grace) = (link.clone(), self.tasks.token(), terms.grace);
            self.tasks.spawn("mesh_leaving", async move {
                let mut used = Instant::now();
                let needed = || {
                    if link.active_flows() > 0 {
                        used = Instant::now();
                    }
                    used.elapsed() < grace
                };
                see_off(&link, &stop, needed).await;
            });
        }
    }
}
