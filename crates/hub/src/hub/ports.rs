//! TLS of the port for agents and peers, and the port that peers may have to themselves.

use std::net::SocketAddr;
use std::sync::Arc;

use nowconnect_link::shards::Shards;
use nowconnect_link::tasks::Tasks;
use nowconnect_link::tls::{
    ClientAuth, Identity, LiveServerConfig, LiveTrust, Prepared, ServerFiles, TlsError, TrustFiles,
};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{HaMode, HubConfig};
use crate::listener::{BindError, Inherited, MESH, Who};
use crate::mesh::Mesh;
use crate::server::{Bound, Doorman, MeshSurface, PortTls};

impl PortTls {
    /// Reads the files of `tunnel.tls`; `None` = the port is plain.
    pub(super) fn load(config: &HubConfig) -> Result<Option<Arc<Self>>, TlsError> {
        let prepared = PreparedTls::load(config)?;
        Ok(prepared.map(|PreparedTls { server, agents }| {
            Arc::new(Self {
                server: Arc::new(LiveServerConfig::from(server)),
                agents: Arc::new(LiveTrust::from(agents)),
            })
        }))
    }

    /// Goes on with other files; says what has another content.
    pub(super) fn commit(&self, prepared: PreparedTls) -> TlsChange {
        let agents = self.agents.commit(prepared.agents);
        let any = self.server.commit(prepared.server) || agents;
        TlsChange { any, agents }
    }

    /// Reads the same files again. A reload of the configuration may name others meanwhile: those count.
    pub(super) fn reload(&self) -> Result<TlsChange, TlsError> {
        let server = Prepared::load(self.server.files())?;
        let agents = Prepared::load(self.agents.files())?;
        let agents = self.agents.refresh(agents);
        let any = self.server.refresh(server) || agents;
        Ok(TlsChange { any, agents })
    }
}

/// What is another than before.
#[derive(Debug, Clone, Copy)]
pub(super) struct TlsChange {
    /// Anything.
    pub(super) any: bool,
    /// Who vouches for agents.
    pub(super) agents: bool,
}

/// Other files for [`PortTls`], read and not in force yet.
pub(super) struct PreparedTls {
    server: Prepared<ServerFiles>,
    agents: Prepared<TrustFiles>,
}

impl PreparedTls {
    pub(super) fn load(config: &HubConfig) -> Result<Option<Self>, TlsError> {
        let Some(tls) = &config.tunnel.tls else {
            return Ok(None);
        };
        let mesh = &config.ha.mesh;
        let serves_mesh = config.ha.mode != HaMode::Off && mesh.listen.is_none();
        let mesh_ca = mesh.tls.as_ref().filter(|_| serves_mesh);
        let mesh_ca = mesh_ca.map(|tls| tls.ca_bundle.clone());
        // Health checks come over the same port, and each path trusts other CAs: every certificate is
        // taken here, and judged there.
        let cas: Vec<_> = tls.client_ca.iter().cloned().chain(mesh_ca).collect();
        let identity = Identity {
            cert_file: tls.cert_file.clone(),
            key_file: tls.key_file.clone(),
        };
        Ok(Some(Self {
            server: Prepared::load(ServerFiles {
                identity,
                client_auth: match cas.is_empty() {
                    true => ClientAuth::Off,
                    false => ClientAuth::Postponed(cas),
                },
            })?,
            agents: Prepared::load(TrustFiles {
                bundle: tls.client_ca.clone(),
            })?,
        }))
    }
}

/// `ha.mesh.listen`: open while high availability is on, and while peers may dial for flows that cross
/// already.
#[derive(Default)]
pub(super) struct MeshPort(Mutex<Option<Open>>);

struct Open {
    /// As configured.
    wanted: SocketAddr,
    /// With the port that the system chose.
    address: SocketAddr,
    /// It is not wanted, and stays for as long as peers may dial.
    lingers: bool,
    _stop: DropGuard,
}

/// What is to become of the port.
pub(super) enum MeshPortChange {
    Stay,
    Close,
    Open(SocketAddr, Bound),
}

impl MeshPort {
    /// Binds what `config` wants bound.
    pub(super) fn prepare(
        &self,
        config: &HubConfig,
        inherited: &Inherited,
    ) -> Result<MeshPortChange, BindError> {
        let who = Who::port(MESH, "ha.mesh.listen");
        let is_on = config.ha.mode != HaMode::Off;
        let wanted = config.ha.mesh.listen.filter(|_| is_on);
        let mut open = self.0.lock();
        if let Some(open) = open.as_mut().filter(|open| wanted == Some(open.wanted)) {
            open.lingers = false;
            return Ok(MeshPortChange::Stay);
        }
        Ok(match wanted {
            None if open.is_none() => MeshPortChange::Stay,
            Some(wanted) => MeshPortChange::Open(wanted, Bound::new(who, wanted, inherited)?),
            None => MeshPortChange::Close,
        })
    }

    /// Serves `surface` there, or stops to.
    pub(super) fn commit(
        &self,
        change: MeshPortChange,
        surface: MeshSurface,
        shards: &Shards,
        tasks: &Tasks,
    ) {
        let mut open = self.0.lock();
        match change {
            MeshPortChange::Stay => {}
            MeshPortChange::Close => {
                if let Some(open) = &mut *open {
                    open.lingers = true;
                }
            }
            MeshPortChange::Open(wanted, bound) => {
                let stop = CancellationToken::new();
                *open = Some(Open {
                    wanted,
                    address: bound.address(),
                    lingers: false,
                    _stop: stop.clone().drop_guard(),
                });
                let mesh = surface.mesh.clone();
                let tls = Arc::new(move || mesh.server_tls());
                let doorman = Doorman::new(Arc::new(surface), tls, shards.clone(), tasks);
                doorman.open_until(bound, stop);
            }
        }
    }

    /// Closes a port that is not wanted, unless peers may dial.
    pub(super) fn tend(&self, mesh: &Mesh) {
        let mut open = self.0.lock();
        let lingers = open.as_ref().is_some_and(|open| open.lingers);
        if lingers && !mesh.is_open() {
            *open = None;
        }
    }

    /// Where it is open.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.0.lock().as_ref().map(|open| open.address)
    }
}
