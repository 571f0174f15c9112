//! The agent's configuration from the outside: files, environment, problems.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::path::{Path, PathBuf};
use std::time::Duration;

use nowconnect_agent::config::{ALIASES, AgentConfig, Protocol, ProxyProtocol, Target, TunnelMode};
use nowconnect_settings::{Env, Loaded, LogFormat, LogLevel, Problem, Problems, Secret, Source};

/// Loads `text` as a file under an environment, without looking for the files it names.
fn inspect(text: &str, env: &[(&str, &str)]) -> Result<Loaded<AgentConfig>, Problems> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("premise.yaml");
    std::fs::write(&file, text).unwrap();
    AgentConfig::inspect(&Source::new(Some(file), env.iter().copied().collect()))
}

fn ok(text: &str, env: &[(&str, &str)]) -> Loaded<AgentConfig> {
    inspect(text, env).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

fn lines(problems: Vec<Problem>) -> Vec<String> {
    let short = |mut problem: Problem| {
        problem.file = problem.file.map(|_| PathBuf::from("F"));
        problem.to_string()
    };
    problems.into_iter().map(short).collect()
}

/// The documented example, under an environment.
fn example(env: &[(&str, &str)]) -> Result<Loaded<AgentConfig>, Problems> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/premise.yaml");
    AgentConfig::inspect(&Source::new(Some(file), env.iter().copied().collect()))
}

const PG: [(&str, &str); 2] = [
    ("NC_TARGET_pg_HOST", "10.0.0.5"),
    ("NC_TARGET_pg_PORT", "5432"),
];

/// A whole configuration from the environment.
const ENV: [(&str, &str); 6] = [
    ("NC_AGENT_URL", "wss://a.example.com/tunnel"),
    ("NC_AGENT_ID", "site-1"),
    ("NC_TOKEN_FILE", "/run/agent.jwt"),
    ("NC_CONNECTORS", "ldap"),
    ("NC_TARGET_ldap_HOST", "dc1"),
    ("NC_TARGET_ldap_PORT", "389"),
];

fn from_env(more: &[(&str, &str)]) -> Result<Loaded<AgentConfig>, Problems> {
    let env: Env = ENV.iter().chain(more).copied().collect();
    AgentConfig::inspect(&Source::new(None, env))
}

#[test]
fn the_documented_example_loads() {
    let agent = example(&PG).unwrap().config;
    assert_eq!(agent.tunnel.urls, ["wss://api.example.com/tunnel"]);
    assert_eq!(agent.tunnel.mode, TunnelMode::All);
    assert_eq!(agent.tunnel.agent_id, "premise-site-01");
    assert_eq!(agent.tunnel.exported_connectors, ["ldap", "pg"]);
    assert_eq!(agent.tunnel.token_file, Path::new("/run/secrets/agent.jwt"));
    assert_eq!(agent.tunnel.protocol, Protocol::V2);
    let target = |host: &str, port| Target {
        host: host.into(),
        port,
        proxy_protocol: ProxyProtocol::Off,
    };
    assert_eq!(agent.targets["ldap"], target("dc1.corp.local", 636));
    assert_eq!(agent.targets["pg"], target("10.0.0.5", 5432));
    assert_eq!(agent.proxy.https_proxy, None);
    assert_eq!(agent.observability.metrics_port, None);
    assert_eq!(agent.health, Some("0.0.0.0:8090".parse().unwrap()));
}

/// The example exports `pg` and leaves its target to the environment.
#[test]
fn a_connector_without_a_target_is_a_problem() {
    let problems = lines(example(&[]).map(|loaded| loaded.config).unwrap_err().0);
    assert_eq!(
        problems,
        ["F:4:3: tunnel.exported_connectors: `pg` has no target \
         (add targets.pg, or NC_TARGET_pg_HOST and NC_TARGET_pg_PORT)"]
    );
    let problems = lines(example(&PG[..1]).map(|loaded| loaded.config).unwrap_err().0);
    assert_eq!(
        problems,
        [
            "NC_TARGET_pg_HOST: targets.pg.port: required but not set (set it in the file or by NOWCONNECT__TARGETS__PG__PORT)"
        ]
    );
}

