//! Files, environment and problems, through a small schema.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::path::{Path, PathBuf};

use nowconnect_settings::{
    Alias, Env, Loaded, Problems, Secret, Source, Table, choices, describe, load,
};
use proptest::prelude::*;

choices! {
    /// A mode.
    pub enum Mode {
        /// One.
        Calm = "calm",
        /// Other.
        Wild = "wild" | "feral",
    }
}

#[derive(Debug, PartialEq)]
struct Demo {
    port: u16,
    name: String,
    on: bool,
    mode: Mode,
    nets: Vec<ipnet::IpNet>,
    url: Option<Secret>,
    cert: Option<PathBuf>,
    items: Vec<(String, u64)>,
    targets: Vec<(String, u16)>,
}

const ALIASES: &[Alias] = &[Alias::new("DEMO_NAME", "server.name")];

fn demo(t: &mut Table<'_>) -> Option<Demo> {
    let (port, name, on, mode) = t.section("server", |t| {
        let port = t.field("port").range(1..=u16::MAX).or(80);
        let name = t.field("name").required();
        (
            port,
            name,
            t.field("on").or(false),
            t.field("mode").or(Mode::Calm),
        )
    });
    let nets = t.field("nets").list();
    let is_db = |url: &Secret| url.expose().starts_with("db://");
    let url = t.field("url").secret().check("db://", is_db).optional();
    let cert = t.field("cert").file();
    let items = t.sections("items", |t| {
        let (name, size) = (t.field("name").required(), t.field("size").or(1));
        Some((name?, size))
    });
    let targets = t.named("targets", |_, t| t.field("port").required());
    let (name, targets) = (name?, targets.into_iter().collect());
    Some(Demo {
        port,
        name,
        on,
        mode,
        nets,
        url,
        cert,
        items,
        targets,
    })
}

fn load_with(text: impl AsRef<[u8]>, env: &[(&str, &str)]) -> Result<Loaded<Demo>, Problems> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.yaml");
    std::fs::write(&file, text).unwrap();
    let source = Source::new(Some(file), env.iter().copied().collect());
    load(&source, ALIASES, demo).map_err(|Problems(mut problems)| {
        for problem in &mut problems {
            problem.file = problem.file.as_ref().map(|_| PathBuf::from("F"));
        }
        Problems(problems)
    })
}

fn ok(text: &str, env: &[(&str, &str)]) -> Demo {
    load_with(text, env)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .config
}

fn errors(text: impl AsRef<[u8]>, env: &[(&str, &str)]) -> String {
    load_with(text, env)
        .map(|loaded| loaded.config)
        .unwrap_err()
        .to_string()
}

