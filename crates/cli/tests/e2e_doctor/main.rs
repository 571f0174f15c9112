//! The doctor, in front of patients whose illness is known.

mod agent;
mod decisions;
mod hub;
mod peers;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nowconnect_testkit::authority::Authority;
use nowconnect_testkit::lab::Lab;
use nowconnect_testkit::ports;
use nowconnect_testkit::target::Target;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

fn lab() -> Result<Lab> {
    Lab::new(env!("CARGO_BIN_EXE_nowconnect"))
}

/// What the doctor said.
struct Finding {
    code: Option<i32>,
    report: Value,
}

impl Finding {
    /// Facts and next steps of one area with one result, as one text.
    fn said(&self, result: &str, area: &str) -> String {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        let wanted = findings.filter(|one| one["result"] == result && one["area"] == area);
        wanted
            .map(|one| format!("{} -> {}\n", one["fact"], one["next"]))
            .collect()
    }

    /// That fact and next step of one finding say this.
    fn has(&self, result: &str, area: &str, words: &[&str]) -> Result<()> {
        let said = self.said(result, area);
        let found = said
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(found, "{result} {area} {words:?}: {:#}", self.report);
        ensure!(self.code == Some(i32::from(self.report["faults"] != 0)));
        Ok(())
    }
}

async fn doctor(lab: &Lab, kind: &str, config: &Value, more: &[&str]) -> Result<Finding> {
    let file = lab.write(&format!("doctor-{kind}.yaml"), &config.to_string())?;
    let mut command = lab.command(&["doctor", kind, "--json", "--config", &file]);
    command.args(more);
    let done = nowconnect_testkit::program::finish(&mut command).await?;
    let report = serde_json::from_str(&done.stdout).with_context(|| format!("{done:?}"))?;
    Ok(Finding {
        code: done.status.code(),
        report,
    })
}

/// A hub's configuration on free ports.
fn hub_config(lab: &Lab) -> Result<Value> {
    let port = ports::reserve;
    Ok(json!({
        "listeners": [{ "name": "l1", "bind": format!("127.0.0.1:{}", port()?), "connector": "echo" }],
        "tunnel": { "host": "127.0.0.1", "port": port()? },
        "admin": { "bind": format!("127.0.0.1:{}", port()?) },
        "observability": { "metrics_port": port()? },
        "security": { "jwks_url": lab.issuer().jwks_url() },
    }))
}

/// A server that answers whatever it is asked with this, and hangs up.
async fn answering(answer: String) -> Result<Target> {
    Target::serve(move |mut client| {
        let answer = answer.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await?);
            }
            client.write_all(answer.as_bytes()).await?;
            Ok(0)
        }
    })
    .await
}

fn http(status: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// A server that shows the certificate `name`, and says no more.
async fn showing(authority: &Authority, name: &str) -> Result<Target> {
    let chain = CertificateDer::pem_file_iter(authority.file(&format!("{name}.crt")))?;
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(authority.file(&format!("{name}.key")))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Target::serve(move |client| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(client).await.map(|_| 0) }
    })
    .await
}
