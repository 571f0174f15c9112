//! What is said of those who are not let in.

use std::net::{IpAddr, SocketAddr};

use nowconnect_link::tls::CertificateFault;

use super::Mesh;

/// What refused hubs are told, and the log calls it, while high availability is off.
pub(super) const HA_OFF: &str = "ha_off";
pub(super) const OFF: &str = "high availability is off on this hub (ha.mode)";

impl Mesh {
    /// Logs, at most once a second for each reason, that somebody was not let in.
    pub(super) fn note_refused(&self, reason: &'static str, detail: &str, remote: &IpAddr) {
        let pass = self.quiet.lock().entry(reason).or_default().pass();
        if let Some(suppressed) = pass {
            tracing::warn!(
                event = "mesh_refused",
                %remote,
                reason,
                detail,
                suppressed,
                audit = true,
            );
        }
    }

    /// A TLS handshake on the port of the mesh failed.
    pub(crate) fn note_tls_failed(&self, remote: SocketAddr, error: &std::io::Error) {
        let fault = CertificateFault::of_io(error);
        let reason = fault.map_or("tls", CertificateFault::code);
        self.note_refused(reason, &error.to_string(), &remote.ip().to_canonical());
    }
}