#[track_caller]
fn wrong(text: impl AsRef<[u8]>, env: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(errors(text, env).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let text = "
server:
  prot: 80
  port: 70000
  on: yes
  mode: wlid
nets: [10.0.0.0/8, 10.0.0.0/40, 10.1.2.3/8, true]
items:
  - { nam: x, size: -1 }
  - plain
targets: { a: { port: http } }
url: [db://x]
extra: 1
";
    let net = "expected a network like 10.0.0.0/8 or an IP address, found";
    wrong(
        text,
        &[],
        &[
            "F:2:1: server.name: required but not set (set it in the file or by DEMO_NAME)",
            "F:3:3: server.prot: there is no such key (did you mean `port`?)",
            "F:4:9: server.port: expected an integer (1 to 65535), found the integer 70000: at most 65535",
            "F:5:7: server.on: expected true or false, found \"yes\"",
            "F:6:9: server.mode: expected one of the words (calm, wild), found \"wlid\" (did you mean wild?)",
            &format!("F:7:20: nets[1]: {net} \"10.0.0.0/40\""),
            &format!(
                "F:7:33: nets[2]: {net} \"10.1.2.3/8\": bits are set behind the prefix, meant is perhaps 10.0.0.0/8"
            ),
            &format!("F:7:45: nets[3]: {net} the boolean true"),
            "F:9:5: items[0].name: required but not set (set it in the file)",
            "F:9:7: items[0].nam: there is no such key (did you mean `name`?)",
            "F:9:21: items[0].size: expected an integer, found the integer -1",
            "F:10:5: items[1]: expected a section with keys, found a single value",
            "F:11:23: targets.a.port: expected an integer, found \"http\"",
            "F:12:6: url: expected text (db://), found a list",
            "F:13:1: extra: there is no such key (known here: server, nets, url, url_file, cert, items, targets)",
        ],
    );
}

#[test]
fn types_are_strict_in_the_file() {
    let port = "port: expected an integer (1 to 65535), found";
    for (line, problem) in [
        (
            "name: 5",
            "name: expected text, found the integer 5 (put it in quotes)",
        ),
        (
            "name: true",
            "name: expected text, found the boolean true (put it in quotes)",
        ),
        (
            "name: 1.10",
            "name: expected text, found the number 1.10 (put it in quotes)",
        ),
        ("name: [a]", "name: expected text, found a list"),
        (
            "name: {a: b}",
            "name: expected text, found a section with keys",
        ),
        (
            "port: '5'",
            &format!("{port} the text \"5\" (remove the quotes)"),
        ),
        ("port: 0x50", &format!("{port} the integer 0x50")),
        ("port: 5.0", &format!("{port} the number 5.0")),
        ("port: 0", &format!("{port} the integer 0")),
        ("port: ''", &format!("{port} the text \"\"")),
        ("on: 1", "on: expected true or false, found the integer 1"),
        (
            "on: 'true'",
            "on: expected true or false, found the text \"true\" (remove the quotes)",
        ),
        (
            "name: \"\\t\"",
            "name: expected text, found the text \"\\t\": control characters are not allowed",
        ),
    ] {
        let name = if line.starts_with("name") {
            ""
        } else {
            ", name: n"
        };
        let column = line.find(' ').unwrap() + 12;
        let text = format!("server: {{ {line}{name} }}");
        wrong(&text, &[], &[&format!("F:1:{column}: server.{problem}")]);
    }
}

#[test]
fn nothing_and_empty_text_are_unset() {
    let demo = ok(
        "server: { name: n, port: , mode: '' }\nurl: ~\ncert: \"\"\nnets:\nitems:\n",
        &[],
    );
    assert_eq!(
        (demo.port, demo.mode, demo.url, demo.cert),
        (80, Mode::Calm, None, None)
    );
    assert!(demo.nets.is_empty() && demo.items.is_empty());
}

#[test]
fn the_environment_goes_over_the_file() {
    let file =
        "server: { port: 1, name: file }\nitems: [{ name: a }]\ntargets: { My-Db: { port: 1 } }";
    let demo = ok(
        file,
        &[
            ("DEMO_NAME", "12"),
            ("NOWCONNECT__SERVER__PORT", " 8080 "),
            ("NOWCONNECT__SERVER__ON", "Yes"),
            ("NOWCONNECT__SERVER__MODE", "FERAL"),
            ("NOWCONNECT__NETS", "10.0.0.0/8, ::1"),
            ("NOWCONNECT__ITEMS", r#"[{"name": "b", "size": 2}]"#),
            ("NOWCONNECT__TARGETS__MY_DB__PORT", "2"),
            ("NOWCONNECT__TARGETS__NEW__PORT", "3"),
            ("NOWCONNECT__URL", ""),
        ],
    );
    assert_eq!(
        demo,
        Demo {
            port: 8080,
            name: "12".into(),
            on: true,
            mode: Mode::Wild,
            nets: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            url: None,
            cert: None,
            items: vec![("b".into(), 2)],
            targets: vec![("My-Db".into(), 2), ("new".into(), 3)],
        }
    );
    // A section as a whole replaces the file's, then come its keys.
    let env = [
        ("NOWCONNECT__SERVER", r#"{"name": "json"}"#),
        ("NOWCONNECT__SERVER__PORT", "7"),
    ];
    let demo = ok("server: { on: true }", &env);
    assert_eq!((demo.name.as_str(), demo.port, demo.on), ("json", 7, false));
}

#[test]
fn problems_from_the_environment_name_the_variable() {
    let env = [
        ("DEMO_NAME", "a\u{7}b"),
        ("NOWCONNECT__SERVER__PORT", "many"),
        ("NOWCONNECT__SERVER__PROT", "1"),
        ("NOWCONNECT__SERVER__PORT__DEEP", "1"),
        ("NOWCONNECT__ITEMS", "[{"),
        (
            "NOWCONNECT__TARGETS",
            r#"{"a": {"port": 1, "prot": 2, "port": 3}}"#,
        ),
        ("NOWCONNECT__NETS", "10.0.0.0/8,10.0.0.0/99"),
    ];
    wrong(
        "server: { port: 1 }",
        &env,
        &[
            "NOWCONNECT__SERVER__PORT__DEEP: server.port: this is not a section, so it has no keys of its own",
            "NOWCONNECT__TARGETS: targets.a.port: this key is already set on line 1 (remove one of the two)",
            "NOWCONNECT__SERVER__PORT: server.port: expected an integer (1 to 65535), found \"many\"",
            "DEMO_NAME: server.name: expected text, found \"a\\u{7}b\": control characters are not allowed",
            "NOWCONNECT__SERVER__PROT: server.prot: there is no such key (did you mean `port`?)",
            "NOWCONNECT__NETS: nets: expected a network like 10.0.0.0/8 or an IP address, found \"10.0.0.0/99\"",
            "NOWCONNECT__ITEMS: items: expected a list, each item a section with keys, found other text (write it as JSON)",
            "NOWCONNECT__TARGETS: targets.a.prot: there is no such key (did you mean `port`?)",
        ],
    );
}

#[test]
fn variables_inside_values_are_replaced() {
    let env = [
        ("A", "7"),
        ("HOST", "h"),
        ("NETS", r#"["10.0.0.0/8"]"#),
        ("EMPTY", ""),
    ];
    let text = "server: { name: '${HOST}-${MISSING:-x}-$${A}-$5', port: '${A}', on: '${EMPTY:-true}' }\n\
         nets: ${NETS}\nitems: [{ name: \"${A}\" }]\n";
    let demo = ok(text, &env);
    assert_eq!(
        (demo.name.as_str(), demo.port, demo.on),
        ("h-x-${A}-$5", 7, true)
    );
    assert_eq!((demo.nets.len(), demo.items[0].0.as_str()), (1, "7"));
    wrong(
        "server: { name: '${NOPE}', port: '${HOST}', on: '${A', mode: '${a b}' }",
        &env,
        &[
            "F:1:17: server.name: the environment variable NOPE is not set (set it, or write ${NOPE:-default})",
            "F:1:34: server.port: expected an integer (1 to 65535), found \"${HOST}\"",
            "F:1:49: server.on: `${` without its `}` (write $${ where ${ itself is meant)",
            "F:1:62: server.mode: `${...}` holds no name of a variable (write ${NAME} or ${NAME:-default})",
        ],
    );
}

#[test]
fn broken_files_are_explained() {
    let deep = format!("nets: {}{}", "[".repeat(50), "]".repeat(50));
    let deep_block: String = (0..50).map(|i| format!("{:1$}a:\n", "", i * 2)).collect();
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
        c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n\
        e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let tab = "a tab is used for indentation (indent with spaces)";
    for (text, problem) in [
        ("", "F: the file holds no configuration"),
        ("# nothing\n---\n", "F: the file holds no configuration"),
        (
            "- a\n- b\n",
            "F:1:1: the file must hold keys and values at its top (like `tunnel:`)",
        ),
        ("server:\n\tname: a\n", &format!("F:2:1: {tab}")),
        (
            "server:\n  name: a\n  \tport: 1\n",
            &format!("F:3:3: {tab}"),
        ),
        (
            "server: { name: a }\n---\nserver: {}\n",
            "F:2:1: a second document starts here (keep one document in the file)",
        ),
        (
            "server: { name: a, port: 1, port: 2 }",
            "F:1:29: server.port: this key is already set on line 1 (remove one of the two)",
        ),
        (
            "server: { name: !!int a }",
            "F:1:23: server.name: the tag !!int means nothing here (remove it)",
        ),
        ("? [a, b]\n: c\n", "F:1:3: a key must be plain text"),
        (
            "server: &s { name: *s }",
            "F:1:20: an alias that stands inside its own anchor",
        ),
        ("server: { name: a", "F:1:9: not valid YAML: ..."),
        (&deep, "F:1:39: not valid YAML: ..."),
        (&deep_block, "F:33:65: not valid YAML: ..."),
        (bomb, "F:5:29: more than 100000 values"),
    ] {
        let mut problems = errors(text, &[]);
        if problem.ends_with("...") {
            println!("{problems}");
            problems.truncate(problem.len() - 3);
            problems.push_str("...");
        }
        assert_eq!(problems, problem, "{text:?}");
    }
    wrong(
        b"server:\n  name: \xff\n",
        &[],
        &["F:2:9: not UTF-8 text (save the file as UTF-8)"],
    );
    wrong(
        vec![b'#'; 1024 * 1024 + 1],
        &[],
        &["F: larger than 1 MiB (is this the right file?)"],
    );
}

/// However much is wrong, what is said stays readable, and saying it is quick.
#[test]
fn many_problems_are_cut_short() {
    let items: String = (0..20_000).map(|i| format!("- {{ n{i}: }}\n")).collect();
    let found = load_with(format!("items:\n{items}"), &[]).map(|loaded| loaded.config);
    let Problems(problems) = found.unwrap_err();
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100].message, "39901 more problems are not shown");
    let long = format!("server: {{ name: n }}\nnets: [{}]", "'::1',".repeat(10_001));
    wrong(&long, &[], &["F:2:7: nets: a list of more than 10000"]);
}

#[test]
fn a_long_text_is_not_multiplied_by_aliases() {
    let text = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(100_000),
        "*a, ".repeat(50_000)
    );
    let problems = errors(text, &[]);
    assert!(problems.ends_with("aliases make it too long"), "{problems}");
}

#[test]
fn aliases_of_yaml_work() {
    let demo = ok("server: &s { name: n }\nitems: [*s, *s]\n", &[]);
    assert_eq!(demo.items, [("n".to_owned(), 1), ("n".to_owned(), 1)]);
}

/// Whoever opens a pipe waits until somebody writes.
#[cfg(unix)]
#[test]
fn nothing_but_a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for path in [&*pipe, dir.path(), Path::new("/dev/null")] {
        let source = Source::new(Some(path.into()), Env::default());
        let error = load(&source, &[], demo).map(|loaded| loaded.config);
        let said = error.unwrap_err().to_string();
        let expected = format!("{}: is no file", path.display());
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn a_missing_file_says_where_it_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    let source = |file: &str, env: &Env| Source::new(Some(file.into()), env.clone());
    let error = |source| {
        load(&source, &[], demo)
            .map(|loaded| loaded.config)
            .unwrap_err()
            .to_string()
    };
    let absolute = format!("{place}/nope.yaml");
    let missing = format!("{absolute}: there is no such file");
    assert_eq!(error(source(&absolute, &Env::default())), missing);
    let env: Env = [("SERVICE_CONFIG_DIR", place)].into_iter().collect();
    let tried =
        format!("{missing} (looked for {absolute} (from SERVICE_CONFIG_DIR), then nope.yaml)");
    assert_eq!(error(source("nope.yaml", &env)), tried);
    std::fs::write(dir.path().join("yes.yaml"), "server: { name: n }").unwrap();
    let loaded = load(&source("yes.yaml", &env), &[], demo).unwrap();
    assert_eq!(loaded.file, Some(dir.path().join("yes.yaml")));
    // Without a file, and with one from the environment.
    assert!(error(Source::default()).starts_with("server.name: required but not set"));
    let env: Env = [("NC_CONFIG", place)].into_iter().collect();
    assert_eq!(
        Source::new(None, env).file.as_deref(),
        Some(Path::new(place))
    );
}

#[test]
fn a_secret_may_come_from_a_file_and_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, "db://user:hunter2@host\n").unwrap();
    let named = format!("server: {{ name: n }}\nurl_file: {}\n", path.display());
    let loaded = load_with(&named, &[]).unwrap();
    assert_eq!(
        loaded.config.url.as_ref().map(Secret::expose),
        Some("db://user:hunter2@host")
    );
    assert!(loaded.files().contains(&path));
    let shown = format!("{}{:?}", loaded.effective, loaded.config);
    assert!(
        !shown.contains("hunter2") && shown.contains("url: 'db://user:***@host'"),
        "{shown}"
    );

    // The environment's word counts more, in either form.
    let env = [("NOWCONNECT__URL", "db://env")];
    assert_eq!(ok(&named, &env).url.unwrap().expose(), "db://env");
    let env = [("NOWCONNECT__URL_FILE", path.to_str().unwrap())];
    let direct = "server: { name: n }\nurl: db://file\n";
    assert_eq!(
        ok(direct, &env).url.unwrap().expose(),
        "db://user:hunter2@host"
    );
    let both = format!("{named}url: db://x\n");
    wrong(
        &both,
        &[],
        &["F:2:11: url_file: url is set as well (keep one of the two)"],
    );

    // Problems do not show it either.
    std::fs::write(&path, "http://hunter2").unwrap();
    let problem = "url: expected text (db://), found a value that is not one (not shown)";
    wrong(&named, &[], &[&format!("F:2:11: {problem}")]);
    let direct = "server: { name: n }\nurl: http://hunter2\n";
    wrong(direct, &[], &[&format!("F:2:6: {problem}")]);
    std::fs::remove_file(&path).unwrap();
    let missing = format!(
        "F:2:11: url_file: {}: there is no such file",
        path.display()
    );
    wrong(&named, &[], &[&missing]);
}