#[test]
fn the_environment_alone_is_enough_and_the_rest_has_defaults() {
    let agent = from_env(&[]).unwrap().config;
    let documented = example(&PG).unwrap().config;
    assert_eq!(agent.limits, documented.limits);
    assert_eq!(agent.observability, documented.observability);
    assert_eq!(agent.proxy, documented.proxy);
    assert_eq!(agent.health, documented.health);
    assert_eq!(agent.limits.memory_budget, 256 << 20);
    assert_eq!(agent.limits.resume_grace, Duration::from_secs(30));
    assert_eq!(agent.tunnel.ping_timeout, documented.tunnel.ping_timeout);
    assert_eq!(
        agent.tunnel.max_ws_payload,
        documented.tunnel.max_ws_payload
    );
}

#[test]
fn every_documented_variable_has_its_effect() {
    type Observe = fn(&AgentConfig) -> bool;
    let cases: &[(&str, &str, Observe)] = &[
        ("NC_AGENT_URL", "wss://x/tunnel, wss://y/tunnel", |c| {
            c.tunnel.urls == ["wss://x/tunnel", "wss://y/tunnel"]
        }),
        ("NC_TUNNEL_MODE", "first", |c| {
            c.tunnel.mode == TunnelMode::First
        }),
        ("NC_AGENT_ID", "12", |c| c.tunnel.agent_id == "12"),
        ("NC_CONNECTORS", "ldap, pg", |c| {
            c.tunnel.exported_connectors == ["ldap", "pg"]
        }),
        ("NC_TOKEN_FILE", "/other", |c| {
            c.tunnel.token_file == Path::new("/other")
        }),
        ("NC_CLIENT_CERT", "/other.crt", |c| {
            let identity = c.tunnel.identity.as_ref();
            identity.is_some_and(|own| own.cert_file == Path::new("/other.crt"))
        }),
        ("NC_CLIENT_KEY", "/other.key", |c| {
            let identity = c.tunnel.identity.as_ref();
            identity.is_some_and(|own| own.key_file == Path::new("/other.key"))
        }),
        ("NC_DPOP_KEY_FILE", "/key", |c| {
            c.tunnel.dpop_key_file.as_deref() == Some(Path::new("/key"))
        }),
        ("NC_PROTOCOL", "1", |c| c.tunnel.protocol == Protocol::V1),
        ("NC_LOG_LEVEL", "debug", |c| {
            c.observability.log_level == LogLevel::Debug
        }),
        ("NC_LOG_FORMAT", "json", |c| {
            c.observability.log_format == LogFormat::Json
        }),
        ("NC_TRUST_ENV", "true", |c| {
            c.proxy.https_proxy.as_ref().map(Secret::expose) == Some("http://u:p@proxy:3128")
                && c.proxy.http_proxy.as_ref().map(Secret::expose) == Some("plain:80")
                && c.proxy.no_proxy.as_deref() == Some("localhost,.corp")
        }),
        ("NC_CA_BUNDLE", "/ca.pem", |c| {
            c.proxy.ca_bundle.as_deref() == Some(Path::new("/ca.pem"))
        }),
        ("NC_HEALTH_HOST", "127.0.0.1", |c| {
            c.health.is_some_and(|h| h.ip().is_loopback())
        }),
        ("NC_HEALTH_PORT", "0", |c| c.health.is_none()),
        ("NC_TARGET_ldap_HOST", "::1", |c| {
            c.targets["ldap"].host == "::1"
        }),
        ("NC_TARGET_ldap_PORT", "9", |c| c.targets["ldap"].port == 9),
        ("NC_TARGET_ldap_PROXY_PROTOCOL", "v2", |c| {
            c.targets["ldap"].proxy_protocol == ProxyProtocol::V2
        }),
    ];
    let around = [
        PG[0],
        PG[1],
        ("HTTPS_PROXY", "http://u:p@proxy:3128"),
        ("http_proxy", "plain:80"),
        ("HTTP_PROXY", "not-this:80"),
        ("NO_PROXY", "localhost,.corp"),
        ("NC_CLIENT_CERT", "/agent.crt"),
        ("NC_CLIENT_KEY", "/agent.key"),
    ];
    let named = cases
        .iter()
        .map(|case| case.0)
        .filter(|var| !var.starts_with("NC_TARGET"));
    assert!(named.eq(ALIASES.iter().map(|alias| alias.var)));
    for (var, value, observe) in cases {
        assert!(!observe(&from_env(&around).unwrap().config), "{var}");
        let with = [&around[..], &[(*var, *value)]].concat();
        assert!(observe(&from_env(&with).unwrap().config), "{var}");
        // And over a file that says otherwise.
        let file = from_env(&PG).unwrap().effective.to_string();
        assert!(observe(&ok(&file, &with).config), "{var}");
    }
}

