//! TLS in the hub itself.

use std::path::Path;
use std::sync::Arc;

use nowconnect_hub::config::{JwksSource, SecurityConfig, ServerTls};
use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Identity, LiveClientConfig, LiveServerConfig, Roots, ServerFiles,
};
use nowconnect_testkit::{http, wait};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::agent::Process;
use crate::rig::Rig;

struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `NAME.crt` and `NAME.key`; returns the certificate.
    fn issue(&self, name: &str) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        write(&self.file(&format!("{name}.crt")), &certificate.pem());
        write(&self.file(&format!("{name}.key")), &key.serialize_pem());
        certificate.der().to_vec()
    }

    /// Serves `body` to every request over TLS, as `localhost`; returns the port.
    async fn serve(&self, body: String) -> u16 {
        self.issue("idp");
        let files = ServerFiles {
            identity: Identity {
                cert_file: self.file("idp.crt"),
                key_file: self.file("idp.key"),
            },
            client_auth: ClientAuth::Off,
        };
        let acceptor = TlsAcceptor::from(LiveServerConfig::load(files).unwrap().current());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(mut tls) = acceptor.accept(socket).await else {
                    continue;
                };
                let _ = tls.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = tls.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
        port
    }

    fn server(&self, client_ca: bool) -> ServerTls {
        ServerTls {
            cert_file: self.file("hub.crt"),
            key_file: self.file("hub.key"),
            client_ca: client_ca.then(|| self.file("ca.pem")),
        }
    }

    /// Sends `request` over TLS; returns the server's certificate and what it answered.
    async fn ask(&self, rig: &Rig, identity: Option<&str>, request: &str) -> (Vec<u8>, String) {
        let identity = identity.map(|name| Identity {
            cert_file: self.file(&format!("{name}.crt")),
            key_file: self.file(&format!("{name}.key")),
        });
        let files = ClientFiles {
            roots: Roots::Only(self.file("ca.pem")),
            identity,
        };
        let client = LiveClientConfig::load(files).unwrap();
        let stream = TcpStream::connect(rig.http()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::clone(&client.current()));
        let mut stream = connector.connect(name, stream).await.expect("a handshake");
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = wait::within("an answer", stream.read_to_end(&mut answer))
            .await
            .unwrap();
        (shown, String::from_utf8(answer).unwrap())
    }
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let authority = Authority::new();
    let first = authority.issue("hub");
    let rig = Rig::start_with(|config| config.tunnel.tls = Some(authority.server(false))).await;
    let (shown, answer) = authority.ask(&rig, None, HEALTH).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(shown, first);
    let second = authority.issue("hub");
    wait::until("the new certificate", async || {
        let (shown, _) = authority.ask(&rig, None, HEALTH).await;
        nowconnect_testkit::anyhow::ensure!(shown == second, "the old one is shown");
        Ok(())
    })
    .await
    .unwrap();
    assert!(
        http::get(rig.http(), "/healthz").await.is_err(),
        "plain HTTP on a TLS port"
    );
}

/// What was set aside stays so: a reload that is rejected for something else must not have taken it.
#[tokio::test]
async fn memory_is_judged_behind_the_files() {
    let authority = Authority::new();
    authority.issue("hub");
    let rig = Rig::start_with(|config| config.tunnel.tls = Some(authority.server(false))).await;
    let mut config = rig.config();
    config.tunnel.tls = Some(authority.server(false));
    config.limits.max_conn_total = 100_000;
    write(&authority.file("hub.crt"), "broken");
    let error = rig.hub.reload(config).await.expect_err("twice wrong");
    assert!(error.to_string().contains("hub.crt"), "{error}");
}

#[tokio::test]
async fn a_client_ca_is_demanded_of_agents_alone() {
    let authority = Authority::new();
    authority.issue("hub");
    authority.issue("agent");
    let rig = Rig::start_with(|config| config.tunnel.tls = Some(authority.server(true))).await;
    let mut upgrade = "GET /tunnel HTTP/1.1\r\nHost: localhost\r\n".to_owned();
    for (name, value) in http::upgrade_headers("Bearer nonsense") {
        upgrade += &format!("{name}: {value}\r\n");
    }
    upgrade += "\r\n";
    let (_, health) = authority.ask(&rig, None, HEALTH).await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let (_, stranger) = authority.ask(&rig, None, &upgrade).await;
    assert!(stranger.starts_with("HTTP/1.1 403"), "{stranger}");
    assert!(stranger.contains("client_certificate"), "{stranger}");
    let (_, known) = authority.ask(&rig, Some("agent"), &upgrade).await;
    assert!(known.starts_with("HTTP/1.1 401"), "{known}");
}

#[tokio::test]
async fn the_keys_may_come_from_a_server_of_a_private_ca() {
    let (own, other) = (Authority::new(), Authority::new());
    let keys = tempfile::tempdir().unwrap();
    let issuer = nowconnect_testkit::issuer::Issuer::new(keys.path()).unwrap();
    let path = keys.path().join("jwks.json");
    let port = own.serve(std::fs::read_to_string(path).unwrap()).await;
    let url = format!("https://localhost:{port}/jwks").parse().unwrap();
    let source = Some(JwksSource::Url(url));
    let trusting = |ca: &Authority| {
        let (jwks, jwks_ca) = (source.clone(), Some(ca.file("ca.pem")));
        move |security: &mut SecurityConfig| (security.jwks, security.jwks_ca) = (jwks, jwks_ca)
    };

    let rig = Rig::start_with(|config| trusting(&other)(&mut config.security)).await;
    let process = Process::new("site-1", 1).await;
    let token = issuer.token("site-1").unwrap();
    let refused = process.connect(rig.http(), &token).await;
    let refused = refused.err().expect("the server is not trusted");
    assert!(refused.to_string().contains("503"), "{refused}");

    let mut config = rig.config();
    trusting(&own)(&mut config.security);
    rig.hub.reload(config).await.expect("applied");
    wait::until("the keys", async || {
        process.connect(rig.http(), &token).await.map(drop)
    })
    .await
    .unwrap();
}
