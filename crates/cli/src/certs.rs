//! `nowconnect certs`: a CA for the mesh and certificates for its hubs.

mod authority;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use rustls::pki_types::ServerName;

use crate::failure::Failure;
use crate::private_file;
use crate::replace_file::{self, Existing, PUBLIC, SECRET};
use authority::{Authority, Pair};

const GROUP: &str = "\
Examples:
  nowconnect certs init
  nowconnect certs issue cloud-a.example.com cloud-b.example.com";

/// Make the CA of a mesh and the certificates of its hubs
///
/// Hubs prove themselves to each other by certificates of a CA of their own (ha.mesh.tls). These
/// commands make both; a PKI of yours does as well.
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Init),
    Issue(Issue),
}

const INIT_EXAMPLES: &str = "\
Examples:
  nowconnect certs init
  nowconnect certs init --dir /etc/nowconnect/certs --name 'Example mesh' --days 1825

Keep ca.key off the hubs: whoever has it can join the mesh.";

/// Make a CA: ca.pem for every hub, ca.key (mode 0600) for you alone
#[derive(Debug, clap::Args)]
#[command(after_help = INIT_EXAMPLES)]
struct Init {
    /// Directory to write to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Common name of the CA
    #[arg(long, value_name = "TEXT", default_value = "NowConnect mesh CA")]
    name: String,
    /// Days that it is valid
    #[arg(long, value_name = "N", default_value = "3650", value_parser = days())]
    days: u32,
    /// Replace a CA that is there; its certificates are worth nothing then
    #[arg(long)]
    force: bool,
}

const ISSUE_EXAMPLES: &str = "\
Examples:
  nowconnect certs issue cloud-a.example.com cloud-b.example.com
  nowconnect certs issue cloud-a.example.com --ip 10.0.0.5 --san cloud-a.internal
  nowconnect certs issue 10.0.0.5 --file hub-a --days 90

NAME is the host by which the other hubs reach this one: that of its URL in their ha.mesh.peers.
A hub takes new files up by itself, without dropping a link.";

/// Issue certificates to hubs: NAME.crt and NAME.key (mode 0600), for clients and servers
#[derive(Debug, clap::Args)]
#[command(after_help = ISSUE_EXAMPLES)]
struct Issue {
    /// Host names or addresses, each of a hub of its own
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Directory with ca.pem and ca.key, and to write to
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// A further address of the hub; only with one NAME
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<std::net::IpAddr>,
    /// A further host name of the hub; only with one NAME
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,
    /// Name of the files, in place of NAME; only with one NAME
    #[arg(long, value_name = "STEM")]
    file: Option<String>,
    /// Days that they are valid
    #[arg(long, value_name = "N", default_value = "365", value_parser = days())]
    days: u32,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Init(args) => init(&args),
        Command::Issue(args) => issue(&args),
    }
}

fn init(args: &Init) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make the directory {}", args.dir.display()))?;
    let pair = Authority::make(&args.name, args.days)?;
    let files = Files::new(&args.dir, "ca", "pem");
    files.write(&pair, args.force)?;
    let dir = shown(&args.dir);
    say(&format!(
        "Next: nowconnect certs issue NAME --dir {dir}, for each hub; then copy ca.pem and the hub's \
         two files to it.\n"
    ))
}

