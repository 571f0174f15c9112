//! The hub's configuration from the outside: files, environment, problems.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::path::{Path, PathBuf};
use std::time::Duration;

use nowconnect_hub::config::{
    ALIASES, FapiMode, HaMode, HubConfig, JwksSource, PdpFormat, ProxyProtocol,
};
use nowconnect_settings::{
    Env, Loaded, LogFormat, LogLevel, Problems, Sampler, Secret, Source, TracesConfig,
};

/// Loads `text` as a file under an environment, without looking for the files it names.
fn inspect(text: &str, env: &[(&str, &str)]) -> Result<Loaded<HubConfig>, Problems> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cloud.yaml");
    std::fs::write(&file, text).unwrap();
    HubConfig::inspect(&Source::new(Some(file), env.iter().copied().collect()))
}

fn ok(text: &str, env: &[(&str, &str)]) -> Loaded<HubConfig> {
    inspect(text, env).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

fn lines(problems: Vec<nowconnect_settings::Problem>) -> Vec<String> {
    let short = |mut problem: nowconnect_settings::Problem| {
        problem.file = problem.file.map(|_| PathBuf::from("F"));
        problem.to_string()
    };
    problems.into_iter().map(short).collect()
}

fn example(name: &str) -> Loaded<HubConfig> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    HubConfig::inspect(&Source::new(Some(file), Env::default())).unwrap()
}

#[test]
fn the_documented_example_loads() {
    let loaded = example("cloud.yaml");
    let hub = &loaded.config;
    let listener = &hub.listeners[0];
    assert_eq!(
        (listener.name.as_str(), listener.connector.as_str()),
        ("l1", "ldap")
    );
    assert_eq!(listener.bind, "0.0.0.0:389".parse().unwrap());
    assert_eq!(
        (listener.max_conn, listener.proxy_protocol),
        (None, ProxyProtocol::Off)
    );
    assert_eq!(
        listener.idle_timeout,
        Some(Duration::from_secs(900)),
        "inherited"
    );
    assert_eq!(hub.tunnel.bind, "0.0.0.0:8765".parse().unwrap());
    assert_eq!(hub.tunnel.tls, None, "empty file names are no files");
    assert_eq!(hub.limits.memory_budget, 256 << 20);
    assert_eq!(hub.limits.max_conn_per_client, None);
    assert_eq!(hub.security.jwks, None);
    assert_eq!(hub.pdp, None);
    assert_eq!(hub.observability.metrics_port, Some(8000));
    assert_eq!(hub.ha.mode, HaMode::Shadow);
    assert_eq!(
        hub.ha.redis_url.as_ref().map(Secret::expose),
        Some("redis://shared_redis:6379/0")
    );
    assert_eq!(hub.ha.mesh.peers, ["wss://cloud-b.example.com/mesh"]);
    assert_eq!(
        hub.ha.mesh.tls.as_ref().unwrap().key_file,
        Path::new("/app/certs/hub-a.key")
    );
    assert_eq!(
        loaded.missing_files().len(),
        3,
        "the certificates are not here"
    );
    assert!(loaded.with_files(|_| false).is_err());
}

/// The defaults are the example's values, but for what names things of that installation.
#[test]
fn an_empty_section_means_the_documented_defaults() {
    let example = example("cloud.yaml").config;
    let file = "listeners: [{ name: l1, bind: '0.0.0.0:389', connector: ldap }]\nha: { replica_id: hub-a }";
    let mut defaults = ok(file, &[]).config;
    defaults.ha.redis_url.clone_from(&example.ha.redis_url);
    defaults.ha.mesh.peers.clone_from(&example.ha.mesh.peers);
    defaults.ha.mesh.tls.clone_from(&example.ha.mesh.tls);
    assert_eq!(defaults, example);
    assert_eq!(
        ok("tunnel:\n", &[]).config.ha.mode,
        HaMode::Off,
        "HA is off unless asked for"
    );
}

#[test]
fn older_files_load() {
    let hub = example("older.yaml").config;
    assert_eq!(hub.tunnel.ping_interval, Duration::from_secs(20));
    assert_eq!(hub.tunnel.ping_timeout, Duration::from_secs(20));
    assert_eq!(hub.tunnel.max_ws_payload, 8192);
    assert_eq!(hub.limits.idle_timeout, Some(Duration::from_secs(60)));
}

