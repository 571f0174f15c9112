//! Handshakes over certificates made for the purpose, and files that are not what they should be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also in test helpers

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use nowconnect_link::stream::BufferedIo;
use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Identity, Live, LiveClientConfig, LiveServerConfig, Prepared, Roots,
    ServerFiles, expiry, names,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A CA and the directory that it writes to.
struct Ca {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = TempDir::new().unwrap();
        let name = dir.path().to_string_lossy().into_owned();
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(
            dir.path().join("ca.pem"),
            params.self_signed(&key).unwrap().pem(),
        )
        .unwrap();
        Self {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A certificate for `host`; the files are named for it too.
    fn issue(&self, host: &str) -> Identity {
        self.issue_with(host, |_| {})
    }

    fn issue_with(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            cert_file: self.file(&format!("{host}.crt"), cert.pem().as_bytes()),
            key_file: self.file(&format!("{host}.key"), key.serialize_pem().as_bytes()),
        }
    }

    fn server(&self, identity: Identity) -> LiveServerConfig {
        Live::load(ServerFiles {
            identity,
            client_auth: ClientAuth::Off,
        })
        .unwrap()
    }

    fn client(&self, identity: Option<Identity>) -> LiveClientConfig {
        Live::load(ClientFiles {
            roots: Roots::Only(self.path("ca.pem")),
            identity,
        })
        .unwrap()
    }
}

type Client = tokio_rustls::client::TlsStream<BufferedIo<DuplexStream>>;
type Server = tokio_rustls::server::TlsStream<BufferedIo<DuplexStream>>;

async fn handshake(
    client: &LiveClientConfig,
    server: &LiveServerConfig,
    host: &'static str,
) -> Result<(Client, Server), String> {
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(server.current()).accept(BufferedIo::new(far, BytesMut::new()));
    let name = ServerName::try_from(host).unwrap();
    let connect =
        TlsConnector::from(client.current()).connect(name, BufferedIo::new(near, BytesMut::new()));
    let both = async { tokio::join!(connect, accept) };
    match tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("in time")
    {
        (Ok(client), Ok(server)) => Ok((client, server)),
        (Err(error), _) => Err(format!("client: {error}")),
        (_, Err(error)) => Err(format!("server: {error}")),
    }
}

async fn echo(client: &mut Client, server: &mut Server) {
    let sent = vec![7; 300_000];
    let send = async {
        client.write_all(&sent).await.unwrap();
        client.flush().await.unwrap();
    };
    let mut received = vec![0; sent.len()];
    let (_, read) = tokio::join!(send, server.read_exact(&mut received));
    read.unwrap();
    assert!(sent == received);
}

#[tokio::test]
async fn trusted_server_is_connected_to() {
    let ca = Ca::new();
    let server = ca.server(ca.issue("hub.example"));
    let (mut near, mut far) = handshake(&ca.client(None), &server, "hub.example")
        .await
        .unwrap();
    echo(&mut near, &mut far).await;
    let (_, session) = near.get_ref();
    assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
}