/// Every key with a fixed name can be set by a variable, and the effective configuration says so.
#[test]
fn every_key_can_be_set_from_the_environment() {
    for spec in AgentConfig::keys() {
        if spec.key.contains('<') {
            continue;
        }
        let var = format!("NOWCONNECT__{}", spec.key.to_uppercase().replace('.', "__"));
        let default = spec.default.as_deref().unwrap_or_default();
        let value = match spec.kind {
            "an integer" => (default.parse::<u64>().unwrap() + 3).to_string(),
            "true or false" => "true".into(),
            "1 or 2" => "1".into(),
            "one of the words" => spec
                .allowed
                .split(", ")
                .find(|w| *w != default)
                .unwrap()
                .into(),
            kind if kind.contains("IP address") => "127.0.0.2".into(),
            kind if kind.contains("URL") && !spec.allowed.contains("wss") => "http://b".into(),
            kind if kind.contains("URL") => "wss://b/tunnel".into(),
            "a number from 0 to 1" => "0.5".into(),
            _ if spec.allowed.contains("name=value") => "a=b".into(),
            _ if spec.key == "tunnel.exported_connectors" => "ldap".into(),
            _ => "other".into(),
        };
        let mut env: Vec<(&str, &str)> = ENV.to_vec();
        env.retain(|(name, _)| *name != "NC_AGENT_URL" || !spec.key.contains("url"));
        if spec.key.starts_with("tunnel.tls.") {
            // Neither is of use alone.
            env.extend([("NC_CLIENT_CERT", "c"), ("NC_CLIENT_KEY", "k")]);
        }
        env.push((&var, &value));
        let source = Source::new(None, env.into_iter().collect());
        let shown = AgentConfig::inspect(&source).unwrap().effective.to_string();
        let line = shown
            .lines()
            .find(|line| line.ends_with(&format!("# {var}")));
        let masked = line.is_some_and(|line| line.contains("***"));
        assert!(
            line.is_some_and(|l| l.contains(&value)) || masked,
            "{var}={value}\n{shown}"
        );
    }
}

#[test]
fn names_of_targets_match_connectors_as_variables_can_spell_them() {
    let agent = from_env(&[
        ("NC_CONNECTORS", "ldap,my-db.v2"),
        ("NC_TARGET_MY_DB_V2_HOST", "db"),
        ("NC_TARGET_MY_DB_V2_PORT", "1"),
    ]);
    assert_eq!(agent.unwrap().config.targets["my-db.v2"].host, "db");
    // Over a target of the file.
    let file = from_env(&[]).unwrap().effective.to_string();
    let target = &ok(&file, &[("NC_TARGET_LDAP_PORT", "636")]).config.targets["ldap"];
    assert_eq!((target.host.as_str(), target.port), ("dc1", 636));
}