#[test]
fn every_documented_variable_has_its_effect() {
    type Observe = fn(&HubConfig) -> bool;
    let cases: &[(&str, &str, Observe)] = &[
        ("LOG_LEVEL", "warning", |c| {
            c.observability.log_level == LogLevel::Warn
        }),
        ("NOWCONNECT_JWKS_URL", "file:///j.json", |c| {
            c.security.jwks == Some(JwksSource::File("/j.json".into()))
        }),
        ("NOWCONNECT_AUDIENCE", "other", |c| {
            c.security.audience == "other"
        }),
        ("NOWCONNECT_REQUIRE_CONNECTOR_SCOPES", "1", |c| {
            c.security.require_connector_scopes
        }),
        ("NOWCONNECT_FAPI_MODE", "2", |c| {
            c.security.fapi_mode == FapiMode::Dpop
        }),
        ("NOWCONNECT_PDP_URL", "https://pdp/x", |c| {
            c.pdp.as_ref().is_some_and(|pdp| pdp.url == "https://pdp/x")
        }),
        ("NOWCONNECT_PDP_CACHE_TTL_SEC", "7", |c| {
            c.pdp
                .as_ref()
                .is_some_and(|pdp| pdp.cache_ttl == Duration::from_secs(7))
        }),
        ("NOWCONNECT_PDP_TIMEOUT_MS", "7", |c| {
            c.pdp
                .as_ref()
                .is_some_and(|pdp| pdp.timeout == Duration::from_millis(7))
        }),
        ("NOWCONNECT_PDP_FAIL_OPEN", "true", |c| {
            c.pdp.as_ref().is_some_and(|pdp| pdp.fail_open)
        }),
    ];
    let named: Vec<_> = cases.iter().map(|case| case.0).collect();
    let documented: Vec<_> = ALIASES.iter().map(|alias| alias.var).collect();
    assert_eq!(named, documented);
    for (var, value, observe) in cases {
        let pdp = if var.contains("PDP_") && *var != "NOWCONNECT_PDP_URL" {
            "pdp: { url: 'http://pdp', format: simple }"
        } else {
            "listeners:"
        };
        assert!(!observe(&ok(pdp, &[]).config), "{var}");
        assert!(observe(&ok(pdp, &[(var, value)]).config), "{var}");
    }
}

#[test]
fn every_variable_of_opentelemetry_has_its_effect() {
    type Observe = fn(&TracesConfig) -> bool;
    let cases: &[(&str, &str, Observe)] = &[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://o", |c| {
            c.endpoint == "http://o/v1/traces"
        }),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/x", |c| {
            c.endpoint == "http://t/x"
        }),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b", |c| {
            c.headers
                .iter()
                .any(|(name, value)| name == "a" && value == "b")
        }),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=d", |c| {
            c.headers
                .iter()
                .all(|(name, value)| name == "c" && value == "d")
                && c.headers.iter().count() == 1
        }),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "7", |c| {
            c.timeout == Duration::from_millis(7)
        }),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "8", |c| {
            c.timeout == Duration::from_millis(8)
        }),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/a.pem", |c| {
            c.ca_bundle.as_deref() == Some("/a.pem".as_ref())
        }),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/b.pem", |c| {
            c.ca_bundle.as_deref() == Some("/b.pem".as_ref())
        }),
        ("OTEL_SERVICE_NAME", "front", |c| {
            c.service_name.as_deref() == Some("front")
        }),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b%20c,d=e", |c| {
            let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            c.resource == [("a", "b c"), ("d", "e")].map(pair)
        }),
        ("OTEL_TRACES_SAMPLER", "traceidratio", |c| {
            c.sampler == Sampler::Ratio
        }),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25", |c| c.ratio == 0.25),
    ];
    let mut env = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://before")];
    for (var, value, observe) in cases {
        let traces = |env: &[_]| ok("listeners:", env).config.observability.traces.unwrap();
        assert!(!observe(&traces(&env)), "{var}");
        env.push((*var, *value));
        assert!(observe(&traces(&env)), "{var}");
        // As if it were not there.
        let empty = [
            &env[..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://before"), (*var, "")],
        ];
        let empty = ok("listeners:", &empty.concat())
            .config
            .observability
            .traces;
        assert!(!empty.is_some_and(|traces| observe(&traces)), "{var}");
    }
    for nothing in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        let env = [&env[..], &[nothing]].concat();
        assert_eq!(ok("listeners:", &env).config.observability.traces, None);
    }
    let other = [
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    assert_eq!(ok("listeners:", &other).config.observability.traces, None);
}