#[tokio::test]
async fn tls_1_2_is_spoken_too() {
    let ca = Ca::new();
    let server = ca.server(ca.issue("hub.example"));
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(ca.path("ca.pem")).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let old = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(server.current()).accept(far);
    let name = ServerName::try_from("hub.example").unwrap();
    let connector = TlsConnector::from(Arc::new(old));
    let (near, _) = tokio::try_join!(connector.connect(name, near), accept).unwrap();
    assert_eq!(
        near.get_ref().1.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
}

#[tokio::test]
async fn servers_that_do_not_verify_are_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let client = ca.client(None);
    let server = other.server(other.issue("hub.example"));
    let error = handshake(&client, &server, "hub.example")
        .await
        .map(drop)
        .unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");

    let server = ca.server(ca.issue("other.example"));
    let error = handshake(&client, &server, "hub.example")
        .await
        .map(drop)
        .unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn expiry_in_flight_is_noticed_by_the_client() {
    // We do not serve an expired certificate, so another server must.
    let ca = Ca::new();
    let old = ca.issue_with("hub.example", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let cert = CertificateDer::from_pem_file(&old.cert_file).unwrap();
    let key = PrivateKeyDer::from_pem_file(&old.key_file).unwrap();
    let careless = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(Arc::new(careless)).accept(far);
    let name = ServerName::try_from("hub.example").unwrap();
    let connect = TlsConnector::from(ca.client(None).current()).connect(name, near);
    let (near, _) = tokio::join!(connect, accept);
    let error = near.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn clients_are_asked_for_certificates() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = |client_auth| {
        Live::load(ServerFiles {
            identity: ca.issue("hub.example"),
            client_auth,
        })
        .unwrap()
    };
    let optional = server(ClientAuth::Optional(ca.path("ca.pem")));
    let required = server(ClientAuth::Required(ca.path("ca.pem")));
    let known = ca.client(Some(ca.issue("hub-b.example")));
    let stranger = Live::load(ClientFiles {
        roots: Roots::Only(ca.path("ca.pem")),
        identity: Some(other.issue("hub-b.example")),
    })
    .unwrap();

    for server in [&optional, &required] {
        let (_, far) = handshake(&known, server, "hub.example").await.unwrap();
        let leaf = &far.get_ref().1.peer_certificates().unwrap()[0];
        assert_eq!(names(leaf).unwrap(), ["hub-b.example"]);
        let error = handshake(&stranger, server, "hub.example")
            .await
            .map(drop)
            .unwrap_err();
        assert!(
            error.starts_with("server: ") && error.contains("certificate"),
            "{error}"
        );
    }
    let (_, far) = handshake(&ca.client(None), &optional, "hub.example")
        .await
        .unwrap();
    assert!(far.get_ref().1.peer_certificates().is_none());
    let error = handshake(&ca.client(None), &required, "hub.example")
        .await
        .map(drop)
        .unwrap_err();
    assert!(error.contains("peer sent no certificates"), "{error}");
}

fn server_error(identity: Identity) -> String {
    let files = ServerFiles {
        identity,
        client_auth: ClientAuth::Off,
    };
    Live::load(files).map(drop).unwrap_err().to_string()
}

#[test]
fn bad_files_are_named_with_what_is_wrong() {
    let ca = Ca::new();
    let good = ca.issue("hub.example");
    let cert = |cert_file: PathBuf| Identity {
        cert_file,
        ..good.clone()
    };
    let key = |key_file: PathBuf| Identity {
        key_file,
        ..good.clone()
    };
    let pem = fs::read_to_string(&good.cert_file).unwrap();
    let damaged = pem.replacen("MII", "M!I", 1);
    let truncated = pem.replace("-----END CERTIFICATE-----", "");
    let not_x509 = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\naGVsbG8=\n\
                     -----END ENCRYPTED PRIVATE KEY-----\n";
    let cases = [
        (cert(ca.path("missing.pem")), "missing.pem: No such file"),
        (cert(ca.path("")), "it is no file"),
        (cert("/dev/zero".into()), "it is no file"),
        (
            cert(ca.file("large", &vec![b'-'; (8 << 20) + 1])),
            "larger than 8 MiB",
        ),
        (
            cert(ca.file("empty", b"")),
            "empty: no certificates found: the file is empty",
        ),
        (
            cert(ca.file("text", b"hello")),
            "expected '-----BEGIN CERTIFICATE-----'",
        ),
        (cert(ca.file("der", &[0x30, 0x82])), "convert it to PEM"),
        (cert(good.key_file.clone()), "none is a CERTIFICATE"),
        (
            cert(ca.file("damaged", damaged.as_bytes())),
            "damaged: certificate 1 is damaged",
        ),
        (
            cert(ca.file("cut", truncated.as_bytes())),
            "cut: certificate 1 breaks off",
        ),
        (
            cert(ca.file("bundle", [&pem, not_x509].concat().as_bytes())),
            "certificate 2 is unusable",
        ),
        (key(good.cert_file.clone()), "none is a PRIVATE KEY"),
        (
            key(ca.file("enc", encrypted.as_bytes())),
            "the key is encrypted",
        ),
        (
            key(ca.issue("other.example").key_file),
            "does not belong to the certificate",
        ),
    ];
    for (identity, expected) in cases {
        let error = server_error(identity);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains(&*ca.dir.path().to_string_lossy()) || error.contains("/dev/zero"));
    }
}

#[test]
fn certificates_out_of_their_time_are_refused() {
    let ca = Ca::new();
    let expired = ca.issue_with("hub.example", |params| {
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let error = server_error(expired);
    assert!(
        error.contains("expired on Feb  1") && error.contains("renew"),
        "{error}"
    );
    let future = ca.issue_with("hub.example", |params| {
        params.not_before = date_time_ymd(3000, 1, 1);
        params.not_after = date_time_ymd(3001, 1, 1);
    });
    assert!(server_error(future).contains("check this machine's clock"));
}

#[test]
fn expiry_is_read_from_the_leaf() {
    let ca = Ca::new();
    let identity = ca.issue_with("hub.example", |params| {
        params.not_after = date_time_ymd(2099, 1, 2);
    });
    let server = ca.server(identity.clone());
    let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(4_070_995_200);
    assert_eq!(server.expires(), Some(expected));
    let leaf = CertificateDer::from_pem_file(&identity.cert_file).unwrap();
    assert_eq!(expiry(&leaf).unwrap(), expected);
    assert_eq!(ca.client(None).expires(), None);
}

#[test]
fn names_are_subject_alternative_names() {
    let ca = Ca::new();
    let names_of = |host: &str| {
        let file = ca.issue(host).cert_file;
        names(&CertificateDer::from_pem_file(file).unwrap()).unwrap()
    };
    assert_eq!(names_of("Hub.Example"), ["hub.example"]);
    assert_eq!(names_of("10.1.2.3"), ["10.1.2.3"]);
    assert_eq!(names_of("fd00::1"), ["fd00::1"]);
}

#[test]
fn an_explicit_bundle_is_checked_even_next_to_the_systems_roots() {
    let ca = Ca::new();
    let load = |roots| {
        Live::load(ClientFiles {
            roots,
            identity: None,
        })
    };
    assert!(load(Roots::SystemAnd(ca.path("ca.pem"))).is_ok());
    let error = load(Roots::SystemAnd(ca.file("text", b"hello")))
        .map(drop)
        .unwrap_err();
    assert!(
        error.to_string().contains("no certificates found"),
        "{error}"
    );
}

fn overwrite(target: &Identity, source: &Identity) {
    fs::copy(&source.cert_file, &target.cert_file).unwrap();
    fs::copy(&source.key_file, &target.key_file).unwrap();
}

#[tokio::test]
async fn new_files_serve_the_next_handshake_and_bad_ones_do_not() {
    let ca = Ca::new();
    let files = ca.issue("old.example");
    let server = ca.server(files.clone());
    let client = ca.client(None);
    assert!(!server.reload().unwrap(), "nothing changed");
    let (mut near, mut far) = handshake(&client, &server, "old.example").await.unwrap();

    overwrite(&files, &ca.issue("new.example"));
    assert!(server.reload().unwrap());
    handshake(&client, &server, "new.example").await.unwrap();
    echo(&mut near, &mut far).await; // the running one lives on

    fs::copy(ca.issue("third.example").cert_file, &files.cert_file).unwrap();
    assert!(
        server
            .reload()
            .unwrap_err()
            .to_string()
            .contains("does not belong")
    );
    fs::write(&files.cert_file, "").unwrap();
    assert!(server.reload().is_err());
    handshake(&client, &server, "new.example").await.unwrap();

    overwrite(&files, &ca.issue("fourth.example"));
    assert!(server.reload().unwrap());
    handshake(&client, &server, "fourth.example").await.unwrap();
}

#[tokio::test]
async fn a_client_follows_its_ca_bundle() {
    let (ca, next) = (Ca::new(), Ca::new());
    let client = ca.client(None);
    let server = next.server(next.issue("hub.example"));
    assert!(handshake(&client, &server, "hub.example").await.is_err());
    fs::copy(next.path("ca.pem"), ca.path("ca.pem")).unwrap();
    assert!(client.reload().unwrap());
    handshake(&client, &server, "hub.example").await.unwrap();
}

#[test]
fn other_files_can_be_named() {
    let ca = Ca::new();
    let server = ca.server(ca.issue("a.example"));
    let files = |host: &str| ServerFiles {
        identity: ca.issue(host),
        client_auth: ClientAuth::Optional(ca.path("ca.pem")),
    };
    let second = files("b.example");
    assert!(server.replace(second.clone()).unwrap());
    assert!(!server.replace(second).unwrap());
    let mut bad = files("c.example");
    bad.client_auth = ClientAuth::Required(Path::new("/nowhere").into());
    assert!(server.replace(bad).is_err());
    assert!(!server.reload().unwrap(), "the last good files stay");
}

#[test]
fn files_that_were_read_before_others_took_their_place_do_not_come_back() {
    let ca = Ca::new();
    let server = ca.server(ca.issue("a.example"));
    let read_again = Prepared::load(server.files()).unwrap();
    let others = ServerFiles {
        identity: ca.issue("b.example"),
        client_auth: ClientAuth::Optional(ca.path("ca.pem")),
    };
    assert!(server.replace(others.clone()).unwrap());
    assert!(!server.refresh(read_again));
    assert_eq!(server.files(), others);
    assert!(!server.reload().unwrap());
}
