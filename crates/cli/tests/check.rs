//! The check command as an operator uses it.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

const HUB: &str = "
listeners: [{ name: l1, bind: '0.0.0.0:389', connector: ldap }]
security: { jwks_url: 'https://idp/jwks', allow_cidrs: ['10.0.0.0/8'] }
ha: { replica_id: a, redis_url: 'rediss://:hunter2@redis' }
";
const AGENT: &str = "
tunnel: { url: 'wss://hub/tunnel', agent_id: a, exported_connectors: [ldap], auth: { token_file: /nope.jwt } }
targets: { ldap: { host: dc1, port: 636 } }
";

/// Exit code, stdout and stderr of `nowconnect check` with a file, arguments and environment.
fn check(text: &str, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    check_with_mode(0o600, text, args, env)
}

fn check_with_mode(
    mode: u32,
    text: &str,
    args: &[&str],
    env: &[(&str, &str)],
) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.yaml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    run(dir.path(), &[&["--config", "f.yaml"], args].concat(), env)
}

fn run(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nowconnect"))
        .arg("check")
        .args(args)
        .current_dir(dir)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs another command, which has to work.
fn nowconnect(dir: &Path, args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_nowconnect"))
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_good_file_is_ok() {
    let (code, out, err) = check(HUB, &[], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "f.yaml: ok (hub: 1 listener, 0 peers, HA shadow; 0 warnings)\n"
    );
    let (code, out, err) = check(AGENT, &[], &[]);
    assert_eq!(
        (code, out.as_str()),
        (0, "f.yaml: ok (agent: 1 connector, 1 hub; 1 warning)\n")
    );
    let missing = "f.yaml:2:98: warning: tunnel.auth.token_file: there is no file /nope.jwt \
        (put the file there, or correct the name)\n";
    assert_eq!(err, missing);
}

#[test]
fn certificates_that_a_hub_would_not_start_with_are_problems() {
    let dir = tempfile::tempdir().unwrap();
    nowconnect(dir.path(), &["certs", "init"]);
    nowconnect(dir.path(), &["certs", "issue", "a.example"]);
    nowconnect(dir.path(), &["certs", "issue", "b.example"]);
    let hub = |cert: &str, key: &str| {
        let text = format!(
            "ha: {{ mode: active, replica_id: a, redis_url: 'redis://127.0.0.1', mesh: {{ peers: ['wss://b.example/mesh'],
             tls: {{ ca_bundle: certs/ca.pem, cert_file: {cert}, key_file: {key} }} }} }}"
        );
        std::fs::write(dir.path().join("f.yaml"), text).unwrap();
        run(dir.path(), &["--config", "f.yaml", "--kind", "hub"], &[])
    };
    let (code, _, err) = hub("certs/a.example.crt", "certs/a.example.key");
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = hub("certs/a.example.crt", "certs/b.example.key");
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("ha.mesh.tls: the key"), "{err}");
    let (code, _, err) = hub("certs/a.example.crt", "certs/nope.key");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("there is no file certs/nope.key"), "{err}");
}

#[test]
fn what_is_open_to_everybody_is_warned_of() {
    let open = HUB.replace(", allow_cidrs: ['10.0.0.0/8']", "");
    let (code, _, err) = check(&open.replace("rediss:", "redis:"), &[], &[]);
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("security.allow_cidrs: empty, so whoever reaches l1"),
        "{err}"
    );
    assert!(
        err.contains("use rediss://") && !err.contains("hunter2"),
        "{err}"
    );
    for meant in [
        open.replace(
            "https://idp/jwks'",
            "https://idp/jwks', allow_cidrs: ['0.0.0.0/0']",
        ),
        open.replace("ldap }", "ldap, allow_cidrs: ['0.0.0.0/0'] }"),
        open.replace("0.0.0.0:389", "127.0.0.1:389"),
    ] {
        let (code, _, err) = check(&meant, &[], &[]);
        assert_eq!((code, err.as_str()), (0, ""), "{meant}");
    }
    let metadata = AGENT.replace("dc1", "169.254.169.254");
    let (code, _, err) = check(&metadata, &[], &[]);
    assert!(
        code == 0 && err.contains("targets.ldap.host: a link-local address"),
        "{err}"
    );
}

#[test]
fn a_password_is_kept_from_the_other_users_of_the_machine() {
    let (code, _, err) = check_with_mode(0o644, HUB, &[], &[]);
    let readable = "f.yaml: warning: every user of this machine can read the secret in f.yaml \
        (mode 0644) (chmod 600 f.yaml)\n";
    assert_eq!((code, err.as_str()), (0, readable));
    let (code, out, err) = check_with_mode(0o646, HUB, &[], &[]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("can change the secret in f.yaml"), "{err}");
    assert!(!err.contains("hunter2"), "{err}");
    // A password that comes from elsewhere is none in the file.
    let elsewhere = HUB.replace("hunter2", "${PASSWORD}");
    let env = [("PASSWORD", "hunter2")];
    let (code, _, err) = check_with_mode(0o644, &elsewhere, &[], &env);
    assert_eq!((code, err.as_str()), (0, ""));
    let (code, _, err) = check_with_mode(0o646, &elsewhere, &[], &env);
    assert!(code == 0 && err.contains("warning: every user"), "{err}");
}