#[test]
fn named_files_are_found_watched_and_missed() {
    let dir = tempfile::tempdir().unwrap();
    let env = [("SERVICE_CONFIG_DIR", dir.path().to_str().unwrap())];
    let cert = dir.path().join("a.pem");
    let loaded = load_with("server: { name: n }\ncert: a.pem\n", &env).unwrap();
    assert_eq!(loaded.config.cert.as_ref(), Some(&cert));
    assert!(loaded.files().contains(&cert));
    let missing = loaded.missing_files();
    assert_eq!(
        (missing.len(), missing[0].line, missing[0].column),
        (1, 2, 7)
    );
    assert_eq!(
        missing[0].message,
        format!("there is no file {}", cert.display())
    );
    std::fs::write(&cert, "").unwrap();
    assert!(loaded.with_files(|_| false).is_ok());
}

#[test]
fn the_effective_configuration_loads_to_itself() {
    let text = "
server: { port: 5, on: true, mode: wild }
nets: [10.0.0.0/8, '::/0']
items: [{ name: 'true', size: 3 }, { name: '12' }, { name: '[::1]:5' }, { name: 'it''s: #1' }]
targets: { 'null': { port: 1 }, a.b: { port: 2 } }
url: db://host
";
    let loaded = load_with(text, &[("DEMO_NAME", "from env")]).unwrap();
    let yaml = loaded.effective.to_string();
    assert!(yaml.contains("name: 'from env'  # DEMO_NAME\n"), "{yaml}");
    assert_eq!(ok(&yaml, &[]), loaded.config, "{yaml}");
}

