//! A real nginx as the ingress of a hub: it ends TLS and passes `/tunnel` and `/mesh` on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::process::Process;
use crate::program;
use crate::wait::until;

/// How an ingress is set up.
#[derive(Clone, Debug)]
pub struct Ingress {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its certificate, PEM.
    pub certificate: PathBuf,
    /// The key of that, PEM.
    pub key: PathBuf,
    /// `/mesh` is only for those who show a certificate of this CA; `None` = for everyone.
    pub client_ca: Option<PathBuf>,
    /// The hub behind it, which speaks plain HTTP.
    pub hub: SocketAddr,
}

impl Ingress {
    /// Starts nginx and waits until it listens. Its files are in `dir`.
    ///
    /// # Errors
    /// When it is not installed or does not come up.
    pub async fn start(&self, dir: &Path) -> Result<Process> {
        let name = format!("nginx-{}", self.listen.port());
        let file = dir.join(format!("{name}.conf"));
        program::write(&file, &self.config(dir, &name))?;
        let mut command = Command::new(program::find("nginx", "nginx-light")?);
        let mut nginx = Process::spawn(&name, command.arg("-c").arg(&file), dir)?;
        let up = until("nginx to listen", async || {
            Ok(TcpStream::connect(self.listen).await?)
        });
        nginx.while_alive(up).await?;
        Ok(nginx)
    }

    fn config(&self, dir: &Path, name: &str) -> String {
        let (dir, listen, hub) = (dir.display(), self.listen, self.hub);
        let (certificate, key) = (self.certificate.display(), self.key.display());
        // nginx takes ssl_verify_client for a server only, so it is optional there and checked where it
        // matters.
        let (client_ca, check) = match &self.client_ca {
            Some(ca) => (
                format!(
                    "ssl_client_certificate {}; ssl_verify_client optional;",
                    ca.display()
                ),
                "if ($ssl_client_verify != SUCCESS) { return 403; }",
            ),
            None => (String::new(), ""),
        };
        let pass = format!(
            "proxy_pass http://{hub}; proxy_http_version 1.1; proxy_buffering off; \
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"; \
             proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; \
             proxy_read_timeout 1h; proxy_send_timeout 1h;"
        );
        format!(
            "daemon off; master_process off; pid {dir}/{name}.pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
               access_log off; client_body_temp_path {dir}/{name}-body; proxy_temp_path {dir}/{name}-proxy;\n\
               fastcgi_temp_path {dir}/{name}-f; uwsgi_temp_path {dir}/{name}-u; scgi_temp_path {dir}/{name}-s;\n\
               server {{\n\
                 listen {listen} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
                 {client_ca}\n\
                 location = /tunnel {{ {pass} }}\n\
                 location = /mesh {{ {check} {pass} }}\n\
                 location / {{ return 404; }}\n\
               }}\n\
             }}\n"
        )
    }
}