#[test]
fn what_is_wrong_is_a_problem() {
    let base = "tunnel: { url: 'wss://a/tunnel', agent_id: a, exported_connectors: [c], auth: { token_file: /t } }\n";
    for (text, problems) in [
        (
            "limits:\n".to_owned(),
            &[
                "F: tunnel.url: required but not set (set it in the file or by NC_AGENT_URL)",
                "F: tunnel.agent_id: required but not set (set it in the file or by NC_AGENT_ID)",
                "F: tunnel.exported_connectors: required but not set (set it in the file or by NC_CONNECTORS)",
                "F: tunnel.auth.token_file: required but not set (set it in the file or by NC_TOKEN_FILE)",
            ][..],
        ),
        (
            "tunnel: { urls: ['https://a', 'wss://u:hunter2@b/'], url: wss, agent_id: 'a b', exported_connectors: [c, c, d/e], auth: { token_file: '' } }".into(),
            &[
                "F:1:18: tunnel.urls[0]: expected a URL (wss://HOST/tunnel, or ws:// without TLS), found the text \"https://a\"",
                "F:1:31: tunnel.urls[1]: expected a URL (wss://HOST/tunnel, or ws:// without TLS), found the text \"wss://u:***@b/\": user and password in this URL would not be used, remove them",
                "F:1:59: tunnel.url: expected a URL (wss://HOST/tunnel, or ws:// without TLS), found \"wss\": scheme and host are needed",
                "F:1:74: tunnel.agent_id: expected text (1 to 64 letters, digits, `.`, `_`, `-`), found the text \"a b\"",
                "F:1:81: tunnel.exported_connectors: `c` is listed twice (remove one)",
                "F:1:81: tunnel.exported_connectors: `c` has no target (add targets.c, or NC_TARGET_c_HOST and NC_TARGET_c_PORT)",
                "F:1:109: tunnel.exported_connectors[2]: expected text (1 to 64 letters, digits, `.`, `_`, `-`), found \"d/e\"",
                "F:1:135: tunnel.auth.token_file: required but not set (set it in the file or by NC_TOKEN_FILE)",
            ],
        ),
        (
            format!("{base}targets: {{ c: {{ host: 'http://dc1', port: 0 }}, 'x y': {{ host: a, port: 1 }} }}"),
            &[
                "F:2:23: targets.c.host: expected text (a host name or IP address, without scheme and port), found the text \"http://dc1\"",
                "F:2:43: targets.c.port: expected an integer (1 to 65535), found the integer 0",
                "F:2:48: targets.x y: not a name for a connector (1 to 64 letters, digits, `.`, `_`, `-`)",
            ],
        ),
        (
            format!("{base}targets: {{ cc: {{ host: a, port: 1 }} }}"),
            &["F:1:47: tunnel.exported_connectors: `c` has no target (there is a target `cc`: did you mean that?)"],
        ),
        (
            format!("{base}targets: {{ c: {{ host: a, port: 1 }} }}\nlimits: {{ memory_budget_mb: 1, max_inflight_cids: 200 }}\nobservability: {{ metrics_port: 8090 }}\nproxy: {{ https_proxy: 'socks5://u:hunter2@p' }}"),
            &[
                "F:3:29: limits.memory_budget_mb: too small for max_inflight_cids 200 (at 8 KiB a flow it takes 2)",
                "F:4:32: observability.metrics_port: is taken by health.port (choose another, or 0: the health port serves /metrics too)",
                "F:5:23: proxy.https_proxy: expected text (http://[user:password@]host:port), found a value that is not one (not shown)",
            ],
        ),
    ] {
        let found = inspect(&text, &[]).map(|loaded| loaded.config).unwrap_err();
        assert_eq!(lines(found.0), problems, "{text}");
    }
    let found = from_env(&[
        ("NC_TARGET_ldap_HOSST", "x"),
        ("NC_PROTOCOL", "3"),
        ("NC_TARGET_HOST", "x"),
    ]);
    assert_eq!(
        lines(found.map(|loaded| loaded.config).unwrap_err().0),
        [
            "NC_TARGET_HOST: names no connector (write NC_TARGET_<connector>_HOST or NC_TARGET_<connector>_PORT)",
            "NC_PROTOCOL: tunnel.protocol: expected 1 or 2, found \"3\"",
            "NC_TARGET_ldap_HOSST: targets.ldap.hosst: there is no such key (did you mean `host`?)",
        ]
    );
}

