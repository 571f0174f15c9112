//! The certificate commands as an operator uses them, and the certificates as hubs see them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use nowconnect_link::tls::{
    ClientAuth, ClientFiles, Identity, LiveClientConfig, LiveServerConfig, LiveTrust, Roots,
    ServerFiles, TrustFiles, expiry, names,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

fn nowconnect(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nowconnect"))
        .arg("certs")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap()
}

fn works(dir: &Path, args: &[&str]) -> String {
    let output = nowconnect(dir, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The message of a command that must fail as wrong usage.
fn refused(dir: &Path, args: &[&str]) -> String {
    let output = nowconnect(dir, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn hubs_take_each_others_certificates() {
    let dir = tempfile::tempdir().unwrap();
    works(dir.path(), &["init"]);
    let certs = dir.path().join("certs");
    assert_eq!(
        (mode(&certs.join("ca.key")), mode(&certs.join("ca.pem"))),
        (0o600, 0o644)
    );
    let hosts = ["cloud-a.example.com", "10.0.0.5"];
    let printed = works(dir.path(), &["issue", hosts[0], hosts[1]]);
    assert!(
        printed.contains("wss://cloud-a.example.com/mesh"),
        "{printed}"
    );
    assert!(printed.contains("certs/10.0.0.5.key"), "{printed}");

    let bundle = certs.join("ca.pem");
    let trust = LiveTrust::load(TrustFiles {
        bundle: Some(bundle.clone()),
    })
    .unwrap();
    for host in hosts {
        let (cert_file, key_file) = (
            certs.join(format!("{host}.crt")),
            certs.join(format!("{host}.key")),
        );
        assert_eq!(mode(&key_file), 0o600);
        let leaf = certificate(&cert_file);
        assert_eq!(names(&leaf).unwrap(), [host]);
        let (chain, name) = ([leaf], ServerName::try_from(host).unwrap());
        trust
            .current()
            .judge_client(&chain, std::time::SystemTime::now())
            .unwrap();
        trust
            .current()
            .judge_server(&chain, &name, std::time::SystemTime::now())
            .unwrap();
        let identity = Identity {
            cert_file,
            key_file,
        };
        let files = ServerFiles {
            identity: identity.clone(),
            client_auth: ClientAuth::Required(bundle.clone()),
        };
        LiveServerConfig::load(files).unwrap();
        let (roots, identity) = (Roots::Only(bundle.clone()), Some(identity));
        LiveClientConfig::load(ClientFiles { roots, identity }).unwrap();
    }
}

#[test]
fn names_addresses_and_times_are_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    works(dir.path(), &["init", "--dir", "ca", "--days", "30"]);
    let args = [
        "issue",
        "Cloud-A.example.com",
        "--dir",
        "ca",
        "--san",
        "cloud-a.internal",
        "--ip",
        "fd00::5",
        "--file",
        "hub-a",
        "--days",
        "10",
    ];
    let printed = works(dir.path(), &args);
    let ca_dir = dir.path().join("ca");
    for line in ["ca_bundle: ", "cert_file: ", "key_file: "] {
        let value = printed
            .lines()
            .find_map(|text| text.trim().strip_prefix(line));
        assert!(Path::new(value.unwrap()).is_file(), "{printed}");
    }
    let leaf = certificate(&ca_dir.join("hub-a.crt"));
    let expected = ["cloud-a.example.com", "cloud-a.internal", "fd00::5"];
    assert_eq!(names(&leaf).unwrap(), expected);
    let left = |leaf: &CertificateDer<'_>| {
        expiry(leaf)
            .unwrap()
            .duration_since(SystemTime::now())
            .unwrap()
    };
    let day = Duration::from_secs(24 * 3600);
    assert!(left(&leaf) <= 10 * day && left(&leaf) > 9 * day);
    // No longer than its CA.
    let output = nowconnect(dir.path(), &["issue", "b.example.com", "--dir", "ca"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("ends with its CA"),
        "{output:?}"
    );
    assert!(left(&certificate(&ca_dir.join("b.example.com.crt"))) <= 30 * day);
}

#[test]
fn files_that_are_there_stay_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    works(dir.path(), &["init"]);
    let ca = dir.path().join("certs/ca.pem");
    let before = std::fs::read(&ca).unwrap();
    assert!(refused(dir.path(), &["init"]).contains("--force"));
    assert_eq!(std::fs::read(&ca).unwrap(), before);
    works(dir.path(), &["issue", "a"]);
    let first = std::fs::read(dir.path().join("certs/a.crt")).unwrap();
    let message = refused(dir.path(), &["issue", "b", "a"]);
    assert!(message.contains("a.crt exists"), "{message}");
    assert!(!dir.path().join("certs/b.crt").exists(), "all or none");
    assert_eq!(
        std::fs::read(dir.path().join("certs/a.crt")).unwrap(),
        first
    );
    works(dir.path(), &["issue", "a", "--force"]);
    assert_ne!(
        std::fs::read(dir.path().join("certs/a.crt")).unwrap(),
        first
    );
    works(dir.path(), &["init", "--force"]);
    assert_ne!(std::fs::read(&ca).unwrap(), before);
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = refused(dir.path(), &["issue", "a"]);
    assert!(message.contains("nowconnect certs init"), "{message}");
    works(dir.path(), &["init"]);
    for (args, expected) in [
        (&["issue"][..], "NAME"),
        (&["issue", "*.example.com"], "no wildcards"),
        (&["issue", "wss://a/mesh"], "--file"),
        (&["issue", "a:8765"], "without a port"),
        (&["issue", "two words"], "no host"),
        (&["issue", "ca"], "--file"),
        (&["issue", "a", "A"], "twice"),
        (&["issue", "a", "b", "--ip", "10.0.0.1"], "one NAME"),
        (&["issue", "a", "--days", "0"], "--days"),
    ] {
        let message = refused(dir.path(), args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    std::fs::write(dir.path().join("certs/ca.key"), "nonsense").unwrap();
    assert!(refused(dir.path(), &["issue", "a"]).contains("ca.key cannot be used"));
}