#[test]
fn a_schema_lists_its_keys() {
    let keys: Vec<_> = describe(demo)
        .into_iter()
        .map(|spec| (spec.key, spec.default))
        .collect();
    let keys: Vec<_> = keys
        .iter()
        .map(|(k, d)| (k.as_str(), d.as_deref()))
        .collect();
    assert_eq!(
        keys,
        [
            ("server.port", Some("80")),
            ("server.name", None),
            ("server.on", Some("false")),
            ("server.mode", Some("calm")),
            ("nets", Some("[]")),
            ("url", Some("")),
            ("cert", Some("")),
            ("items[].name", None),
            ("items[].size", Some("1")),
            ("targets.<name>.port", None),
        ]
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = load_with(bytes, &[]);
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(
        text in "([a-z]{1,3}|[\\[\\]{}:,#&*!|>'\"%@`?-]| |\n|\t|\\$\\{|server: |name|é){0,60}"
    ) {
        let _ = load_with(&text, &[("DEMO_NAME", &text), ("NOWCONNECT__ITEMS", &text)]);
    }

    /// Whatever text a value has, the effective configuration keeps it.
    #[test]
    fn any_text_survives_being_shown(name in "[ -~é…]{1,20}") {
        let env = [("DEMO_NAME", name.as_str())];
        let Ok(loaded) = load_with("server: { port: 5 }", &env) else { return Ok(()) };
        let yaml = loaded.effective.to_string().replace("${", "$${");
        prop_assert_eq!(ok(&yaml, &[]).name, name.trim());
    }
}
