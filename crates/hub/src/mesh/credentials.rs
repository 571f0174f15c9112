//! What this hub proves itself to its peers with, and what it takes for proof.

use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Identity, LiveClientConfig, LiveServerConfig, LiveTrust, Prepared,
    Roots, ServerFiles, TlsError, TrustFiles,
};
use parking_lot::Mutex;

use crate::config::{MeshConfig, MeshTls};

/// Certificates of `ha.mesh`, read once and read again when the files change.
pub(super) struct Credentials {
    /// For TLS with whatever answers at a peer's URL: a hub or an ingress. `None` = no `wss://` URL.
    pub(super) outer: Option<LiveClientConfig>,
    /// For proofs between hubs; `None` without `ha.mesh.tls`.
    pub(super) mutual: Option<Mutual>,
    /// Why the files were not taken when they were last looked at.
    problem: Mutex<Option<String>>,
}

/// What became of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tended {
    /// Nothing new.
    Same,
    /// Their new content is in force.
    Changed,
    /// Their new content is of no use; the old one stays.
    Kept,
}

/// The mesh CA and this hub's certificate.
pub(super) struct Mutual {
    /// Dials inside a WebSocket; trusts the mesh CA alone.
    pub(super) client: LiveClientConfig,
    /// Answers; demands a certificate of the mesh CA.
    pub(super) server: LiveServerConfig,
    /// Judges what was shown in another handshake.
    pub(super) trust: LiveTrust,
}

impl Credentials {
    /// Without any.
    pub(super) fn none() -> Self {
        Self {
            outer: None,
            mutual: None,
            problem: Mutex::new(None),
        }
    }

    /// Reads the files of `config`. Blocks on file I/O.
    pub(super) fn load(config: &MeshConfig) -> Result<Self, TlsError> {
        let mutual = config.tls.as_ref().map(Mutual::load).transpose()?;
        let needs_tls = config
            .peers
            .iter()
            .any(|url| url.scheme_str() == Some("wss"));
        let outer = needs_tls.then(|| LiveClientConfig::load(outer(config.tls.as_ref())));
        Ok(Self {
            outer: outer.transpose()?,
            mutual,
            problem: Mutex::new(None),
        })
    }

    /// Reads the same files again: all of them are taken, or none. Blocks on file I/O.
    pub(super) fn reload(&self) -> Result<bool, TlsError> {
        let outer = self
            .outer
            .as_ref()
            .map(|live| Prepared::load(live.files()).map(|prepared| (live, prepared)));
        let outer = outer.transpose()?;
        let mut changed = match &self.mutual {
            Some(mutual) => mutual.reload()?,
            None => false,
        };
        if let Some((live, prepared)) = outer {
            changed |= live.commit(prepared);
        }
        Ok(changed)
    }

    /// Reads the same files again, and says in the log, once, what is wrong with them.
    pub(super) fn tend(&self) -> Tended {
        match self.reload() {
            Ok(changed) => {
                *self.problem.lock() = None;
                if changed {
                    Tended::Changed
                } else {
                    Tended::Same
                }
            }
            Err(error) => {
                let error = error.to_string();
                let before = self.problem.lock().replace(error.clone());
                if before.as_ref() == Some(&error) {
                    return Tended::Same;
                }
                tracing::warn!(
                    event = "certificate_kept",
                    r#use = "mesh",
                    error,
                    audit = true
                );
                Tended::Kept
            }
        }
    }

    /// They stay because others, named by a new configuration, do not load.
    pub(super) fn keep_for(&self, error: &TlsError) {
        if !self.are_none() {
            let error = error.to_string();
            tracing::warn!(
                event = "certificate_kept",
                r#use = "mesh",
                error,
                audit = true
            );
        }
    }

    /// Whether there are none.
    pub(super) fn are_none(&self) -> bool {
        self.outer.is_none() && self.mutual.is_none()
    }

    /// Whether both have certificates, and not the same.
    pub(super) fn differ_from(&self, other: &Self) -> bool {
        let both = self.mutual.as_ref().zip(other.mutual.as_ref());
        both.is_some_and(|(own, other)| {
            own.server.differs(&other.server) || own.trust.differs(&other.trust)
        })
    }
}

impl Mutual {
    fn load(tls: &MeshTls) -> Result<Self, TlsError> {
        Ok(Self {
            client: LiveClientConfig::load(ClientFiles {
                roots: Roots::Only(tls.ca_bundle.clone()),
                identity: Some(identity(tls)),
            })?,
            server: LiveServerConfig::load(ServerFiles {
                identity: identity(tls),
                client_auth: ClientAuth::Required(tls.ca_bundle.clone()),
            })?,
            trust: LiveTrust::load(TrustFiles {
                bundle: Some(tls.ca_bundle.clone()),
            })?,
        })
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let client = Prepared::load(self.client.files())?;
        let server = Prepared::load(self.server.files())?;
        let trust = Prepared::load(self.trust.files())?;
        let changed = [
            self.client.commit(client),
            self.server.commit(server),
            self.trust.commit(trust),
        ];
        Ok(changed.contains(&true))
    }
}

fn identity(tls: &MeshTls) -> Identity {
    Identity {
        cert_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
    }
}

/// An ingress may have a public certificate, so the system's CAs count too: whom they vouch for is
/// no hub by that, see [`super::dial`].
fn outer(tls: Option<&MeshTls>) -> ClientFiles {
    ClientFiles {
        roots: tls.map_or(Roots::System, |tls| Roots::SystemAnd(tls.ca_bundle.clone())),
        identity: tls.map(identity),
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("outer", &self.outer.is_some())
            .field("mutual", &self.mutual.is_some())
            .finish_non_exhaustive()
    }
}
