//! `nowconnect token`: development keys, key sets and agent tokens.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use nowconnect_hub::auth::mint::{AgentToken, KeyKind, MintError, SigningKey, jwks};

use crate::duration;
use crate::failure::Failure;
use crate::private_file;
use crate::replace_file::{self, Existing, PUBLIC, SECRET};

/// Make development keys, JWKS documents and agent tokens
///
/// Production tokens come from your identity provider; these commands stand in for it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Keygen(Keygen),
    Jwks(Jwks),
    Mint(Mint),
}

const KEYGEN_EXAMPLES: &str = "\
Examples:
  nowconnect token keygen --out dev-key.pem
  nowconnect token keygen --out dev-rsa.pem --alg RS256";

/// Make a private key that signs agent tokens (PKCS#8 PEM, mode 0600)
#[derive(Debug, clap::Args)]
#[command(after_help = KEYGEN_EXAMPLES)]
struct Keygen {
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Signature algorithm
    #[arg(long, value_enum, default_value = "ES256", ignore_case = true)]
    alg: Alg,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Alg {
    #[value(name = "ES256")]
    Es256,
    #[value(name = "RS256")]
    Rs256,
    #[value(name = "EdDSA")]
    EdDsa,
}

const JWKS_EXAMPLES: &str = "\
Examples:
  nowconnect token jwks --key dev-key.pem --out jwks.json
  NOWCONNECT_JWKS_URL=file://$PWD/jwks.json nowconnect hub --config cloud.yaml

Rotation: publish both keys, mint with the new one, then publish the new one alone:
  nowconnect token jwks --key old.pem --key new.pem --out jwks.json";

/// Print the public halves of keys as the JWKS document that a hub reads
#[derive(Debug, clap::Args)]
#[command(after_help = JWKS_EXAMPLES)]
struct Jwks {
    /// Private key file; repeat for several
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// Write to a file instead of stdout, replacing it at once and whole
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const MINT_EXAMPLES: &str = "\
Examples:
  nowconnect token mint --key dev-key.pem --agent-id premise-01 --out agent.jwt
  nowconnect token mint --key dev-key.pem --agent-id premise-01 --connectors ldap,pg --ttl 30d";

/// Sign an agent token; makes the key too if there is none yet
#[derive(Debug, clap::Args)]
#[command(after_help = MINT_EXAMPLES)]
struct Mint {
    /// Private key file; a new ES256 key is made when there is no such file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Who the agent is: 1 to 64 characters of A-Z a-z 0-9 . _ -
    #[arg(long, value_name = "ID")]
    agent_id: String,
    /// Connectors it may export; without this the token has no such claim
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    connectors: Option<Vec<String>>,
    /// The hub's security.audience
    #[arg(
        long,
        value_name = "TEXT",
        env = "NOWCONNECT_AUDIENCE",
        default_value = "nowconnect"
    )]
    audience: String,
    /// The hub's security.issuer, if it demands one
    #[arg(long, value_name = "TEXT")]
    issuer: Option<String>,
    /// How long it is valid: 90s, 15m, 24h, 30d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    ttl: Duration,
    /// Write to a file of mode 0600 instead of stdout, replacing it at once and whole
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Keygen(args) => keygen(&args),
        Command::Jwks(args) => print_jwks(&args),
        Command::Mint(args) => mint(args),
    }
}

fn keygen(args: &Keygen) -> Result<(), Failure> {
    let kind = match args.alg {
        Alg::Es256 => KeyKind::Es256,
        Alg::Rs256 => KeyKind::Rs256,
        Alg::EdDsa => KeyKind::EdDsa,
    };
    let existing = match args.force {
        true => Existing::Replace,
        false => Existing::Keep,
    };
    make_key(kind, &args.out, existing).map(drop)
}

fn make_key(kind: KeyKind, path: &Path, existing: Existing) -> Result<SigningKey, Failure> {
    let key = SigningKey::generate(kind)?;
    replace_file::write(path, &key.to_pem(), SECRET, existing)?;
    eprintln!("made the key {}", path.display());
    Ok(key)
}

fn print_jwks(args: &Jwks) -> Result<(), Failure> {
    let keys = args
        .key
        .iter()
        .map(|path| read_key(path))
        .collect::<Result<Vec<_>, _>>()?;
    let document = serde_json::to_string_pretty(&jwks(&keys))? + "\n";
    deliver(&document, args.out.as_deref(), PUBLIC)
}

fn mint(args: Mint) -> Result<(), Failure> {
    let key = match args.key.try_exists() {
        Ok(false) => make_key(KeyKind::default(), &args.key, Existing::Keep)?,
        _ => read_key(&args.key)?,
    };
    let agent = AgentToken {
        agent_id: args.agent_id,
        // A variable that is set to nothing counts as unset.
        audience: match args.audience.is_empty() {
            true => "nowconnect".to_owned(),
            false => args.audience,
        },
        issuer: args.issuer,
        connectors: args.connectors,
        lifetime: args.ttl,
    };
    let token = key
        .mint(&agent, SystemTime::now())
        .map_err(|error| match error {
            MintError::AgentId(_) => Failure::usage(error),
            other => Failure::from(other),
        })?;
    deliver(&format!("{token}\n"), args.out.as_deref(), SECRET)
}

fn read_key(path: &Path) -> Result<SigningKey, Failure> {
    let at = || format!("key file {}", path.display());
    private_file::judge(path)
        .with_context(at)
        .map_err(Failure::Usage)?;
    let pem = std::fs::read_to_string(path)
        .with_context(at)
        .map_err(Failure::Usage)?;
    SigningKey::from_pem(&pem)
        .with_context(at)
        .map_err(Failure::Usage)
}

fn deliver(text: &str, out: Option<&Path>, mode: u32) -> Result<(), Failure> {
    match out {
        Some(path) => {
            replace_file::write(path, text, mode, Existing::Replace)?;
            eprintln!("wrote {}", path.display());
        }
        None => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(())
}
