//! What keeps a hub from starting that only files tell which its configuration names.

use super::{Hub, HubError, identity, token};
use crate::config::HubConfig;
use crate::mesh;
use crate::pdp::Pdp;
use crate::server::PortTls;

impl Hub {
    /// Reads the certificates, keys, CAs and tokens that `config` names; returns what a hub would not
    /// start with, and the section that names it. Blocks on file I/O.
    pub fn preflight(config: &HubConfig) -> Vec<(&'static str, HubError)> {
        let tunnel = || Ok(PortTls::load(config).map(drop)?);
        let mesh = || Ok(mesh::Prepared::load(config).map(drop)?);
        let admin = || Ok(token(&config.admin).map(drop)?);
        let pdp = || Ok(Pdp::prepare(config).map(drop)?);
        let keys = || Ok(identity::trust(&config.security).map(drop)?);
        type Look<'a> = &'a dyn Fn() -> Result<(), HubError>;
        let looks: [(&'static str, Look<'_>); 5] = [
            ("tunnel.tls", &tunnel),
            ("ha.mesh.tls", &mesh),
            ("admin.token_file", &admin),
            ("pdp", &pdp),
            ("security.jwks_ca", &keys),
        ];
        let found = looks.into_iter();
        let found = found.filter_map(|(section, look)| Some((section, look().err()?)));
        found.collect()
    }
}