#[test]
fn every_problem_is_on_a_line_of_its_own() {
    let text = "listener: []\ntunnel: { port: many }\n";
    let (code, out, err) = check(text, &[], &[("LOG_LEVEL", "loud")]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(
        err.lines().collect::<Vec<_>>(),
        [
            "f.yaml:1:1: listener: there is no such key (did you mean `listeners`?)",
            "f.yaml:2:17: tunnel.port: expected an integer (0 to 65535), found \"many\"",
            "LOG_LEVEL: observability.log_level: expected one of the words (TRACE, DEBUG, INFO, WARN, ERROR), found \"loud\"",
            "error: 3 problems found",
        ]
    );
    let (code, _, err) = check("tunnel: [", &[], &[]);
    assert_eq!(code, 2);
    assert!(err.starts_with("f.yaml:1:9: not valid YAML: "), "{err}");
}

#[test]
fn the_kind_is_found_out_or_told() {
    let both = "limits: { idle_timeout_ms: 5 }";
    let (code, _, err) = check(both, &[], &[]);
    assert_eq!(code, 2);
    assert!(err.contains("say which with --kind"), "{err}");
    assert_eq!(check(both, &["--kind", "hub"], &[]).0, 0);
    let (code, _, err) = check(both, &["--kind", "agent"], &[]);
    assert!(
        code == 2 && err.contains("tunnel.agent_id: required"),
        "{err}"
    );
    // One mistyped section does not make it the other's.
    let (_, _, err) = check("tunel: { agent_id: a }\ntargets:\n", &[], &[]);
    assert!(err.contains("did you mean `tunnel`?"), "{err}");
}

#[test]
fn what_is_printed_is_in_effect_and_can_be_used_again() {
    let (code, printed, _) = check(HUB, &["--print"], &[("LOG_LEVEL", "debug")]);
    assert_eq!(code, 0);
    assert!(
        printed.contains("log_level: DEBUG  # LOG_LEVEL"),
        "{printed}"
    );
    assert!(
        printed.contains("'rediss://:***@redis'") && !printed.contains("hunter2"),
        "{printed}"
    );
    let (code, again, _) = check(&printed, &["--print"], &[]);
    assert_eq!((code, again), (0, printed.replace("  # LOG_LEVEL", "")));
}

#[test]
fn files_are_found_as_the_services_find_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), AGENT).unwrap();
    let place = dir.path().to_str().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let env = [("SERVICE_CONFIG_DIR", place), ("NC_CONFIG", "a.yaml")];
    let (code, out, _) = run(elsewhere.path(), &[], &env);
    assert!(
        code == 0 && out.starts_with(&format!("{place}/a.yaml: ok")),
        "{out}"
    );
    let (code, _, err) = run(elsewhere.path(), &["--config", "b.yaml"], &env);
    assert!(
        code == 2 && err.contains(&format!("looked for {place}/b.yaml")),
        "{err}"
    );
    // No file at all.
    let env = [
        ("NC_AGENT_URL", "wss://hub/tunnel"),
        ("NC_AGENT_ID", "a"),
        ("NC_TOKEN_FILE", "/nope.jwt"),
        ("NC_CONNECTORS", "ldap"),
        ("NC_TARGET_ldap_HOST", "dc1"),
        ("NC_TARGET_ldap_PORT", "636"),
    ];
    let (code, out, _) = run(elsewhere.path(), &["--kind", "agent"], &env);
    assert!(
        code == 0 && out.starts_with("environment: ok (agent"),
        "{out}"
    );
}

/// With every file there that they name, there is nothing to say about them.
#[test]
fn the_hardened_examples_are_accepted() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/hardened");
    for name in ["hub.yaml", "agent.yaml"] {
        let dir = tempfile::tempdir().unwrap();
        nowconnect(dir.path(), &["certs", "init"]);
        nowconnect(dir.path(), &["certs", "issue", "hub.example.com"]);
        let mut text = std::fs::read_to_string(examples.join(name)).unwrap();
        for place in ["/etc/nowconnect/", "/run/secrets/nowconnect/"] {
            text = text.replace(place, "");
        }
        let read =
            |file: &str| std::fs::read_to_string(dir.path().join("certs").join(file)).unwrap();
        let ends = [".pem", ".crt", ".key", ".jwt", ".token", ".url"];
        let words = text.split([' ', '\n']);
        let named = words.filter(|word| ends.iter().any(|end| word.ends_with(end)));
        for named in named {
            let path = dir.path().join(named);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let content = match path.extension().unwrap().to_str().unwrap() {
                "pem" => read("ca.pem"),
                "crt" => read("hub.example.com.crt"),
                "key" => read("hub.example.com.key"),
                _ => "rediss://nowconnect:x@redis.example.com/0".to_owned(),
            };
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        std::fs::write(dir.path().join("f.yaml"), text).unwrap();
        let (code, out, err) = run(dir.path(), &["--config", "f.yaml"], &[]);
        assert_eq!((code, err.as_str()), (0, ""), "{name}: {out}");
    }
}
