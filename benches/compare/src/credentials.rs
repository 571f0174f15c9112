//! Throw-away keys and certificates for one run, made with the openssl and ssh-keygen tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Result};
use crate::tool;

/// Password of the PKCS#12 file; the format wants one.
pub(crate) const PKCS12_PASSWORD: &str = "compare";

/// Where the run's keys lie.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) pkcs12: PathBuf,
    pub(crate) ssh_host_key: PathBuf,
    pub(crate) ssh_client_key: PathBuf,
}

impl Credentials {
    /// Makes a CA, a server certificate for `localhost` and 127.0.0.1 (PEM and PKCS#12), and SSH
    /// keys of a server and a client in `directory`.
    pub(crate) fn make(directory: &Path) -> Result<Self> {
        fs::create_dir(directory).context(directory.display())?;
        let extensions = directory.join("server.ext");
        let names = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n";
        fs::write(&extensions, names).context(extensions.display())?;
        for line in [
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=compare-ca -keyout ca.key -out ca.crt",
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -subj /CN=localhost -keyout server.key -out server.csr",
            "x509 -req -days 2 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
             -extfile server.ext -out server.crt",
            &format!(
                "pkcs12 -export -in server.crt -inkey server.key -out server.p12 \
                 -passout pass:{PKCS12_PASSWORD}"
            ),
        ] {
            let words = line.split_ascii_whitespace();
            tool::run(Command::new("openssl").args(words).current_dir(directory))?;
        }
        for file in ["ssh_host", "ssh_client"] {
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", file];
            tool::run(
                Command::new("ssh-keygen")
                    .args(arguments)
                    .current_dir(directory),
            )?;
        }
        Ok(Self {
            ca: directory.join("ca.crt"),
            certificate: directory.join("server.crt"),
            key: directory.join("server.key"),
            pkcs12: directory.join("server.p12"),
            ssh_host_key: directory.join("ssh_host"),
            ssh_client_key: directory.join("ssh_client"),
        })
    }
}