/// A value for a key that is allowed and not its default.
fn other_value(kind: &str, allowed: &str, default: &str) -> String {
    match kind {
        "an integer" => (default.parse::<u64>().unwrap() + 3).to_string(),
        "true or false" => (default != "true").to_string(),
        "0 or 2" => "2".into(),
        "one of the words" => allowed
            .split(", ")
            .find(|word| *word != default)
            .unwrap()
            .into(),
        kind if kind.contains("a network") => "10.0.0.0/8".into(),
        kind if kind.contains("address and port") => "127.0.0.1:9".into(),
        kind if kind.contains("an IP address like") => "127.0.0.2".into(),
        kind if kind.contains("URL") && allowed.contains("wss") => "wss://b/mesh".into(),
        "a number from 0 to 1" => "0.5".into(),
        _ if allowed.contains("name=value") => "a=b".into(),
        kind if kind.contains("URL") => "https://b/x".into(),
        "a file name" => "/nowhere".into(),
        _ if allowed.contains("redis") => "redis://h".into(),
        _ => "other".into(),
    }
}

/// Every key can be set by a variable, and the effective configuration says so.
#[test]
fn every_key_can_be_set_from_the_environment() {
    // What some keys need beside them.
    let company = [
        ("NOWCONNECT__TUNNEL__TLS__CERT_FILE", "/c"),
        ("NOWCONNECT__TUNNEL__TLS__KEY_FILE", "/k"),
        ("NOWCONNECT__HA__MESH__TLS__CA_BUNDLE", "/a"),
        ("NOWCONNECT__HA__MESH__TLS__CERT_FILE", "/c"),
        ("NOWCONNECT__HA__MESH__TLS__KEY_FILE", "/k"),
        ("NOWCONNECT__HA__REPLICA_ID", "a"),
        ("NOWCONNECT__PDP__URL", "http://pdp"),
    ];
    for spec in HubConfig::keys() {
        if spec.key.contains("[]") || spec.key.contains("<name>") {
            continue;
        }
        let var = format!("NOWCONNECT__{}", spec.key.to_uppercase().replace('.', "__"));
        let value = other_value(spec.kind, &spec.allowed, &spec.default.unwrap_or_default());
        let mut env = company.to_vec();
        env.retain(|(name, _)| *name != var);
        env.push((&var, &value));
        let shown = ok("listeners:", &env).effective.to_string();
        let line = shown
            .lines()
            .find(|line| line.ends_with(&format!("# {var}")));
        let shows = |line: &str| line.contains(&value) || line.contains("***");
        assert!(line.is_some_and(shows), "{var}={value}\n{shown}");
    }
    let listeners = r#"[{"name": "a", "bind": "[::1]:1", "connector": "c", "max_conn": 3}]"#;
    let hub = ok("listeners:", &[("NOWCONNECT__LISTENERS", listeners)]).config;
    assert_eq!(hub.listeners[0].max_conn, Some(3));
    let file = "probes: { ldap_dc-2: { type: ldap } }";
    let probe = [("NOWCONNECT__PROBES__LDAP_DC_2__INTERVAL_SEC", "7")];
    let hub = ok(file, &probe).config;
    assert_eq!(hub.probes["ldap_dc-2"].interval, Duration::from_secs(7));
}