fn issue(args: &Issue) -> Result<(), Failure> {
    let requests = requests(args).map_err(Failure::Usage)?;
    let ca = Files::new(&args.dir, "ca", "pem");
    private_file::judge(&ca.key).map_err(Failure::Usage)?;
    let authority = Authority::read(&ca.certificate, &ca.key).map_err(Failure::Usage)?;
    // All of them are checked before the first is written.
    for request in &requests {
        let files = Files::new(&args.dir, &request.stem, "crt");
        files.check(args.force).map_err(Failure::Usage)?;
    }
    let ca = shown(&ca.certificate);
    for Request { stem, names } in requests {
        let issued = authority.issue(&names, args.days)?;
        if issued.is_cut {
            eprintln!(
                "note: {stem} ends with its CA, sooner than in {} days",
                args.days
            );
        }
        let files = Files::new(&args.dir, &stem, "crt");
        files.write(&issued.pair, args.force)?;
        let (certificate, key) = (shown(&files.certificate), shown(&files.key));
        let host = url_host(&names);
        say(&format!(
            "# For the hub that is reached as {host}:\n\
             ha:\n  mesh:\n    tls:\n      ca_bundle: {ca}\n      cert_file: {certificate}\n      \
             key_file: {key}\n\
             # and for every other hub: ha.mesh.peers: [\"wss://{host}/mesh\"], with the port that is \
             dialed unless it is 443\n",
        ))?;
    }
    Ok(())
}

/// One certificate that is wanted.
struct Request {
    stem: String,
    names: Vec<ServerName<'static>>,
}

fn requests(args: &Issue) -> anyhow::Result<Vec<Request>> {
    let more = !args.ip.is_empty() || !args.san.is_empty() || args.file.is_some();
    if more && args.names.len() > 1 {
        bail!("--ip, --san and --file are for one NAME: issue the others by themselves");
    }
    let mut stems = HashSet::new();
    let mut requests = Vec::new();
    for name in &args.names {
        let stem = args.file.as_ref().unwrap_or(name).to_ascii_lowercase();
        if stem.contains(['/', '\0']) || stem.starts_with('.') || stem == "ca" {
            bail!("{stem:?} cannot be the name of the files: choose another with --file");
        }
        if !stems.insert(stem.clone()) {
            bail!("{name} is named twice");
        }
        let mut names = vec![host(name)?];
        for san in &args.san {
            names.push(host(san)?);
        }
        names.extend(args.ip.iter().map(|&ip| ServerName::from(ip)));
        requests.push(Request { stem, names });
    }
    Ok(requests)
}

fn host(name: &str) -> anyhow::Result<ServerName<'static>> {
    let name = name.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_ascii_lowercase()).map_err(|_| {
        let hint = match name {
            name if name.contains('*') => "hubs take no wildcards: name each host",
            name if name.contains('/') => "give the host of the URL alone",
            name if name.contains(':') => "give the host without a port",
            _ => "expected a host name like cloud-a.example.com, or an address",
        };
        anyhow!("{name:?} is no host: {hint}")
    })
}

/// The first name as it stands in a URL.
fn url_host(names: &[ServerName<'static>]) -> String {
    match names.first() {
        Some(ServerName::IpAddress(address)) => match std::net::IpAddr::from(*address) {
            std::net::IpAddr::V6(address) => format!("[{address}]"),
            address @ std::net::IpAddr::V4(_) => address.to_string(),
        },
        Some(name) => name.to_str().into_owned(),
        None => String::new(),
    }
}

/// A certificate and its key.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(dir: &Path, stem: &str, extension: &str) -> Self {
        Self {
            certificate: dir.join(format!("{stem}.{extension}")),
            key: dir.join(format!("{stem}.key")),
        }
    }

    /// Refuses to touch what is there: a key without its certificate helps nobody.
    fn check(&self, force: bool) -> anyhow::Result<()> {
        let mut both = [&self.certificate, &self.key].into_iter();
        match both.find(|path| path.symlink_metadata().is_ok()) {
            Some(path) if !force => bail!("{} exists; --force replaces it", path.display()),
            _ => Ok(()),
        }
    }

    fn write(&self, pair: &Pair, force: bool) -> Result<(), Failure> {
        self.check(force).map_err(Failure::Usage)?;
        let existing = match force {
            true => Existing::Replace,
            false => Existing::Keep,
        };
        replace_file::write(&self.key, &pair.key, SECRET, existing)?;
        replace_file::write(&self.certificate, &pair.certificate, PUBLIC, existing)?;
        for path in [&self.certificate, &self.key] {
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    }
}

/// A path as it can stand in a configuration that is read from anywhere.
fn shown(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.display().to_string()
}

fn say(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
