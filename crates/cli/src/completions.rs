//! `nowconnect completions`: shell completions.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::Cli;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  nowconnect completions bash > /etc/bash_completion.d/nowconnect
  nowconnect completions zsh > ~/.zfunc/_nowconnect
  nowconnect completions fish > ~/.config/fish/completions/nowconnect.fish";

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "nowconnect", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(())
}
