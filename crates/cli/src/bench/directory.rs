//! `nowconnect bench ldap`: searches in a directory.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use nowconnect_link::tls::{ClientFiles, LiveClientConfig, Roots};
use rustls::ClientConfig;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::filter;
use super::ldap::{Client, LdapError, Login, Search, Server};
use super::load::{self, Answer, Pace, Work};
use super::options::{Load, Target};
use super::report::{Output, Run};
use crate::failure::Failure;
use crate::platform::raise_open_files;
use crate::runtime::block_on;

const EXAMPLES: &str = "\
Examples:
  LDAP_BIND_PASSWORD=... nowconnect bench ldap --host hub.example.com --port 389 \\
    --bind-dn cn=reader,dc=example,dc=org --base-dn dc=example,dc=org --filter '(uid=u1*)'
  nowconnect bench ldap --ssl --ca ca.pem --port 636 --base-dn dc=example,dc=org --workload 20x3
  nowconnect bench ldap --port 389 --base-dn dc=example,dc=org --concurrency 50 --rps-per-worker 2 \\
    --duration 60 --slo p99=200,errors=0 --out report.json

Each worker binds once and then searches over the same connection; a search with pages is one request,
all pages together. With a rate, a request's time runs from when it was due, so that a stall counts for
everything that waited behind it. The JSON report goes to standard output, a summary to standard error.
--workload runs one of the workloads whose figures were published for the Python system.
Exit code 1: an objective of --slo was missed, or nothing succeeded.";

/// Measure searches in a directory
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// TLS from the first byte (ldaps); certificates are always verified
    #[arg(long, env = "NC_SSL", value_parser = clap::builder::FalseyValueParser::new())]
    ssl: bool,
    /// CA of the server's certificate, PEM, besides those of the system
    #[arg(long, value_name = "FILE", requires = "ssl")]
    ca: Option<PathBuf>,
    /// Who binds; nobody in particular without it
    #[arg(long, value_name = "DN", env = "LDAP_BIND_DN")]
    bind_dn: Option<String>,
    /// The password; others see it in the list of processes: better LDAP_BIND_PASSWORD
    #[arg(long, value_name = "TEXT", conflicts_with = "password_file")]
    password: Option<String>,
    /// File with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where to search
    #[arg(long, value_name = "DN", env = "LDAP_BASE_DN", default_value = "")]
    base_dn: String,
    /// What to search (RFC 4515)
    #[arg(
        long,
        value_name = "FILTER",
        env = "LDAP_FILTER",
        default_value = "(objectClass=*)"
    )]
    filter: String,
    /// Attributes to return, separated by commas [default: all]
    #[arg(long, value_name = "LIST", env = "LDAP_ATTRS", value_delimiter = ',')]
    attrs: Vec<String>,
    /// How deep
    #[arg(
        long,
        value_enum,
        env = "LDAP_SCOPE",
        default_value = "sub",
        ignore_case = true
    )]
    scope: Scope,
    /// Entries of a page, 0 for no pages [default: 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    page_size: Option<u32>,
    #[command(flatten)]
    load: Load,
    /// A published workload, with its figures beside ours
    #[arg(long, value_enum, conflicts_with_all = ["concurrency", "rps_per_worker", "page_size"])]
    workload: Option<Workload>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    Base,
    #[value(alias = "level", alias = "onelevel")]
    One,
    #[value(alias = "subtree")]
    Sub,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Workload {
    /// 10 workers x 2 per second
    #[value(name = "10x2")]
    TenByTwo,
    /// 20 workers x 3 per second
    #[value(name = "20x3")]
    TwentyByThree,
    /// 50 workers x 2 per second
    #[value(name = "50x2")]
    FiftyByTwo,
    /// 10 workers x 2 per second, pages of 1000
    #[value(name = "page1000")]
    Page1000,
}

impl Workload {
    /// Workers, requests per second of each, page size, published p50 and p99 in ms.
    fn figures(self) -> (u16, f64, u32, f64, f64) {
        match self {
            Self::TenByTwo => (10, 2.0, PAGE, 49.0, 153.0),
            Self::TwentyByThree => (20, 3.0, PAGE, 371.0, 623.0),
            Self::FiftyByTwo => (50, 2.0, PAGE, 1028.0, 2089.0),
            Self::Page1000 => (10, 2.0, 1000, 125.0, 296.0),
        }
    }
}

