//! The audit trail: what is written ([`record`], [`trail`]), by whom ([`sink`], [`writer`]), and
//! `nowconnect audit verify`, which proves that nothing is missing from it or was changed.

mod record;
mod report;
mod sink;
mod trail;
mod verify;
mod writer;

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::Value;

use crate::failure::Failure;
use record::{Head, Seal};
use report::Report;
use verify::Verifier;

pub(crate) use record::Draft;
pub(crate) use sink::Audit;

const VERIFY_EXAMPLES: &str = "\
Examples:
  nowconnect audit verify /var/lib/nowconnect/audit.log
  nowconnect audit verify audit.log.2 audit.log.1 audit.log --key-file audit.key
  zcat audit.log.2.gz | nowconnect audit verify - audit.log.1 audit.log --head 1204:9f86d081...

Files are read in the order given, the oldest first.
Exit codes: 0 the trail is whole, 1 it is not, 2 wrong usage.
Without --key-file this proves that nothing was changed by accident or by somebody who did not compute the
hashes anew; with a key, by anybody who does not have it. Only --head shows that the end was cut off: take it
from the last audit_head line of the hub's ordinary log.";

const GROUP: &str = "\
Examples:
  nowconnect audit verify /var/lib/nowconnect/audit.log";

/// Work with the audit trail of a hub
#[derive(Debug, clap::Args)]
#[command(after_help = GROUP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Verify(Verify),
}

/// Prove that an audit trail is whole, or say where it is not
#[derive(Debug, clap::Args)]
#[command(after_help = VERIFY_EXAMPLES)]
struct Verify {
    /// Files of one trail, the oldest first; '-' is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The key that the hub has in audit.key_file; several when it was changed
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// A record that must be there: `seq` and `hash` of an audit_head line
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<Head>,
    /// The record that the first one must follow
    #[arg(long, value_name = "SEQ:HASH")]
    after: Option<Head>,
    /// Take a trail for whole although the hub itself recorded that it lost records
    #[arg(long)]
    accept_gaps: bool,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let Command::Verify(args) = &args.command;
    match verify(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => failure.report(),
    }
}

fn verify(args: &Verify) -> Result<bool, Failure> {
    let keys = args.key_file.iter().map(|path| Seal::load(path));
    let keys: Vec<_> = keys.collect::<Result<_, _>>().map_err(Failure::usage)?;
    let open = |path: &PathBuf| -> anyhow::Result<Box<dyn BufRead>> {
        let name = path.display().to_string();
        if name == "-" {
            return Ok(Box::new(std::io::stdin().lock()));
        }
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        Ok(Box::new(BufReader::with_capacity(256 * 1024, file)))
    };
    // All of them first: whoever mistyped the last waits for nothing.
    let files = args.files.iter().map(|path| Ok((path, open(path)?)));
    let files: Vec<_> = files
        .collect::<anyhow::Result<_>>()
        .map_err(Failure::usage)?;
    let mut verifier = Verifier::new(keys, args.after, args.head, Report::new(!args.json));
    for (path, file) in files {
        let name = path.display().to_string();
        let read = verifier.read(&name, file);
        read.with_context(|| format!("cannot read {name}"))?;
    }
    let report = verifier.finish();
    let whole = report.is_whole(args.accept_gaps);
    let text = match args.json {
        true => format!("{:#}", report.to_json(whole)),
        false => report.summary(whole),
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(whole)
}

/// A record of the trail's own.
fn note(event: &str, fields: Value) -> Draft {
    let mut members = format!("\"event\":\"{event}\"");
    for (key, value) in fields.as_object().into_iter().flatten() {
        if !value.is_null() {
            members.push_str(&format!(",\"{key}\":{value}"));
        }
    }
    Draft {
        ts: crate::timestamp::now(),
        members,
    }
}
