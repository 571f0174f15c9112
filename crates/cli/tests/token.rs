//! The token commands as an operator uses them, and the contract on exit codes and streams.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

use nowconnect_hub::auth::Rules;
use nowconnect_hub::auth::jwt::Unverified;
use nowconnect_hub::auth::key::KeySet;

fn nowconnect(dir: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nowconnect"))
        .args(args.split_whitespace())
        .current_dir(dir)
        .env_remove("NOWCONNECT_AUDIENCE")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Exit code and stderr of a command that must fail and print nothing else.
fn refused(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

#[test]
fn a_minted_token_passes_with_the_printed_key_set() {
    for alg in ["ES256", "rs256", "EdDSA"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(
            nowconnect(dir, &format!("token keygen --out key.pem --alg {alg}"))
                .status
                .success()
        );
        let mode = std::fs::metadata(dir.join("key.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let jwks = stdout(&nowconnect(dir, "token jwks --key key.pem"));
        assert!(!jwks.contains("\"d\""));
        let mint = "token mint --key key.pem --agent-id site-1 --connectors ldap,pg --issuer dev";
        let token = stdout(&nowconnect(dir, mint));

        let (keys, _) = KeySet::parse(jwks.as_bytes()).unwrap();
        let parsed = Unverified::parse(token.trim()).unwrap();
        let key = keys
            .find(parsed.key_id(), parsed.algorithm())
            .unwrap()
            .clone();
        let rules = Rules {
            audience: "nowconnect".into(),
            issuer: Some("dev".into()),
        };
        let identity = parsed.verify(&key, &rules, SystemTime::now()).unwrap();
        assert_eq!(identity.agent_id, "site-1");
        assert!(identity.grants("ldap") && identity.grants("pg"));

        assert!(
            nowconnect(dir, &format!("{mint} --out agent.jwt"))
                .status
                .success()
        );
        let mode = std::fs::metadata(dir.join("agent.jwt"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn minting_makes_the_key_once() {
    let dir = tempfile::tempdir().unwrap();
    let mint = "token mint --key dev.pem --agent-id site-1";
    let first = nowconnect(dir.path(), mint);
    let again = nowconnect(dir.path(), mint);
    assert!(String::from_utf8_lossy(&first.stderr).contains("made the key dev.pem"));
    assert!(again.status.success() && again.stderr.is_empty());
    let kid = |output: &Output| stdout(output).split('.').next().unwrap().to_owned();
    assert_eq!(kid(&first), kid(&again));
}

#[test]
fn keys_rotate_through_one_document() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["old", "new"] {
        assert!(
            nowconnect(dir, &format!("token keygen --out {name}.pem"))
                .status
                .success()
        );
    }
    let jwks = stdout(&nowconnect(dir, "token jwks --key old.pem --key new.pem"));
    assert_eq!(KeySet::parse(jwks.as_bytes()).unwrap().0.count(), 2);
}

#[test]
fn mistakes_exit_with_2_and_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(
        nowconnect(dir, "token keygen --out key.pem")
            .status
            .success()
    );
    std::fs::write(dir.join("bad.pem"), "-----BEGIN X-----\n").unwrap();
    for (args, part) in [
        ("", "Usage"),
        ("tokn", "similar subcommand exists: 'token'"),
        ("token mint --key key.pem", "--agent-id"),
        ("token jwks --key missing.pem", "missing.pem"),
        ("token mint --key bad.pem --agent-id a", "PKCS#8"),
        ("token mint --key key.pem --agent-id a/b", "A-Z a-z 0-9"),
        ("token mint --key key.pem --agent-id a --ttl 5", "unit"),
        ("token jwks", "--key"),
        ("completions tcsh", "bash"),
    ] {
        let (code, stderr) = refused(&nowconnect(dir, args));
        assert_eq!(code, 2, "{args}: {stderr}");
        assert!(stderr.contains(part), "{args}: {stderr}");
    }
    let (code, stderr) = refused(&nowconnect(dir, "token keygen --out key.pem"));
    assert_eq!(code, 1);
    assert!(stderr.contains("--force"), "{stderr}");
}

#[test]
fn version_completions_and_manual_pages_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let version = stdout(&nowconnect(dir, "--version"));
    assert_eq!(
        version,
        format!("nowconnect {}\n", env!("CARGO_PKG_VERSION"))
    );
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(stdout(&nowconnect(dir, &format!("completions {shell}"))).contains("keygen"));
    }
    assert!(stdout(&nowconnect(dir, "man")).contains(".TH nowconnect"));
    assert!(nowconnect(dir, "man --dir .").status.success());
    assert!(dir.join("nowconnect-token-mint.1").exists());
}

/// In the shells that this machine has; bash is on every one.
#[test]
fn shells_complete_subcommands() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (shell, asked) in [
        (
            "bash",
            "COMP_WORDS=(nowconnect agents m); COMP_CWORD=2; . ./bash; _nowconnect nowconnect m agents; echo ${COMPREPLY[@]}",
        ),
        ("fish", ". ./fish; complete -C 'nowconnect agents m'"),
    ] {
        let script = stdout(&nowconnect(dir, &format!("completions {shell}")));
        std::fs::write(dir.join(shell), script).unwrap();
        let mut command = Command::new(shell);
        let command = command.args(["-c", asked]).current_dir(dir);
        let Ok(output) = command.env("HOME", dir).output() else {
            assert_ne!(shell, "bash");
            continue;
        };
        let completed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(completed.split_whitespace().next(), Some("move"), "{shell}");
    }
}