#[test]
fn what_does_not_fit_together_is_a_problem() {
    let listener = "{ name: a, bind: '0.0.0.0:389', connector: c }";
    for (text, problems) in [
        (
            &format!("listeners:\n- {listener}\n- {listener}")[..],
            &[
                "F:3:11: listeners[1].name: another listener is called a (rename one)",
                "F:3:20: listeners[1].bind: 0.0.0.0:389 is taken by listeners[0].bind (0.0.0.0:389) (choose another port)",
            ][..],
        ),
        (
            "listeners: [{ name: a/b, bind: '[::]:8765', connector: 'x y', proxy_protocol: v3 }]",
            &[
                "F:1:21: listeners[0].name: expected text (1 to 64 letters, digits, `.`, `_`, `-`), found \"a/b\"",
                "F:1:32: listeners[0].bind: [::]:8765 is taken by tunnel.port (0.0.0.0:8765) (choose another port)",
                "F:1:56: listeners[0].connector: expected text (1 to 64 letters, digits, `.`, `_`, `-`), found the text \"x y\"",
                "F:1:79: listeners[0].proxy_protocol: expected one of the words (off, v1, v2, any), found \"v3\" (did you mean v1?)",
            ],
        ),
        (
            "listeners: [{ name: a, bind: '1.2.3.4:1', connector: c, proxy_protocol: v2 }]",
            &[
                "F:1:73: listeners[0].proxy_protocol: no balancer is trusted to send the header (list them in tunnel.trusted_proxies)",
            ],
        ),
        (
            "tunnel: { port: 8000 }\nadmin: { bind: '127.0.0.1:8000' }",
            &[
                "F: observability.metrics_port: 0.0.0.0:8000 is taken by tunnel.port (0.0.0.0:8000) (choose another port)",
                "F:2:16: admin.bind: 127.0.0.1:8000 is taken by tunnel.port (0.0.0.0:8000) (choose another port)",
            ],
        ),
        (
            "admin: { bind: '0.0.0.0:1' }",
            &[
                "F:1:1: admin.token_file: required because admin.bind is not loopback (set admin.token_file, or bind to 127.0.0.1)",
            ],
        ),
        (
            "tunnel: { tls: { cert_file: a, client_ca: b } }",
            &[
                "F:1:29: tunnel.tls.cert_file: a certificate without a key (set key_file to its private key)",
                "F:1:43: tunnel.tls.client_ca: asks for client certificates without TLS (set cert_file and key_file too, or remove client_ca)",
            ],
        ),
        (
            "tunnel: { tls: { key_file: a } }",
            &[
                "F:1:28: tunnel.tls.key_file: a key without a certificate (set cert_file to its certificate)",
            ],
        ),
        (
            "limits: { max_conn_total: 40000 }",
            &[
                "F:1:1: limits.memory_budget_mb: too small for max_conn_total 40000 (at 8 KiB a flow it takes 313)",
            ],
        ),
        (
            "ha: { enabled: true }",
            &[
                "F:1:1: ha.replica_id: required because HA is on (give every hub a name of its own, or set ha.mode: off)",
            ],
        ),
        (
            "ha: { replica_id: a, mesh: { peers: ['wss://b/mesh', 'https://c', 'wss://b/mesh'] } }",
            &[
                "F:1:22: ha.mesh.tls: required by require_mtls (set ca_bundle, cert_file and key_file)",
                "F:1:30: ha.mesh.peers: wss://b/mesh is listed twice (remove one)",
                "F:1:54: ha.mesh.peers[1]: expected a URL (ws:// or wss://), found the text \"https://c\"",
            ],
        ),
        (
            "ha: { enabled: false, mesh: { tls: { cert_file: a, key_file: b } } }",
            &[
                "F:1:31: ha.mesh.tls.ca_bundle: required beside cert_file (set it to the certificate of the CA that issued those of all hubs)",
            ],
        ),
        (
            "ha: { enabled: false, redis_url: 'redis://:hunter2@/0' }",
            &[
                "F:1:34: ha.redis_url: expected text (redis://, rediss:// or either with +sentinel or +cluster, then a host), found a value that is not one (not shown)",
            ],
        ),
        (
            "tunnel: { max_ws_payload: 262144 }\nha: { enabled: false, mesh: { per_link_max_inflight_bytes: 65536 } }",
            &[
                "F:2:60: ha.mesh.per_link_max_inflight_bytes: smaller than one frame (tunnel.max_ws_payload) (at least 262144)",
            ],
        ),
        (
            "security: { jwks_url: 'https://user:hunter2@idp' }",
            &[
                "F:1:23: security.jwks_url: expected a URL: http://, https:// or file:///path, found the text \"https://user:***@idp\": user and password in this URL would not be used, remove them",
            ],
        ),
        (
            "security: { jwks_url: 'file://etc/jwks' }",
            &[
                "F:1:23: security.jwks_url: expected a URL: http://, https:// or file:///path, found the text \"file://etc/jwks\": a file URL has three slashes and a path from the root",
            ],
        ),
        (
            "probes: { ldap: { typ: ldap }, pg: { type: sql, timeout_ms: 1 } }",
            &[
                "F:1:11: probes.ldap.type: required but not set (set it in the file or by NOWCONNECT__PROBES__LDAP__TYPE)",
                "F:1:19: probes.ldap.typ: there is no such key (did you mean `type`?)",
                "F:1:44: probes.pg.type: expected one of the words (tcp, tls, ldap, ldaps, http, https), found \"sql\"",
                "F:1:61: probes.pg.timeout_ms: expected an integer (10 to 60000), found the integer 1",
            ],
        ),
        (
            "probes: { a b: { type: tls, interval_sec: 1, ca_file: a } }",
            &[
                "F:1:11: probes.a b: names no connector (a name has 1 to 64 letters, digits, `.`, `_`, `-`)",
                "F:1:11: probes.a b.timeout_ms: longer than interval_sec (a probe must be over before the next one is due)",
                "F:1:11: probes.a b.server_name: required beside ca_file (the host that the target's certificate is for)",
            ],
        ),
        (
            "security: { audience: }\npdp: { url: 'pdp:80' }",
            &[
                "F:2:13: pdp.url: expected a URL (http:// or https://), found the text \"pdp:80\": scheme and host are needed",
            ],
        ),
    ] {
        assert_eq!(
            lines(inspect(text, &[]).map(|l| l.config).unwrap_err().0),
            problems,
            "{text}"
        );
    }
}

