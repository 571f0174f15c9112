//! The certificate that an agent must show besides its token, where the hub demands one.

use std::time::SystemTime;

use nowconnect_link::tls::CertificateFault;
use nowconnect_proto::Reason;
use rustls_pki_types::CertificateDer;

use super::Tunnels;
use super::session::Session;

impl Tunnels {
    /// Closes the tunnels of agents that could not open them any more with the certificate that they
    /// have shown: other CAs vouch for agents now.
    pub(crate) fn review_certificates(&self) {
        for session in self.directory.sessions() {
            self.review_certificate(&session);
        }
    }

    pub(super) fn review_certificate(&self, session: &Session) {
        let shown = session.certificate.as_deref();
        if let Err(fault) = self.judge_certificate(shown, session.since_time()) {
            self.gate.count_rejection("client_certificate");
            let detail = format!("{fault}, since tunnel.tls.client_ca has changed");
            tracing::warn!(
                event = "agent_refused",
                agent_id = %session.agent_id,
                remote = %session.remote,
                reason = fault.code(),
                detail,
                audit = true,
            );
            session.link().close(Reason::AuthFailed);
        }
    }

    /// Whether what an agent has shown `at` is enough.
    pub(super) fn judge_certificate(
        &self,
        shown: Option<&[CertificateDer<'static>]>,
        at: SystemTime,
    ) -> Result<(), CertificateFault> {
        if !self.terms.load().certificates {
            return Ok(());
        }
        let (Some(trust), Some(chain)) = (self.trust.get(), shown) else {
            return Err(CertificateFault::Missing);
        };
        let judged = trust.current().judge_client(chain, at);
        judged.map_err(|error| CertificateFault::of(&error).unwrap_or(CertificateFault::Other))
    }
}