#[test]
fn url_and_urls_are_one_setting() {
    let rest = "agent_id: a, exported_connectors: [c], auth: { token_file: /t } }\ntargets: { c: { host: h, port: 1 } }";
    let both = format!("tunnel: {{ url: 'wss://a', urls: ['wss://b'], {rest}");
    let problems = inspect(&both, &[]).map(|loaded| loaded.config).unwrap_err();
    assert_eq!(
        lines(problems.0),
        ["F:1:27: tunnel.urls: url is set as well (keep one of the two)"]
    );
    let list = format!("tunnel: {{ urls: ['wss://b', 'wss://c'], {rest}");
    assert_eq!(ok(&list, &[]).config.tunnel.urls, ["wss://b", "wss://c"]);
    // The environment's word counts more.
    assert_eq!(
        ok(&list, &[("NC_AGENT_URL", "wss://x")]).config.tunnel.urls,
        ["wss://x"]
    );
    let one = format!("tunnel: {{ url: 'wss://b, wss://c', {rest}");
    assert_eq!(ok(&one, &[]).config.tunnel.urls, ["wss://b", "wss://c"]);
    assert_eq!(
        ok(&one, &[("NOWCONNECT__TUNNEL__URLS", "wss://x")])
            .config
            .tunnel
            .urls,
        ["wss://x"]
    );
}

#[test]
fn what_deserves_a_look_is_a_warning() {
    let loaded = from_env(&[
        (
            "NC_AGENT_URL",
            "ws://127.0.0.1:1/tunnel,ws://localhost/tunnel,ws://hub/tunnel,wss://hub",
        ),
        ("NC_TARGET_spare_HOST", "a"),
        ("NC_TARGET_spare_PORT", "1"),
        ("NC_CONECTORS", "x"),
        ("NC_CONFIG_NOTE", "x"),
    ]);
    assert_eq!(
        lines(loaded.unwrap().warnings),
        [
            "NC_CONECTORS: warning: nothing reads this environment variable (did you mean NC_CONNECTORS?)",
            "NC_CONFIG_NOTE: warning: nothing reads this environment variable",
            "NC_AGENT_URL: warning: tunnel.url: ws://hub/tunnel is not encrypted: token and traffic can be read (use wss://)",
            "NC_AGENT_URL: warning: tunnel.url: wss://hub/ has no path (hubs serve /tunnel)",
            "NC_TARGET_spare_HOST: warning: targets.spare: not exported, so nobody can use it (add it to tunnel.exported_connectors)",
        ]
    );
}

#[test]
fn a_missing_token_file_is_a_problem_when_an_agent_starts() {
    let env: Env = ENV.iter().copied().collect();
    let problems = AgentConfig::load(&Source::new(None, env))
        .map(|loaded| loaded.config)
        .unwrap_err();
    assert_eq!(
        lines(problems.0),
        [
            "NC_TOKEN_FILE: tunnel.auth.token_file: there is no file /run/agent.jwt \
         (put the file there, or correct the name)"
        ]
    );
}

#[test]
fn proxy_credentials_are_never_shown() {
    let env = [
        ("NC_TRUST_ENV", "1"),
        ("HTTPS_PROXY", "http://user:hunter2@proxy:3128"),
    ];
    let loaded = from_env(&env).unwrap();
    let shown = format!("{}{:?}", loaded.effective, loaded.config);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(
        shown.contains("https_proxy: 'http://user:***@proxy:3128'"),
        "{shown}"
    );
}