#[test]
fn what_deserves_a_look_is_a_warning() {
    for (text, env, warnings) in [
        (
            "ha: { replica_id: a, mesh: { require_mtls: false, peers: ['ws://b/mesh'] } }",
            &[("NOWCONNECT_AUDIENC", "x")][..],
            &[
                "NOWCONNECT_AUDIENC: warning: nothing reads this environment variable (did you mean NOWCONNECT_AUDIENCE?)",
                "F:1:44: warning: ha.mesh.require_mtls: any host that reaches /mesh can join the mesh; for development only",
                "F: warning: listeners: there are none, so no client can connect",
                "F:1:1: warning: ha.redis_url: not set, so this hub cannot learn which agents its peers hold",
                "F: warning: security.jwks_url: not set, so every agent is refused",
            ][..],
        ),
        (
            "listeners: [{ name: a, bind: '1.2.3.4:1', connector: c }]\nsecurity: { jwks_url: 'http://idp/jwks' }",
            &[],
            &[
                "F:2:1: warning: security.allow_cidrs: empty, so whoever reaches a is let in (list the networks of the clients, or 0.0.0.0/0 and ::/0 if that is meant)",
                "F:2:23: warning: security.jwks_url: whoever is on the path can replace these keys (use https://)",
            ],
        ),
        (
            "listeners: [{ name: a, bind: '1.2.3.4:1', connector: c, allow_cidrs: [10.0.0.0/8] }]\nsecurity: { jwks_url: 'http://127.0.0.1/jwks' }",
            &[],
            &[],
        ),
        (
            "listeners: [{ name: a, bind: '1.2.3.4:1', connector: c, allow_cidrs: [10.0.0.0/8] }]\nsecurity: { jwks_url: 'http://127.0.0.1/jwks' }\nprobes: { c: { type: tcp, path: /, starttls: true }, d: { type: ldap, server_name: x } }",
            &[],
            &[
                "F:3:33: warning: probes.c.path: has no effect with type: tcp",
                "F:3:46: warning: probes.c.starttls: has no effect with type: tcp",
                "F:3:54: warning: probes.d: no listener of this hub leads to a connector of this name (agents that export it are probed all the same)",
                "F:3:84: warning: probes.d.server_name: has no effect with type: ldap",
            ],
        ),
    ] {
        let mut found = lines(ok(text, env).warnings);
        let mut expected = warnings.to_vec();
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn listeners_have_their_own_settings() {
    let text = "
tunnel: { trusted_proxies: [10.0.0.0/8, 192.0.2.1] }
limits: { idle_timeout_ms: 0 }
pdp: { url: 'http://pdp/check', format: Simple }
observability: { log_format: plain, metrics_port: 0 }
listeners:
  - { name: a, bind: '127.0.0.1:0', connector: c, allow_cidrs: ['::/0'], max_conn: 5, idle_timeout_ms: 250, proxy_protocol: any }
  - { name: b, bind: '127.0.0.1:0', connector: c }
  - { name: c, bind: '127.0.0.2:389', connector: c, idle_timeout_ms: 0 }
  - { name: d, bind: 'localhost:389', connector: d }
";
    let hub = ok(text, &[]).config;
    let [a, b, c, _] = hub.listeners.as_slice() else {
        panic!()
    };
    assert_eq!(a.allow_cidrs, ["::/0".parse().unwrap()]);
    assert_eq!(
        (a.max_conn, a.proxy_protocol),
        (Some(5), ProxyProtocol::Any)
    );
    assert_eq!(a.idle_timeout, Some(Duration::from_millis(250)));
    assert_eq!((b.idle_timeout, c.idle_timeout), (None, None));
    assert_eq!(
        hub.tunnel.trusted_proxies[1],
        "192.0.2.1/32".parse().unwrap()
    );
    assert_eq!(hub.pdp.unwrap().format, PdpFormat::Simple);
    assert_eq!(hub.observability.log_format, LogFormat::Plain);
    assert_eq!(hub.observability.metrics_port, None);
}

#[test]
fn the_effective_configuration_loads_to_itself() {
    let loaded = example("cloud.yaml");
    let again = ok(&loaded.effective.to_string(), &[]);
    assert_eq!(again.config, loaded.config, "{}", loaded.effective);
    let secret = ok(
        "ha: { enabled: false, redis_url: 'rediss://u:hunter2@h?x=hunter2' }",
        &[],
    );
    let shown = format!("{}{:?}", secret.effective, secret.config);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(
        secret.config.ha.redis_url.unwrap().expose(),
        "rediss://u:hunter2@h?x=hunter2"
    );
}

#[test]
fn files_to_watch_are_all_that_are_read_while_running() {
    let text = "
tunnel: { tls: { cert_file: /t.crt, key_file: /t.key, client_ca: /t.ca } }
security: { jwks_url: 'file:///jwks.json' }
admin: { token_file: /admin.token }
ha: { replica_id: a, mesh: { tls: { ca_bundle: /m.ca, cert_file: /m.crt, key_file: /m.key } } }
";
    let loaded = ok(text, &[]);
    let files = loaded.files();
    for file in [
        "/t.crt",
        "/t.key",
        "/t.ca",
        "/jwks.json",
        "/admin.token",
        "/m.ca",
        "/m.crt",
        "/m.key",
    ] {
        assert!(files.contains(&PathBuf::from(file)), "{file}");
    }
    assert!(files.contains(loaded.file.as_ref().unwrap()));
    // Keys may be published after the hub has started; the rest must be there.
    let missing = lines(loaded.missing_files());
    assert_eq!(missing.len(), 7);
    assert!(missing[0].starts_with("F:2:29: tunnel.tls.cert_file: there is no file /t.crt (put"));
}

#[test]
fn ten_thousand_listeners_load() {
    let listeners: String = (0..10_000)
        .map(|i| {
            let port = 10_000 + i;
            format!("- {{ name: l{i}, bind: '127.0.0.1:{port}', connector: c }}\n")
        })
        .collect();
    assert_eq!(
        ok(&format!("listeners:\n{listeners}"), &[])
            .config
            .listeners
            .len(),
        10_000
    );
}

mod mutated {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The example with a few characters changed: no panic, and what loads is told as it is.
        #[test]
        fn examples_never_make_it_panic(
            edits in prop::collection::vec((0usize..4000, "[ -~\n\t]{0,3}", 0usize..4), 1..6)
        ) {
            let mut text = include_str!("data/cloud.yaml").to_owned();
            for (at, with, cut) in edits {
                let at = (0..=at % text.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap();
                let end = (at + cut..).find(|end| *end >= text.len() || text.is_char_boundary(*end));
                text.replace_range(at..end.unwrap().min(text.len()), &with);
            }
            if let Ok(loaded) = inspect(&text, &[]) {
                let shown = loaded.effective.to_string().replace("${", "$${");
                let again = inspect(&shown, &[]).map(|again| again.config);
                let masked = shown.contains("***");
                prop_assert!(masked || again == Ok(loaded.config), "{text}\n{shown}\n{again:?}");
            }
        }
    }
}