const PAGE: u32 = 500;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    raise_open_files();
    args.output.check()?;
    let login = args.login()?;
    let filter = filter::encode(&args.filter);
    let filter = filter.map_err(|error| Failure::usage(anyhow!("--filter: {error}")))?;
    let (workers, rate, page, ..) = args
        .workload
        .map_or((10, 1.0, PAGE, 0.0, 0.0), Workload::figures);
    let pace = args.load.pace(rate, workers);
    let search = Search {
        base: args.base_dn.clone(),
        scope: args.scope as u32,
        filter,
        attributes: args
            .attrs
            .iter()
            .filter(|name| !name.is_empty())
            .cloned()
            .collect(),
        page_size: args.page_size.unwrap_or(page),
    };
    let port = args.target.port_or(if args.ssl { 636 } else { 389 });
    let server = Server {
        host: args.target.host.clone(),
        port,
        tls: args.tls()?,
        timeout: pace.timeout,
    };
    let workload = args.describe(&pace, &search);
    let shared = Arc::new(Shared {
        server,
        login,
        search,
    });
    let make = || Worker {
        shared: Arc::clone(&shared),
        client: None,
    };
    let target = json!({ "host": args.target.host, "port": port, "ssl": args.ssl });
    let measure = async {
        // What fails at the first try would fail ten thousand times.
        let mut first = make();
        let tried = timeout(pace.timeout, first.request()).await;
        tried
            .context("the first search had no answer in time")?
            .map_err(|error| anyhow!(error))?;
        first.finish().await;
        let run = Run::begin(target, workload)?;
        anyhow::Ok((run, load::run(pace, make).await?))
    };
    let (run, tally) = block_on(measure)??;
    run.end(&tally, &args.output, args.published())
}

impl Args {
    fn login(&self) -> Result<Login, Failure> {
        let given = match (&self.password, &self.password_file) {
            (Some(password), _) => {
                eprintln!(
                    "warning: everybody on this machine can read --password in the list of \
                     processes; use LDAP_BIND_PASSWORD or --password-file"
                );
                Some(password.clone())
            }
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))
                    .map_err(Failure::usage)?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            (None, None) => std::env::var("LDAP_BIND_PASSWORD").ok(),
        };
        let dn = self.bind_dn.clone().unwrap_or_default();
        match (dn.is_empty(), given.filter(|password| !password.is_empty())) {
            // Servers take a name without a password for nobody in particular (RFC 4513 5.1.2).
            (false, None) => Err(Failure::usage(anyhow!(
                "--bind-dn needs a password: LDAP_BIND_PASSWORD or --password-file"
            ))),
            (true, Some(_)) => Err(Failure::usage(anyhow!(
                "there is a password and nobody it is for: add --bind-dn"
            ))),
            (_, password) => Ok(Login {
                dn,
                password: password.unwrap_or_default(),
            }),
        }
    }

    fn tls(&self) -> Result<Option<Arc<ClientConfig>>, Failure> {
        if !self.ssl {
            return Ok(None);
        }
        let roots = match &self.ca {
            Some(bundle) => Roots::SystemAnd(bundle.clone()),
            None => Roots::System,
        };
        let files = ClientFiles {
            roots,
            identity: None,
        };
        let loaded = LiveClientConfig::load(files).map_err(Failure::usage)?;
        let mut config = ClientConfig::clone(&loaded.current());
        // The configuration is one for HTTP; LDAP has no name in ALPN.
        config.alpn_protocols.clear();
        Ok(Some(Arc::new(config)))
    }

    fn describe(&self, pace: &Pace, search: &Search) -> Value {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned())
        };
        json!({
            "name": name(self.workload.and_then(|workload| workload.to_possible_value())),
            "bind_dn": self.bind_dn,
            "base_dn": search.base,
            "filter": self.filter,
            "attrs": search.attributes,
            "scope": name(self.scope.to_possible_value()),
            "page_size": search.page_size,
            "concurrency": pace.workers,
            "rps_per_worker": pace.per_second,
            "duration_s": pace.duration.as_secs_f64(),
            "timeout_s": pace.timeout.as_secs_f64(),
        })
    }

    fn published(&self) -> Map<String, Value> {
        let mut more = Map::new();
        if let Some(workload) = self.workload {
            let (.., p50, p99) = workload.figures();
            more.insert("published".into(), json!({ "p50_ms": p50, "p99_ms": p99 }));
        }
        more
    }
}

struct Shared {
    server: Server,
    login: Login,
    search: Search,
}

struct Worker {
    shared: Arc<Shared>,
    client: Option<Client>,
}

impl Worker {
    async fn search(&mut self) -> Result<u64, LdapError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.shared.server, &self.shared.login).await?,
        };
        let found = client.search(&self.shared.search).await;
        if found.as_ref().err().is_none_or(LdapError::is_answer) {
            self.client = Some(client);
        }
        found
    }
}

impl Work for Worker {
    async fn prepare(&mut self) -> Result<(), String> {
        let connect = Client::connect(&self.shared.server, &self.shared.login);
        self.client = Some(connect.await.map_err(|error| error.to_string())?);
        Ok(())
    }

    async fn request(&mut self) -> Result<Answer, String> {
        let entries = self.search().await.map_err(|error| error.to_string())?;
        Ok(Answer {
            entries,
            ..Answer::default()
        })
    }

    fn reset(&mut self) {
        self.client = None;
    }

    async fn finish(self) {
        if let Some(client) = self.client {
            client.unbind().await;
        }
    }
}
