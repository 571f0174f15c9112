//! `nowconnect token`: development keys, key sets and agent tokens.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use nowconnect_agent::proof::{ProofKey, is_thumbprint};
use nowconnect_hub::auth::mint::{AgentToken, KeyKind, MintError, SigningKey, jwks};
use serde_json::json;

use crate::duration;
use crate::failure::Failure;
use crate::private_file;
use crate::replace_file::{self, Existing, PUBLIC, SECRET};

const GROUP: &str = "\
Examples:
  nowconnect token keygen --out dev-key.pem
  nowconnect token jwks --key dev-key.pem --out jwks.json
  nowconnect token mint --key dev-key.pem --agent-id premise-01 --out agent.jwt";

/// Make development keys, JWKS documents and agent tokens
///
/// Production tokens come from your identity provider; these commands stand in for it.
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Keygen(Keygen),
    Jwks(Jwks),
    Mint(Mint),
    DpopKey(DpopKey),
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
  nowconnect token mint --key dev-key.pem --agent-id premise-01 --connectors ldap,pg --ttl 30d
  nowconnect token mint --key dev-key.pem --agent-id premise-01 --dpop-key agent-dpop.pem";

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
    /// Thumbprint of the key that the agent must prove to hold (claim cnf.jkt)
    #[arg(long, value_name = "JKT", value_parser = thumbprint)]
    dpop_jkt: Option<String>,
    /// The same by the agent's key file
    #[arg(long, value_name = "FILE", conflicts_with = "dpop_jkt")]
    dpop_key: Option<PathBuf>,
    /// How long it is valid: 90s, 15m, 24h, 30d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    ttl: Duration,
    /// Write to a file of mode 0600 instead of stdout, replacing it at once and whole
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const DPOP_KEY_EXAMPLES: &str = "\
Examples:
  nowconnect token dpop-key --out /etc/nowconnect/agent-dpop.pem
  nowconnect token dpop-key --show /etc/nowconnect/agent-dpop.pem

The private key stays with the agent (tunnel.auth.dpop_key_file, NC_DPOP_KEY_FILE). Give the identity
provider the line `claim` for the agent's tokens, or `jwk` where it asks for the public key.";

/// Make the key with which an agent proves that its token is its own (DPoP), or show what tells of one
#[derive(Debug, clap::Args)]
#[command(after_help = DPOP_KEY_EXAMPLES)]
struct DpopKey {
    /// File to write: PKCS#8 PEM, mode 0600
    #[arg(long, value_name = "FILE", required_unless_present = "show")]
    out: Option<PathBuf>,
    /// Existing key file to read
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "alg", "force"])]
    show: Option<PathBuf>,
    /// Signature algorithm of a new key
    #[arg(long, value_enum, default_value = "ES256", ignore_case = true)]
    alg: Alg,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Keygen(args) => keygen(&args),
        Command::Jwks(args) => print_jwks(&args),
        Command::Mint(args) => mint(args),
        Command::DpopKey(args) => dpop_key(&args),
    }
}

fn keygen(args: &Keygen) -> Result<(), Failure> {
    make_key(args.alg.into(), &args.out, existing(args.force)).map(drop)
}

impl From<Alg> for KeyKind {
    fn from(alg: Alg) -> Self {
        match alg {
            Alg::Es256 => Self::Es256,
            Alg::Rs256 => Self::Rs256,
            Alg::EdDsa => Self::EdDsa,
        }
    }
}

fn existing(force: bool) -> Existing {
    match force {
        true => Existing::Replace,
        false => Existing::Keep,
    }
}

fn dpop_key(args: &DpopKey) -> Result<(), Failure> {
    if let Some(path) = &args.out {
        make_key(args.alg.into(), path, existing(args.force))?;
    }
    let Some(path) = args.out.as_ref().or(args.show.as_ref()) else {
        return Ok(());
    };
    let key = read_proof_key(path)?;
    let jkt = key.thumbprint();
    let claim = json!({ "cnf": { "jkt": jkt } });
    println!("jkt    {jkt}\nclaim  {claim}\njwk    {}", key.public());
    Ok(())
}

fn read_proof_key(path: &Path) -> Result<ProofKey, Failure> {
    let at = || format!("key file {}", path.display());
    let pem = std::fs::read_to_string(path).with_context(at);
    let pem = pem.map_err(Failure::Usage)?;
    let key = ProofKey::from_pem(&pem).with_context(at);
    key.map_err(Failure::Usage)
}

fn thumbprint(text: &str) -> Result<String, String> {
    match is_thumbprint(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("no thumbprint; `nowconnect token dpop-key --show FILE` prints one".to_owned())
        }
    }
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
    let proof_key = match &args.dpop_key {
        Some(path) => Some(read_proof_key(path)?.thumbprint().to_owned()),
        None => args.dpop_jkt,
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
        proof_key,
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
